"""Each label is a file of its own, read for a made-up scene of 48 x 40 px."""

import shutil
from contextlib import ExitStack

import numpy as np
import pyproj
import pytest
import rasterio
from folders import write_one
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform
from scenes import CRS, write_raster, write_scene

from glacier_fastai.data.scenes.geotiff import SceneRaster
from glacier_fastai.data.sources import labels
from glacier_fastai.data.sources.labels import label_masks
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.errors import DataError, DataNote

H, W = 48, 40
METRES = from_origin(500_000, 3_100_000, 30, 30)
DEGREES = from_origin(86, 28, 3e-4, 3e-4)
ROTATED = METRES @ Affine.rotation(20)
SOUTH_UP = METRES @ Affine.scale(1, -1)
COMPOUND = "EPSG:32645+5773"
shift = Affine.translation


@pytest.fixture
def codes():
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 255], np.uint8), (H, W))


def scene_at(tmp_path, crs=CRS, transform=METRES, name="s.tif"):
    values = np.random.default_rng(1).integers(1, 99, (2, H, W)).astype(np.uint16)
    return write_raster(tmp_path / name, values, bands=["red", "nir"], crs=crs, transform=transform)


def label_at(tmp_path, values, crs=CRS, transform=METRES, name="l.tif", **kwargs):
    return write_raster(tmp_path / name, np.atleast_3d(values.T).T, crs=crs, transform=transform, **kwargs)


def masks_of(labels, scenes, align=False):
    """Return masks and notes."""
    notes = []
    with ExitStack() as stack:
        opened = [stack.enter_context(SceneRaster(path)) for path in scenes]
        return list(label_masks(labels, opened, align, notes.append)), notes


def one(label, scene, align=False):
    masks, notes = masks_of([label], [scene], align)
    return masks[0], notes


def refuse(message, label, scene, align=False):
    with pytest.raises(DataError, match=message) as err:
        one(label, scene, align)
    assert str(err.value).startswith(str(label))
    assert "\n" not in str(err.value)


def plain(tmp_path, values, nodata=None, name="l.tif"):
    """Return mask and notes of a label on the scene's grid."""
    return one(label_at(tmp_path, values, nodata=nodata, name=name), scene_at(tmp_path))


# where it lies


PLACES = [(CRS, METRES), ("EPSG:4326", DEGREES), (CRS, ROTATED), (CRS, SOUTH_UP), (COMPOUND, METRES)]


@pytest.mark.parametrize(("crs", "place"), PLACES)
def test_a_label_on_the_grid_is_taken_as_it_is(tmp_path, codes, crs, place):
    scene = scene_at(tmp_path, crs, place)
    for own in (crs, None):  # by its own geotransform alone, too
        for off in (0, 0.004):
            mask, notes = one(label_at(tmp_path, codes, own, place @ shift(off, -off)), scene)
            np.testing.assert_array_equal(mask, codes)
            assert notes == []


@pytest.mark.parametrize(("crs", "place"), PLACES)
@pytest.mark.parametrize(
    ("move", "message"),
    [
        (shift(3, -2), "does not lie on the grid of .*s.tif but 3 px right and 2 px up; set align"),
        (shift(-0.5, 0), "0.5 px left; set align"),
        (shift(0, 0.05), "0.05 px down"),
        (shift(0, 10_000), "10000 px down"),
        (Affine.scale(2), "has pixels of .*, but .*s.tif of"),
        (Affine.scale(1, 1.001), "has pixels of .*, but"),
        (Affine.scale(1.0005), "has pixels of .*, but"),
        (Affine.rotation(1), "turned against those of"),
        (shift(0, H) @ Affine.scale(1, -1), "turned against those of"),
    ],
)
def test_a_label_on_another_grid_is_refused_whatever_the_unit(tmp_path, codes, crs, place, move, message):
    scene = scene_at(tmp_path, crs, place)
    for own in (crs, None):
        refuse(message, label_at(tmp_path, codes, own, place @ move), scene)


