import json
import os
import zipfile

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from glacier_maps import GRID, RECORD, TWO, ground, inventory, tabled, write_map
from polygons import rectangle
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from scenes import write_raster
from scipy.ndimage import label
from typer.testing import CliRunner

from glacier_fastai.cli import app
from glacier_fastai.core.areas import area_interval, glacier_interval
from glacier_fastai.errors import DataError, DataNote, OutputError, PredictionError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict import glacier_sums as module
from glacier_fastai.predict.glaciers import ByGlacier, find_maps, glaciers, write_glaciers
from glacier_fastai.predict.scene import Wanted, predict_scene

GRIDS = {
    "utm": ("EPSG:32645", GRID),
    "degrees": ("EPSG:4326", from_origin(86.5, 61.1, 0.0005, 0.0003)),
    "turned": ("EPSG:32645", Affine(20, 10, 500_000, 10, -20, 3_100_000)),
    "south up": ("EPSG:32645", Affine(30, 0, 500_000, 0, 30, 3_000_000)),
    "polar": ("EPSG:3413", from_origin(-300_000, -1_200_000, 15, 15)),
}


def test_a_row_for_each_glacier_with_what_is_known_of_it(tmp_path):
    classes = ground()
    rgi = inventory(
        tmp_path / "rgi.gpkg", rgi_id=["B", "A"], glac_name=["west", "east"], src_date=["2000-07-01"] * 2,
        area_km2=[0.36, 0.37],
    )  # fmt: skip
    table, layer, made = tabled(write_map(tmp_path / "maps", classes), rgi)
    assert table["id"].tolist() == ["A", "B", ""]
    assert table["name"].fillna("").tolist() == ["east", "west", ""]
    assert table["pixels"].tolist() == [400, 400, 120]
    km2 = 9e-4 / 0.9996**2
    np.testing.assert_allclose(table["area_km2"], table["pixels"] * km2, rtol=1e-4)
    np.testing.assert_allclose(table["debris_share"], [0.25, 0.25, 0], rtol=1e-6)
    np.testing.assert_allclose(table["glacier_km2"] + table["debris_km2"], table["area_km2"], rtol=1e-6)
    np.testing.assert_allclose(table["change_km2"][:2], table["area_km2"][:2] - [0.37, 0.36], rtol=1e-4)
    np.testing.assert_allclose(table["change_percent"][:2], 100 * table["change_km2"][:2] / [0.37, 0.36], rtol=1e-6)
    assert table["share_seen"].fillna(-1).tolist() == [1, 1, -1] and table["recall"].fillna(-1).tolist() == [1, 1, -1]
    np.testing.assert_allclose(table["margin_km"], [1.8, 1.8, 1.32], rtol=1e-3)  # without the divide
    np.testing.assert_allclose(table["margin_km"] * 0.015, table["buffer_km2"], rtol=1e-3)
    assert (table["date"] == "2020-08-01").all() and (table["sensor"] == "landsat8").all()
    assert table["model"].nunique() == 1 and not table["cut"].any() and table["confidence"].isna().all()
    assert made["totals"]["uncounted"]["pixels"] == 6 and made["totals"]["ice"]["pixels"] == 926
    assert made["inventory"]["name"] == "rgi.gpkg" and len(made["inventory"]["sha256"]) == 64
    assert json.loads((tmp_path / "maps/s_glaciers.json").read_text()) == {k: made[k] for k in made if k != "files"}
    assert layer.crs == "EPSG:32645" and (layer.geom_type == "MultiPolygon").all() and layer.is_valid.all()
    np.testing.assert_allclose(layer.area / 900, table["pixels"])
    assert sorted(p.name for p in (tmp_path / "maps").glob("*glaciers*")) == [
        "s_glaciers.csv", "s_glaciers.gpkg", "s_glaciers.json",
    ]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
