import os
import resource
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from scenes import BANDS, CRS, made_up, write_raster, write_scene
from shapely.geometry import box

from glacier_fastai.data.scenes.geotiff import SceneRaster
from glacier_fastai.data.scenes.names import SENSORS
from glacier_fastai.data.sources import scene as sources_scene
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import DataError, DataNote, OutputError

X, Y = 500_000, 3_100_000  # upper left corner of the made-up scenes


def rectangle(row, col, height, width):
    return box(X + 30 * col, Y - 30 * (row + height), X + 30 * (col + width), Y - 30 * row)


def outlines(path, shapes, crs=CRS, **columns):
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def mosaic(store, height, width):
    """Put the masks of a one-scene store together again."""
    out = np.full((height, width), 254, np.uint8)
    for i, t in store.table.iterrows():
        out[t["row"] : t["row"] + store.size, t["col"] : t["col"] + store.size] = store.masks[i]
    return out


def test_a_scene_with_labels_becomes_tiles_that_reach_its_end(scene, tmp_path):
    store = prepare_scenes([scene[0]], tmp_path / "store", labels=[scene[1]], tile_size=64)
    values, classes, valid = made_up()
    assert store.bands == BANDS
    assert sorted(zip(store.table["row"], store.table["col"], strict=True)) == [(0, 0), (0, 16), (32, 0), (32, 16)]
    np.testing.assert_array_equal(mosaic(store, 96, 80), np.where(valid, classes, 255))
    for i, t in store.table.iterrows():
        at = (slice(t["row"], t["row"] + 64), slice(t["col"], t["col"] + 64))
        np.testing.assert_array_equal(store.read(i), np.where(valid, values, np.nan)[:, *at])
        want = (30, 0, X + 30 * t["col"], 0, -30, Y - 30 * t["row"])
        assert tuple(map(float, t["transform"].split())) == want
        assert t["crs"] == CRS


def test_overlap_is_at_least_what_was_asked(scene, tmp_path):
    store = prepare_scenes([scene[0]], tmp_path / "store", labels=[scene[1]], tile_size=32, overlap=8)
    for name, length in (("row", 96), ("col", 80)):
        first = np.unique(store.table[name])
        assert first[-1] + 32 == length
        assert np.diff(first).max() <= 24


def test_several_scenes_with_bands_in_another_order(tmp_path):
    a = write_scene(tmp_path / "a.tif")
    values = made_up(seed=5)[0]
    write_raster(tmp_path / "b.tif", values[::-1], nodata=0, bands=BANDS[::-1])
    store = prepare_scenes([a[0], tmp_path / "b.tif"], tmp_path / "s", labels=[a[1], a[1]], tile_size=80)
    assert set(store.table["scene"]) == {"a", "b"}
    i = store.table.index[store.table["id"] == "b_0_0"][0]
    valid = made_up()[2][:80]
    np.testing.assert_array_equal(store.read(i), np.where(valid, values[:, :80], np.nan))


def test_pixels_of_another_size_are_said(tmp_path):
    values, sides = made_up()[0], (30, 25, 15)
    ice = outlines(tmp_path / "ice.shp", [rectangle(0, 0, 20, 20)])
    places = [from_origin(X, Y, side, side) for side in sides]
    scenes = [
        write_raster(tmp_path / f"{place.a:g}.tif", values, nodata=0, bands=BANDS, transform=place) for place in places
    ]
    with pytest.warns(DataNote) as said:
        prepare_scenes(scenes, tmp_path / "s", outlines=[ice], tile_size=64)
    sizes = [str(each.message) for each in said if "pixels of" in str(each.message)]
    assert len(sizes) == 1 and "15.tif: pixels of 15 m, but of 30 m in " in sizes[0]


def test_bands_are_named_by_option_or_by_sensor(tmp_path):
    values = made_up()[0]
    write_raster(tmp_path / "plain.tif", values)
    with SceneRaster(tmp_path / "plain.tif", ["Red", "nir", "pan", "slope", "ndvi"]) as s:
        assert s.bands == ("red", "nir", "pan", "slope", "ndvi")
    write_raster(tmp_path / "l8.tif", values, bands=["SR_B2", "SR_B3", "SR_B4", "SR_B6", "ST_B10"])
    with SceneRaster(tmp_path / "l8.tif", sensor="landsat8") as s:
        assert s.bands == tuple(SENSORS["landsat8"][b] for b in ("b2", "b3", "b4", "b6", "b10"))