def test_the_same_crs_written_otherwise(tmp_path, codes):
    scene = scene_at(tmp_path)
    for crs in (COMPOUND, pyproj.CRS.from_epsg(32645).to_wkt("WKT1_ESRI"), "+proj=utm +zone=45 +datum=WGS84"):
        mask, notes = one(label_at(tmp_path, codes, crs), scene)
        np.testing.assert_array_equal(mask, codes)
        assert notes == []
    refuse(
        "is in WGS 84 / UTM zone 44N, but .*s.tif in .*45N; set align", label_at(tmp_path, codes, "EPSG:32644"), scene
    )


def test_a_datum_whose_shift_is_not_known_is_said(tmp_path, codes):
    x, y = pyproj.Transformer.from_crs(CRS, "EPSG:4144", always_xy=True).transform(METRES.c, METRES.f)
    label = label_at(tmp_path, codes, "EPSG:4144", from_origin(x, y, 3e-4, 3e-4))
    _, (moved, odd, *_) = one(label, scene_at(tmp_path), align=True)
    assert "brought to its grid" in moved and "l.tif: the shift from the datum of Kalianpur 1937" in odd


def test_longitudes_of_0_to_360_are_those_of_180_and_less(tmp_path, codes):
    west, east = from_origin(-73, -31, 3e-4, 3e-4), from_origin(287, -31, 3e-4, 3e-4)
    for place, other in ((west, east), (east, west)):
        scene = scene_at(tmp_path, "EPSG:4326", place)
        np.testing.assert_array_equal(one(label_at(tmp_path, codes, "EPSG:4326", other), scene)[0], codes)
        refuse("1 px right", label_at(tmp_path, codes, "EPSG:4326", other @ shift(1, 0)), scene)


def test_without_a_geotransform_it_is_taken_as_it_lies_and_said(tmp_path, codes):
    scene = scene_at(tmp_path)
    world = from_origin(0, 0, 1, 1)  # as ENVI files say "arbitrary"
    for path in (
        write_one(tmp_path / "a.tif", codes),
        write_one(tmp_path / "b.tif", codes, crs=CRS, transform=Affine.identity()),
        write_one(tmp_path / "c.png", codes, driver="PNG"),
        write_one(tmp_path / "d.tif", codes, transform=world),
    ):
        for align in (False, True):
            mask, notes = one(path, scene, align)
            np.testing.assert_array_equal(mask, codes)
            assert notes == [f"{path}: has no geotransform; taken as it lies, pixel on pixel of {scene}"]
    for align in (False, True):
        small = write_one(tmp_path / "small.tif", codes[1:])
        refuse("47 x 40 px, but .*s.tif has 48 x 40; without a geotransform", small, scene, align)
    other = write_one(tmp_path / "other.tif", codes, crs="EPSG:32644", transform=Affine.identity())
    refuse("is in WGS 84 / UTM zone 44N", other, scene)
    degrees = write_one(tmp_path / "degrees.tif", codes, crs=CRS, transform=from_origin(87, 28, 3e-4, 3e-4))
    refuse("UTM zone 45N, in which it has pixels of 0.0003 m", degrees, scene, True)


def test_a_world_file_is_a_geotransform(tmp_path, codes):
    path = write_one(tmp_path / "l.png", codes, driver="PNG")
    (tmp_path / "l.pgw").write_text("30\n0\n0\n-30\n500315\n3099985\n")
    refuse("10 px right", path, scene_at(tmp_path))


def test_control_points_only_are_refused(tmp_path, codes):
    corners = ((0, 0), (0, W), (H, 0), (H, W))
    points = [GroundControlPoint(r, c, 500_000 + 30 * c, 3_100_000 - 30 * r) for r, c in corners]
    profile = {"driver": "GTiff", "count": 1, "height": H, "width": W, "dtype": "uint8"}
    with rasterio.open(tmp_path / "l.tif", "w", gcps=points, crs=CRS, **profile) as file:
        file.write(codes, 1)
    for align in (False, True):
        refuse(r"control points or RPCs only; warp it .*\(gdalwarp\)", tmp_path / "l.tif", scene_at(tmp_path), align)


