import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from polygons import (
    GRID,
    SHAPE,
    X,
    Y,
    burn,
    outlines,
    rectangle,
    refused,
    want,
)
from rasterio.transform import from_origin
from scenes import BANDS, CRS, EVEREST, made_up, write_raster
from shapely.geometry import LineString, MultiPolygon, Polygon, box, mapping

from glacier_fastai.data.sources.outlines import open_outlines, parse_outlines, unused_classes
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import DataError, DataNote

INVENTORIES = EVEREST.parent / "inventories"


def test_outlines_as_people_write_them(tmp_path):
    assert parse_outlines(["rgi.gpkg", "lake=a.shp"]) == ["rgi.gpkg", ("lake", "a.shp")]
    assert parse_outlines(["zip://a.zip!x=1/b.shp", "no/year=1/b.shp"]) == ["zip://a.zip!x=1/b.shp", "no/year=1/b.shp"]
    path = outlines(tmp_path / "year=2000.gpkg", [rectangle(4, 4, 40, 30)])
    assert parse_outlines([str(path), f"debris={path}"]) == [str(path), ("debris", str(path))]
    np.testing.assert_array_equal(burn(*parse_outlines([f"debris={path}"]))[0], want((4, 4, 40, 30, 2)))


def test_degrees_that_are_metres(tmp_path):
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(rectangle(20, 20, 8, 8))}]
    path = tmp_path / "o.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    refused(r"GeoJSON without a CRS is longitude and latitude, but a coordinate is 500600.*ogr2ogr -a_srs", path)
    path = outlines(tmp_path / "o.gpkg", [rectangle(0, 0, 8, 8)])
    table = geopandas.read_file(path).set_crs("EPSG:4326", allow_override=True)
    table.to_file(tmp_path / "w.gpkg")
    refused(r"w\.gpkg: its coordinate reference system \(WGS 84\) is longitude", tmp_path / "w.gpkg")


@pytest.mark.parametrize("names", [["Lake", "debris", "GLACIER ", "background"], [3, 2, 1, 0], ["3", "2", "1.0", "0"]])
def test_a_class_column_names_classes_and_debris_lies_over_glacier_and_lake_over_both(tmp_path, names):
    shapes = [rectangle(50, 0, 10, 40), rectangle(40, 0, 30, 40), rectangle(0, 0, 96, 40), rectangle(0, 60, 9, 9)]
    path = outlines(tmp_path / "o.gpkg", shapes, kind=names)
    mask, count, notes = burn(path, field="kind")
    np.testing.assert_array_equal(mask, want((0, 0, 96, 40, 1), (40, 0, 30, 40, 2), (50, 0, 10, 40, 3)))
    assert (count, notes) == (4, [])


@pytest.mark.parametrize(
    ("column", "names", "said"),
    [
        ("class", ["glacier", "Lake ", "background"], "its column class holds background, glacier, lake, but every"),
        ("Class", ["lake", None, "lake"], "its column Class holds lake, but"),
        ("kind", ["debris", "glacier", "glacier"], "its column kind holds glacier, debris, but"),
        ("name", ["glacier", None, "glacier"], ""),
        ("kind", ["glacier", "lake", "river"], ""),
        ("class", [1, 2, 3], ""),
    ],
)
def test_a_column_of_classes_that_nobody_named_is_said(tmp_path, column, names, said):
    path = outlines(
        tmp_path / "o.gpkg", [rectangle(k, 4, 4, 4) for k in (4, 14, 24)], area=[1.0, 2, 3], **{column: names}
    )
    (file,) = open_outlines([path])
    assert bool(unused_classes(file)) == bool(said) and said in unused_classes(file)
    assert not unused_classes(open_outlines([("lake", path)])[0])
    assert not unused_classes(open_outlines([path], column)[0])