def test_nan_and_declared_nodata_are_ignored(tmp_path):
    values = made_up(nodata=False)[0].astype(np.float32)
    values[0, 3, 4] = np.nan  # one band is enough
    values[:, 5, 6] = -999
    label = np.zeros((1, 96, 80), np.uint8)
    write_raster(tmp_path / "s.tif", values, nodata=-999, bands=BANDS)
    write_raster(tmp_path / "l.tif", label)
    store = prepare_scenes([tmp_path / "s.tif"], tmp_path / "o", labels=[tmp_path / "l.tif"], tile_size=80)
    assert store.images.dtype == np.float32
    ignored = np.argwhere(mosaic(store, 96, 80) == 255).tolist()
    assert ignored == [[3, 4], [5, 6]]


def test_a_fourth_band_of_bytes_is_no_mask(tmp_path):
    values = np.full((4, 32, 32), 90, np.uint8)
    values[3, :10] = 0  # GDAL takes it for alpha
    path = write_raster(tmp_path / "s.tif", values, bands=["blue", "green", "red", "nir"])
    with SceneRaster(path) as s:
        assert s.raster.colorinterp[3].name == "alpha"
        assert s.read_window([0, 1, 2, 3], 0, 0, 32, 32)[1].all()
    with SceneRaster(path, ["blue", "green", "red", "-"]) as s:  # left out, it is what GDAL says
        assert s.bands == ("blue", "green", "red")
        values, valid = s.read_window([2, 0], 0, 0, 32, 32)
        assert values.shape == (2, 32, 32)
        assert valid.sum() == 22 * 32


def test_an_internal_mask_is_honoured_and_undeclared_zero_fill_too(tmp_path):
    values = np.full((2, 32, 32), 90, np.int16)
    path = write_raster(tmp_path / "s.tif", values, bands=["red", "nir"])
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(1024).reshape(32, 32) >= 100)
    with SceneRaster(path) as s:
        assert s.read_window([0, 1], 0, 0, 32, 32)[1].sum() == 924
    values = values.astype(np.uint16)
    values[:, :4] = 0
    values[0, 4:6] = 0  # a zero in one band only is data
    with SceneRaster(write_raster(tmp_path / "z.tif", values, bands=["red", "nir"])) as s:
        assert s.read_window([0, 1], 0, 0, 32, 32)[1].sum() == 28 * 32


def test_tiles_without_data_are_left_out(tmp_path):
    values = made_up(64, 64, nodata=False)[0]
    values[:, :32, :32] = 0
    write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)
    write_raster(tmp_path / "l.tif", np.zeros((1, 64, 64), np.uint8))
    store = prepare_scenes([tmp_path / "s.tif"], tmp_path / "o", labels=[tmp_path / "l.tif"], tile_size=32)
    assert store.table["id"].tolist() == ["s_0_32", "s_32_0", "s_32_32"]


def test_clean_and_debris_shapefiles_of_many_scenes(tmp_path):
    """As the HKH tiles were made: burn, cut with overlap, filter by class and valid share."""
    a, _ = write_scene(tmp_path / "a.tif")
    values = made_up(seed=5)[0]
    values[:, :40] = 0
    b = write_raster(tmp_path / "b.tif", values, nodata=0, bands=BANDS, transform=from_origin(X + 30 * 80, Y, 30, 30))
    clean = outlines(tmp_path / "clean.shp", [rectangle(4, 4, 40, 30), rectangle(60, 100, 30, 20)])
    debris = outlines(tmp_path / "debris.shp", [rectangle(30, 20, 30, 20), rectangle(900, 900, 5, 5)])
    files = [("debris", debris), ("glacier", clean)]
    options = {"outlines": files, "tile_size": 32, "overlap": 6}
    everything = prepare_scenes([a, b], tmp_path / "all", **options)
    want = np.zeros((96, 80), np.uint8)
    want[4:44, 4:34] = 1
    want[30:60, 20:40] = 2  # over the clean ice
    valid = made_up()[2]
    for i, t in everything.table[everything.table["scene"] == "a"].iterrows():
        at = (slice(t["row"], t["row"] + 32), slice(t["col"], t["col"] + 32))
        np.testing.assert_array_equal(everything.masks[i], np.where(valid, want, 255)[at])
    kept = prepare_scenes([a, b], tmp_path / "kept", **options, min_ice=0.2, min_valid=0.6)
    counts = everything.class_counts()
    ice = counts[:, 1:3].sum(1) / np.maximum(counts.sum(1), 1)
    good = (ice >= 0.2) & (everything.table["valid"] >= 0.6)
    assert kept.table["id"].tolist() == everything.table["id"][good].tolist()
    assert 0 < len(kept) < len(everything)
    refuse(tmp_path, "no tile has 100% ice and 0% data; lower min_ice", [a, b], **options, min_ice=1.0)
    wrong = {**options, "outlines": [("glaciar", clean)]}
    refuse(tmp_path, "'glaciar' is no class; use background, .*; did you mean 'glacier'", [a], **wrong)