def test_every_pixel_of_ice_counts_once_whatever_the_grid(tmp_path, grid, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 17)
    crs, transform = GRIDS[grid]
    rng = np.random.default_rng(3)
    small = rng.choice([0, 1, 2, 3, 255], (15, 20), p=[0.45, 0.3, 0.15, 0.05, 0.05]).astype(np.uint8)
    classes = small.repeat(6, 0).repeat(6, 1)
    classes[rng.random(classes.shape) < 0.1] = 0
    places = [(5, 5, 20, 30), (25, 5, 9, 60), (60, 60, 20, 20), (62, 85, 9, 9), (85, 100, 30, 30)]
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(*p, transform) for p in places], crs=crs)
    table, layer, made = tabled(write_map(tmp_path / "maps", classes, grid=transform, crs=crs), rgi, min_area=2e-3)
    ice, totals = np.isin(classes, (1, 2)), made["totals"]
    assert table["pixels"].sum() + totals["uncounted"]["pixels"] == ice.sum() == totals["ice"]["pixels"]
    drawn = layer.geometry.notna()
    burned = rasterize(((g, k) for k, g in enumerate(layer.geometry, 1) if g), ice.shape, transform=transform)
    counts = np.bincount(burned.ravel(), minlength=len(table) + 1)
    assert counts[1:].tolist() == table["pixels"].tolist() and not (burned > 0)[~ice].any()
    own = np.zeros(ice.shape, int)  # by hand
    for k, (row, col, high, wide) in list(enumerate(places, 1))[::-1]:
        own[row : row + high, col : col + wide] = k
    assert (burned == own)[ice & (own > 0)].all()
    np.testing.assert_allclose(
        table["recall"][:5], [ice[own == k].sum() / (classes != 255)[own == k].sum() for k in range(1, 6)]
    )
    patches, n = label(ice & ((burned == 0) | (burned > 5)))
    kept = np.unique(burned[burned > 5])
    assert len(kept) == len(table) - 5 and n > len(kept) > 0
    for k in kept:
        (patch,) = np.unique(patches[burned == k])
        assert (patches == patch).sum() == counts[k]
    left = np.unique(patches[ice & (burned == 0)])
    pixel = totals["ice"]["km2"] / totals["ice"]["pixels"]
    assert all((patches == p).sum() * pixel < 2e-3 * 1.01 for p in left) and len(left)
    degrees = layer[drawn].segmentize(20 * abs(transform.determinant) ** 0.5).to_crs("EPSG:4326")
    true = [abs(Geod(ellps="WGS84").geometry_area_perimeter(g)[0]) / 1e6 for g in degrees]
    np.testing.assert_allclose(table["area_km2"][drawn], true, rtol=2e-5)
    other = tabled(write_map(tmp_path / "again", classes, grid=transform, crs=crs), rgi, min_area=2e-3)[0]
    monkeypatch.setattr(module, "ROWS", 512)
    whole = tabled(write_map(tmp_path / "whole", classes, grid=transform, crs=crs), rgi, min_area=2e-3)[0]
    pd.testing.assert_frame_equal(other, whole, rtol=1e-9)


@pytest.mark.parametrize(("buffer", "pixels"), [(0, 400), (30, 480), (60, 560), (None, 560)])
def test_ice_within_the_buffer_is_the_nearest_glaciers(tmp_path, buffer, pixels):
    classes = ground()
    classes[10:30, 50:60] = 1
    rgi = inventory(tmp_path / "rgi.gpkg", area_km2=[0.36, 0.36])
    table = tabled(write_map(tmp_path / "maps", classes), rgi, buffer=buffer)[0]
    # 4 pixels of the rim in each row: those that touch the glacier's corner are within, too
    assert table["pixels"].tolist()[0] == 400 and table["id"].tolist()[:2] == ["row 0", "row 1"]
    assert table["pixels"][1] == 400 + 20 * (0 if buffer == 0 else 1 if buffer == 30 else 2)
    rest = 10 - (table["pixels"][1] - 400) / 20
    assert table["pixels"][2] == rest * 20


