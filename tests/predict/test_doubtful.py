import geopandas
import numpy as np
import pytest
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from pyproj import Geod
from rasterio import CRS
from scenes import BANDS, TINY, made_up, write_raster, write_scene

from glacier_fastai.data.sources.vectors import open_vector
from glacier_fastai.errors import DataError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.composite import predict_composite
from glacier_fastai.predict.doubtful import Doubtful
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.predict.sink import Strip
from glacier_fastai.predict.source import Grid

UTM = CRS.from_epsg(32645), Affine(30, 0, 500_000, 0, -30, 3_100_000)
GRIDS = {
    "utm": UTM,
    "turned": (UTM[0], Affine(20, 10, 500_000, 10, -20, 3_100_000)),
    "degrees": (CRS.from_epsg(4326), Affine(0.0003, 0, 86.5, 0, -0.0003, 28.1)),
}


@pytest.fixture(scope="module")
def bundle():
    weights = build_model("unet", BANDS, encoder=TINY).state_dict()
    return ModelBundle(weights, "unet", {"encoder": TINY}, BANDS, (5e3,) * 5, (2e3,) * 5)


def probabilities(classes, doubt):
    probs = np.repeat(doubt[None] / 3, 4, 0).astype(np.float32)
    np.put_along_axis(probs, np.where(classes == 255, 0, classes)[None].astype(int), 1 - doubt[None], 0)
    return probs


def written(path, classes, doubt, many=3, grid="utm", step=10):
    notes = []
    with Doubtful(path, Grid(path, *GRIDS[grid], *classes.shape), many, notes) as made:
        probs = probabilities(classes, doubt)
        for row in range(0, len(classes), step):
            made.write(Strip(row, classes[row : row + step], probs[:, row : row + step]))
    return geopandas.read_file(path, layer="doubtful"), notes


@pytest.fixture
def doubts():
    """Classes and doubt: most in one box, then in another, more uncertain but smaller; certain elsewhere."""
    classes, doubt = np.ones((60, 70), np.uint8), np.full((60, 70), 0.01)
    doubt[40:56, 48:62] = 0.5
    doubt[2:14, 4:14] = 0.6
    classes[30:40, :10], doubt[30:40, :10] = 255, 0.9  # without data
    return classes, doubt


@pytest.mark.parametrize("grid", GRIDS)
def test_places_are_ranked_by_the_area_that_is_expected_to_be_wrong(tmp_path, doubts, grid):
    table, notes = written(tmp_path / "d.gpkg", *doubts, grid=grid)
    crs, transform = GRIDS[grid]
    assert (table.crs, notes) == (crs, [])
    assert table["rank"].tolist() == [1, 2, 3]
    assert not table["checked"].any()
    corners = table.geometry.iloc[:2].map(lambda box: np.round(~transform * np.array(box.exterior.xy), 6))
    found = [[c.min(1).tolist(), c.max(1).tolist()] for c in corners]  # columns, rows
    assert found == [[[48, 40], [64, 56]], [[0, 0], [16, 16]]]
    np.testing.assert_allclose(table["uncertainty"][:2], [(14 * 0.5 + 2 * 0.01) / 16, (72 + 1.36) / 256], rtol=1e-5)
    boxes = table.to_crs(4326).geometry
    km2 = [abs(Geod(ellps="WGS84").geometry_area_perimeter(box)[0]) / 1e6 for box in boxes]
    np.testing.assert_allclose(table["wrong_km2"], table["uncertainty"] * km2, rtol=2e-3)


def test_places_do_not_overlap_and_end_where_the_map_does(tmp_path):
    classes = np.zeros((50, 45), np.uint8)
    doubt = np.random.default_rng(0).random(classes.shape) / 2
    table, notes = written(tmp_path / "d.gpkg", classes, doubt, many=100)
    assert len(notes) == 1 and f"the map has {len(table)} places in doubt, not 100" in notes[0]
    joined = geopandas.sjoin(table, table, predicate="overlaps")
    assert len(joined) == 0
    transform = UTM[1]
    left, bottom, right, top = table.total_bounds
    assert left >= transform.c and right <= transform.c + 30 * 45
    assert top <= transform.f and bottom >= transform.f - 30 * 50


def test_strips_do_not_matter(tmp_path, doubts):
    one, other = (written(tmp_path / f"{s}.gpkg", *doubts, step=s)[0] for s in (60, 7))
    assert_geodataframe_equal(one, other, check_less_precise=True)


def test_pixels_without_data_are_in_no_doubt(tmp_path, doubts):
    classes, doubt = doubts
    table, _ = written(tmp_path / "d.gpkg", np.where(doubt < 0.2, 255, classes).astype(np.uint8), doubt, many=9)
    assert table["uncertainty"].round(3).isin([0.5, 0.6]).all()


def test_predict_writes_places_once_and_keeps_maps_made_without(bundle, tmp_path):
    scene, _ = write_scene(tmp_path / "s.tif", 64, 64)
    without = predict_scene(bundle, scene, tmp_path / "a")
    assert "doubtful" not in without["wanted"]
    made = predict_scene(bundle, scene, tmp_path / "b", Wanted(doubtful=4))
    layer = open_vector(made["files"]["doubtful"])
    assert (layer.name, len(layer.bounds), made["wanted"]["doubtful"]) == ("doubtful", 4, 4)
    assert predict_scene(bundle, scene, tmp_path / "b", Wanted(doubtful=4))["done_before"]
    table = geopandas.read_file(made["files"]["doubtful"], layer="doubtful").assign(checked=True)
    table.to_file(made["files"]["doubtful"], layer="doubtful")  # as a person ticks them
    assert predict_scene(bundle, scene, tmp_path / "b", Wanted(doubtful=4))["done_before"]
    with pytest.warns(DataNote, match=r"s_doubtful\.gpkg: the map has \d+ places in doubt, not 900"):
        made = predict_scene(bundle, scene, tmp_path / "c", Wanted(doubtful=900))
    assert any("places in doubt" in text for text in made["notes"])


def test_a_composite_has_places_too(bundle, tmp_path):
    values = made_up(64, 48, nodata=False)[0]
    dates = [write_raster(tmp_path / f"{k}.tif", values + k, nodata=0, bands=BANDS) for k in range(2)]
    made = predict_composite(bundle, dates, tmp_path / "maps", "both", Wanted(doubtful=2))
    assert len(geopandas.read_file(made["files"]["doubtful"], layer="doubtful")) == 2


def test_a_scene_without_place_on_the_earth_has_none(tmp_path):
    crs = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    with pytest.raises(DataError, match=r"^d\.gpkg: no areas"):
        Doubtful(tmp_path / "d.gpkg", Grid(tmp_path, crs, UTM[1], 20, 20), 3, [])