@pytest.mark.parametrize("empty", [None, "", "  ", np.nan])
def test_empty_and_unknown_classes(tmp_path, empty):
    shapes = [rectangle(0, 0, 5, 5), rectangle(20, 0, 5, 5), rectangle(900, 0, 5, 5)]
    column = [2.0, empty, empty] if empty is np.nan else ["glacier", empty, empty]
    path = outlines(tmp_path / "o.gpkg", shapes, k=column)
    refused(r"k is empty in 1 rows near s\.tif, the first is row 1 .*glacier \(1\)", path, field="k")
    named = outlines(tmp_path / "named.gpkg", shapes, kind=["glaciers"] * 3)
    refused("no column 'kinds'; it has kind; did you mean 'kind'", named, field="kinds")
    refused("kind holds 'glaciers'; allowed are background .*did you mean 'glacier'", named, field="kind")


@pytest.mark.parametrize("first", [True, False])
def test_rocks_cut_ice_in_whichever_file_they_are(tmp_path, first):
    ice = outlines(tmp_path / "g.gpkg", [rectangle(20, 20, 60, 50)])
    debris = outlines(tmp_path / "d.gpkg", [rectangle(60, 20, 20, 50)])
    rock = outlines(tmp_path / "r.gpkg", [rectangle(40, 40, 30, 10), rectangle(10, 30, 20, 5)])  # one at the rim
    files = [("glacier", ice), ("debris", debris), ("background", rock)]
    mask, count, notes = burn(*(files if first else files[::-1]))
    expected = want((20, 20, 60, 50, 1), (60, 20, 20, 50, 2), (40, 40, 30, 10, 0), (10, 30, 20, 5, 0))
    np.testing.assert_array_equal(mask, expected)
    assert (count, notes) == (4, [])


@pytest.mark.parametrize("first", [True, False])
def test_an_inventory_is_ice_of_unknown_kind_below_what_has_a_class(tmp_path, first):
    inventory = outlines(tmp_path / "rgi.gpkg", [rectangle(20, 20, 60, 50)])
    clean = outlines(tmp_path / "c.gpkg", [rectangle(20, 20, 10, 50)])
    debris = outlines(tmp_path / "d.gpkg", [rectangle(60, 10, 20, 50)])
    lake = outlines(tmp_path / "l.gpkg", [rectangle(40, 30, 5, 5)])
    rock = outlines(tmp_path / "r.gpkg", [rectangle(50, 40, 5, 5)])
    files = [inventory, ("glacier", clean), ("debris", debris), ("lake", lake), ("background", rock)]
    mask, count, notes = burn(*(files if first else files[::-1]))
    parts = (20, 20, 60, 50, 254), (20, 20, 10, 50, 1), (60, 10, 20, 50, 2), (40, 30, 5, 5, 3), (50, 40, 5, 5, 0)
    np.testing.assert_array_equal(mask, want(*parts))
    assert (count, notes) == (5, [])


def test_a_background_around_glaciers_is_an_extent_and_a_rock_with_ice_on_it_a_rock(tmp_path):
    ice = [rectangle(20, 20, 60, 40), rectangle(40, 30, 4, 4), rectangle(0, 70, 20, 30)]  # one crosses the extent's rim
    other = [rectangle(5, 5, 85, 70), rectangle(35, 25, 20, 20)]
    path = outlines(tmp_path / "o.gpkg", [*ice, *other], kind=[1, 1, 1, 0, 0])
    mask, _, (note,) = burn(path, field="kind")
    expected = want((0, 70, 20, 30, 1), (20, 20, 60, 40, 1), (35, 25, 20, 20, 0), (40, 30, 4, 4, 1))
    np.testing.assert_array_equal(mask, expected)
    assert note.startswith(f"{path}: 1 background polygons on s.tif cover whole polygons")


def test_an_extent_wider_than_the_scene_lies_below_a_glacier_wider_than_the_scene(tmp_path):
    ice = outlines(tmp_path / "g.gpkg", [rectangle(-50, -50, 300, 90)])
    world = outlines(tmp_path / "w.gpkg", [box(-180, -90, 180, 90)], crs="EPSG:4326")
    mask, count, _ = burn(ice, ("background", world))
    np.testing.assert_array_equal(mask, want((0, 0, 96, 40, 254)))
    assert count == 2