def test_overlapping_outlines_share_no_ice(tmp_path):
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(10, 10, 20, 25), TWO[1]], rgi_id=["Z", "A"])
    with pytest.warns(DataNote, match=r"outlines overlap on 100 pixels of s_classes\.tif; these .* the first id"):
        made = glaciers(write_map(tmp_path / "maps", ground()), rgi)
    table = pd.read_csv(made["files"]["glaciers.csv"])
    assert dict(zip(table["id"], table["pixels"], strict=True))["A"] == 400 and table["pixels"][:2].sum() == 800


def test_confidence_and_intervals_come_from_the_maps_beside(tmp_path):
    classes, rng = ground(), np.random.default_rng(0)
    probs = rng.dirichlet([1, 1, 1, 1], classes.shape).transpose(2, 0, 1)
    probs[:, 40:50, 60:72] = np.array([0.2, 0.6, 0.1, 0.1])[:, None, None]
    rgi = inventory(tmp_path / "rgi.gpkg")
    table = tabled(write_map(tmp_path / "maps", classes, probs), rgi)[0]
    shown = np.take_along_axis(probs, np.where(classes == 255, 0, classes)[None].astype(int), 0)[0]
    own = [np.s_[10:30, 10:30], np.s_[10:30, 30:50], np.s_[40:50, 60:72]]
    np.testing.assert_allclose(table["confidence"], [shown[at].mean() for at in own], atol=2e-3)
    doubt = np.array([probs[(0, 3), *at].sum() for at in own])
    low, high = area_interval(table["pixels"].to_numpy(), doubt, -2.0, 1.0)
    pixel = table["area_km2"] / table["pixels"]
    np.testing.assert_allclose(table["area_low_km2"], low * pixel, rtol=1e-2)
    np.testing.assert_allclose(table["area_high_km2"], high * pixel, rtol=1e-2)
    (tmp_path / "maps" / "s_confidence.tif").unlink()
    again = tabled(tmp_path / "maps" / "s_classes.tif", rgi, overwrite=True)[0]
    np.testing.assert_allclose(again["confidence"], table["confidence"], rtol=1e-6)
    (tmp_path / "maps" / "s_probabilities.tif").unlink()
    with pytest.warns(DataNote, match="intervals of areas need the map of probabilities"):
        glaciers(tmp_path / "maps" / "s_classes.tif", rgi, overwrite=True)


def by_outlines(area=(-2.0, 1.0), glacier=(1.5, 0.1, 0.05, -0.5, 0.25)):
    return {**RECORD, "calibration": {"area": area, "glacier": glacier}}


