import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from glacier_maps import RECORD, tabled, write_map
from polygons import CRS, GRID
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from scenes import write_raster
from typer.testing import CliRunner

from glacier_fastai.cli import app
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.change import change
from glacier_fastai.predict.glaciers import ByGlacier, glaciers
from glacier_fastai.predict.scene import Wanted, predict_scene

SHAPE = 100, 120
RIDGE = 500_000 + 60 * 30  # east of the map's middle lies another glacier


def mountains(shift=0):
    """A patch of ice across a ridge, with debris, a lake, ground without data, a small patch, and a speck beside."""
    classes = np.zeros(SHAPE, np.uint8)
    classes[20:70, 25 + shift : 95 - shift] = 1
    classes[60:70, 40:80] = 2
    classes[30:33, 40:44] = 3
    classes[40:44, 80:84] = 255
    classes[5:10, 5:13] = 1
    classes[71:72, 50:54] = 2
    return classes


def height(x, y):
    return 4000 - 0.2 * abs(x - RIDGE) + 0.05 * (y - 3_100_000)


def write_dem(path, crs=CRS, transform=None, shape=(160, 180), change=lambda z: z, **more):
    """Heights in metres in any CRS; by default on the map's grid and 30 pixels around it."""
    transform = transform or GRID * Affine.translation(-30, -30)
    row, col = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = (transform.a * col + transform.c, transform.e * row + transform.f)
    x, y = Transformer.from_crs(crs, CRS, always_xy=True).transform(x, y)
    return write_raster(path, change(height(x, y))[None].astype(np.float32), crs=crs, transform=transform, **more)


def burned(layer, shape=SHAPE, grid=GRID):
    return rasterize(((g, k) for k, g in enumerate(layer.geometry, 1)), shape, transform=grid)


def test_ice_is_divided_along_the_ridge_and_every_pixel_counts_once(tmp_path):
    classes = mountains()
    path, dem = write_map(tmp_path / "maps", classes), write_dem(tmp_path / "dem.tif")
    table, layer, made = tabled(path, None, divides=dem)
    ice = np.isin(classes, (1, 2))
    assert len(table) == 3 and table["id"].is_unique and table["id"].is_monotonic_increasing
    assert table["id"].str.fullmatch(r"G0\d{5}E2\d{4}N").all() and (table["glims_id"] == table["id"]).all()
    assert table["pixels"].sum() == made["totals"]["ice"]["pixels"] == ice.sum()
    assert made["totals"]["uncounted"]["pixels"] == made["totals"]["new"]["pixels"] == 0  # the speck is its neighbour's
    of, col = burned(layer), np.indices(SHAPE)[1]
    assert ((of > 0) == ice).all()
    large = table["pixels"].to_numpy() > 1000
    assert large.sum() == 2 and table["pixels"][~large].tolist() == [40]
    for k in np.flatnonzero(large) + 1:
        west = (col[of == k] < 60).mean()
        assert min(west, 1 - west) < 0.02
    assert table["inventory_km2"].isna().all() and table["change_km2"].isna().all() and (table["recall"] == 1).all()
    assert table["zmax_m"].notna().all() and (table["inventory"] == "divides of dem.tif").all()
    assert made["inventory"]["glaciers"] == 3 and len(made["inventory"]["sha256"]) == 64
    told = made["inventory"]["divides"]
    assert told["dem"] == "dem.tif" and len(told["dem_sha256"]) == 64 and "2013JoG12J138" in told["by"]
    assert told["merge_m"] == 357.5 and not table["cut"].any()
    assert json.loads((tmp_path / "maps/s_glaciers.json").read_text())["inventory"] == made["inventory"]
    small = tabled(path, None, divides=dem, overwrite=True, min_area=0.1)[2]["totals"]
    assert small["inventory"]["glaciers"] == 2 and small["uncounted"]["pixels"] == 40


@pytest.mark.parametrize("kind", ["degrees", "feet", "coarse", "integers"])
def test_any_elevation_model_will_do(tmp_path, kind):
    path = write_map(tmp_path / "maps", mountains())
    dem = tmp_path / "dem.tif"
    if kind == "degrees":
        write_dem(dem, "EPSG:4326", from_origin(86.98, 28.04, 0.0004, 0.0003), (250, 250))
    elif kind == "coarse":
        write_dem(dem, CRS, GRID * Affine.translation(-30, -30) * Affine.scale(3), (54, 60))
    else:
        write_dem(dem, change=(lambda z: z / 0.3048) if kind == "feet" else np.round)
        if kind == "feet":
            with rasterio.open(dem, "r+") as file:
                file.units = ["ft"]
    table, layer, _ = tabled(path, None, divides=dem)
    assert len(table) == 3 and 3500 < table["zmax_m"].max() < 4100
    of, col = burned(layer), np.indices(SHAPE)[1]
    west = of[50, 30]
    assert (col[of == west] < 60).mean() > 0.97 and (of == west)[(of > 0) & (col < 59)].mean() > 0.9


