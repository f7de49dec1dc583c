import numpy as np
import pytest
import rasterio
from folders import write_one
from polygons import outlines, rectangle
from pyproj import Transformer
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from scenes import BANDS, made_up, write_raster, write_scene

from glacier_fastai.data.scenes import opening
from glacier_fastai.data.scenes.opening import open_scene, scene_name
from glacier_fastai.data.scenes.product import Flag, Part, Product
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import DataError, DataNote

SIDE = {"blue": 10, "green": 10, "red": 10, "swir1": 20, "thermal": 30}  # metres


def read_all(scene):
    numbers, valid = scene.read_window(range(len(scene.bands)), 0, 0, scene.height, scene.width)
    return scene.in_units(numbers, range(len(scene.bands))), valid


def write_parts(folder, values, sides=SIDE):
    """Write a file per band, each the mean of pixels of 10 m."""
    folder.mkdir(exist_ok=True)
    for band, array in zip(BANDS, values, strict=True):
        k = sides[band] // 10
        coarse = array.reshape(array.shape[0] // k, k, array.shape[1] // k, k).mean((1, 3))
        place = from_origin(500_000, 3_100_000, 10 * k, 10 * k)
        write_raster(folder / f"{band}.tif", coarse[None].astype(np.uint16), transform=place)
    return {band: f"{band}.tif" for band in BANDS}


@pytest.fixture
def values():
    return made_up(120, 96, nodata=False)[0]


def test_a_file_per_band_is_the_scene_of_one_file(tmp_path, values):
    whole = write_raster(tmp_path / "scene.tif", values, bands=BANDS)
    bands = write_parts(tmp_path / "parts", values, dict.fromkeys(BANDS, 10))
    place = from_origin(500_000, 3_100_000, 10, 10)
    with rasterio.open(whole, "r+") as file:
        file.transform = place
    with open_scene(whole) as one, open_scene(tmp_path / "parts", bands=bands) as parts:
        assert parts.bands == one.bands and parts.transform == one.transform and parts.dtype == one.dtype
        for a, b in zip(read_all(one), read_all(parts), strict=True):
            np.testing.assert_array_equal(a, b)
        assert parts.scaling == one.scaling and parts.profile == one.profile


@pytest.mark.parametrize("at", [(0, 0, 40, 32), (7, 5, 13, 11), (39, 31, 1, 1)])
def test_bands_of_several_sizes_come_to_one_grid(tmp_path, values, at):
    bands = write_parts(tmp_path, values)
    row, col, h, w = at
    with open_scene(tmp_path, bands=bands, resolution=30) as scene:
        assert (scene.height, scene.width) == (40, 32)
        numbers, valid = scene.read_window(range(5), *at)
    means = values.reshape(5, 40, 3, 32, 3).mean((2, 4))[:, row : row + h, col : col + w]
    assert valid.all()
    np.testing.assert_allclose(numbers[[0, 1, 2]], means[[0, 1, 2]], rtol=1e-5)
    np.testing.assert_allclose(numbers[4], np.floor(means[4]))  # on that grid already
    with open_scene(tmp_path, bands=bands) as scene:  # the finest, if nobody says otherwise
        assert (scene.height, scene.width) == (120, 96)
        fine = read_all(scene)[0]
    np.testing.assert_array_equal(fine[0], values[0])
    assert abs(fine[3] - values[3]).mean() < 0.2 * values[3].std()


def test_a_window_is_the_same_however_it_is_cut(tmp_path, values):
    bands = write_parts(tmp_path, values)
    with open_scene(tmp_path, bands=bands, resolution=17) as scene:
        whole, valid = scene.read_window(range(5), 0, 0, scene.height, scene.width)
        part, known = scene.read_window(range(5), 11, 9, 23, 17)
    np.testing.assert_allclose(part, whole[:, 11:34, 9:26], rtol=1e-4)
    np.testing.assert_array_equal(known, valid[11:34, 9:26])


def test_nodata_is_averaged_with_nothing(tmp_path):
    path, _ = write_scene(tmp_path / "scene.tif")
    with pytest.raises(DataError, match="a pixel of 1e-05 m is asked for; use 0.001 m or more"):
        open_scene(path, resolution=1e-5)
    with open_scene(path) as fine, open_scene(path, resolution=90) as coarse:
        values, valid = read_all(fine)
        found, known = read_all(coarse)
    values, valid = (a[..., :96, :78] for a in (values, valid))
    blocks = np.where(valid, values, np.nan).reshape(5, 32, 3, 26, 3)
    share = valid.reshape(32, 3, 26, 3).mean((1, 3))
    np.testing.assert_array_equal(known[:, :26], share >= 0.5)
    np.testing.assert_allclose(
        found[:, :, :26][:, known[:, :26]], np.nanmean(blocks, (2, 4))[:, share >= 0.5], rtol=1e-5
    )


def test_only_the_bands_wanted_are_opened(tmp_path, values):
    bands = write_parts(tmp_path, values)
    with open_scene(tmp_path, ["ndsi"], bands=bands) as scene:
        assert scene.bands == ("green", "swir1") and len(scene.rasters) == 2
    with open_scene(tmp_path, ["nir"], bands=bands) as scene:  # all, so that who misses one can say what there is
        assert scene.bands == BANDS


def test_scale_and_offset_of_parts(tmp_path, values):
    bands = write_parts(tmp_path, values, dict.fromkeys(BANDS, 10))
    with open_scene(tmp_path, bands=bands, scale=1e-5, offset={"red": 0.1}) as scene:
        assert [s.scale for s in scene.scaling] == [1e-5] * 4 + [1.0]
        np.testing.assert_allclose(read_all(scene)[0][2], values[2] * 1e-5 + 0.1, rtol=1e-5)


def test_a_file_of_several_bands_is_the_one_that_is_described(tmp_path, values):
    write_raster(tmp_path / "g.tif", values[1:2])
    for described in (("red", "SWIR1"), ("red", "swir 16"), ("B2, blue", "B6, swir1")):
        write_raster(tmp_path / "s.tif", values[2:4], bands=described)
        with open_scene(tmp_path, bands={"green": "g.tif", "swir1": "s.tif"}) as scene:
            np.testing.assert_array_equal(read_all(scene)[0], values[[1, 3]])
    write_raster(tmp_path / "a.tif", np.stack([values[3], np.full_like(values[3], 65535)]))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    with open_scene(tmp_path, bands={"green": "g.tif", "swir1": "a.tif"}) as scene:
        np.testing.assert_array_equal(read_all(scene)[0], values[[1, 3]])
    for described, found in ((None, "none"), (("red", "nir"), "none"), (("swir1", "SWIR1"), "2")):
        write_raster(tmp_path / "s.tif", values[2:4], bands=described)
        with pytest.raises(DataError, match=rf"s\.tif: 2 bands, and {found} of them described as swir1.*translate -b"):
            open_scene(tmp_path, bands={"green": "g.tif", "swir1": "s.tif"})


@pytest.mark.parametrize("k", [1, 2])
def test_a_band_that_is_south_up(tmp_path, values, k):
    up = values[3].reshape(120 // k, k, 96 // k, k).mean((1, 3)).astype(np.uint16)
    write_raster(tmp_path / "g.tif", values[1:2])
    write_raster(tmp_path / "s.tif", up[None])
    turned = Affine(30 * k, 0, 500_000, 0, 30 * k, 3_100_000 - 120 * 30)
    write_raster(tmp_path / "turned.tif", up[None, ::-1], transform=turned)
    north = Affine(30 * k, 0, 500_000, 0, -30 * k, 3_100_000)
    write_raster(tmp_path / "s.tif", up[None], transform=north)
    read = []
    for name in ("s.tif", "turned.tif"):
        with open_scene(tmp_path, bands={"green": "g.tif", "swir1": name}) as scene:
            read.append(read_all(scene))
            assert not any("of the ground" in line for line in scene.look())
    for want, got in zip(*read, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("shift", "said"), [(3, False), (40, True)])
@pytest.mark.parametrize("size", [None, 90])
def test_bands_that_share_a_part_of_their_ground(tmp_path, values, shift, said, size):
    write_raster(tmp_path / "g.tif", values[1:2])
    write_raster(tmp_path / "s.tif", values[3:4], transform=from_origin(500_000, 3_100_000 - shift * 30, 30, 30))
    with open_scene(tmp_path, bands={"green": "g.tif", "swir1": "s.tif"}, resolution=size) as scene:
        line = "swir1 show 67% of the ground of green; where any of them has no data, none has"
        assert any(line in each for each in scene.look()) == said
        assert scene.read_window([0, 1], 0, 0, scene.height, scene.width)[1].mean() == pytest.approx(
            1 - shift / 120, abs=0.03
        )


def test_what_is_odd_of_a_coarser_band_is_said(tmp_path, values):
    bands = write_parts(tmp_path, values)
    with rasterio.open(tmp_path / "swir1.tif", "r+") as file:
        file.scales = [0.5]
    with open_scene(tmp_path, bands=bands) as scene:
        assert sum("swir1.tif: band swir1 is no reflectance by its scale" in line for line in scene.look()) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"bands": {"blue": "bleu.tif"}}, "bleu.tif.*did you mean"),
        ({"bands": {"blau": "blue.tif"}}, "blau"),
        ({"bands": {"blue": "blue.tif", "B1": "green.tif"}, "sensor": "landsat7"}, "'B1' is named twice"),
        ({}, "no product that is known.*blue=B2.TIF"),
        ({"bands": {"blue": "blue.tif"}, "resolution": -1.0}, "resolution -1"),
        ({"bands": {"blue": "blue.tif"}, "keep": ["snow"]}, "masks are clouds"),
        ({"bands": {"blue": "blue.tif", "red": "other.tif"}}, "red in another coordinate reference system"),
        ({"bands": {"blue": "blue.tif", "red": "far.tif"}}, "red show other ground"),
        (
            {"bands": {"blue": "T45_20200801T0443_B02.tif", "red": "T45_20200816T0443_B04.tif"}},
            "bands of two dates, blue of 20200801 and red of 20200816",
        ),
    ],
)
def test_what_is_refused(tmp_path, values, how, message):
    write_parts(tmp_path, values)
    for name in ("T45_20200801T0443_B02.tif", "T45_20200816T0443_B04.tif"):
        write_raster(tmp_path / name, values[:1])
    write_raster(tmp_path / "other.tif", values[:1], crs="EPSG:32646")
    write_raster(tmp_path / "far.tif", values[:1], transform=from_origin(700_000, 3_100_000, 30, 30))
    with pytest.raises(DataError, match=message):
        open_scene(tmp_path, **how)


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_scene(tmp_path / "scene.SAFE")


