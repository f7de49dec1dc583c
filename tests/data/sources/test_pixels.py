import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from polygons import CRS, LOCAL, PARTS, ROTATED_POLE, X, Y, across, burn, outlines, rectangle, refused, shifted, want
from pyproj import Transformer
from rasterio import Affine
from rasterio.transform import from_origin
from shapely.geometry import MultiPolygon, box


def test_a_landsat_scene_in_polar_stereographic_has_its_poleward_outlines(tmp_path):
    grid = Affine(720, 0, -92160, 0, -720, -800000)
    shapes = [rectangle(0, 118, 2, 20, grid, 0.5), rectangle(100, 100, 40, 50, grid, 0.5)]
    path = outlines(tmp_path / "o.gpkg", shapes, "EPSG:3413", "EPSG:4326")
    mask, count, _ = burn(path, crs="EPSG:3413", grid=grid, shape=(256, 256))
    np.testing.assert_array_equal(mask, want((0, 118, 2, 20, 254), (100, 100, 40, 50, 254), shape=(256, 256)))
    assert count == 2


NORTH, SOUTH = ("EPSG:3413", "EPSG:5041"), ("EPSG:3031",)


@pytest.mark.parametrize(
    ("crs", "to"),
    [(crs, to) for crs in NORTH for to in ("EPSG:4326", "EPSG:4269", "EPSG:3995")]
    + [(crs, to) for crs in SOUTH for to in ("EPSG:4326", "EPSG:4269", "EPSG:3976")],
)
def test_a_scene_that_holds_a_pole(tmp_path, crs, to):
    middle = 2_000_000 if crs == "EPSG:5041" else 0
    grid = from_origin(middle - 64_000, middle + 64_000, 1000, 1000)
    parts = [(56, 50, 20, 30), (100, 64, 9, 9), (10, 60, 8, 8)]  # around the pole, across 180 degrees, away
    hole = rectangle(62, 60, 5, 8, grid, 0.25)  # around the pole as well
    shapes = [rectangle(*p, grid, 0.25) for p in parts]
    path = outlines(tmp_path / "o.gpkg", [shapes[0].difference(hole), *shapes[1:]], crs, to)
    mask, count, _ = burn(path, crs=crs, grid=grid, shape=(128, 128))
    expected = want(*[(*p, 254) for p in parts], (62, 60, 5, 8, 0), shape=(128, 128))
    np.testing.assert_array_equal(mask, expected)
    assert count == 3


@pytest.mark.parametrize("start", [-180, 0, -360])
@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660", "EPSG:3832", "EPSG:3571"])
def test_a_scene_across_180_degrees(tmp_path, start, crs):
    grid = across(crs)
    shapes = [rectangle(*p, grid, 1) for p in PARTS]
    path = shifted(tmp_path / "o.gpkg", start, shapes, crs)
    mask, count, notes = burn(path, crs=crs, grid=grid, shape=(128, 128))
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))
    assert count == 3
    assert [("180 degrees" in n) for n in notes] == ([True] if start == -180 else [])


@pytest.mark.parametrize("start", [-180, 0])
@pytest.mark.parametrize("left", [179.9, -180.1, 539.9])
def test_a_scene_in_degrees_across_180(tmp_path, start, left):
    grid = from_origin(left, 67.05, 0.2 / 128, 0.1 / 128)
    path = shifted(tmp_path / "o.gpkg", start, [rectangle(*p, grid, 1) for p in PARTS], "EPSG:4326")
    mask = burn(path, crs="EPSG:4326", grid=grid, shape=(128, 128))[0]
    assert (mask != want(*[(*p, 254) for p in PARTS], shape=(128, 128))).sum() <= 40  # centres on edges, by rounding
    path = outlines(tmp_path / "u.gpkg", [rectangle(*p, across(), 1) for p in PARTS], "EPSG:32601")
    mask = burn(path, crs="EPSG:4326", grid=grid, shape=(128, 128))[0]
    pixel = 0.2 / 128 * 111_320 * np.cos(np.radians(67)) * 0.1 / 128 * 111_500  # square metres
    assert (mask == 254).sum() == pytest.approx(1800 * 900 / pixel, rel=0.1)


