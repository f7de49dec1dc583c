import sqlite3
import warnings
import zipfile
from contextlib import closing

import numpy as np
import pytest
import shapely
from polygons import CRS, GRID, SHAPE, across, outlines, rectangle

from glacier_fastai.data.sources.inventory import parse_date, read_inventory
from glacier_fastai.errors import DataError, DataNote
from glacier_fastai.predict.outlines import equal_area_crs

KM2 = 9e-4 / 0.9996**2  # of a pixel: its 30 m are of the middle of a UTM zone


def read(path, crs=CRS, grid=GRID, shape=SHAPE):
    notes = []
    near = equal_area_crs(crs, grid.c, grid.f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNote)
        found = read_inventory(path, crs, grid, shape, near, notes, "s.tif")
    return found, notes


@pytest.mark.parametrize(
    "columns",
    [
        {"rgi_id": ["B", "A"], "glac_name": ["two", None], "src_date": ["2000-07-01T00:00:00", ""]},
        {"RGIId": ["B", "A"], "Name": ["two", None], "BgnDate": ["20000701", "-9999999"]},
        {"glac_id": ["B", "A"], "glac_name": ["two", ""], "anlys_time": ["2000-07-01 12:00:00", None]},
    ],
    ids=["rgi7", "rgi6", "glims"],
)
def test_columns_of_the_inventories_are_known(tmp_path, columns):
    area = "area_km2" if "rgi_id" in columns else "Area"
    path = outlines(
        tmp_path / "i.gpkg", [rectangle(5, 5, 10, 10), rectangle(30, 30, 8, 8)], **columns, **{area: [0.09, 0.058]}
    )
    found, notes = read(path)
    assert found.table.to_dict("list") == {
        "id": ["A", "B"],
        "glims_id": ["A", "B"] if "glac_id" in columns else ["", ""],
        "name": ["", "two"],
        "date": ["", "2000-07-01"],
        "km2": [0.058, 0.09],
    }
    assert notes == [] and len(found.sha256) == 64 and not found.cut.any()
    np.testing.assert_array_equal(shapely.bounds(found.shapes), [[30, 30, 38, 38], [5, 5, 15, 15]])
    np.testing.assert_array_equal(found.inside, 1)


def test_dates():
    known = {"20020105": "2002-01-05", "20030799": "2003-07", "20029999": "2002", "2002-13-01": "2002", "20000230": ""}
    for text, date in known.items():
        assert parse_date(text) == (date or "2000-02")
    assert [parse_date(v) for v in ("", None, "nan", "-9999999", "99999999", "3.5")] == [""] * 6
    dotted = {"01.08.2000": "2000-08-01", "1.8.2000 12:00": "2000-08-01", "13.25.2000": "2000", "01.08.20001": ""}
    assert {text: parse_date(text) for text in dotted} == dotted


def test_without_ids_glaciers_go_by_their_row(tmp_path):
    shapes = [rectangle(5, 5, 10, 10), rectangle(30, 30, 8, 8)]
    found, notes = read(outlines(tmp_path / "i.gpkg", shapes, size=[1, 2]))
    assert found.table["id"].tolist() == ["row 0", "row 1"]
    assert "no column of ids (rgi_id, rgiid, glac_id" in notes[0] and "no column of areas" in notes[1]
    np.testing.assert_allclose(found.table["km2"], [100 * KM2, 64 * KM2], rtol=1e-4)
    assert read(outlines(tmp_path / "n.gpkg", shapes, id=[7.0, None]))[0].table["id"].tolist() == ["7", "row 1"]
    found, notes = read(outlines(tmp_path / "j.gpkg", shapes, RGIId=["A", None]))
    assert found.table["id"].tolist() == ["A", "row 1"] and "1 glaciers have no RGIId, the first is row 1" in notes[0]


def test_lists_of_geojson_are_read_as_text(tmp_path):
    path = outlines(tmp_path / "i.geojson", [rectangle(5, 5, 10, 10)], to="EPSG:4326", rgi_id=["A"], glac_name=["one"])
    path.write_text(path.read_text().replace('"A"', '["A", "B"]').replace('"one"', "[1, 2]"))
    table = read(path)[0].table
    assert (table["id"][0], table["name"][0]) == ("A, B", "1, 2")