# brought to the grid


@pytest.mark.parametrize(("crs", "place"), PLACES)
def test_align_moves_whole_pixels_exactly(tmp_path, codes, crs, place):
    scene, want = scene_at(tmp_path, crs, place), np.full((H, W), 255)
    want[2:, :-3] = codes[:-2, 3:]
    for own in (crs, None):
        path = label_at(tmp_path, codes, own, place @ shift(-3, 2))
        mask, notes = one(path, scene, align=True)
        np.testing.assert_array_equal(mask, want)
        share = (H - 2) * (W - 3) / (H * W)
        assert notes == [
            f"{path}: does not lie on the grid of {scene} but 3 px left and 2 px down; brought to its grid (nearest "
            f"pixel){'' if own else ', taken to be in its CRS'}, of which it covers {share:.1%}"
        ]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("step", [1, 1 / 3, 2])
def test_align_takes_the_nearest_pixel_of_any_size(tmp_path, codes, dtype, step):
    n = int(60 / step)
    label = np.random.default_rng(2).integers(0, 4, (n, n)).astype(dtype)
    label[:4] = 9
    path = label_at(tmp_path, label, transform=METRES @ shift(-5.25, -5.25) @ Affine.scale(step), nodata=9)
    rows, cols = (np.floor((np.arange(k) + 0.5 + 5.25) / step).astype(int) for k in (H, W))
    want = label[rows[:, None], cols]
    np.testing.assert_array_equal(one(path, scene_at(tmp_path), align=True)[0], np.where(want == 9, 255, want))


def world(first, size=0.25):
    """Return a label of the whole Earth whose codes tell the place, and its transform."""
    lon, lat = np.meshgrid(np.arange(first, first + 360, size) + size / 2, np.arange(90, -90, -size) - size / 2)
    return lookup(lon, lat), from_origin(first, 90, size, size)


def lookup(lon, lat):
    return ((np.floor(lon / 0.25) % 1440 * 7 + np.floor(lat / 0.25) * 3) % 4).astype(np.uint8)


@pytest.mark.parametrize("first", [-180, 0])
@pytest.mark.parametrize(
    ("crs", "place"),
    [
        ("EPSG:32719", from_origin(310_000, 6_580_000, 2000, 2000)),  # Andes
        ("EPSG:32601", from_origin(440_000 - 300_000, 7_800_000, 9000, 9000)),  # across 180 degrees
        ("EPSG:3413", from_origin(-1e6, 1.2e6, 50_000, 50_000)),  # over the pole
        ("EPSG:3031", from_origin(-2e6, 2e6, 99_000, 99_000)),
        ("EPSG:4326", from_origin(177.03, 70.03, 0.2, 0.2)),
        ("EPSG:4326", from_origin(-183.03, 70.03, 0.2, 0.2)),
        ("EPSG:4674", from_origin(287, -31, 0.01, 0.01)),
    ],
)
def test_align_anywhere_on_earth(tmp_path, first, crs, place):
    scene = scene_at(tmp_path, crs, place)
    label, grid = world(first)
    mask, notes = one(label_at(tmp_path, label, "EPSG:4326", grid), scene, align=True)
    cols, rows = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    x, y = place.c + place.a * cols, place.f + place.e * rows
    lon, lat = (np.array(v).reshape(H, W) for v in transform(crs, "EPSG:4326", x.ravel(), y.ravel()))
    assert (mask == lookup(lon, lat)).mean() > 0.999
    assert "covers 100.0%" in notes[0]