def test_a_map_on_any_grid_is_divided(tmp_path):
    grid, crs = from_origin(500_000 / 1.0, 3_100_000, 30, 30), CRS
    dem = write_dem(tmp_path / "dem.tif")
    south_up = Affine(30, 0, 500_000, 0, -30, 3_100_000) * Affine.translation(0, SHAPE[0]) * Affine.scale(1, -1)
    plain = tabled(write_map(tmp_path / "a", mountains(), grid=grid, crs=crs), None, divides=dem)[0]
    turned = tabled(write_map(tmp_path / "b", mountains()[::-1].copy(), grid=south_up), None, divides=dem)[0]
    assert len(plain) == len(turned) == 3
    np.testing.assert_allclose(sorted(plain["pixels"]), sorted(turned["pixels"]), rtol=0.02)
    degrees = from_origin(87.0, 28.02, 0.0003, 0.00027)
    by_degrees = tabled(write_map(tmp_path / "c", mountains(), grid=degrees, crs="EPSG:4326"), None, divides=dem)[0]
    assert by_degrees["pixels"].sum() == plain["pixels"].sum()


def test_voids_and_parts_without_heights_are_said(tmp_path):
    path = write_map(tmp_path / "maps", mountains())

    def holed(z):
        z[70:74, 70:80] = -9999
        return z

    dem = write_dem(tmp_path / "holed.tif", change=holed, nodata=-9999)
    with pytest.warns(
        DataNote, match=r"holed\.tif: has no heights under 1\.\d\d% of the ice that is divided; the near"
    ):
        made = glaciers(path, divides=dem)
    assert made["inventory"]["glaciers"] == 3
    part = write_dem(tmp_path / "part.tif", shape=(160, 100))
    with pytest.warns(DataNote, match=r"part\.tif: covers about 5\d% of s_classes\.tif") as said:
        made = glaciers(path, divides=part, overwrite=True)
    assert sum("covers about" in str(w.message) for w in said) == 1  # though it gives heights, too
    assert any("no heights under 3" in text for text in made["notes"])

    def pitted(z):
        z[80:95, 75:90] -= 200
        return z

    rough = write_dem(tmp_path / "rough.tif", change=pitted)
    with pytest.warns(DataNote, match=r"rough\.tif: \d% of the ice that is divided lies in pits deeper than 20 m"):
        glaciers(path, divides=rough, overwrite=True)


def test_what_cannot_be_divided_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    path, dem = write_map(tmp_path / "maps", mountains()), write_dem(tmp_path / "dem.tif")

    def refused(message, **options):
        with pytest.raises(DataError, match=message) as err:
            glaciers(path, **options)
        assert "\n" not in str(err.value)
        assert sorted(p.name for p in path.parent.iterdir()) == ["s_classes.tif", "s_prediction.json"]

    refused("by an inventory, or by divides of an elevation model; give one")
    refused("by an inventory, or by divides of an elevation model; give one", inventory="x.gpkg", divides=dem)
    refused(r"no\.tif: no such file", divides=tmp_path / "no.tif")
    far = write_dem(
        tmp_path / "far.tif", transform=from_origin(700_000, 3_500_000, 30, 30), change=lambda z: 0 * z + 5000
    )
    refused(r"far\.tif: does not cover .*s_classes\.tif: it shows other ground", divides=far)
    void = write_dem(
        tmp_path / "void.tif", change=lambda z: np.where(np.indices(z.shape)[0] < 120, -9999, z), nodata=-9999
    )
    refused(r"void\.tif: has no heights under the ice of s_classes\.tif; give another", divides=void)
    monkeypatch.setattr("glacier_fastai.memory.LEAST", 0)
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 400_000)
    monkeypatch.setattr("glacier_fastai.predict.glacier_sums.fits", lambda *args: None)
    refused(r"s_classes\.tif: 60 x 80 px around a complex of 3 km2 need 0\.0 GB of memory.*; cut the map", divides=dem)