def test_outlines_split_at_180_degrees_as_rfc_7946_wants(tmp_path):
    grid = across()
    whole = geopandas.GeoSeries([rectangle(*PARTS[1], grid, 1)], crs="EPSG:32601").to_crs("EPSG:4326")[0]
    whole = shapely.transform(whole, lambda x, y: (x % 360, y), interleaved=False)
    east = shapely.transform(whole & box(180, 0, 190, 90), lambda x, y: (x - 360, y), interleaved=False)
    path = outlines(tmp_path / "o.geojson", [MultiPolygon([whole & box(170, 0, 180, 90), east])], "EPSG:4326")
    mask, count, notes = burn(path, crs="EPSG:32601", grid=grid, shape=(128, 128))
    np.testing.assert_array_equal(mask, want((*PARTS[1], 254), shape=(128, 128)))
    assert (count, notes) == (1, [])


def test_longitudes_from_0_to_360(tmp_path):
    grid = across("EPSG:32718", -73.5, -46.6)
    shapes = [rectangle(*p, grid, 1) for p in PARTS]
    path = shifted(tmp_path / "o.gpkg", 0, shapes, "EPSG:32718")
    assert geopandas.read_file(path).total_bounds[0] > 280
    mask = burn(path, crs="EPSG:32718", grid=grid, shape=(128, 128))[0]
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))
    grid = from_origin(286.4, -46.5, 0.002, 0.002)  # a scene of such longitudes
    shapes = [rectangle(*p, grid, 1) for p in PARTS]
    path = shifted(tmp_path / "west.gpkg", -180, shapes, "EPSG:4326")
    mask = burn(path, crs="EPSG:4326", grid=grid, shape=(128, 128))[0]
    assert (mask != want(*[(*p, 254) for p in PARTS], shape=(128, 128))).sum() <= 40


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269", "EPSG:3857", "ESRI:54009", "EPSG:6933"])
@pytest.mark.parametrize("scene", ["EPSG:32645", "EPSG:3413", "EPSG:32601"])
def test_polygons_of_the_whole_world(tmp_path, crs, scene):
    top = 85 if crs == "EPSG:3857" else 90
    world = shapely.segmentize(box(-180, -top, 180, top), 0.1)
    rest = [
        shapely.segmentize(box(x, y, x + 20, y + 30), 0.1) for x in range(-180, 180, 20) for y in (-84, -54, -24, 6, 36)
    ]
    path = outlines(tmp_path / "o.gpkg", [world, *rest], "EPSG:4326", crs)
    lon, lat = {"EPSG:32645": (87, 28), "EPSG:3413": (-40, 50), "EPSG:32601": (180, 60)}[scene]
    grid = across(scene, lon, lat)
    mask, count, _ = burn(path, crs=scene, grid=grid, shape=(128, 128))
    assert (mask != 254).mean() < 0.01  # Mollweide's rim is drawn by chords
    assert 2 <= count <= 4


@pytest.mark.parametrize("left", [-180, 0, 179])
@pytest.mark.parametrize("to", ["EPSG:32601", "EPSG:4326", "EPSG:4269"])
def test_a_scene_of_the_whole_world(tmp_path, left, to):
    grid = across(size=3000)
    path = outlines(tmp_path / "o.gpkg", [rectangle(*p, grid, 1) for p in PARTS], "EPSG:32601", to)
    mask, count, _ = burn(path, crs="EPSG:4326", grid=from_origin(left, 90, 0.05, 0.05), shape=(3600, 7200))
    degrees = 1800 * 3000**2 / (111_320 * np.cos(np.radians(67)) * 111_500)  # square degrees, about
    assert (mask == 254).sum() == pytest.approx(degrees / 0.05**2, rel=0.02)
    assert count == 3


@pytest.mark.parametrize("side", [-1, 1])
def test_a_scene_in_web_mercator_that_goes_beyond_180_degrees(tmp_path, side):
    grid = from_origin(side * 20_037_508.342789 - 6400, 1e7, 100, 100)
    path = outlines(tmp_path / "o.gpkg", [rectangle(*p, grid) for p in PARTS], "EPSG:3857", "EPSG:4326")
    mask, count, _ = burn(path, crs="EPSG:3857", grid=grid, shape=(128, 128))
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))
    assert count == 3