def test_align_of_other_zones_and_heights(tmp_path, codes):
    scene = scene_at(tmp_path)
    big = np.pad(codes, 30, constant_values=3)
    with rasterio.open(scene) as s:
        x, y = transform(s.crs, "EPSG:32644", [s.bounds.left], [s.bounds.top])
    near = from_origin(x[0] - 900, y[0] + 900, 30, 30)
    for crs in ("EPSG:32644", "EPSG:32644+5773"):
        mask, notes = one(label_at(tmp_path, big, crs, near), scene, align=True)
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
        assert "is in WGS 84 / UTM zone 44N" in notes[0]
        assert "covers 100.0%" in notes[0]


def test_align_in_several_squares_and_over_the_rim(tmp_path, monkeypatch, codes):
    scene, path = scene_at(tmp_path), label_at(tmp_path, codes, transform=METRES @ shift(25, -30) @ Affine.rotation(7))
    whole = one(path, scene, align=True)
    monkeypatch.setattr("glacier_fastai.data.scenes.nearest.SIDE", 7)
    parts = one(path, scene, align=True)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1]
    assert 0.05 < (parts[0] != 255).mean() < 0.4


def test_align_says_nothing_where_nothing_is_moved_and_refuses_what_shows_another_place(tmp_path, codes):
    scene = scene_at(tmp_path)
    assert one(label_at(tmp_path, codes), scene, align=True)[1] == []
    refuse(
        "10000 px right, and covers no pixel of it",
        label_at(tmp_path, codes, transform=METRES @ shift(1e4, 0)),
        scene,
        True,
    )
    far = label_at(tmp_path, codes, "EPSG:4326", DEGREES)
    refuse("covers no pixel of it; check that both show the same place", far, scene, True)
    local = label_at(tmp_path, codes, 'LOCAL_CS["site",UNIT["metre",1]]')
    refuse("is in site, which cannot be brought to WGS 84 / UTM zone 45N", local, scene, True)
    refuse("is in site, but", local, scene)


def test_nodata_and_masks_stay_so_when_a_label_is_moved(tmp_path, codes):
    scene, off = scene_at(tmp_path), METRES @ shift(-2, 0)
    hole = np.zeros((H, W), bool)
    hole[10:20, 5:15] = True
    want = np.full((H, W), 255, np.uint8)
    want[:, :-2] = np.where(hole, 255, codes % 4)[:, 2:]
    masked = label_at(tmp_path, codes % 4, transform=off, name="masked.tif")
    with rasterio.open(masked, "r+") as file:
        file.write_mask(~hole)
    alpha = np.stack([codes % 4, np.where(hole, 0, 255)]).astype(np.uint8)
    with rasterio.open(
        tmp_path / "alpha.tif",
        "w",
        driver="GTiff",
        count=2,
        height=H,
        width=W,
        dtype="uint8",
        crs=CRS,
        transform=off,
        photometric="MINISBLACK",
        alpha="YES",
    ) as file:
        file.write(alpha)
    for path in (masked, tmp_path / "alpha.tif"):
        np.testing.assert_array_equal(one(path, scene, align=True)[0], want)
    nan = np.where(hole, np.nan, codes % 4).astype(np.float32)
    np.testing.assert_array_equal(one(label_at(tmp_path, nan, transform=off), scene, align=True)[0], want)


# what it holds


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_whole_numbers_of_any_type(tmp_path, codes, dtype):
    mask, notes = plain(tmp_path, codes.astype(dtype))
    np.testing.assert_array_equal(mask, codes)
    assert notes == []


def test_one_bit_and_signed_bytes(tmp_path, codes):
    bits = (codes == 1).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "height": H, "width": W, "crs": CRS, "transform": METRES}
    with rasterio.open(tmp_path / "bit.tif", "w", dtype="uint8", nbits=1, **profile) as file:
        file.write(bits, 1)
    with rasterio.open(tmp_path / "int8.tif", "w", dtype="int8", nodata=-1, **profile) as file:
        file.write(np.where(codes == 255, -1, codes).astype(np.int8), 1)
    np.testing.assert_array_equal(one(tmp_path / "bit.tif", scene_at(tmp_path))[0], bits)
    np.testing.assert_array_equal(one(tmp_path / "int8.tif", scene_at(tmp_path))[0], codes)