def test_maps_without_ice_or_with_small_patches_alone(tmp_path):
    dem = write_dem(tmp_path / "dem.tif")
    table, _, made = tabled(write_map(tmp_path / "none", np.zeros(SHAPE, np.uint8)), None, divides=dem)
    assert len(table) == 0 and made["inventory"]["glaciers"] == 0
    specks = np.where(mountains() == 1, 0, 0).astype(np.uint8)
    specks[50:60, 55:65] = 1  # across the ridge
    table, _, _ = tabled(write_map(tmp_path / "small", specks), None, divides=dem)
    assert table["pixels"].tolist() == [100]


def test_ice_that_the_map_cuts_is_marked(tmp_path):
    classes = mountains()
    classes[:, :25] = classes[:, 25:26]
    table, _, _ = tabled(write_map(tmp_path / "maps", classes), None, divides=write_dem(tmp_path / "dem.tif"))
    assert table["cut"].sum() == 1 and table["pixels"].sum() == np.isin(classes, (1, 2)).sum()


def test_a_table_is_the_inventory_of_another_date_and_of_others(tmp_path):
    dem = write_dem(tmp_path / "dem.tif")
    first = write_map(tmp_path / "maps", mountains(), stem="a", record={**RECORD, "date": "2010-08-01"})
    second = write_map(tmp_path / "maps", mountains(6), stem="b")
    table, _, made = tabled(first, None, divides=dem, form="glims", analyst="me")
    other = glaciers(second, divides=dem)
    with pytest.raises(DataError, match="are of different inventories|have no glacier in common"):
        change(made["files"]["glaciers.gpkg"], other["files"]["glaciers.gpkg"], tmp_path / "no")
    later = tabled(second, made["files"]["glaciers.gpkg"], overwrite=True)[0]
    assert later["id"].tolist() == table["id"].tolist() and (later["recall"][later["pixels"] > 1000] < 0.95).all()
    found = change(first, second, tmp_path / "change", inventory=made["files"]["glaciers.gpkg"])
    assert found["compared"] == 3
    glims = geopandas.read_file(made["files"]["inventory"])
    assert set(glims["local_id"].dropna()) == set(table["id"])
    assert glims["proc_desc"].str.contains("ice given to glaciers by divides of dem.tif").all()


def test_predict_divides_its_own_map(trained, scene, tmp_path):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    dem = write_dem(tmp_path / "dem.tif")
    wanted = Wanted(glaciers=ByGlacier(divides=dem, min_area=0))
    made = predict_scene(bundle, scene[0], tmp_path / "maps", wanted)
    record = json.loads((tmp_path / "maps" / "scene_prediction.json").read_text())
    about = json.loads((tmp_path / "maps" / "scene_glaciers.json").read_text())
    assert record["wanted"]["glaciers"]["divides"] == "dem.tif" and record["wanted"]["glaciers"]["pit_m"] == 20
    assert record["glaciers"] == {k: about[k] for k in ("inventory", "totals")}
    table = pd.read_csv(made["files"]["glaciers.csv"])
    assert table["pixels"].sum() == made["pixels"]["glacier"] + made["pixels"]["debris"]
    assert table["zmed_m"].notna().all()
    assert predict_scene(bundle, scene[0], tmp_path / "maps", wanted)["done_before"]
    write_dem(dem, change=lambda z: z + 1)
    with pytest.raises(OutputError, match="exists already"):
        predict_scene(bundle, scene[0], tmp_path / "maps", wanted)
    far = write_dem(
        tmp_path / "far.tif", transform=from_origin(700_000, 3_500_000, 30, 30), change=lambda z: 0 * z + 5000
    )
    with pytest.raises(DataError, match="shows other ground"):
        predict_scene(bundle, scene[0], tmp_path / "none", Wanted(glaciers=ByGlacier(divides=far)))
    assert not (tmp_path / "none").exists()


def test_the_command_divides_and_says_what_it_needs(tmp_path):
    path, dem = write_map(tmp_path / "maps", mountains()), write_dem(tmp_path / "dem.tif")
    run = CliRunner().invoke(app, ["glaciers", str(path), "--divides", str(dem)])
    assert run.exit_code == 0, run.output
    assert "in 3 glaciers of divides of dem.tif, 0.000 in 0 new ones" in run.stderr
    for words in ([], ["--divides", str(dem), "--inventory", "rgi.gpkg"]):
        run = CliRunner().invoke(app, ["glaciers", str(path), *words])
        assert isinstance(run.exception, DataError) and "give --inventory or --divides" in str(run.exception)
    run = CliRunner().invoke(app, ["predict", "b.safetensors", "s.tif", "--out", "o", "--buffer", "30"])
    assert "give --glaciers or --divides" in str(run.exception)
