import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from glacier_maps import GRID, RECORD, ground, inventory, tabled, write_map
from polygons import across, rectangle
from rasterio.features import rasterize

from glacier_fastai.data.sources.inventory import read_inventory
from glacier_fastai.errors import DataError, DataNote
from glacier_fastai.predict.glaciers import glaciers
from glacier_fastai.predict.inventories import SCHEMAS, check_inventory
from glacier_fastai.predict.outlines import equal_area_crs

IDS = {"rgi_id": ["RGI2000-v7.0-G-15-00001", "RGI2000-v7.0-G-15-00002"], "glims_id": ["G087000E28000N", ""]}


def exported(folder, form, classes=None, shapes=None, grid=GRID, crs="EPSG:32645", **columns):
    columns = columns or {**IDS, "glac_name": ["west", "east"]}
    given = {} if shapes is None else {"shapes": shapes}
    rgi = inventory(folder / "rgi.gpkg", crs=crs, **given, **columns)
    path = write_map(folder / "maps", ground() if classes is None else classes, grid=grid, crs=crs)
    table, layer, made = tabled(path, rgi, form=form, analyst="A. Nalyst")
    return table, layer, made["files"]["inventory"], made


def lake_and_rock():
    """A rock in the first glacier; a lake within the second, one at its side, and one far away."""
    classes = ground()
    classes[15:18, 15:18], classes[13:16, 40:43], classes[50:53, 30:33] = 0, 3, 3
    return classes


def test_rgi7(tmp_path):
    table, _, path, _ = exported(tmp_path, "rgi7", lake_and_rock())
    found = geopandas.read_file(path)
    assert list(found) == [*SCHEMAS["rgi7"], "geometry"] and found.crs == "EPSG:4326"
    assert found["rgi_id"].fillna("").tolist() == [*IDS["rgi_id"], ""]
    assert found["o1region"].fillna("").tolist() == ["15", "15", ""] and (found["utm_zone"] == 45).all()
    assert found["glims_id"].tolist()[0] == "G087000E28000N" and found["glims_id"].is_unique
    assert (found["src_date"] == "2020-08-01T00:00:00").all() and (found["analyst"] == "A. Nalyst").all()
    np.testing.assert_allclose(found["area_km2"], table["area_km2"])
    np.testing.assert_allclose(found["area_unc_km2"], table["buffer_km2"])
    assert shapely.contains_xy(found.geometry.values, found["cenlon"], found["cenlat"]).all()
    assert [sum(len(p.interiors) for p in g.geoms) for g in found.geometry] == [1, 1, 0]  # the rock, and the lake
    assert check_inventory(path, "rgi7") == 3


def test_glims_has_debris_and_lakes_of_their_own(tmp_path):
    table, _, path, _ = exported(tmp_path, "glims", lake_and_rock())
    found = geopandas.read_file(path)
    assert list(found) == [*SCHEMAS["glims"], "geometry"]
    assert found["line_type"].value_counts().to_dict() == {
        "glac_bound": 3, "debris_cov": 2, "supra_lake": 1, "pro_lake": 1,
    }  # fmt: skip
    bounds, rest = found[found["line_type"] == "glac_bound"], found[found["line_type"] != "glac_bound"]
    pixel = table["area_km2"][0] / table["pixels"][0]
    lakes = rest[rest["line_type"].str.endswith("lake")].set_index("line_type")
    ids = bounds["glac_id"].tolist()
    assert lakes["glac_id"].to_dict() == {"supra_lake": ids[1], "pro_lake": ids[0]}
    np.testing.assert_allclose(lakes["area"], [9 * pixel, 12 * pixel], rtol=1e-3)
    debris = rest[rest["line_type"] == "debris_cov"]
    np.testing.assert_allclose(debris["area"], table["debris_km2"][:2], rtol=1e-3)
    assert check_inventory(path, "glims") == 7


@pytest.mark.parametrize("form", ["rgi7", "glims"])
def test_our_own_reader_finds_the_same_glaciers(tmp_path, form):
    table, layer, path, _ = exported(tmp_path, form, lake_and_rock())
    notes, near = [], equal_area_crs("EPSG:32645", GRID.c, GRID.f)
    again = read_inventory(path, "EPSG:32645", GRID, (60, 80), near, notes, "s.tif")
    assert len(again) == 3 and not any("area" in n or "invalid" in n for n in notes)
    np.testing.assert_allclose(np.sort(again.table["km2"]), np.sort(table["area_km2"]))
    for k, name in enumerate(again.table["name"]):
        row = table["name"].fillna("").tolist().index(name)
        burned = rasterize([again.shapes[k]], (60, 80))
        np.testing.assert_array_equal(burned, rasterize([layer.geometry[row]], (60, 80), transform=GRID))
    twice, _, _ = tabled(tmp_path / "maps" / "s_classes.tif", path, out=tmp_path / "twice", buffer=0)
    assert sorted(twice["pixels"]) == sorted(table["pixels"]) and (twice["recall"] == 1).all()