def qa(path, shape=(96, 80), nodata=None, transform=None):
    """Write flags as Landsat's: a cloud (bit 3), its shadow (bit 4), and fill (bit 0)."""
    bits = np.full(shape, 1 << 6, np.uint16)
    bits[20:30, 10:20] = 1 << 3
    bits[30:40, 10:20] = 1 << 4
    bits[:5] = 1
    write_raster(path, bits[None], nodata=nodata, transform=transform)
    return bits


KINDS = {"fill": (1, (1,)), "clouds": (8, (8,)), "shadows": (16, (16,))}


@pytest.fixture
def flagged(tmp_path, monkeypatch):
    """A folder of a kind of its own, with flags."""
    folder = tmp_path / "own"
    values = made_up(96, 80, nodata=False)[0]
    for band, array in zip(BANDS, values, strict=True):
        folder.mkdir(exist_ok=True)
        write_raster(folder / f"{band}.tif", array[None])
    bits = qa(folder / "qa.tif")
    parts = {band: Part(f"{band}.tif", scale=1e-5) for band in BANDS}
    product = Product(parts, (Flag("qa.tif", KINDS),), "landsat8", "2020-08-01T10:00:00Z", ("made up",))
    monkeypatch.setitem(opening.READERS, "own", lambda f: product if "qa.tif" in f.names else None)
    return folder, bits