def test_rows_of_one_id_are_one_glacier(tmp_path):
    shapes = [rectangle(5, 5, 10, 10), rectangle(5, 20, 10, 10), rectangle(30, 30, 8, 8)]
    found, notes = read(outlines(tmp_path / "i.gpkg", shapes, RGIId=["A", "A", "B"], Area=[0.18, 0.18, 0.058]))
    assert found.table["id"].tolist() == ["A", "B"] and found.table["km2"].tolist() == [0.18, 0.058]
    assert shapely.area(found.shapes).tolist() == [200, 64]
    assert notes == [f"{tmp_path}/i.gpkg: 1 ids have several polygons, which are taken for parts of one glacier each"]
    found, _ = read(outlines(tmp_path / "j.gpkg", shapes, RGIId=["A", "A", "B"], Area=[0.1, 0.08, 0.058]))
    assert found.table["km2"][0] == pytest.approx(200 * KM2, rel=1e-4)


def test_the_newest_outline_of_a_glacier_is_used(tmp_path):
    shapes = [rectangle(5, 5, 10, 10), rectangle(5, 5, 20, 10)]
    path = outlines(tmp_path / "i.gpkg", shapes, glac_id=["A", "A"], src_date=["2015-09-09", "1990-01-01"])
    found, notes = read(path)
    assert shapely.area(found.shapes).tolist() == [100] and found.table["date"].tolist() == ["2015-09-09"]
    assert "1 glaciers have outlines of several dates; the newest of each is used" in notes[0]


def test_dates_that_cannot_be_read_are_said_and_join_nothing(tmp_path):
    shapes = [rectangle(5, 5, 10, 10), rectangle(5, 5, 20, 10), rectangle(40, 5, 4, 4), rectangle(50, 5, 4, 4)]
    dates = ["1/8/2000", "5/9/2010", "-9999999", None]
    found, notes = read(outlines(tmp_path / "i.gpkg", shapes, RGIId=["A", "A", "B", "B"], date=dates))
    assert shapely.area(found.shapes).tolist() == [100, 32] and found.table["date"].tolist() == ["", ""]
    assert "2 dates of date cannot be read, such as '1/8/2000', so they are not known" in notes[0]
    assert "1 ids have several polygons" in notes[1]
    dates = ["01.08.2000", "05.09.2010", "1.8.2000", "01.08.2000"]
    found, notes = read(outlines(tmp_path / "j.gpkg", shapes, RGIId=["A", "A", "B", "B"], date=dates))
    assert shapely.area(found.shapes).tolist() == [200, 32]
    assert found.table["date"].tolist() == ["2010-09-05", "2000-08-01"]
    assert "1 glaciers have outlines of several dates; the newest" in notes[0]


def test_rocks_of_glims_are_cut_out_and_other_lines_are_none(tmp_path):
    shapes = [rectangle(5, 5, 10, 10), rectangle(8, 8, 2, 2), rectangle(40, 5, 4, 4)]
    kinds = ["glac_bound", "intrnl_rock", "debris_cov"]
    path = outlines(tmp_path / "i.gpkg", shapes, glac_id=["A", "A", "A"], line_type=kinds, area=[86.4e3, 0, 0])
    found, notes = read(path)
    assert shapely.area(found.shapes).tolist() == [96]
    assert found.table["km2"].tolist() == [pytest.approx(0.0864)]
    assert [n.partition(": ")[2] for n in notes] == ["area is in m2, by the areas of its outlines"]


def test_a_glacier_that_is_cut_knows_how_much_of_it_is_on_the_scene(tmp_path):
    shapes = [rectangle(5, -10, 10, 20), rectangle(30, 30, 10, 10), rectangle(60, 0, 10, 10)]
    path = outlines(tmp_path / "i.gpkg", shapes, RGIId=["A", "B", "C"], Area=[0.18, 0.36, 0.09])
    found, notes = read(path)
    np.testing.assert_allclose(found.inside, [0.5, 100 * KM2 / 0.36, 1], rtol=1e-3)
    assert found.cut.tolist() == [True, True, True]
    assert "1 outlines are smaller than their areas in Area, such as B: they were cut" in notes[0]


