from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from geopandas.testing import assert_geodataframe_equal
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from region_maps import MAPS
from scenes import write_raster
from skimage.measure import label

from glacier_fastai.core.regions import RegionSums
from glacier_fastai.errors import DataError, OutputError
from glacier_fastai.predict.outlines import Outlines, regions_of
from glacier_fastai.predict.sink import Strip

UTM = rasterio.CRS.from_epsg(32645)
GRIDS = {
    "utm": (UTM, from_origin(500_000, 3_100_000, 30, 30)),
    "degrees": (rasterio.CRS.from_epsg(4326), from_origin(86.5, 28.1, 0.0003, 0.0003)),
    "turned": (UTM, Affine(20, 10, 500_000, 10, -20, 3_100_000)),
    "south up": (UTM, Affine(30, 0, 500_000, 0, 30, 3_000_000)),
    "polar": (rasterio.CRS.from_epsg(3413), from_origin(-300_000, -1_200_000, 15, 15)),
}


def made_up_map(height=150, width=110, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 3], (height // 10, width // 10), p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8)
    classes = small.repeat(10, 0).repeat(10, 1)[:height, :width]
    rows, cols = np.mgrid[:height, :width]
    classes[(rows * 7 + cols * 3) % 31 == 0] = 0
    classes[(rows + 2 * cols) % 57 < 3] = 255
    classes[60:66, 20:26] = 1
    probs = rng.dirichlet([1, 1, 1, 1], (height, width)).transpose(2, 0, 1).astype(np.float32)
    return classes, probs


def made_up_source(height=150, width=110, grid="utm"):
    crs, transform = GRIDS[grid]
    return SimpleNamespace(height=height, width=width, crs=crs, transform=transform)


def written(path, classes, probs, grid="utm", step=40, **kwargs):
    with Outlines(path, made_up_source(*classes.shape, grid), **kwargs) as outlines:
        for row in range(0, len(classes), step):
            outlines.write(Strip(row, classes[row : row + step], probs[:, row : row + step]))
    return {name: geopandas.read_file(path, layer=name) for name in ("glaciers", "classes")}


@pytest.mark.parametrize("values", MAPS.values(), ids=MAPS)
def test_polygons_are_valid_and_meet_their_regions(tmp_path, values):
    path = write_raster(tmp_path / "m.tif", values[None], transform=Affine(2, 0, 0, 0, 2, 0))
    regions = RegionSums(values.shape[1])
    regions.add(values)
    found = regions.finish()
    with rasterio.open(path) as file:
        outlines, _ = regions_of(rasterio.band(file, 1), rasterio.band(file, 1), file.transform)
    assert shapely.is_valid(outlines).all()
    np.testing.assert_array_equal(shapely.area(outlines) / 4, found.pixels)
    rows, cols = np.divmod(found.first, values.shape[1])
    assert shapely.contains_xy(outlines, 2 * cols + 1, 2 * rows + 1).all()
    burned = rasterize(zip(outlines, found.value.tolist(), strict=True), values.shape, transform=Affine.scale(2))
    np.testing.assert_array_equal(burned, values)


@pytest.mark.parametrize("grid", GRIDS)
def test_polygons_are_the_pixels_and_areas_are_true(tmp_path, grid):
    classes, probs = made_up_map()
    tables = written(tmp_path / "o.gpkg", classes, probs, grid)
    crs, transform = GRIDS[grid]
    pixel = abs(transform.determinant)
    ice = np.isin(classes, (1, 2))
    regions = label(ice, connectivity=1)
    glaciers = tables["glaciers"]
    assert glaciers.crs == crs
    assert glaciers.geometry.is_valid.all() and glaciers["id"].is_unique
    counts = np.sort(np.bincount(regions.ravel())[1:])
    np.testing.assert_allclose(np.sort(shapely.area(glaciers.geometry) / pixel), counts, rtol=1e-6)
    named = label(np.where(classes == 255, 0, classes), connectivity=1)
    assert len(tables["classes"]) == named.max()
    areas = shapely.area(tables["classes"].geometry) / pixel
    per_class = tables["classes"].assign(px=areas).groupby("class")["px"].sum()
    for k, name in enumerate(("glacier", "debris", "lake"), 1):
        assert per_class[name] == pytest.approx((classes == k).sum(), rel=1e-6)
    burned = rasterize(glaciers.geometry, ice.shape, transform=transform)
    np.testing.assert_array_equal(burned, ice)  # so no nodata is inside either
    geod, degrees = Geod(ellps="WGS84"), glaciers.segmentize(20 * pixel**0.5).to_crs("EPSG:4326")
    true = [abs(geod.geometry_area_perimeter(g)[0]) / 1e6 for g in degrees.geometry]
    np.testing.assert_allclose(glaciers["area_km2"], true, rtol=1e-5)
    for table in tables.values():  # what stands beside a polygon is of its own pixels
        inside = [rasterize([g], ice.shape, transform=transform) > 0 for g in table.geometry]
        shown = np.take_along_axis(probs, np.where(classes == 255, 0, classes)[None].astype(int), 0)[0]
        np.testing.assert_allclose(table["confidence"], [shown[m].mean(dtype=float) for m in inside], rtol=1e-6)
        if "debris_share" in table:
            np.testing.assert_allclose(table["debris_share"], [(classes[m] == 2).mean() for m in inside], rtol=1e-9)


def test_a_glacier_knows_its_debris_and_its_confidence(tmp_path):
    classes = np.zeros((50, 40), np.uint8)
    classes[5:45, 10:30], classes[25:45, 10:20] = 1, 2  # one glacier of 800 pixels, a quarter debris, over two strips
    classes[10:14, 12:16] = 0
    classes[48:, 35:] = 3
    probs = np.full((4, 50, 40), 0.1, np.float32)
    np.put_along_axis(probs, classes[None].astype(int), 0.7, 0)
    tables = written(tmp_path / "o.gpkg", classes, probs, step=20, area=(-2.0, 1.0))
    (glacier,) = tables["glaciers"].to_dict("records")
    assert glacier["geometry"].area == (800 - 16) * 900
    assert len(glacier["geometry"].interiors) == 1
    assert glacier["debris_share"] == pytest.approx(200 / 784)
    assert glacier["confidence"] == pytest.approx(0.7, abs=1e-6)
    doubt = 784 * 0.2
    assert glacier["area_km2"] - glacier["area_low_km2"] == pytest.approx(2 * (1 + doubt) ** 0.75 * 900e-6, rel=1e-2)
    assert glacier["area_high_km2"] - glacier["area_km2"] == pytest.approx((1 + doubt) ** 0.75 * 900e-6, rel=1e-2)
    assert tables["classes"]["class"].tolist() == ["glacier", "debris", "lake"]
    assert tables["classes"].area.sum() == pytest.approx((classes > 0).sum() * 900)


def test_the_outlines_do_not_depend_on_strips(tmp_path):
    classes, probs = made_up_map(seed=3)
    whole, cut = (written(tmp_path / f"{s}.gpkg", classes, probs, step=s) for s in (150, 7))
    for name in whole:
        assert_geodataframe_equal(whole[name], cut[name])


def test_simplified_neighbours_still_meet_and_areas_are_of_the_pixels(tmp_path):
    classes, probs = made_up_map()
    plain = written(tmp_path / "a.gpkg", classes, probs)
    simple = written(tmp_path / "b.gpkg", classes, probs, simplify=2.0)
    for name in plain:
        np.testing.assert_array_equal(plain[name]["area_km2"], simple[name]["area_km2"])
        assert simple[name].count_coordinates().sum() < 0.8 * plain[name].count_coordinates().sum()
        assert simple[name].geometry.is_valid.all()
    shapes = simple["classes"].geometry
    assert shapes.union_all().area == pytest.approx(shapes.area.sum(), rel=1e-9)  # no overlap


def test_without_ice_the_layers_are_there_and_empty(tmp_path):
    tables = written(tmp_path / "o.gpkg", np.zeros((20, 30), np.uint8), np.full((4, 20, 30), 0.25, np.float32))
    assert [len(t) for t in tables.values()] == [0, 0]
    assert {"area_km2", "area_low_km2", "debris_share", "confidence"} <= set(tables["glaciers"])


def test_geoparquet_holds_the_same(tmp_path):
    classes, probs = made_up_map()
    tables = written(tmp_path / "o.gpkg", classes, probs, geoparquet=True)
    for name, table in tables.items():
        other = geopandas.read_parquet(tmp_path / f"o_{name}.parquet")
        assert other.crs == table.crs and other.geometry.geom_equals(table.geometry).all()
        np.testing.assert_array_equal(other["area_km2"], table["area_km2"])


def test_a_place_that_cannot_be_written_is_said_in_a_line(tmp_path):
    classes, probs = made_up_map()
    with pytest.raises(OutputError, match=r"o\.gpkg: cannot be written.*another folder"):
        written(tmp_path / "no" / "o.gpkg", classes, probs)


def test_nothing_temporary_stays(tmp_path):
    classes, probs = made_up_map()
    written(tmp_path / "o.gpkg", classes, probs)
    with pytest.raises(KeyboardInterrupt), Outlines(tmp_path / "p.gpkg", made_up_source()) as outlines:
        outlines.write(Strip(0, classes, probs))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["o.gpkg"]


POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433"


@pytest.mark.parametrize("geoparquet", [False, True])
def test_a_crs_that_a_geopackage_cannot_hold_is_refused(tmp_path, geoparquet):
    crs, transform = rasterio.CRS.from_user_input(POLE), from_origin(-10, 5, 0.01, 0.01)
    source = SimpleNamespace(height=4, width=4, crs=crs, transform=transform)
    with pytest.raises(DataError, match=r"^m\.gpkg: a GeoPackage cannot hold .*gdalwarp -t_srs.* leave out the outli"):
        Outlines(tmp_path / "m.gpkg", source, geoparquet=geoparquet)
    assert list(tmp_path.iterdir()) == []


CRSS = {
    "compound": "EPSG:32645+5773",
    "datum unknown": "+proj=utm +zone=45 +ellps=WGS84",
    "esri": "ESRI:102025",
    "shifted": "+proj=utm +zone=45 +ellps=krass +towgs84=28,-130,-95",
    "icosahedron": "+proj=isea",
    "km": "+proj=utm +zone=45 +datum=WGS84 +units=km",
}


@pytest.mark.parametrize("crs", CRSS.values(), ids=CRSS)
def test_outlines_lie_where_the_scene_does(tmp_path, crs):
    crs = rasterio.CRS.from_user_input(crs)
    source = SimpleNamespace(height=4, width=4, crs=crs, transform=from_origin(500, 3000, 0.03, 0.03))
    with Outlines(tmp_path / "m.gpkg", source) as outlines:
        outlines.write(Strip(0, np.ones((4, 4), "u1"), np.full((4, 4, 4), 0.25, "f4")))
    table = geopandas.read_file(tmp_path / "m.gpkg", layer="glaciers")
    moved = table.set_crs(crs.to_wkt(), allow_override=True).to_crs("EPSG:4326")
    np.testing.assert_allclose(table.to_crs("EPSG:4326").total_bounds, moved.total_bounds, rtol=0, atol=1e-9)