def test_flags_mask(flagged):
    folder, bits = flagged
    with open_scene(folder) as scene:
        assert (scene.sensor, scene.date, scene.notes) == ("landsat8", "2020-08-01T10:00:00Z", ["made up"])
        valid = read_all(scene)[1]
        np.testing.assert_array_equal(valid, bits == 1 << 6)
        assert scene.unmasked.read_window([0], 0, 0, 96, 80)[1].all()
        masked = scene.masked(22, 8, 10, 10)
        assert {k: v.sum() for k, v in masked.items()} == {"fill": 0, "clouds": 64, "shadows": 16}
    with open_scene(folder, keep=["clouds"]) as scene:
        np.testing.assert_array_equal(read_all(scene)[1], np.isin(bits, (1 << 6, 1 << 3)))


def test_flags_that_lie_elsewhere_are_refused_and_a_part_is_said(flagged):
    folder, bits = flagged
    qa(folder / "qa.tif", transform=from_origin(600_000, 3_100_000, 30, 30))
    with pytest.raises(DataError, match=rf"qa\.tif: has the masks of {folder}, but lies elsewhere; download"):
        open_scene(folder)
    qa(folder / "qa.tif", shape=(48, 80))
    line = f"{folder}/qa.tif: covers 50.0% of {folder}; elsewhere nothing is masked by it"
    for resolution in (None, 700):
        with open_scene(folder, resolution=resolution) as scene:
            assert scene.notes == ["made up", line]
    with open_scene(folder, keep=["clouds", "shadows"]) as scene:  # fill is read still
        assert line in scene.notes
    qa(folder / "qa.tif", transform=from_origin(500_000 + 10, 3_100_000, 30, 30))
    with open_scene(folder, resolution=700) as scene:
        assert scene.notes == ["made up"]