def test_areas_in_hectares_are_known_by_all_of_them(tmp_path):
    shapes, km2 = [rectangle(5, 5, 10, 10), rectangle(30, 30, 8, 8)], [0.0901, 0.058]
    found, notes = read(outlines(tmp_path / "i.gpkg", shapes, RGIId=["A", "B"], area=[100 * v for v in km2]))
    assert found.table["km2"].tolist() == pytest.approx(km2) and not found.cut.any()
    assert [n.partition(": ")[2] for n in notes] == ["area is in hectares, by the areas of its outlines"]
    found, notes = read(outlines(tmp_path / "j.gpkg", shapes, RGIId=["A", "B"], area=[9.01, 0.058]))  # A was cut
    assert found.table["km2"].tolist() == [9.01, 0.058] and "smaller than their areas" in notes[0]


def test_invalid_and_empty_polygons_are_said(tmp_path):
    bow = shapely.Polygon([(500_000, 3_100_000), (500_600, 3_099_400), (500_600, 3_100_000), (500_000, 3_099_400)])
    path = outlines(tmp_path / "i.gpkg", [bow, None, rectangle(50, 50, 5, 5)], RGIId=["A", "B", "C"])
    found, notes = read(path)
    assert found.table["id"].tolist() == ["A", "C"]
    assert shapely.area(found.shapes).tolist() == pytest.approx([200, 25])
    assert any("1 of 2 polygons on s.tif are invalid" in n for n in notes)


def test_another_hemisphere_is_refused_and_no_glacier_on_the_scene_is_said(tmp_path):
    far = outlines(tmp_path / "far.gpkg", [shapely.box(-73, -47, -72, -46)], "EPSG:4326", RGIId=["A"])
    with pytest.raises(DataError, match=r"far\.gpkg: lies elsewhere, from -73, -47 to -72, -46, and s\.tif from 8"):
        read(far)
    around = [rectangle(-900, -900, 10, 10), rectangle(900, 900, 10, 10)]
    found, notes = read(outlines(tmp_path / "around.gpkg", around, RGIId=["A", "B"]))
    assert len(found) == 0 and "none of its glaciers lies on s.tif" in notes[0]
    empty = outlines(tmp_path / "empty.gpkg", [None], RGIId=["A"])
    with pytest.raises(DataError, match=r"empty\.gpkg: holds no polygon"):
        read(empty)


def test_glaciers_across_180_degrees(tmp_path):
    grid = across()
    shapes = [rectangle(60, 40, 20, 50, grid), rectangle(10, 10, 20, 20, grid)]
    path = outlines(tmp_path / "i.gpkg", shapes, "EPSG:32601", to="EPSG:4326", rgi_id=["A", "B"])
    found, _ = read(path, "EPSG:32601", grid, (128, 128))
    np.testing.assert_allclose(shapely.area(found.shapes), [1000, 400], rtol=1e-3)
    np.testing.assert_array_equal(found.inside, 1)


@pytest.mark.parametrize("end", ["dbf", "prj", "cpg"])
def test_what_lies_beside_a_shapefile_is_part_of_it(tmp_path, end):
    path = outlines(tmp_path / "i.shp", [rectangle(5, 5, 10, 10)], RGIId=["A"])
    before = read(path)[0].sha256
    (tmp_path / "i.qmd").write_text("what a viewer leaves")
    assert len(before) == 64 and read(path)[0].sha256 == before
    side = path.with_suffix(f".{end}")
    side.write_bytes(side.read_bytes().replace(b"A", b"B", 1) if end == "dbf" else side.read_bytes() + b" ")
    assert read(path)[0].sha256 != before
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for part in sorted(tmp_path.glob("i.[!z]*")):
            archive.write(part, part.name)
    assert read(f"zip://{tmp_path}/i.zip!i.shp")[0].sha256 == read(tmp_path / "i.zip")[0].sha256


def test_what_an_open_geopackage_has_not_yet_written_is_part_of_it(tmp_path):
    path = outlines(tmp_path / "i.gpkg", [rectangle(5, 5, 10, 10)], RGIId=["A"])
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
        before = read(path)[0].sha256
        for (trigger,) in db.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            db.execute(f'drop trigger "{trigger}"')
        db.execute("update i set RGIId = 'B'")
        db.commit()
        found = read(path)[0]
    assert found.table["id"].tolist() == ["B"] and found.sha256 != before