def glims(path, kinds, shapes, **columns):
    return outlines(path, shapes, line_type=kinds, glac_id=[f"G{k}" for k in range(len(kinds))], **columns)


@pytest.mark.parametrize("name", ["o.gpkg", "o.shp"])
def test_line_types_of_glims(tmp_path, name):
    kinds = ["intrnl_rock", "glac_bound", "debris_cov", "supra_lake", "pro_lake", "basin_bound", "snowline", None]
    shapes = [rectangle(30, 30, 5, 5), rectangle(10, 10, 60, 50), rectangle(50, 10, 20, 50), rectangle(52, 20, 4, 4)]
    shapes += [rectangle(72, 20, 6, 6), rectangle(0, 0, 90, 70), rectangle(2, 2, 4, 4), rectangle(80, 2, 4, 4)]
    path = glims(tmp_path / name, kinds, shapes)
    expected = want((10, 10, 60, 50, 1), (50, 10, 20, 50, 2), (52, 20, 4, 4, 3), (72, 20, 6, 6, 3), (30, 30, 5, 5, 0))
    for item, field in ((path, None), (("glacier", path), None), (path, "line_type")):
        mask, count, (note,) = burn(item, field=field)
        kind = 1 if isinstance(item, tuple) else 254  # of what a glacier's bound holds beside debris
        np.testing.assert_array_equal(mask, np.where(expected == 1, kind, expected))
        assert count == 5
        assert "left out: 1 basin_bound, 1 snowline, 1 empty" in note
    mask = burn(("debris", path))[0]
    np.testing.assert_array_equal(mask, np.where(expected == 1, 2, expected))


def test_lines_of_glims_are_left_out_but_a_glacier_is_no_line(tmp_path):
    line = LineString([(X + 9, Y - 9), (X + 900, Y - 900)])
    path = glims(tmp_path / "o.gpkg", ["glac_bound", "centerline"], [rectangle(10, 20, 30, 40), line])
    mask, _, (note,) = burn(path)
    np.testing.assert_array_equal(mask, want((10, 20, 30, 40, 254)))
    assert "1 centerline" in note
    refused("holds LineString", glims(tmp_path / "l.gpkg", ["glac_bound"] * 2, [rectangle(1, 2, 3, 4), line]))


def test_a_column_line_type_of_something_else_means_nothing(tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)], line_type=["dashed"])
    assert (burn(path)[0] == 254).sum() == 1200


def test_glaciers_of_glims_that_are_gone_and_records_in_error_are_left_out(tmp_path):
    shapes = [rectangle(10, 20, 30, 40), rectangle(60, 20, 9, 9), rectangle(60, 40, 9, 9), rectangle(80, 20, 9, 9)]
    states = {"glac_stat": ["exists", "Gone", None, "exists"], "rec_status": ["okay", "okay", None, "erroneous"]}
    path = glims(tmp_path / "o.gpkg", ["glac_bound"] * 4, shapes, **states)
    mask, count, notes = burn(path)
    np.testing.assert_array_equal(mask, want((10, 20, 30, 40, 254), (60, 40, 9, 9, 254)))
    assert (count, [text.partition("whose ")[2] for text in notes]) == (
        2,
        ["glac_stat is gone are left out: 1", "rec_status is erroneous are left out: 1"],
    )
    kinds = outlines(tmp_path / "k.gpkg", shapes, kind=["lake"] * 4, **states)  # own classes: own meaning
    assert burn(kinds, field="kind")[1:] == (4, [])


def test_a_glacier_of_several_dates_is_said(tmp_path):
    shapes = [rectangle(10, 20, 30, 40), rectangle(10, 20, 20, 30), rectangle(50, 20, 9, 9), rectangle(900, 0, 9, 9)]
    options = {"line_type": ["glac_bound"] * 4, "glac_id": ["G1", "G1", "G2", "G2"]}
    dates = pd.to_datetime(["2000-08-01", "2015-09-09", "2015-09-09", "2001-01-01"])
    path = outlines(tmp_path / "o.gpkg", shapes, anlys_time=dates, **options)
    _, count, (note,) = burn(path)
    assert count == 3
    assert "1 glaciers on s.tif occur for several dates, such as G1 (anlys_time 2000-08-01 to 2015-09-09)" in note
    assert not burn(outlines(tmp_path / "p.gpkg", shapes, anlys_time=dates[:1].repeat(4), **options))[2]