@pytest.mark.parametrize("buffer", [-1, 10_001, float("nan"), float("inf")])
def test_a_width_that_nobody_means_is_refused(flagged, buffer):
    with pytest.raises(DataError, match="mask buffer .*: give metres, 0 to 10,000"):
        open_scene(flagged[0], mask_buffer=buffer)


def test_masks_that_cannot_be_held_are_refused_before(flagged, monkeypatch):
    with open_scene(flagged[0], mask_buffer=10_000) as scene:
        monkeypatch.setattr("glacier_fastai.memory.LEAST", 0)
        monkeypatch.setattr("glacier_fastai.memory.available", lambda: 0)
        with pytest.raises(DataError, match="its masks, widened.*widen them less, or cut the scene"):
            scene.read_window([0], 0, 0, 8, 80)


def test_flags_are_widened_alike_in_every_window(flagged):
    folder, bits = flagged
    rows, cols = np.mgrid[:96, :80]
    near = (np.hypot(np.maximum(20 - rows, rows - 39).clip(0), np.maximum(10 - cols, cols - 19).clip(0)) * 30) <= 100
    with open_scene(folder, mask_buffer=100) as scene:
        valid = read_all(scene)[1]
        np.testing.assert_array_equal(valid, ~near & (rows >= 5))
        np.testing.assert_array_equal(scene.read_window([0], 15, 0, 3, 80)[1], valid[15:18])


def test_coarse_flags_by_majority(flagged):
    folder, bits = flagged
    with open_scene(folder, resolution=60) as scene:
        valid = read_all(scene)[1]
    share = (bits == 1 << 6).reshape(48, 2, 40, 2).mean((1, 3))
    np.testing.assert_array_equal(valid[share == 1], True)
    np.testing.assert_array_equal(valid[share == 0], False)