@pytest.mark.parametrize("rows", [module.ROWS, 7])
def test_intervals_of_glaciers_come_from_the_ice_expected_in_outline_and_buffer(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    classes, rng = ground(), np.random.default_rng(0)
    classes[12:20, 12:20] = 0  # missed
    probs = rng.dirichlet([1, 1, 1, 1], classes.shape).transpose(2, 0, 1)
    rgi = inventory(tmp_path / "rgi.gpkg")
    table = tabled(write_map(tmp_path / "maps", classes, probs, record=by_outlines()), rgi)[0]
    ice = np.where(classes == 255, 0, probs[[1, 2]].sum(0))
    edge = np.zeros(classes.shape, int)
    edge[8:32, 8:30], edge[8:32, 30:52] = 1, 2  # 60 m are two pixels
    corners = [(r, c) for r in (8, 9, 30, 31) for c in (8, 9, 50, 51) if r in (8, 31) or c in (8, 51)]
    away = [(r, c) for r, c in corners if min(abs(r - 10), abs(r - 29)) ** 2 + min(abs(c - 10), abs(c - 49)) ** 2 > 4]
    edge[tuple(np.array(away).T)] = 0
    expected = np.array([ice[edge == k].sum() for k in (1, 2)])
    low, high = glacier_interval(table["pixels"].to_numpy()[:2], expected, 1.5, 0.1, 0.05, -0.5, 0.25)
    pixel = table["area_km2"] / table["pixels"]
    np.testing.assert_allclose(table["area_low_km2"][:2], low * pixel[:2], rtol=1e-2)
    np.testing.assert_allclose(table["area_high_km2"][:2], high * pixel[:2], rtol=1e-2)
    doubt = probs[(0, 3), 40:50, 60:72].sum()  # new ice has no outline
    low, high = area_interval(np.array([120]), np.array([doubt]), -2.0, 1.0)
    np.testing.assert_allclose(table["area_high_km2"][2], high * pixel[2], rtol=1e-2)
    before = tabled(write_map(tmp_path / "before", classes, probs), rgi)[0]
    pd.testing.assert_frame_equal(*(t.filter(regex="^(?!area_(low|high)|model)") for t in (before, table)))
    assert (before["model"] == table["model"]).all()  # it makes the same maps


def test_where_glaciers_are_not_calibrated_intervals_are_those_of_connected_ice_or_none(tmp_path):
    classes = ground()
    probs = np.full((4, *classes.shape), 0.25)
    rgi = inventory(tmp_path / "rgi.gpkg")
    with pytest.warns(DataNote, match="calibrated to connected ice alone, so intervals of glaciers are the wider ones"):
        glaciers(write_map(tmp_path / "old", classes, probs), rgi)
    old = pd.read_csv(tmp_path / "old" / "s_glaciers.csv")
    path = write_map(tmp_path / "maps", classes, probs, record=by_outlines())
    with pytest.warns(DataNote, match="fitted to a buffer of 60 m, so with 100 m they are those of connected ice"):
        glaciers(path, rgi, buffer=100)
    np.testing.assert_allclose(pd.read_csv(tmp_path / "maps" / "s_glaciers.csv")["area_low_km2"], old["area_low_km2"])
    path = write_map(tmp_path / "none", classes, probs, record=by_outlines(area=None))
    table = tabled(path, rgi)[0]
    assert table["area_low_km2"].notna().tolist() == [True, True, False]
    with pytest.warns(DataNote, match="those of connected ice"):
        glaciers(path, rgi, buffer=100, overwrite=True)
    assert pd.read_csv(tmp_path / "none" / "s_glaciers.csv")["area_low_km2"].isna().all()
    few = classes.copy()
    few[10:30, 10:30] = 0
    few[12, 12:21] = 1  # nine pixels: too few for an interval
    table = tabled(write_map(tmp_path / "few", few, probs, record=by_outlines()), rgi)[0]
    assert table["area_low_km2"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("bad", [{"glacier": [1, 2]}, {"glacier": [1, 0, 0, 0.5, -0.5]}, {"area": ["a", 1]}, [1]])
def test_a_calibration_that_cannot_be_used_is_refused(tmp_path, bad):
    path = write_map(tmp_path / "maps", ground(), record={**RECORD, "calibration": bad})
    with pytest.raises(DataError, match=r"s_classes.tif: the calibration in its record cannot be used \("):
        glaciers(path, inventory(tmp_path / "rgi.gpkg"))
    assert not (tmp_path / "maps" / "s_glaciers.csv").exists()


def test_a_glacier_that_is_cut_or_unseen_is_marked_and_not_compared(tmp_path):
    classes = ground()
    classes[10:30, 20:30] = 255  # half of the first
    shapes = [*TWO, rectangle(35, -10, 10, 20), rectangle(2, 72, 4, 4), rectangle(50, 20, 5, 5)]
    shapes += [rectangle(45, 45, 0.3, 0.3)]
    rgi = inventory(tmp_path / "rgi.gpkg", shapes)
    table = tabled(write_map(tmp_path / "maps", classes), rgi)[0].fillna({"remarks": ""})
    assert table["share_seen"][:3].tolist() == pytest.approx([0.5, 1, 0.5], rel=1e-3)
    assert table["remarks"].tolist() == [
        "seen in part", "", "cut by the edge; seen in part; no ice found", "not seen", "no ice found",
        "outline covers no pixel", "",
    ]  # fmt: skip
    assert table["change_km2"].isna().tolist()[:5] == [True, False, True, True, False]
    assert table["area_km2"][4] == 0 and table["change_percent"][4] == -100


def test_heights_slope_and_aspect_of_an_elevation_model(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 13)
    rows, cols = np.mgrid[:60, :80].astype(np.float32)
    heights = 5000 - 10 * rows + 10 * cols  # falls to the south-west
    heights[12, 12] = -9999
    dem = write_raster(tmp_path / "dem.tif", heights[None], nodata=-9999)
    rgi = inventory(tmp_path / "rgi.gpkg", [TWO[0], rectangle(50, 40, 5, 5)])
    table = tabled(write_map(tmp_path / "maps", ground()), rgi, dem=dem, buffer=0)[0]
    inside = np.where(heights < 0, np.nan, heights)[10:30, 10:30]
    found = table[["zmin_m", "zmed_m", "zmax_m"]].to_numpy()[0]
    np.testing.assert_allclose(found, [np.nanmin(inside), np.nanmedian(inside), np.nanmax(inside)])
    assert table["aspect_deg"][0] == pytest.approx(225, abs=0.5)
    assert table["slope_deg"][0] == pytest.approx(np.degrees(np.arctan(2**0.5 / 3)), abs=0.1)
    assert table["zmin_m"].isna().tolist() == [False, True, False, False]
    part = write_raster(tmp_path / "part.tif", heights[None, :30], nodata=-9999)
    with pytest.warns(DataNote, match=r"part\.tif: covers about 5\d% of"):
        made = glaciers(tmp_path / "maps" / "s_classes.tif", rgi, dem=part, overwrite=True)
    assert any("covers about" in text for text in made["notes"])
    with pytest.raises(DataError, match=r"no\.tif: no such file"):
        glaciers(tmp_path / "maps" / "s_classes.tif", rgi, dem=tmp_path / "no.tif", overwrite=True)


def test_what_is_odd_about_a_map_is_said(tmp_path):
    rgi, classes = inventory(tmp_path / "rgi.gpkg"), ground()
    bare = write_map(tmp_path / "maps", classes, stem="LE07_20001030", record=None)
    with pytest.warns(DataNote, match="no LE07_20001030_prediction.json beside it") as said:
        made = glaciers(bare, rgi)
    assert made["date"] == "2000-10-30" and made["model"] == "" and "read off its name" in str(said[-1].message)
    path = write_map(tmp_path / "maps", classes, record={**RECORD, "date": ""})
    with rasterio.open(path, "r+") as file:
        file.write(classes[::-1], 1)
    with pytest.warns(DataNote, match=r"s_classes\.tif: is not as s_prediction\.json says; it was changed"):
        made = glaciers(path, rgi, date="2001-02-03")
    assert made["date"] == "2001-02-03" and "calibrated" not in "".join(made["notes"])
    odd = write_map(tmp_path / "odd", classes, record={**RECORD, "models": ["-1"]})
    assert glaciers(odd, rgi)["model"] == ""


def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path):
    rgi, classes = inventory(tmp_path / "rgi.gpkg"), ground()

    def refused(message, path, error=DataError, given=rgi, **options):
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.exists() else []
        with pytest.raises(error, match=message) as err:
            glaciers(path, given, **options)
        assert "\n" not in str(err.value)
        assert there == (sorted(p.name for p in path.parent.iterdir()) if path.parent.exists() else [])

    path = write_map(tmp_path / "maps", classes)
    refused("no such file", tmp_path / "maps" / "x_classes.tif")
    refused(r"date '8/2020': write it as YYYY-MM-DD", path, date="8/2020")
    refused(r"x\.gpkg: no such file", path, given=tmp_path / "x.gpkg")
    far = inventory(tmp_path / "far.gpkg", [shapely.box(-73, -47, -72, -46)], crs="EPSG:4326")
    refused(r"far\.gpkg: lies elsewhere.*give the inventory of that region", path, given=far)
    codes = write_map(tmp_path / "codes", np.where(classes == 1, 7, classes))
    refused(r"s_classes\.tif: holds 7; a map of classes has 0 to 3", codes)
    write_raster(tmp_path / "maps" / "s_confidence.tif", classes[None, :50], nodata=255)
    refused(r"s_confidence\.tif: lies on another grid than s_classes\.tif", path)
    (tmp_path / "maps" / "s_confidence.tif").unlink()
    (tmp_path / "maps" / "s_prediction.json").write_text("{")
    refused(r"s_prediction\.json: damaged", path)
    floats = write_raster(tmp_path / "f.tif", classes[None].astype("f4"))
    refused(r"f\.tif: 1 bands of float32, so no map of classes", floats)
    long = write_map(tmp_path / "long", classes)
    os.truncate(long, 2**40)
    refused(r"s_classes\.tif: has 1,099,511,627,776 bytes", long)
    beside = write_raster(write_map(tmp_path / "beside", classes).with_name("s_confidence.tif"), classes[None])
    os.truncate(beside, 2**40)
    refused(r"s_confidence\.tif: has 1,099,511,627,776 bytes", beside.with_name("s_classes.tif"))
    zero = write_raster(tmp_path / "z.tif", classes[None], nodata=0)
    refused(r"z\.tif: declares 0 as nodata; in a map of classes it is 255", zero)
    for wrong in ({"buffer": -1}, {"buffer": np.nan}, {"min_area": np.inf}):
        with pytest.raises(DataError, match="use a number of at least 0"):
            ByGlacier(rgi, **wrong)


def test_the_tables_tell_no_folder_of_an_inventory(tmp_path):
    (tmp_path / "jane doe").mkdir()
    rgi, path = inventory(tmp_path / "jane doe" / "rgi.shp"), write_map(tmp_path / "maps", ground())
    with zipfile.ZipFile(tmp_path / "jane doe" / "rgi.zip", "w") as file:
        for each in rgi.parent.glob("rgi.???"):
            if each.suffix != ".zip":
                file.write(each, each.name)
    packed = rgi.with_suffix(".zip")
    for name in (rgi, f"zip://{packed}!rgi.shp", f"/vsizip/{packed}/rgi.shp", packed):
        with pytest.warns(DataNote, match="jane doe"):
            glaciers(path, name, overwrite=True)
        text = (tmp_path / "maps" / "s_glaciers.json").read_text()
        assert "no column of areas" in text and "doe" not in text and str(tmp_path) not in text


def test_probabilities_that_are_none_are_refused(tmp_path):
    rgi, classes = inventory(tmp_path / "rgi.gpkg"), ground()
    path = write_map(tmp_path / "maps", classes, np.full((4, *classes.shape), 0.25), record=by_outlines())
    beside = path.with_name("s_probabilities.tif")
    with rasterio.open(beside, "r+") as file:
        file.scales = [1.0] * 4  # as by a program that loses them
    with (
        pytest.raises(
            DataError, match=r"s_probabilities\.tif: holds 6\d; probabilities are from 0 to 1, bytes by a sc"
        ),
        pytest.warns(DataNote, match=r"s_probabilities\.tif: is not as s_prediction\.json says; it was changed"),
    ):
        glaciers(path, rgi)
    floats = np.where(classes == 255, np.nan, np.full((4, *classes.shape), -0.5)).astype("f4")
    write_raster(beside, floats)
    with pytest.raises(DataError, match=r"s_probabilities\.tif: holds -0\.5;"), pytest.warns(DataNote):
        glaciers(path, rgi)


def test_tables_are_kept_unless_they_may_be_replaced(tmp_path):
    rgi, path = inventory(tmp_path / "rgi.gpkg"), write_map(tmp_path / "maps", ground())
    tabled(path, rgi, geoparquet=True)
    with pytest.raises(OutputError, match=r"s_glaciers\.gpkg: exists already; overwrite it"):
        tabled(path, rgi)
    _, layer, made = tabled(path, rgi, overwrite=True)
    assert not (tmp_path / "maps" / "s_glaciers.parquet").exists() and len(layer) == 3
    made = tabled(path, rgi, overwrite=True, geoparquet=True)[2]
    assert geopandas.read_parquet(made["files"]["glaciers.parquet"]).geometry.geom_equals(layer.geometry).all()
    assert not list((tmp_path / "maps").glob(".*"))
    (tmp_path / "maps" / "s_glaciers.json").unlink()
    (tmp_path / "maps" / "s_glaciers.json").mkdir()
    before = sorted((tmp_path / "maps").iterdir())
    with pytest.raises(OutputError, match=r"s_glaciers\.json: stands in the way and is no file; move it away"):
        tabled(path, rgi, overwrite=True)
    assert sorted((tmp_path / "maps").iterdir()) == before


def test_geoparquet_without_pyarrow_is_refused_before_any_work(tmp_path, monkeypatch):
    rgi, path = inventory(tmp_path / "rgi.gpkg"), write_map(tmp_path / "maps", ground())
    before = sorted(path.parent.iterdir())
    monkeypatch.setattr("glacier_fastai.predict.outlines.find_spec", lambda name: None)
    with pytest.raises(PredictionError, match=r"pip install 'glacier-fastai\[geoparquet\]'"):
        tabled(path, rgi, geoparquet=True)
    assert sorted(path.parent.iterdir()) == before


def test_a_map_without_ice_has_a_row_for_each_outline(tmp_path):
    rgi, path = inventory(tmp_path / "rgi.gpkg"), write_map(tmp_path / "maps", np.zeros((60, 80), np.uint8))
    table, layer, _ = tabled(path, rgi)
    assert table["pixels"].tolist() == [0, 0] and layer.geometry.isna().all()
    assert (table["remarks"] == "no ice found").all()


def test_without_an_outline_on_the_scene_all_ice_is_new(tmp_path):
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(-900, -900, 10, 10), rectangle(900, 900, 10, 10)])
    path = write_map(tmp_path / "maps", ground())
    table, layer, made = tabled(path, rgi, form="glims", analyst="me")
    assert table["id"].tolist() == ["", ""] and table["pixels"].tolist() == [800, 120] and len(layer) == 2
    assert "none of its glaciers lies on" in made["notes"][0]
    small = tabled(path, rgi, min_area=10, overwrite=True)[2]["totals"]
    assert small["uncounted"]["pixels"] == small["ice"]["pixels"] == 926