def test_glaciers_that_are_cut_are_left_out(tmp_path):
    classes = ground()
    classes[10:30, 0:10] = 1
    with pytest.warns(DataNote, match="1 glaciers are cut or not wholly seen, and left out of the inventory"):
        rgi = inventory(tmp_path / "rgi.gpkg", [rectangle(10, 0, 20, 30), rectangle(10, 30, 20, 20)])
        made = glaciers(write_map(tmp_path / "maps", classes), rgi, form="rgi7", analyst="me")
    assert geopandas.read_file(made["files"]["inventory"])["rgi_id"].fillna("").tolist() == ["G1", ""]


def test_across_180_degrees_polygons_are_cut(tmp_path):
    grid, classes = across(), np.zeros((128, 128), np.uint8)
    classes[40:80, 30:110] = 1
    shape = rectangle(40, 30, 40, 80, grid)
    _, layer, path, _ = exported(tmp_path, "rgi7", classes, [shape], grid, "EPSG:32601", rgi_id=["A"])
    (found,) = geopandas.read_file(path).geometry
    west, _, east, _ = found.bounds
    assert west == -180 and east == 180 and len(found.geoms) == 2
    assert geopandas.GeoSeries([found], crs=4326).to_crs(6933).area[0] == pytest.approx(3200 * 900, rel=2e-3)


def test_analyst_and_date_are_needed(tmp_path):
    rgi, path = inventory(tmp_path / "rgi.gpkg"), write_map(tmp_path / "maps", ground(), record={**RECORD, "date": ""})
    with pytest.raises(DataError, match="an inventory names its analyst"):
        glaciers(path, rgi, form="glims", date="2000-01-01")
    with pytest.warns(DataNote), pytest.raises(DataError, match="an inventory needs the date of its scene"):
        glaciers(path, rgi, form="glims", analyst="me")
    assert sorted(p.name for p in path.parent.iterdir()) == ["s_classes.tif", "s_prediction.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="src_date"), "no column src_date"),
        (lambda t: t.assign(src_date="2020"), "src_date is '2020' in row 0"),
        (lambda t: t.assign(analyst=None), "analyst is empty in row 0"),
        (lambda t: t.assign(utm_zone=61), "utm_zone is 61 in row 0"),
        (lambda t: t.assign(area_km2=1.0), r"the area of G087000E28000N is 1 km2, and that of its polygon 0\.36"),
        (lambda t: t.assign(glims_id="G087000E28000N"), "G087000E28000N occurs twice"),
        (lambda t: t.to_crs("EPSG:32645"), "it is in WGS 84 / UTM zone 45N, not in WGS 84"),
        (lambda t: t.set_geometry(t.geometry.map(lambda g: None)), "a geometry is no polygon"),
    ],
)
def test_what_is_no_such_inventory_is_refused(tmp_path, change, message):
    _, _, path, _ = exported(tmp_path, "rgi7")
    change(geopandas.read_file(path)).to_file(tmp_path / "x.gpkg")
    with pytest.raises(DataError, match=rf"x\.gpkg: no inventory in the format rgi7: {message}"):
        check_inventory(tmp_path / "x.gpkg", "rgi7")


def test_close_glaciers_have_ids_of_their_own(tmp_path):
    classes = np.zeros((60, 80), np.uint8)
    classes[10:14, 10:14], classes[10:14, 15:19] = 1, 2
    shapes = [rectangle(10, 10, 4, 4), rectangle(10, 15, 4, 4)]
    _, _, path, _ = exported(tmp_path, "glims", classes, shapes, RGIId=["A", "B"])
    assert geopandas.read_file(path).query("line_type == 'glac_bound'")["glac_id"].is_unique


def test_the_map_of_an_inventory_may_hold_no_ice(tmp_path):
    _, _, path, _ = exported(tmp_path, "glims", np.zeros((60, 80), np.uint8))
    assert len(geopandas.read_file(path)) == 0
    with rasterio.open(tmp_path / "maps" / "s_classes.tif") as file:
        assert file.crs == "EPSG:32645"