def test_nan_is_no_label_and_fractions_are_no_codes(tmp_path, codes):
    label = np.where(codes == 255, np.nan, codes).astype(np.float32)
    np.testing.assert_array_equal(plain(tmp_path, label)[0], codes)
    np.testing.assert_array_equal(plain(tmp_path, label, nodata=np.nan)[0], codes)
    label[3, 4] = 0.5
    label[5, 6] = 1.0000001
    scene = scene_at(tmp_path)
    refuse(r"unknown codes 0.5, 1.0000001; allowed are 0 background", label_at(tmp_path, label), scene)
    many = np.random.default_rng(0).random((H, W))
    refuse(r"unknown codes (0\.\d+, ){7}0\.\d+; allowed are", label_at(tmp_path, many), scene)


def test_ice_of_unknown_kind_has_a_code_of_its_own(tmp_path, codes):
    codes[:5] = 254
    np.testing.assert_array_equal(plain(tmp_path, codes)[0], codes)


def test_a_colour_table_is_no_matter_and_a_picture_of_colours_is_refused(tmp_path, codes):
    scene, path = scene_at(tmp_path), label_at(tmp_path, codes)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {k: (k * 40, 9, 255 - k, 255) for k in range(256)})
    with rasterio.open(path) as file:
        assert file.colorinterp == (ColorInterp.palette,)
    np.testing.assert_array_equal(one(path, scene)[0], codes)
    for k in (3, 4):
        rgb = label_at(tmp_path, np.stack([codes] * k), name=f"rgb{k}.tif")
        for align in (False, True):
            refuse(rf"rgb{k}.tif: {k} bands, a picture of colours; a label raster has one band", rgb, scene, align)
        png = write_one(tmp_path / f"rgb{k}.png", np.stack([codes] * k), driver="PNG")
        refuse("a picture of colours", png, scene)
    refuse("2 bands; a label raster has one", label_at(tmp_path, np.stack([codes] * 2), name="two.tif"), scene)
    refuse("complex numbers", label_at(tmp_path, codes.astype(np.complex64), name="waves.tif"), scene)
    label = label_at(tmp_path, codes, name="index.tif")
    with rasterio.open(label, "r+") as file:
        file.write(np.where(codes == 1, 17, 42).astype(np.uint8), 1)
        file.write_colormap(1, {17: (0, 0, 0, 255)})
    refuse("unknown codes 17, 42", label, scene)


# what 0 and 255 mean


def test_a_mask_of_0_and_255_is_ice_of_unknown_kind(tmp_path, codes):
    ice = np.where(codes == 1, 255, 0).astype(np.uint8)
    for label in (ice, ice.astype(np.float32), ice.astype(np.int16)):
        mask, notes = plain(tmp_path, label)
        np.testing.assert_array_equal(mask, np.where(ice, 254, 0))
        assert len(notes) == 1
        assert f"{tmp_path / 'l.tif'}: holds only 0 and 255, so it is read as a binary mask" in notes[0]
        assert "where 255 means no label, declare it as nodata" in notes[0]
    mask, notes = plain(tmp_path, ice, nodata=255)
    np.testing.assert_array_equal(mask, ice)
    assert notes == []


def test_a_mask_is_known_by_all_labels_of_a_call(tmp_path, codes):
    scenes = [scene_at(tmp_path, name=f"{k}.tif") for k in "ab"]
    ice = np.where(codes == 1, 255, 0).astype(np.uint8)
    binary, none, four = (
        label_at(tmp_path, v, name=n) for v, n in ((ice, "i.tif"), (ice * 0, "n.tif"), (codes, "f.tif"))
    )
    masks, notes = masks_of([none, binary], scenes)
    assert [np.unique(m).tolist() for m in masks] == [[0], [0, 254]]
    assert [n.startswith(f"{binary}: holds only 0 and 255") for n in notes] == [True]
    masks, notes = masks_of([binary, binary], scenes)
    assert notes[0].startswith(f"{binary} and 1 more: ")
    masks, notes = masks_of([binary, four], scenes)
    assert [np.unique(m).tolist() for m in masks] == [[0, 255], [0, 1, 2, 3, 255]]
    assert notes == []