def test_outlines_of_a_datum_whose_shift_is_not_known_are_said(tmp_path):
    shapes = [rectangle(10, 20, 30, 40), rectangle(60, 20, 9, 9)]
    path = outlines(tmp_path / "o.gpkg", shapes, to="EPSG:4144")
    _, count, (note,) = burn(path)
    assert count == 2
    assert "o.gpkg: the shift from the datum of Kalianpur 1937 to that of WGS 84 / UTM zone 45N is not known" in note
    assert burn(outlines(tmp_path / "w.gpkg", shapes, to="EPSG:4326"))[2] == []


def test_a_polygon_that_crosses_itself_ever_so_often_is_refused(tmp_path):
    tangle = Polygon((X, Y) + np.random.default_rng(0).uniform((0, -900), (900, 0), (3000, 2)))
    path = outlines(tmp_path / "o.gpkg", [tangle])
    with pytest.raises(DataError, match=rf"^{path}: the polygon of row 0 crosses itself too often to be repaired"):
        burn(path)


@pytest.mark.parametrize(
    ("broken", "area"),
    [
        (Polygon([(0, 0), (30, 30), (30, 0), (0, 30)]), 450),  # bow tie
        (Polygon([(0, 0), (30, 0), (30, 30), (15, 30), (21, 15), (9, 15), (15, 30), (0, 30)]), 810),  # hole at the rim
        (MultiPolygon([box(0, 0, 20, 20), box(10, 10, 30, 30)]), 700),  # parts overlap
        (MultiPolygon([box(0, 0, 30, 30), box(9, 9, 18, 18)]), 900),  # one within another
        (Polygon(box(0, 0, 30, 30).exterior, [box(24, 24, 40, 40).exterior]), 864),  # hole beyond the rim
        (Polygon([(0, 0), (30, 0), (30, 18), (12, 18), (12, 12), (18, 12), (18, 24), (0, 24)]), 648),  # crosses itself
    ],
)
def test_invalid_polygons_are_repaired_and_said(tmp_path, broken, area):
    assert not broken.is_valid
    on = shapely.transform(broken, lambda x, y: (X + 300 + 30 * x, Y - 300 - 30 * y), interleaved=False)
    far = shapely.transform(on, lambda x, y: (x + 90_000, y), interleaved=False)
    path = outlines(tmp_path / "o.gpkg", [rectangle(60, 60, 5, 5), on, far])
    mask, count, (note,) = burn(path)
    assert abs(int((mask == 254).sum()) - 25 - area) <= 30  # pixels along slanted edges
    assert count == 2
    assert note.startswith(f"{path}: 1 of 2 polygons on s.tif are invalid")
    before, after = broken.area, shapely.make_valid(broken, method="structure").area
    assert f"change of area is {abs(after - before) / max(before, after):.2%} (row 1)" in note