def test_a_world_box_with_few_corners_and_long_edges_follow_their_own_crs(tmp_path):
    grid = across("EPSG:3413", -40, 70, 3000)
    path = outlines(tmp_path / "o.gpkg", [box(-180, 70, 180, 90)], "EPSG:4326")  # a parallel, not its chord
    mask, count, notes = burn(path, crs="EPSG:3413", grid=grid, shape=(128, 128))
    row, col = np.mgrid[:128, :128] + 0.5
    lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(*(grid * (col, row)))[1]
    np.testing.assert_array_equal(mask == 254, lat > 70)
    assert (count, notes) == (1, [])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3857", ROTATED_POLE])
def test_a_scene_in_a_rotated_pole(tmp_path, crs):
    grid = from_origin(-10, 5, 0.01, 0.01)
    path = outlines(tmp_path / "o.parquet", [rectangle(*p, grid, 0.5) for p in PARTS], ROTATED_POLE, crs)
    mask, count, _ = burn(path, crs=ROTATED_POLE, grid=grid, shape=(128, 128))
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))
    assert count == 3


@pytest.mark.parametrize("to", ["EPSG:4326", CRS])
@pytest.mark.parametrize(
    "grid",
    [
        Affine(30, 0, X, 0, 30, Y),  # south up
        Affine(-30, 0, X, 0, -30, Y),
        Affine.translation(X, Y) * Affine.rotation(30) * Affine.scale(30, -30),
        Affine(0, 30, X, 30, 0, Y),  # transposed
        Affine(30, 10, X, 5, -20, Y),  # sheared
    ],
)
def test_south_up_and_rotated_grids(tmp_path, grid, to):
    path = outlines(tmp_path / "o.gpkg", [rectangle(*p, grid) for p in PARTS], CRS, to)
    mask = burn(path, grid=grid, shape=(128, 128))[0]
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))


@pytest.mark.parametrize(
    "crs", ["EPSG:32645+5773", "EPSG:4979", "EPSG:4807", "+proj=longlat +ellps=bessel +towgs84=500,200,300"]
)
def test_compound_and_other_crss_of_the_outlines(tmp_path, crs):
    path = tmp_path / "o.gpkg"
    lon, lat = (3, 46) if crs == "EPSG:4807" else (87, 28)
    scene = "EPSG:32631" if crs == "EPSG:4807" else CRS
    grid = across(scene, lon, lat)
    table = geopandas.GeoDataFrame(geometry=[rectangle(*p, grid, 1) for p in PARTS], crs=scene)
    table.to_crs(crs).to_file(path)
    mask, count, _ = burn(path, crs=scene, grid=grid, shape=(128, 128))
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))
    mask = burn(path, crs=f"{scene}+5773", grid=grid, shape=(128, 128))[0]
    np.testing.assert_array_equal(mask, want(*[(*p, 254) for p in PARTS], shape=(128, 128)))


def test_a_local_crs_meets_itself_alone(tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)], LOCAL)
    np.testing.assert_array_equal(burn(path, crs=rasterio.CRS.from_wkt(LOCAL))[0], want((10, 20, 30, 40, 254)))
    refused(r"o\.gpkg: its coordinate reference system \(site grid\) does not lead to the Earth", path)
    path = outlines(tmp_path / "u.gpkg", [rectangle(10, 20, 30, 40)])
    refused(r"^s\.tif: its coordinate reference system \(site grid\)", path, crs=LOCAL)
    refused("s.tif", path, crs="IAU_2015:30100")  # the Moon


def test_a_polygon_that_meets_the_rim_of_the_scene_does_not_lie_on_it(tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(0, 80, 20, 20), rectangle(-9, 0, 9, 9)])
    assert burn(path)[1:] == (0, [])
    path = outlines(tmp_path / "p.gpkg", [rectangle(0, 80, 20, 20)], to="EPSG:4326")
    assert burn(path)[1:] == (0, [])