def test_tiles_without_labels_hold_no_ice(scene, tmp_path):
    label = write_raster(tmp_path / "none.tif", np.full((1, 96, 80), 255, np.uint8), nodata=255)
    refuse(tmp_path, "no tile has 5% ice", [scene[0]], labels=[label], min_ice=0.05)


def refuse(tmp_path, message, scenes, error=DataError, **kwargs):
    kwargs = {"tile_size": 32, **kwargs}
    with pytest.raises(error, match=message) as err:
        prepare_scenes(scenes, tmp_path / "store", **kwargs)
    assert "\n" not in str(err.value)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.partial").exists()


def test_bad_scenes(scene, tmp_path):
    values, label = made_up()[0], [scene[1]]
    refuse(tmp_path, r"missing\.tif: no such file", [tmp_path / "missing.tif"], labels=label)
    (tmp_path / "text.tif").write_text("hello")
    refuse(tmp_path, r"text\.tif: not a raster, cut short or damaged", [tmp_path / "text.tif"], labels=label)
    (tmp_path / "cut.tif").write_bytes(scene[0].read_bytes()[:-40_000])
    refuse(tmp_path, r"cut\.tif: .*cut short", [tmp_path / "cut.tif"], labels=label)
    plain = write_raster(tmp_path / "plain.tif", values)
    refuse(tmp_path, r"band 1 has no description; name all of them by `bands`", [plain], labels=label)
    refuse(tmp_path, "5 bands, but `bands` names 2", [plain], labels=label, bands=["red", "nir"])
    doubled = ["red", "nir", "red", "pan", "ndvi"]
    refuse(tmp_path, "'red' is named twice", [plain], labels=label, bands=doubled)
    refuse(tmp_path, "unknown sensor 'landsat6': use landsat4", [scene[0]], labels=label, sensor="landsat6")
    refuse(tmp_path, "unknown band 'violet'", [plain], labels=label, bands=["violet", *BANDS[1:]])
    nowhere = write_raster(tmp_path / "nowhere.tif", values, bands=BANDS, crs=None)
    refuse(tmp_path, "no coordinate reference system; assign one", [nowhere], labels=label)
    waves = write_raster(tmp_path / "waves.tif", values.astype(np.complex64), bands=BANDS)
    refuse(tmp_path, "waves.tif: holds complex numbers", [waves], labels=label)
    refuse(
        tmp_path,
        "96 x 80 px, smaller than a tile of 128; set tile_size to at most 80",
        [scene[0]],
        labels=label,
        tile_size=128,
    )
    empty = write_raster(tmp_path / "empty.tif", values * 0, nodata=0, bands=BANDS)
    refuse(tmp_path, r"empty\.tif: every pixel is nodata", [empty], labels=label)
    other = write_raster(tmp_path / "other.tif", values[:3], bands=BANDS[:3])
    refuse(tmp_path, r"other\.tif: bands blue, green, red, but", [scene[0], other], labels=label * 2)
    refuse(tmp_path, "overlap 32 px: must be", [scene[0]], labels=label, overlap=32)
    refuse(tmp_path, "tile id 'scene_0_0' occurs twice", [scene[0], scene[0]], labels=label * 2)


