"""Synthetic landscapes: the same for the same seed, with the classes and the missing data of real scenes."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from scipy import ndimage as ndi

from glacier_fastai.bands import IGNORE
from glacier_fastai.core.tiling import starts
from glacier_fastai.data.sources.synthetic import (
    DEFAULT_BANDS,
    Landscape,
    landscape,
    observe,
    synthetic_store,
    write_scene,
)
from glacier_fastai.data.sources.terrain import drainage, slope_aspect
from glacier_fastai.errors import DataError, OutputError

EIGHT = np.ones((3, 3))


@pytest.fixture(scope="module")
def scenes() -> list[Landscape]:
    return [landscape(seed, 256) for seed in range(4)]


@pytest.fixture(scope="module")
def tiny() -> Landscape:
    return landscape(0, 32)


def fields(scene: Landscape) -> dict[str, np.ndarray]:
    return {name: getattr(scene, name) for name in Landscape.__dataclass_fields__}


def test_same_seed_same_landscape_and_view():
    a, b, c = landscape(3, 64), landscape(3, 64), landscape(4, 64)
    for name, values in fields(a).items():
        np.testing.assert_array_equal(values, getattr(b, name), err_msg=name)
        assert values.shape == (64, 64) and np.isfinite(values).all(), name
    assert (a.elevation != c.elevation).any() and (a.classes != c.classes).any()
    for sensor in ("landsat7", "landsat8"):
        first, again, other = (observe(a, sensor, DEFAULT_BANDS, seed) for seed in (1, 1, 2))
        for x, y in zip(first, again, strict=True):
            np.testing.assert_array_equal(x, y)
        assert (first[0] != other[0]).mean() > 0.5


def test_global_random_state_is_not_moved(tiny):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    observe(tiny)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_class_shares(scenes):
    shares = np.array([[(s.classes == k).mean() for k in range(4)] for s in scenes])
    assert (shares[:, :3] > 0).all()  # background, glacier and debris in every scene
    mean = shares.mean(0)
    assert 0.5 < mean[0] < 0.85
    assert 0.12 < mean[1] < 0.42
    assert 0.015 < mean[2] < 0.10
    assert 0 < mean[3] < 0.005


def test_small_scenes_hold_ice_most_of_the_time():
    found = [np.isin((1, 2), landscape(seed, 96).classes).all() for seed in range(4)]
    assert sum(found) >= 3


def test_debris_adjoins_glaciers_and_lies_low(scenes):
    for s in scenes:
        parts, n = ndi.label(s.classes == 2, EIGHT)
        beside = ndi.binary_dilation(s.classes == 1, EIGHT)
        rim = np.zeros_like(beside)  # beyond the edge of the scene the glacier may go on
        rim[[0, -1]] = rim[:, [0, -1]] = True
        assert all((beside | rim)[parts == k].any() for k in range(1, n + 1))
        assert np.median(s.above[s.classes == 2]) < np.median(s.above[s.classes == 1])
        assert (s.thickness[s.classes == 2] > 0).all() and (s.thickness[s.classes == 1] > 0).all()
        assert (s.thickness[(s.classes == 0) | (s.classes == 3)] == 0).all()


def test_lakes_are_small_and_flat(scenes):
    seen = 0
    for s in scenes:
        parts, n = ndi.label(s.classes == 3, EIGHT)
        for k in range(1, n + 1):
            assert np.ptp(s.elevation[parts == k]) == 0
            assert (parts == k).sum() < 800
        seen += n
    assert seen > 0


def test_ice_lies_in_valleys_and_walls_are_bare(scenes):
    for s in scenes:
        slope = slope_aspect(s.elevation)[0]
        ice = (s.classes == 1) | (s.classes == 2)
        assert np.median(slope[ice]) < 0.8 * np.median(slope[s.classes == 0])


def test_nodata_is_zero_in_all_bands_and_255_in_the_mask(scenes):
    gaps = 0
    for seed, scene in enumerate(scenes):
        for sensor, dtype in (("landsat7", "uint8"), ("landsat8", "uint16")):
            image, mask, valid = observe(scene, sensor, DEFAULT_BANDS, seed)
            assert image.dtype == dtype and image.shape == (5, 256, 256)
            assert mask.dtype == np.uint8 and valid.dtype == bool
            assert (image[:, ~valid] == 0).all() and (image[:, valid] > 0).all()
            np.testing.assert_array_equal(mask == IGNORE, ~valid)
            np.testing.assert_array_equal(mask[valid], scene.classes[valid])
            gaps += sensor == "landsat7" and not valid.all()
    assert 0 < gaps < len(scenes)  # some scenes of landsat7 are striped, not all


def test_sensors_differ(scenes):
    seven = np.array([observe(s, "landsat7")[0].mean((1, 2)) for s in scenes])
    eight = np.array([observe(s, "landsat8")[0].mean((1, 2)) for s in scenes])
    assert seven.max() < 255
    mean = dict(zip(DEFAULT_BANDS, eight.mean(0), strict=True))
    allowed = {"blue": (16e3, 34e3), "green": (16e3, 34e3), "red": (15e3, 33e3), "swir1": (5.5e3, 8.5e3)}
    for band, (low, high) in (allowed | {"thermal": (19e3, 27e3)}).items():
        assert low < mean[band] < high, band
    # bright snow saturates landsat7 often, landsat8 hardly ever
    full = [np.mean([(observe(s, n, ["blue"], 5)[0] == top).mean() for s in scenes])
            for n, top in (("landsat7", 255), ("landsat8", 65535))]  # fmt: skip
    assert full[0] > 0.01 and full[1] < full[0] / 20


def test_spectra_are_those_of_ice_and_water(scenes):
    bands = ("green", "nir", "swir1")
    for s in scenes[:4]:
        image, mask, _ = observe(s, "landsat8", bands, 1)
        green, nir, swir = (np.median(image[:, mask == 1], axis=1) - 6000).tolist()
        assert green > 2 * swir
        rock = np.median(image[2][mask == 0])
        assert np.median(image[2][mask == 1]) < rock  # ice and snow are dark in the shortwave infrared
        if (mask == 3).sum() > 30:
            assert np.median(image[1][mask == 3]) < np.median(image[1][mask == 0])


def test_terrain_bands(scenes):
    names = ("red", "nir", "swir2", "elevation", "slope")
    for sensor in ("landsat7", "landsat8"):
        image, _, valid = observe(scenes[0], sensor, names, 3)
        assert image.dtype == np.uint16
        np.testing.assert_allclose(image[3][valid], scenes[0].elevation[valid], atol=0.51)
        assert 5 < np.median(image[4][valid]) < 60 and image[4].max() < 90


def test_store(tmp_path):
    store = synthetic_store(tmp_path / "s", "landsat7", n_scenes=2, tile_size=40, scene_size=96, seed=5)
    assert len(store) == 2 * len(starts(96, 40)) ** 2 and store.bands == DEFAULT_BANDS
    assert store.info["source"] == "synthetic" and store.info["sensor"] == "landsat7"
    masks, images = np.asarray(store.masks), np.asarray(store.images)
    np.testing.assert_array_equal(store.class_counts(), [[(m == k).sum() for k in range(4)] for m in masks])
    np.testing.assert_array_equal(store.table["n_valid"], ((images != 0).any(1)).sum((1, 2)))
    assert (store.table["group"] == store.table["scene"]).all() and store.table["scene"].nunique() == 2
    assert set(store.table["crs"]) == {"EPSG:32650"}
    x = store.table.groupby("scene")["transform"].first().str.split().str[2].astype(float)
    assert abs(x.diff().iloc[1]) >= 45_000
    mean, std = store.statistics(DEFAULT_BANDS)
    assert np.isfinite(mean).all() and (std > 0).all()
    same = synthetic_store(tmp_path / "t", "landsat7", n_scenes=1, tile_size=40, scene_size=96, seed=5)
    np.testing.assert_array_equal(images[: len(same)], same.images)
    other = synthetic_store(tmp_path / "u", "landsat7", n_scenes=1, tile_size=96, scene_size=96, seed=6)
    assert not set(other.table["crs"]) & set(store.table["crs"])  # it lies elsewhere, so it is unseen ground


def test_scene_is_a_geotiff_that_agrees_with_the_store(tmp_path):
    image, label = write_scene(tmp_path / "a.tif", "landsat8", size=96, seed=2, number=1)
    store = synthetic_store(tmp_path / "s", "landsat8", n_scenes=2, tile_size=96, scene_size=96, seed=2)
    with rasterio.open(image) as file:
        assert file.descriptions == DEFAULT_BANDS and file.crs.to_string() == "EPSG:32647" and file.nodata == 0
        np.testing.assert_array_equal(file.read(), store.images[1])
        np.testing.assert_array_equal(list(file.transform)[:6], [float(v) for v in store.table["transform"][1].split()])
    with rasterio.open(label) as file:
        assert file.dtypes == ("uint8",) and file.nodata == IGNORE
        np.testing.assert_array_equal(file.read(1), store.masks[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a_label.tif", "s"]


def test_drainage_leaves_over_the_lowest_pass():
    height = np.full((5, 5), 9.0)
    height[2, 1:4] = 1.0, 0.5, 1.5  # a pit; the lowest way out is west over 3
    height[2, 0], height[2, 4] = 3.0, 5.0
    outlets = np.zeros((5, 5), bool)
    outlets[2, [0, 4]] = True
    receiver, distance, levels = drainage(height, outlets)
    assert receiver[2 * 5 + 3] == 2 * 5 + 2 and receiver[2 * 5 + 2] == 2 * 5 + 1 and receiver[2 * 5 + 1] == 2 * 5
    assert receiver[2 * 5] == 25 and distance[2 * 5 + 2] == 1
    assert sorted(np.concatenate(levels)) == list(range(25))
    rank = {cell: k for k, level in enumerate(levels) for cell in level.tolist()}
    assert all(receiver[c] == 25 or rank[receiver[c]] == rank[c] - 1 for c in range(25))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, t: landscape(0, 16), "16 px: too small.*at least 32"),
        (lambda p, t: landscape(-1, 64), "seed -1: must be 0 or more"),
        (lambda p, t: observe(t, "landsat-8"), "sensor 'landsat-8'.*did you mean 'landsat8'"),
        (lambda p, t: observe(t, bands=["swir"]), "unknown band 'swir'.*did you mean 'swir"),
        (lambda p, t: observe(t, bands=["thermal_low"]), "no synthetic band 'thermal_low'.*mean 'thermal'"),
        (lambda p, t: synthetic_store(p / "s", "sentinel2"), "sensor 'sentinel2': use landsat7 or landsat8"),
        (lambda p, t: synthetic_store(p / "s", n_scenes=0), "n_scenes 0: make at least 1"),
        (lambda p, t: synthetic_store(p / "s", tile_size=128, scene_size=64), "128 px do not fit into 64"),
        (lambda p, t: write_scene(p / "a.tif", size=16), "16 px: too small"),
    ],
)
def test_refusals(tmp_path, tiny, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path, tiny)
    assert not list(tmp_path.iterdir())


def test_scene_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="no folder .*nowhere; make it first"):
        write_scene(tmp_path / "nowhere" / "a.tif", size=64)