def test_255_alone_is_no_label(tmp_path):
    mask, notes = plain(tmp_path, np.full((H, W), 255, np.uint8))
    assert (mask == 255).all()
    assert notes == []


def test_a_mask_of_0_and_1_is_glacier(tmp_path, codes):
    ice = (codes == 1).astype(np.uint8)
    mask, notes = plain(tmp_path, ice)
    np.testing.assert_array_equal(mask, ice)
    assert notes == []


@pytest.mark.parametrize("code", [1, 2, 3, 254, 255])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_nodata_0_beside_one_other_code_is_background(tmp_path, codes, code, dtype):
    label = np.where(codes == 1, code, 0).astype(dtype)
    mask, notes = plain(tmp_path, label, nodata=0)
    np.testing.assert_array_equal(mask, np.where(label == 255, 254, label))
    assert f"l.tif: declares 0 as nodata, but holds only {code} beside it, so 0 is read as background" in notes[0]
    assert len(notes) == 1 + (code == 255)
    moved = label_at(tmp_path, label, transform=METRES @ shift(1, 0), nodata=0, name="moved.tif")
    mask, notes = one(moved, scene_at(tmp_path), align=True)
    np.testing.assert_array_equal(mask[:, 1:], np.where(label == 255, 254, label)[:, :-1])
    assert (mask[:, 0] == 255).all()  # outside of the label is not background


def test_nodata_0_beside_255_as_no_label(tmp_path, codes):
    codes[(codes > 1) & (codes < 255)] = 0
    np.testing.assert_array_equal(plain(tmp_path, codes, nodata=0)[0], codes)


def test_nodata_0_beside_several_codes_is_no_label(tmp_path, codes):
    mask, notes = plain(tmp_path, codes, nodata=0)
    np.testing.assert_array_equal(mask, np.where(codes == 0, 255, codes))
    assert len(notes) == 1
    assert "declares 0 as nodata, so 0 is read as no label, and no pixel is background" in notes[0]


def test_nodata_0_that_does_not_occur_is_not_spoken_of(tmp_path, codes):
    codes[:] = 1
    assert plain(tmp_path, codes, nodata=0)[1] == []


def test_a_scene_without_ice_among_masks_of_nodata_0_is_background(tmp_path, codes):
    scenes = [scene_at(tmp_path, name=f"{k}.tif") for k in "ab"]
    ice = (codes == 1).astype(np.uint8)
    some, none = (label_at(tmp_path, v, nodata=0, name=n) for v, n in ((ice, "i.tif"), (ice * 0, "n.tif")))
    masks, notes = masks_of([none, some], scenes)
    assert (masks[0] == 0).all()
    assert notes[0].startswith(f"{some} and 1 more: declares 0 as nodata")
    mask, notes = one(none, scenes[0])
    assert (mask == 255).all()
    assert "0 is read as no label" in notes[0]


def test_classes_counted_from_1(tmp_path, codes):
    three = (codes % 3 + 1).astype(np.uint8)
    mask, notes = plain(tmp_path, three)
    np.testing.assert_array_equal(mask, three)
    assert ["no pixel is 0, background; are classes counted from 1?" in n for n in notes] == [True]
    four = (codes % 4 + 1).astype(np.uint8)
    scene = scene_at(tmp_path)
    refuse("unknown codes 4; .* are classes counted from 1", label_at(tmp_path, four), scene)
    other = scene_at(tmp_path, name="b.tif")
    zero = label_at(tmp_path, four * 0, name="zero.tif")
    with pytest.raises(DataError, match="unknown codes 4; .*: recode it; declare no label as nodata"):
        masks_of([label_at(tmp_path, four), zero], [scene, other])
    masks, notes = masks_of([label_at(tmp_path, three), zero], [scene, other])
    assert notes == []