def test_geometries_that_are_empty_null_flat_or_3d(tmp_path):
    z = shapely.force_3d(rectangle(10, 20, 30, 40), 5000.0)
    flat = Polygon([(X + 30, Y - 30), (X + 90, Y - 90), (X + 60, Y - 60)])
    path = outlines(tmp_path / "o.gpkg", [None, Polygon(), z, flat])
    mask, count, (note,) = burn(path)
    np.testing.assert_array_equal(mask, want((10, 20, 30, 40, 254)))
    assert count == 1
    assert "1 polygons near s.tif have no area" in note
    with np.errstate(invalid="ignore"):
        holed = Polygon([(X + 30, Y - 30), (X + 90, np.nan), (X + 60, Y - 60)])
    _, count, (note,) = burn(outlines(tmp_path / "nan.gpkg", [rectangle(10, 20, 30, 40), holed]))
    assert count == 1
    assert "coordinates that are no numbers, and are left out (the first is row 1)" in note
    with np.errstate(invalid="ignore"):
        holed = Polygon([(X + 30, Y - 30), (X + 630, np.nan), (X + 630, Y - 30), (X + 630, Y - 630), (X + 30, Y - 630)])
    mask, count, (note,) = burn(outlines(tmp_path / "some.gpkg", [rectangle(40, 20, 30, 40), holed]))
    np.testing.assert_array_equal(mask, want((40, 20, 30, 40, 254), (1, 1, 20, 20, 254)))
    assert "1 polygons near s.tif have vertices that are no numbers, which are left out (the first is row 1)" in note
    both = shapely.GeometryCollection([rectangle(10, 20, 30, 40), LineString([(X, Y), (X + 9, Y)])])
    mask, _, (note,) = burn(outlines(tmp_path / "c.gpkg", [both, rectangle(1, 1, 2, 2)]))
    np.testing.assert_array_equal(mask, want((10, 20, 30, 40, 254), (1, 1, 2, 2, 254)))
    assert "1 of 2 polygons" in note