def test_bad_labels(scene, tmp_path):
    refuse(tmp_path, "give either label rasters", [scene[0]])
    refuse(tmp_path, "give either label rasters", [scene[0]], labels=[scene[1]], outlines=[scene[1]])
    refuse(tmp_path, "1 scenes, but 2 label rasters", [scene[0]], labels=[scene[1]] * 2)
    refuse(tmp_path, "no such file", [scene[0]], labels=[tmp_path / "x.tif"])
    classes = made_up()[1][None]
    bad = write_raster(tmp_path / "bad.tif", classes + 83)
    refuse(tmp_path, r"bad\.tif: unknown codes 83, 84, 85, 86; allowed are 0 background", [scene[0]], labels=[bad])
    small = write_raster(tmp_path / "small.tif", classes[:, :50])
    refuse(tmp_path, r"small\.tif: 50 x 80 px, but .* has 96 x 80", [scene[0]], labels=[small])
    moved = write_raster(tmp_path / "moved.tif", classes, transform=from_origin(X + 15, Y, 30, 30))
    refuse(tmp_path, "does not lie on the grid", [scene[0]], labels=[moved])
    many = write_raster(tmp_path / "many.tif", classes.repeat(2, 0))
    refuse(tmp_path, "2 bands; a label raster has one", [scene[0]], labels=[many])


def test_an_existing_store_is_not_overwritten(scene, tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(OutputError, match="store: exists already"):
        prepare_scenes([scene[0]], tmp_path / "store", labels=[scene[1]], tile_size=32)


def test_memory_is_compared_before_it_is_taken(tmp_path, monkeypatch):
    big = {"width": 200_000, "height": 200_000, "count": 1, "dtype": "uint8", "crs": "EPSG:32645", "tiled": True}
    with rasterio.open(
        tmp_path / "s.tif", "w", driver="GTiff", SPARSE_OK=True, transform=rasterio.Affine(30, 0, 0, 0, -30, 0), **big
    ) as file:
        file.descriptions = ("red",)
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 4 * 10**9)
    with pytest.raises(DataError, match=r"s\.tif: its 200,000 x 200,000 px need 80\.0 GB of memory, but 4\.0 GB"):
        prepare_scenes([tmp_path / "s.tif"], tmp_path / "tiles", labels=[tmp_path / "s.tif"])
    assert [p.name for p in tmp_path.iterdir()] == ["s.tif"]


def test_the_masked_share_is_said(tmp_path):
    path, label = write_scene(tmp_path / "scene.tif")
    raster = np.zeros((1, 96, 80), np.uint8)
    raster[0, 48:] = 1
    write_raster(tmp_path / "mask.tif", raster)
    with pytest.warns(DataNote, match=r"scene\.tif: 50\.0% of it is masked \(mask 50\.0%\)"):
        store = prepare_scenes(
            [path], tmp_path / "store", labels=[label], tile_size=32, overlap=8, mask=tmp_path / "mask.tif"
        )
    assert any("masked (mask 50.0%)" in text for text in store.info["notes"])


def test_scenes_are_opened_in_turn(tmp_path, request):
    scene, label = write_scene(tmp_path / "s.tif", 64, 64)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, before[1]))
    every = [tmp_path / f"s{k}.tif" for k in range(60)]
    for path in every:
        path.symlink_to(scene)
    assert len(prepare_scenes(every, tmp_path / "t", labels=[label] * 60, tile_size=64)) == 60


def test_a_store_for_which_there_is_no_room_is_not_begun(tmp_path, monkeypatch):
    scene, label = write_scene(tmp_path / "s.tif")
    monkeypatch.setattr("glacier_fastai.files.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(OutputError, match=r"t: needs 0\.0 MB, and there are 0\.0 MB; make room"):
        prepare_scenes([scene], tmp_path / "t", labels=[label], tile_size=32)
    assert not (tmp_path / "t").exists()


def test_a_scene_that_changes_meanwhile_is_an_error(tmp_path, monkeypatch):
    scene, label = write_scene(tmp_path / "s.tif")
    masks = sources_scene.label_masks

    def changing(*args):
        write_scene(scene, seed=5)
        return masks(*args)

    monkeypatch.setattr(sources_scene, "label_masks", changing)
    with pytest.raises(DataError, match=r"s\.tif: was changed while it was read"):
        prepare_scenes([scene], tmp_path / "t", labels=[label], tile_size=32)
    assert not (tmp_path / "t").exists()