def test_maps_are_found(tmp_path):
    path = write_map(tmp_path / "maps", ground(), np.full((4, 60, 80), 0.25))
    assert find_maps([f"{path.parent}/*.tif", path]) == [path]
    with pytest.raises(DataError, match="no map of classes"):
        find_maps([f"{tmp_path}/x*.tif"])


def test_predict_gives_ice_to_glaciers_at_once(trained, scene, tmp_path):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(0, 0, 96, 40), rectangle(0, 40, 96, 40)])
    wanted = Wanted(glaciers=ByGlacier(rgi, min_area=0))
    made = predict_scene(bundle, scene[0], tmp_path / "maps", wanted)
    names = {"classes.tif", "prediction.json", "glaciers.gpkg", "glaciers.csv", "glaciers.json"}
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {f"scene_{name}" for name in names}
    record = json.loads((tmp_path / "maps" / "scene_prediction.json").read_text())
    about = json.loads((tmp_path / "maps" / "scene_glaciers.json").read_text())
    assert record["glaciers"] == {k: about[k] for k in ("inventory", "totals")}
    assert record["wanted"]["glaciers"]["sha256"] == about["inventory"]["sha256"]
    table = pd.read_csv(made["files"]["glaciers.csv"])
    ice = made["pixels"]["glacier"] + made["pixels"]["debris"]
    assert table["pixels"].sum() == ice == about["totals"]["ice"]["pixels"]
    assert about["prediction"] == record["hash"]
    assert predict_scene(bundle, scene[0], tmp_path / "maps", wanted)["done_before"]
    with pytest.raises(OutputError, match="exists already"):
        predict_scene(bundle, scene[0], tmp_path / "maps", Wanted(glaciers=ByGlacier(rgi, 0)))
    predict_scene(bundle, scene[0], tmp_path / "plain", Wanted("uint8", True))
    again = tabled(tmp_path / "plain" / "scene_classes.tif", rgi, min_area=0)[0]
    pd.testing.assert_frame_equal(again, table.fillna({"id": ""}), check_dtype=False)  # one road
    dem = write_raster(tmp_path / "dem.tif", np.full((1, 96, 80), 5000, np.float32))
    high = predict_scene(bundle, scene[0], tmp_path / "high", wanted, dem=dem)
    assert (pd.read_csv(high["files"]["glaciers.csv"])["zmed_m"].dropna() == 5000).all()
    far = inventory(tmp_path / "far.gpkg", [shapely.box(-73, -47, -72, -46)], crs="EPSG:4326")
    with pytest.raises(DataError, match="lies elsewhere"):
        predict_scene(bundle, scene[0], tmp_path / "none", Wanted(glaciers=ByGlacier(far)))
    assert not (tmp_path / "none").exists()


