import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import rasterio
from glacier_maps import inventory
from polygons import rectangle
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points
from scenes import BANDS, TINY, made_up, write_raster

from glacier_fastai.errors import DataError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.composite import predict_composite
from glacier_fastai.predict.glaciers import ByGlacier
from glacier_fastai.predict.scene import Wanted, predict_scene

WANTED = Wanted(probabilities="float32", window=64)


@pytest.fixture(scope="module")
def bundle():
    """A model of random weights."""
    weights = build_model("unet", BANDS, encoder=TINY).state_dict()
    return ModelBundle(weights, "unet", {"encoder": TINY}, BANDS, (5e3,) * 5, (2e3,) * 5)


def write(path, values, cloud=None, left=0, top=0, crs="EPSG:32645", size=30):
    values = values.copy()
    if cloud:
        values[:, *cloud] = 0
    place = from_origin(500_000 + 30 * left, 3_100_000 - 30 * top, size, size)
    return write_raster(path, values, nodata=0, bands=BANDS, crs=crs, transform=place)


def read(made, kind="probabilities"):
    with rasterio.open(made["files"][kind]) as file:
        return file.read(), file


@pytest.fixture
def dates(tmp_path):
    values = made_up(96, 80, nodata=False)[0]
    noisy = [np.clip(values + np.random.default_rng(k).normal(0, 300, values.shape), 1, 65535) for k in range(3)]
    clouds = [np.s_[:40, :], np.s_[30:60, :50], np.s_[50:, 30:]]
    return [
        write(tmp_path / f"d{k}.tif", date.astype(np.uint16), cloud)
        for k, (date, cloud) in enumerate(zip(noisy, clouds, strict=True))
    ]


def test_dates_are_averaged_where_they_see_a_pixel(bundle, dates, tmp_path):
    alone = [read(predict_scene(bundle, path, tmp_path / "alone", WANTED))[0] for path in dates]
    made = predict_composite(bundle, dates, tmp_path / "maps", "all", WANTED)
    probs, file = read(made)
    seen = read(made, "dates")[0][0]
    known = np.stack([np.isfinite(p).all(0) for p in alone])
    np.testing.assert_array_equal(seen, known.sum(0))
    assert (file.height, file.width) == (96, 80)
    one = seen == 1
    which = np.argmax(known, 0)
    np.testing.assert_allclose(
        probs[:, one], np.take_along_axis(np.stack(alone), which[None, None], 0)[0][:, one], atol=1e-4
    )
    low, high = np.nanmin(alone, 0), np.nanmax(alone, 0)
    assert (probs >= low - 1e-4)[:, seen > 0].all() and (probs <= high + 1e-4)[:, seen > 0].all()
    assert np.isnan(probs[:, seen == 0]).all()
    far = known[:, 95, 0] & True
    assert far.tolist() == [True, True, True]
    np.testing.assert_allclose(probs[:, 95, 0], np.mean([p[:, 95, 0] for p in alone], 0), atol=1e-2)
    record = json.loads((tmp_path / "maps" / "all_prediction.json").read_text())
    assert [s["scene"] for s in record["scenes"]] == ["d0.tif", "d1.tif", "d2.tif"] and record["composite"] == "mean"
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        "all_classes.tif",
        "all_dates.tif",
        "all_prediction.json",
        "all_probabilities.tif",
    ]
    assert predict_composite(bundle, dates, tmp_path / "maps", "all", WANTED)["done_before"]


def test_no_seam_where_dates_end(bundle, dates, tmp_path):
    """A date weighs as much as it has pixels to its rim: the first, which ends here, next to nothing."""
    probs = read(predict_composite(bundle, dates, tmp_path / "maps", "all", WANTED))[0]
    alone = [read(predict_scene(bundle, path, tmp_path / "alone", WANTED))[0] for path in dates]
    for row, to_rims in ((39, (0, 21, 11)), (40, (1, 21, 10)), (45, (6, 21, 5))):
        there = np.nan_to_num([p[:, row, 70] for p in alone])
        np.testing.assert_allclose(probs[:, row, 70], np.average(there, 0, to_rims), atol=1e-4)


def test_the_least_snowy_date_decides(bundle, tmp_path):
    values = made_up(96, 80, nodata=False)[0]
    dark = write(tmp_path / "dark.tif", values, np.s_[:, :20])
    white = write(tmp_path / "white.tif", values + np.uint16(900))
    alone = {p.stem: read(predict_scene(bundle, p, tmp_path / "alone", WANTED))[0] for p in (dark, white)}
    made = predict_composite(bundle, [white, dark], tmp_path / "maps", "all", WANTED, by="least-snow")
    probs = read(made)[0]
    assert made["least_snow_first"] == ["dark.tif", "white.tif"]
    assert abs(alone["dark"] - alone["white"])[:, :, 20:].max() > 0.01
    np.testing.assert_allclose(probs[:, :, :20], alone["white"][:, :, :20], atol=1e-4)
    np.testing.assert_allclose(probs[:, :, 20:], alone["dark"][:, :, 20:], atol=1e-4)