def test_a_ring_that_is_not_closed_is_closed(tmp_path):
    ring = mapping(geopandas.GeoSeries([rectangle(10, 20, 30, 40)], crs=CRS).to_crs("EPSG:4326")[0])["coordinates"][0]
    shape = {"type": "Polygon", "coordinates": [ring[:-1]]}
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    (tmp_path / "o.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    np.testing.assert_array_equal(burn(tmp_path / "o.geojson")[0], want((10, 20, 30, 40, 254)))


def test_outlines_that_cover_no_pixel_centre_are_counted(tmp_path):
    def dot(row, col, side=9):
        return box(X + 30 * col + 2, Y - 30 * row - 2 - side, X + 30 * col + 2 + side, Y - 30 * row - 2)

    thin = box(X + 300, Y - 29, X + 900, Y - 16)  # long, between two rows of centres
    seen = box(X + 30 * 50 + 14, Y - 316, X + 30 * 50 + 16, Y - 314)  # 2 m around a centre
    cut = box(X - 300, Y - 900, X + 10, Y - 600)  # reaches beyond the scene
    covered = dot(85, 70, 20)
    shapes = [dot(3, 3), dot(5, 60), thin, seen, cut, rectangle(80, 60, 12, 12), covered]
    path = outlines(tmp_path / "o.gpkg", shapes)
    mask, count, (note,) = burn(path)
    np.testing.assert_array_equal(mask, want((10, 50, 1, 1, 254), (80, 60, 12, 12, 254), (85, 70, 1, 1, 254)))
    assert count == 7
    assert note.startswith(f"{path}: 3 of 7 polygons on s.tif cover no pixel centre")
    assert "all_touched" in note
    mask, count, notes = burn(path, all_touched=True)
    assert (count, notes) == (7, [])
    assert mask[3, 3] == mask[5, 60] == mask[0, 10] == mask[25, 0] == 254


@pytest.mark.parametrize("seed", range(3))
def test_unseen_polygons_are_those_that_leave_no_pixel_when_burned_alone(tmp_path, seed):
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(300):
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        middle, radius = rng.uniform(4, 76, 2), rng.uniform(0.1, 3, angle.size)
        xy = middle[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
        shapes.append(Polygon(np.stack([X + 30 * xy[0], Y - 30 * xy[1]], 1)))
    path = outlines(tmp_path / "o.gpkg", shapes)
    alone = [rasterio.features.rasterize([s], SHAPE, transform=GRID).any() for s in shapes]
    (note,) = [n for n in burn(path)[2] if "pixel centre" in n]
    assert f": {300 - sum(alone)} of 300 polygons" in note


def far_scene(tmp_path):
    grid = from_origin(X + 90_000, Y, 30, 30)
    return write_raster(tmp_path / "far.tif", made_up()[0], nodata=0, bands=BANDS, transform=grid)


def test_a_scene_without_outlines_is_unlabelled_where_another_has_some(scene, tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(4, 4, 40, 30)])
    scenes, options = [scene[0], far_scene(tmp_path)], {"outlines": [path], "tile_size": 32}
    with pytest.warns(DataNote, match=r"far\.tif: no polygon lies on it.*unlabelled"):
        store = prepare_scenes(scenes, tmp_path / "store", **options)
    far = (store.table["scene"] == "far").to_numpy()
    assert far.any()
    assert (store.masks[far] == 255).all()
    assert store.ice_counts()[~far].sum() > 0
    assert any("far.tif" in n for n in store.info["notes"])
    with pytest.warns(DataNote, match="background, as empty_is_background"):
        store = prepare_scenes(scenes, tmp_path / "empty", **options, empty_is_background=True)
    assert store.class_counts()[(store.table["scene"] == "far").to_numpy(), 0].all()


def test_no_polygon_on_any_scene_is_refused(scene, tmp_path):
    away = outlines(tmp_path / "away.gpkg", [rectangle(1000, 9000, 5, 5)])
    scenes, options = [scene[0], far_scene(tmp_path)], {"outlines": [away], "tile_size": 32}
    for empty in (False, True):
        with pytest.raises(DataError, match=r"away\.gpkg: no polygon lies on"):
            prepare_scenes(scenes, tmp_path / "store", **options, empty_is_background=empty)
    assert not (tmp_path / "store").exists()


def test_a_store_of_outlines_keeps_how_it_was_made_and_what_was_said(scene, tmp_path):
    dot = box(X + 32, Y - 40, X + 40, Y - 32)
    path = outlines(tmp_path / "o.gpkg", [rectangle(4, 4, 40, 30), dot])
    store = prepare_scenes([scene[0]], tmp_path / "store", outlines=[("debris", path)], tile_size=32)
    assert store.info["made_by"]["outlines"] == [f"debris={path}"]
    assert any("1 of 2 polygons" in n for n in store.info["notes"])
    store = prepare_scenes([scene[0]], tmp_path / "all", outlines=[path], tile_size=32, all_touched=True)
    assert not any("polygon" in n for n in store.info["notes"])
    assert store.info["made_by"]["all_touched"]
    assert store.masks[0, 1, 1] == 254


@pytest.mark.skipif(not INVENTORIES.is_dir(), reason="the inventories (shared/data) are not on this machine")
@pytest.mark.parametrize(
    ("name", "crs", "rows", "broken"),
    [
        ("exploradores_rgi60.gpkg", "EPSG:32718", 47, 18),
        ("oetztal_rgi50.shp", "EPSG:32632", 20, 3),
        ("baker_glims.geojson", "EPSG:32610", 7, 1),
    ],
)
def test_inventories_keep_their_areas(name, crs, rows, broken):
    table = geopandas.read_file(INVENTORIES / name)
    projected = table.to_crs(crs)
    left, bottom, right, top = projected.total_bounds
    grid = from_origin(left - 90, top + 90, 10, 10)
    shape = (int((top - bottom) / 10) + 20, int((right - left) / 10) + 20)
    mask, count, notes = burn(INVENTORIES / name, crs=crs, grid=grid, shape=shape)
    assert count == rows
    assert any(f"{broken} of {rows} polygons" in n for n in notes)
    ring_areas = projected.area.sum()  # by the shoelace formula, valid or not
    assert (mask == 254).sum() * 100 == pytest.approx(ring_areas, rel=2e-3)
    stated = table["Area"].sum() * 1e6 if "Area" in table else table["area"].sum()
    assert (mask == 254).sum() * 100 == pytest.approx(stated, rel=5e-3)


def test_everest_by_labels_and_by_outlines_agree_about_ice(everest, tmp_path):
    a = prepare_scenes([everest / "scene.tif"], tmp_path / "a", labels=[everest / "label.tif"])
    b = prepare_scenes([everest / "scene.tif"], tmp_path / "b", outlines=[everest / "outlines.gpkg"])
    assert a.bands == ("blue", "green", "red", "nir")
    ice_a, ice_b = np.isin(a.masks, (1, 2)), np.isin(b.masks, (1, 2, 254))
    assert (ice_a == ice_b).mean() > 0.98