def test_an_elevation_model_that_is_replaced_while_it_is_read_is_noticed(trained, scene, tmp_path, monkeypatch):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(0, 0, 96, 80)])
    dem = write_raster(tmp_path / "dem.tif", np.full((1, 96, 80), 5000, np.float32))

    def late(*args, **kwargs):
        write_raster(tmp_path / "dem.tif", np.full((1, 96, 80), 4000, np.float32))
        return write_glaciers(*args, **kwargs)

    monkeypatch.setattr("glacier_fastai.predict.scene.write_glaciers", late)
    with pytest.raises(DataError, match=r"dem\.tif: was changed while scene was mapped; map it again"):
        predict_scene(bundle, scene[0], tmp_path / "maps", Wanted(glaciers=ByGlacier(rgi, min_area=0)), dem=dem)
    assert not (tmp_path / "maps").exists()


def test_predict_without_an_outline_on_the_scene_finds_new_glaciers(trained, scene, tmp_path):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(-900, -900, 10, 10), rectangle(900, 900, 10, 10)])
    made = predict_scene(bundle, scene[0], tmp_path / "maps", Wanted(glaciers=ByGlacier(rgi, min_area=0)))
    assert made["glaciers"]["totals"]["new"]["glaciers"] == len(pd.read_csv(made["files"]["glaciers.csv"])) > 0