def test_undeclared_fill_values_are_named(tmp_path, codes):
    label = np.where(codes == 255, np.int16(-9999), codes)
    refuse("unknown codes -9999; .*declare no label as nodata", label_at(tmp_path, label), scene_at(tmp_path))
    np.testing.assert_array_equal(plain(tmp_path, label, nodata=-9999)[0], codes)


def test_labels_are_read_strip_by_strip(tmp_path, codes, monkeypatch):
    monkeypatch.setattr("glacier_fastai.data.scenes.nearest.STRIP", 3 * W)
    ice = np.where(codes == 1, 255, 0).astype(np.uint8)
    ice[:-1] = 0
    np.testing.assert_array_equal(plain(tmp_path, codes)[0], codes)
    np.testing.assert_array_equal(plain(tmp_path, ice)[0], np.where(ice, 254, 0))


# in a store


def test_all_labels_are_looked_at_before_a_tile_is_written(tmp_path, codes, monkeypatch):
    scenes = [scene_at(tmp_path, name=f"{k}.tif") for k in "ab"]
    labels = [label_at(tmp_path, codes), label_at(tmp_path, codes % 7 + 7, name="bad.tif")]
    monkeypatch.setattr("glacier_fastai.data.tiles.TileWriter.add", lambda *_, **__: pytest.fail("written"))
    with pytest.raises(DataError, match=r"bad\.tif: unknown codes"):
        prepare_scenes(scenes, tmp_path / "t", labels=labels, tile_size=32)
    assert not (tmp_path / "t").exists()


def test_a_store_keeps_what_was_said_and_counts_ice_of_unknown_kind(tmp_path, codes):
    ice = np.where(codes == 1, 255, 0).astype(np.uint8)
    path = label_at(tmp_path, ice, transform=METRES @ shift(0, 16))
    with pytest.warns(DataNote, match="brought to its grid"), pytest.warns(DataNote, match="binary mask"):
        prepare_scenes([scene_at(tmp_path)], tmp_path / "t", labels=[path], align=True, tile_size=32, min_ice=0.01)
    store = TileStore(tmp_path / "t")
    assert ["16 px down" in n for n in store.info["notes"]] == [True, False, False]
    assert store.info["made_by"]["align"] is True
    np.testing.assert_array_equal(store.ice_counts(), (store.masks == 254).sum((1, 2)))
    assert store.ice_counts().sum() > 0
    shutil.rmtree(store.path)
    with pytest.raises(DataError, match="`align` is for label rasters"):
        prepare_scenes([scene_at(tmp_path)], tmp_path / "t", outlines=[path], align=True)


@pytest.mark.parametrize("block", [16, 512])
def test_a_label_is_read_in_windows(tmp_path, monkeypatch, block):
    scene, label = write_scene(tmp_path / "s.tif", 96, 1500)
    with rasterio.open(label) as file:
        want, profile = file.read(1), file.profile
    profile |= {"tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(label, "w", **profile) as file:
        file.write(want, 1)
    monkeypatch.setattr("glacier_fastai.data.scenes.nearest.STRIP", 7001)
    with SceneRaster(scene) as opened:
        (mask,) = label_masks([label], [opened], align=False, note=print)
    np.testing.assert_array_equal(mask, want)


def test_a_label_whose_colours_gdal_cannot_read_is_refused(tmp_path, monkeypatch):
    def broken(raster, path):
        raise CPLE_BaseError(1, 1, "Key 0 of unknown type")

    scene, label = write_scene(tmp_path / "s.tif")
    monkeypatch.setattr(labels, "_check_kind", broken)
    with SceneRaster(scene) as opened, pytest.raises(DataError, match=r"s_label\.tif: not a raster.*Key 0 of unknown"):
        list(label_masks([label], [opened], False, print))