def test_own_masks(tmp_path):
    path, _ = write_scene(tmp_path / "scene.tif")
    raster = np.zeros((1, 96, 80), np.uint8)
    raster[0, 40:50] = 1
    write_raster(tmp_path / "mask.tif", raster)
    outlines(tmp_path / "mask.gpkg", [rectangle(20, 20, 10, 10)])
    with open_scene(path) as scene, open_scene(path, mask=tmp_path / "mask.tif") as by_raster:
        plain = read_all(scene)[1]
        np.testing.assert_array_equal(read_all(by_raster)[1], plain & (raster[0] == 0))
        assert str(tmp_path / "mask.tif") in by_raster.files
    with open_scene(path, mask=tmp_path / "mask.gpkg") as scene:
        assert not read_all(scene)[1][20:30, 20:30].any() and read_all(scene)[1][35:].any()
    with open_scene(path, keep=["clouds"]) as scene:
        assert "nothing is masked" in scene.look()[0]
    outlines(tmp_path / "far.gpkg", [rectangle(5000, 20, 10, 10)])
    with open_scene(path, mask=tmp_path / "far.gpkg") as scene:
        assert any("nothing is masked by it" in text for text in scene.look())


@pytest.mark.parametrize(
    ("crs", "place", "other", "corner"),
    [
        ("EPSG:4326", (-73.1, -46, 3e-4, 3e-4), "EPSG:4326", (286.8, -45.9, 3e-3, 3e-3)),
        ("EPSG:4326", (179.99, 66, 3e-4, 3e-4), "EPSG:4326", (-180, 90, 3e-3, 0.24)),  # a strip around the Earth
        ("EPSG:32718", (647_100, 4_904_000, 30, 30), "EPSG:4326", (286.8, -45.9, 3e-3, 3e-3)),
        ("EPSG:32601", (363_400, 7_324_300, 30, 30), "EPSG:4326", (179.9, 66.2, 3e-3, 3e-3)),
        ("EPSG:32601", (363_400, 7_324_300, 30, 30), "EPSG:32660", (631_000, 7_328_000, 100, 100)),
    ],
)
def test_a_raster_masks_its_ground_however_longitudes_are_counted(tmp_path, crs, place, other, corner):
    values = made_up(64, 64, nodata=False)[0]
    path = write_raster(tmp_path / "s.tif", values, bands=BANDS, crs=crs, transform=from_origin(*place))
    mask = np.random.default_rng(0).integers(0, 2, (120, 120_000 if corner[0] == -180 else 120), np.uint8)
    write_raster(tmp_path / "m.tif", mask[None], crs=other, transform=from_origin(*corner))
    left, top, wide, high = place
    x, y = np.meshgrid(left + wide * (np.arange(64) + 0.5), top - high * (np.arange(64) + 0.5))
    x, y = Transformer.from_crs(crs, other, always_xy=True).transform(x, y)
    x = (x - corner[0]) % 360 if other == "EPSG:4326" else x - corner[0]
    hidden = mask[((corner[1] - y) / corner[3]).astype(int), (x / corner[2]).astype(int)]
    with open_scene(path, mask=tmp_path / "m.tif") as scene:
        np.testing.assert_array_equal(read_all(scene)[1], hidden == 0)
        np.testing.assert_array_equal(scene.read_window([0], 5, 40, 20, 7)[1], hidden[5:25, 40:47] == 0)
        assert not scene.notes


@pytest.mark.parametrize(
    ("crs", "corner"),
    [
        ("EPSG:32645", (500_000, 3_100_000, 30)),
        ("EPSG:32645", (499_800, 3_100_200, 15)),
        ("EPSG:4326", (86.9, 28.1, 1e-3)),
    ],
)
def test_what_a_raster_masks_itself_hides_nothing_on_any_grid(tmp_path, crs, corner):
    path, _ = write_scene(tmp_path / "scene.tif")
    left, top, side = corner
    mask = write_raster(
        tmp_path / "mask.tif", np.ones((1, 300, 300), np.uint8), crs=crs, transform=from_origin(left, top, side, side)
    )
    if side == 30:
        mask = write_raster(mask, np.ones((1, 96, 80), np.uint8))
    with open_scene(path, mask=mask) as scene:
        assert scene.masked(0, 0, 96, 80)["mask"].all()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(mask, "r+") as file:
        file.write_mask(np.zeros(file.shape, bool))
    with open_scene(path, mask=mask) as scene:
        assert not scene.masked(0, 0, 96, 80)["mask"].any()