def test_neighbours_of_another_zone_become_a_mosaic(bundle, tmp_path):
    values = made_up(96, 80, nodata=False)[0]
    (x,), (y,) = warp_points("EPSG:32645", "EPSG:32646", [500_000 + 30 * 60], [3_100_000])
    west = write(tmp_path / "west.tif", values)
    east = write_raster(
        tmp_path / "east.tif", values, nodata=0, bands=BANDS, crs="EPSG:32646", transform=from_origin(x, y, 30, 30)
    )
    made = predict_composite(bundle, [west, east], tmp_path / "maps", "both", WANTED)
    seen, file = read(made, "dates")
    assert file.crs.to_epsg() == 32645 and 130 < file.width < 150 and 96 <= file.height < 115
    assert set(np.unique(seen)) == {0, 1, 2}


UTM1, UTM60 = ("EPSG:32601", (363_028, 7_323_180, 30, 30)), ("EPSG:32660", (634_700, 7_323_100, 30, 30))  # 180 E, 66 N


def degrees(west):
    return "EPSG:4326", (west, 66, 6e-4, 3e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (UTM60, degrees(180.0)),  # all of it beyond 180
        (UTM1, degrees(179.985)),  # across it
        (degrees(179.985), UTM1),
        (degrees(179.985), degrees(-179.999)),
        (degrees(286.9), degrees(-73.1)),
        (UTM60, UTM1),
    ],
)
def test_scenes_meet_at_180_degrees_however_longitudes_are_counted(bundle, tmp_path, first, second):
    values, places = made_up(64, 64, nodata=False)[0], (first, second)
    scenes = [
        write_raster(tmp_path / f"{k}.tif", values, bands=BANDS, crs=crs, transform=from_origin(*place))
        for k, (crs, place) in enumerate(places)
    ]
    seen, file = read(predict_composite(bundle, scenes, tmp_path / "maps", "both", WANTED), "dates")
    cols, rows = np.meshgrid(np.arange(file.width) + 0.5, np.arange(file.height) + 0.5)
    inside, rim = np.zeros(cols.shape, int), np.zeros(cols.shape, bool)
    for crs, (west, north, wide, high) in places:
        x, y = file.transform @ (cols, rows)
        x, y = (np.reshape(v, cols.shape) for v in warp_points(file.crs, crs, x.ravel(), y.ravel()))
        x = (x - west + 180) % 360 - 180 if crs == "EPSG:4326" else x - west
        to_rim = np.minimum(
            np.minimum(x / wide, 64 - x / wide), np.minimum((north - y) / high, 64 - (north - y) / high)
        )
        inside += to_rim > 0
        rim |= abs(to_rim) < 1
    assert inside.max() == 2
    np.testing.assert_array_equal(seen[0][~rim], inside[~rim])


def test_a_scene_that_adds_nothing_is_said(bundle, dates, tmp_path):
    fine = write(tmp_path / "fine.tif", made_up(96, 80, nodata=False)[0], size=0.01)
    line = f"{fine}: shows no pixel of all, so the map is one of the other scenes"
    with pytest.warns(DataNote) as said:
        made = predict_composite(bundle, [dates[0], fine], tmp_path / "maps", "all", WANTED, force=True)
    assert [str(each.message) for each in said if "shows no pixel" in str(each.message)] == [line]
    assert line in made["notes"]


def test_what_is_refused(bundle, dates, tmp_path):
    far = write(tmp_path / "far.tif", made_up(96, 80, nodata=False)[0], left=500)
    for scenes, name, message in [
        ([dates[0]], "all", "two scenes or more"),
        ([dates[0], far], "all", "far.tif shows no ground of the other scenes|d0.tif shows no ground"),
        (dates, "a/b", "without a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            predict_composite(bundle, scenes, tmp_path / "maps", name, WANTED)
    assert not (tmp_path / "maps").exists()


def test_a_composite_tells_its_ice_by_glacier(bundle, dates, tmp_path):
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(0, 0, 96, 40), rectangle(0, 40, 96, 40)])
    wanted = Wanted(window=64, glaciers=ByGlacier(rgi, min_area=0))
    made = predict_composite(bundle, dates, tmp_path / "maps", "all", wanted)
    ice = made["pixels"]["glacier"] + made["pixels"]["debris"]
    assert made["glaciers"]["totals"]["ice"]["pixels"] == ice
    assert pd.read_csv(made["files"]["glaciers.csv"])["pixels"].sum() == ice
    assert predict_composite(bundle, dates, tmp_path / "maps", "all", wanted)["done_before"]
    dem = write_raster(tmp_path / "dem.tif", np.add.outer(np.arange(96.0), np.arange(80.0))[None].astype("f4"))
    own = Wanted(window=64, glaciers=ByGlacier(divides=dem, min_area=0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        divided = predict_composite(bundle, dates, tmp_path / "own", "all", own, dem=dem)
    assert not any("not used" in str(each.message) for each in said)
    with pytest.warns(DataNote, match=r"dem\.tif: no model takes a band of terrain") as said:
        predict_composite(bundle, dates, tmp_path / "plain", "all", Wanted(window=64), dem=dem)
    assert sum("not used" in str(each.message) for each in said) == 1
    assert divided["glaciers"]["totals"]["inventory"]["pixels"] == ice
    assert not list((tmp_path / "maps").glob(".*"))


def test_an_image_counts_once(bundle, dates, tmp_path):
    again = shutil.copy(dates[0], tmp_path / "again.tif")
    with pytest.raises(
        DataError, match=r"again\.tif: is the same image as .*d0\.tif, and would count twice; name it once"
    ):
        predict_composite(bundle, [*dates, again], tmp_path / "maps", "all", WANTED)