def test_the_command_prints_tables_and_sums(tmp_path):
    rgi, path = inventory(tmp_path / "rgi.gpkg"), write_map(tmp_path / "maps", ground())
    run = CliRunner().invoke(app, ["glaciers", str(path), "--inventory", str(rgi), "--out", str(tmp_path / "t")])
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines() == [f"{tmp_path}/t/s_glaciers.{end}" for end in ("gpkg", "csv", "json")]
    assert "in 2 glaciers of rgi.gpkg, 0.108 in 1 new ones, 0.005 in smaller patches" in run.stderr
    run = CliRunner().invoke(app, ["glaciers", str(path), "--inventory", str(rgi), "--overwrite", "--json"])
    assert json.loads(run.stdout)[0]["totals"]["new"]["glaciers"] == 1


def test_the_glaciers_of_everest(everest, tmp_path):
    with rasterio.open(everest / "label.tif") as file:
        classes, grid, crs = file.read(1), file.transform, file.crs
    table, _, made = tabled(write_map(tmp_path / "maps", classes, grid=grid, crs=crs), everest / "outlines.gpkg")
    assert len(table) == 67 and table["id"].is_unique
    assert table["pixels"].sum() == np.isin(classes, (1, 2)).sum() == made["totals"]["ice"]["pixels"]
    whole = table[table["share_seen"] > 0.99]
    np.testing.assert_allclose(whole["area_km2"], whole["inventory_km2"], rtol=0.08)
    assert (table["recall"] == 1).all()