def test_a_raster_that_masks_nothing_says_so(tmp_path):
    path, label = write_scene(tmp_path / "scene.tif")
    ones = np.ones((1, 48, 80), np.uint8)
    far = write_raster(tmp_path / "far.tif", ones, transform=from_origin(600_000, 3_100_000, 30, 30))
    with open_scene(path, mask=far) as scene:
        assert scene.notes == [f"{far}: does not reach {path}, so nothing is masked by it"]
        assert (read_all(scene)[1] == made_up()[2]).all()
    with open_scene(path, mask=write_raster(tmp_path / "half.tif", ones)) as scene:
        assert scene.notes == [f"{tmp_path}/half.tif: covers 50.0% of {path}; elsewhere nothing is masked by it"]
        assert (read_all(scene)[1] == made_up()[2] & (np.arange(96) >= 48)[:, None]).all()
    nowhere = write_one(tmp_path / "nowhere.tif", ones, crs="EPSG:32645", transform=Affine.identity())
    with pytest.raises(
        DataError, match=r"nowhere\.tif: has no geotransform that says where it lies, so it masks nothing"
    ):
        open_scene(path, mask=nowhere)
    none = write_raster(tmp_path / "none.tif", np.full((1, 96, 80), 255, np.uint8), nodata=255)
    with pytest.warns(
        DataNote, match=r"scene\.tif: the mask that was given hides no pixel of it: one hides where it is ne"
    ):
        prepare_scenes([path], tmp_path / "store", labels=[label], tile_size=32, mask=none)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/B.tif", "B"), ("LC09_X_MTL.json", "LC09_X"), ("x/S2A.SAFE", "S2A"), ("x/S2A.SAFE/MTD_MSIL2A.xml", "S2A")],
)
def test_names_of_maps(path, name):
    assert scene_name(path) == name


def write_dem(path, void=None):
    heights = 4000 + 3.0 * np.arange(110)[:, None] + np.zeros(100)  # falls to the north
    if void:
        heights[void] = -9999
    place = from_origin(500_000 - 30 * 7, 3_100_000 + 30 * 7, 30, 30)
    return write_raster(path, heights[None].astype(np.float32), nodata=-9999, transform=place)


def test_terrain_comes_in(tmp_path):
    path, _ = write_scene(tmp_path / "scene.tif")
    dem = write_dem(tmp_path / "dem.tif", void=np.s_[20:25, 20:25])
    with open_scene(path) as plain, open_scene(path, dem=dem) as scene:
        assert scene.bands == (*BANDS, "elevation", "slope", "aspect_sin", "aspect_cos", "curvature")
        index = [*range(5)]
        for a, b in zip(plain.read_window(index, 0, 0, 96, 80), scene.read_window(index, 0, 0, 96, 80), strict=True):
            np.testing.assert_array_equal(a, b)  # voids are none of theirs
        height, known = scene.read_window([5], 0, 0, 96, 80)
        assert not known[13:18, 13:18].any() and known.sum() == 96 * 80 - 25
        np.testing.assert_allclose(height[0, :, 40], 4000 + 3 * np.arange(7, 103))
        values, valid = read_all(scene)
        np.testing.assert_allclose(values[6, 40:, 40:], np.degrees(np.arctan(3 / 30)), rtol=1e-4)
        assert (~valid | made_up()[2]).all()  # zeros in all bands of light are no data still
        assert [s.unit for s in scene.scaling[5:]] == ["metre", "degree", "dn", "dn", "1/m"]
        assert str(dem) in scene.files
    with open_scene(path, ["slope", "red"], dem=dem) as scene:
        assert scene.bands == (*BANDS, "slope")
    with open_scene(path, ["red"], dem=dem) as scene:
        assert scene.bands == BANDS
