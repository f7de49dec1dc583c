import gc
import json
import os
import sqlite3
import struct
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from listening import nobody_asks
from polygons import CRS, X, Y, burn, outlines, rectangle, refused, want
from shapely.geometry import LineString, Point

from glacier_fastai.data.sources.vectors import open_vector
from glacier_fastai.errors import DataError


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp", "fgb", "parquet"])
def test_outlines_of_another_crs_and_format_are_burned(tmp_path, suffix):
    path = outlines(tmp_path / f"o.{suffix}", [rectangle(10, 20, 30, 40), rectangle(900, 0, 5, 5)], to="EPSG:4326")
    mask, count, notes = burn(path)
    np.testing.assert_array_equal(mask, want((10, 20, 30, 40, 254)))
    assert (count, notes) == (1, [])


@pytest.mark.parametrize("name", ["{zip}", "zip://{zip}", "zip://{zip}!{shp}", "/vsizip/{zip}", "/vsizip/{zip}/{shp}"])
@pytest.mark.parametrize("folder", ["", "deep/er/"])
def test_a_shapefile_in_an_archive(tmp_path, name, folder):
    path = outlines(tmp_path / "o.shp", [rectangle(10, 20, 30, 40)])
    with zipfile.ZipFile(tmp_path / "a b.zip", "w") as archive:
        for file in tmp_path.glob("o.*"):
            archive.write(file, folder + file.name)
        archive.writestr("about.json", "{}")
    name = name.format(zip=tmp_path / "a b.zip", shp=f"{folder}{path.name}")
    np.testing.assert_array_equal(burn(name)[0], want((10, 20, 30, 40, 254)))


def test_archives_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        outlines(tmp_path / f"{name}.shp", [rectangle(10, 20, 30, 40)])
    with zipfile.ZipFile("two.zip", "w") as archive:
        for file in [*tmp_path.glob("a.*"), *tmp_path.glob("b.*")]:
            archive.write(file, file.name)
    refused(r"two\.zip: holds a\.shp, b\.shp; name one: zip://two\.zip!a\.shp", "two.zip")
    assert burn("zip://two.zip!b.shp")[1] == 1
    refused(r"no c\.shp in the archive; it holds", "zip://two.zip!c.shp")
    with zipfile.ZipFile("none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    refused(r"none\.zip: no vector file in the archive; it holds readme\.txt", "none.zip")
    Path("bad.zip").write_text("hello")
    refused(r"bad\.zip: not a zip archive", "bad.zip")
    refused(r"zip://x\.zip: no such file", "zip://x.zip")


@pytest.mark.parametrize(
    "name", ["ftp://x.org/o.gpkg", "/vsigs/b/o.gpkg", "/vsizip//vsicurl/https://x.org/o.zip/o.gpkg", "PG://x"]
)
def test_addresses_of_other_kinds_are_refused(name):
    refused("only files on this disk|no such file", name)


def test_geoparquet_of_other_kinds(tmp_path, monkeypatch):
    table = geopandas.GeoDataFrame({"k": ["debris"]}, geometry=[rectangle(1, 2, 3, 4)], crs=CRS)
    table.rename_geometry("where").to_parquet(tmp_path / "named.geoparquet")
    np.testing.assert_array_equal(burn(tmp_path / "named.geoparquet", field="k")[0], want((1, 2, 3, 4, 2)))
    table.set_crs(None, allow_override=True).to_parquet(tmp_path / "nocrs.parquet")
    refused("no coordinate reference system", tmp_path / "nocrs.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "plain.parquet")
    refused(r"plain\.parquet: Parquet without geometry metadata", tmp_path / "plain.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    refused(r"text\.parquet: not a GeoParquet file, or damaged", tmp_path / "text.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("glacier_fastai.data.sources.vectors.find_spec", lambda name: None)
    refused(r"pip install 'glacier-fastai\[geoparquet\]'", tmp_path / "plain.parquet")


def test_layers_and_styles(tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)])
    pyogrio.write_dataframe(pd.DataFrame({"styleQML": ["x"]}), path, layer="layer_styles")
    assert burn(path)[1:] == (1, [])
    line = geopandas.GeoDataFrame(geometry=[LineString([(X, Y), (X + 9, Y)])], crs=CRS)
    line.to_file(path, layer="centre_lines")
    (note,) = burn(path)[2]
    assert note.startswith(f"{path}: layer o is read; left out: centre_lines (LineString)")
    geopandas.read_file(path, layer="o").to_file(path, layer="more")
    refused(r"has layers o, more; keep one \(ogr2ogr one.gpkg o.gpkg o\)", path)


def test_files_that_cannot_be_read(tmp_path):
    refused(r"x\.gpkg: no such file", tmp_path / "x.gpkg")
    (tmp_path / "text.gpkg").write_text("hello")
    refused("not a vector file, or damaged", tmp_path / "text.gpkg")
    whole = outlines(tmp_path / "o.gpkg", [rectangle(0, 0, 5, 5)])
    (tmp_path / "cut.gpkg").write_bytes(whole.read_bytes()[:18])
    refused("cut.gpkg: ", tmp_path / "cut.gpkg")
    refused(
        "holds LineString; outlines must be polygons", outlines(tmp_path / "l.gpkg", [LineString([(X, Y), (X + 9, Y)])])
    )
    mixed = outlines(tmp_path / "mixed.geojson", [rectangle(0, 0, 5, 5), Point(X, Y - 9)], to="EPSG:4326")
    refused("holds Point, Polygon; outlines must be polygons", mixed)
    shp = outlines(tmp_path / "nocrs.shp", [rectangle(0, 0, 5, 5)])
    shp.with_suffix(".prj").unlink()
    refused(r"no coordinate reference system, as no \.prj file lies beside it; assign one", shp)
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "table.csv")
    refused("GeoPackage, Shapefile, GeoJSON.* are read", tmp_path / "table.csv")
    path = outlines(tmp_path / "o.gpkg", [rectangle(0, 0, 5, 5)])
    refused("'glaciar' is no class; use background, .*; did you mean 'glacier'", ("glaciar", path))


def test_text_in_another_encoding_than_declared(tmp_path):
    path = outlines(tmp_path / "o.shp", [rectangle(0, 0, 5, 5)], kind=["glacier"], name=["Ötz"])
    dbf = path.with_suffix(".dbf")
    dbf.write_bytes(dbf.read_bytes().replace("Ötz".encode(), b"\xd6tz "))
    assert burn(path)[1] == 1  # nobody asks for the names
    refused("encoding", path, field="name")


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson", "fgb", "parquet", "kml", "gml"])
@pytest.mark.parametrize("name", ["s3:/a!b;c", "zip:/x", "file:x"])
def test_names_of_files_are_no_addresses(tmp_path, monkeypatch, suffix, name):
    table = geopandas.GeoDataFrame(geometry=[rectangle(10, 20, 30, 40)], crs=CRS).to_crs("EPSG:4326")
    path = tmp_path / f"plain.{suffix}"
    table.to_parquet(path) if suffix == "parquet" else table.to_file(
        path, driver=suffix.upper() if "ml" in suffix else None
    )
    home = (tmp_path / name).parent
    home.mkdir(exist_ok=True)
    for file in tmp_path.glob("plain.*"):
        file.rename(home / f"{(tmp_path / name).name}{file.suffix}")
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.rglob("*")}
    assert burn(f"{name}.{suffix}")[1] == 1
    assert {*tmp_path.rglob("*")} == before


def test_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "o.gpkg")
    refused("pipe", tmp_path / "o.gpkg")
    refused("folder", tmp_path)
    shp = outlines(tmp_path / "o.shp", [rectangle(10, 20, 30, 40)])
    shp.with_suffix(".prj").unlink()
    os.mkfifo(shp.with_suffix(".prj"))
    refused("pipe", shp)


RING = [[86.0, 28.0], [86.1, 28.0], [86.1, 28.1], [86.0, 28.0]]


def geojson(crs):
    geometry = {"type": "Polygon", "coordinates": [RING]}
    about = {"crs": crs} if crs else {}
    feature = {"type": "Feature", "properties": {"crs": "mine"}, "geometry": geometry}
    return json.dumps({"type": "FeatureCollection", **about, "features": [feature]})


def test_text_that_names_a_server(tmp_path, monkeypatch):
    with nobody_asks(monkeypatch) as url:
        vrt = (
            "<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
        )
        link = {"type": "link", "properties": {"href": url}}
        texts = [
            vrt.format(f"/vsicurl/{url}/x.geojson"),
            vrt.format(tmp_path / "other.gpkg"),
            f"<OGRWFSDataSource><URL>{url}/wfs</URL></OGRWFSDataSource>",
            f'<kml xmlns="http://www.opengis.net/kml/2.2"><!-- {vrt.format(url)} --></kml>',
            f'{{"type": "gdal_streamed_alg", "command_line": "gdal vector read {url}", "a": "type\\": \\"Feature"}}',
            geojson(link),
            geojson(link).replace('"crs"', r'"\u0063rs"'),
            geojson(link).replace('"crs":', '"crs"/* */:'),
            geojson({"type": "url", "properties": {"url": url}}),
            geojson({"TYPE": "link", "properties": {"href": url, "name": "EPSG:4326"}, "type": "name"}),
            geojson({"type": "name", "properties": {"href": url, "name": "EPSG:4326"}}),
            geojson({"type": "name", "properties": {"NAME": url, "name": "EPSG:4326"}}),
            geojson({"type": "name", "properties": {"name": "EPSG:4326"}, "href": url}),
            geojson({"type": "name", "properties": {"name": url}}),
            geojson({"type": "name", "properties": {"name": "/etc/hosts"}}),
        ]
        for k, text in enumerate(texts):
            for suffix in ("geojson", "gpkg", "shp", "vrt"):
                (tmp_path / f"{k}.{suffix}").write_text(text)
                refused(rf"{k}\.{suffix}", tmp_path / f"{k}.{suffix}")
        gml = (
            '<?xml version="1.0"?><ogr:FeatureCollection xmlns:ogr="http://ogr.maptools.org/" '
            'xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:schemaLocation="http://ogr.maptools.org/ {url}/schema.xsd"><gml:featureMember><ogr:a fid="a.0">'
            f'<ogr:geom><gml:Polygon srsName="{url}/srs"><gml:outerBoundaryIs><gml:LinearRing><gml:coordinates>86,28'
            " 86.1,28 86.1,28.1 86,28</gml:coordinates></gml:LinearRing></gml:outerBoundaryIs></gml:Polygon></ogr:geom>"
            "</ogr:a>"
            "</gml:featureMember></ogr:FeatureCollection>"
        )
        (tmp_path / "o.gml").write_text(gml)
        refused("no coordinate reference system", tmp_path / "o.gml")


@pytest.mark.parametrize("crs", [None, {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}])
def test_geojson_may_name_its_crs(tmp_path, crs):
    (tmp_path / "o.geojson").write_text(geojson(crs))
    assert open_vector(tmp_path / "o.geojson").crs.is_geographic


def test_geojson_of_endless_crs(tmp_path, monkeypatch):
    monkeypatch.setattr("glacier_fastai.data.sources.vectors.CRSS", 2)
    crs = {"type": "name", "properties": {"name": "EPSG:32645"}}
    text, each = geojson(crs), f'"note": {{"crs": {json.dumps(crs)}}}, "properties"'
    (tmp_path / "same.geojson").write_text(text.replace('"properties": {"crs"', each + ': {"crs"'))
    assert open_vector(tmp_path / "same.geojson").crs == "EPSG:32645"
    for code in (32646, 32647):
        text = text.replace(
            '"features"', f'"a{code}": {{"crs": {json.dumps(crs)}}}, "features"'.replace("32645", f"{code}")
        )
    (tmp_path / "o.geojson").write_text(text)
    refused(r"o\.geojson: has more than 2 different crs", tmp_path / "o.geojson")


def test_a_crs_of_geoparquet(tmp_path):
    from pyarrow import parquet

    outlines(tmp_path / "o.parquet", [rectangle(10, 20, 30, 40)])
    table = parquet.read_table(tmp_path / "o.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    geo["columns"]["geometry"]["crs"] = "http://127.0.0.1/crs"
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "url.parquet")
    refused(r"url\.parquet: its coordinate reference system cannot be read", tmp_path / "url.parquet")


def test_a_value_of_geoparquet_that_repeats_counts_every_time(tmp_path, monkeypatch):
    path = outlines(tmp_path / "o.parquet", [rectangle(10, 20, 30, 40)] * 100, k=["x" * 100_000] * 100)
    assert path.stat().st_size < 50_000
    assert len(open_vector(path).bounds) == 100
    with monkeypatch.context() as patched:
        patched.setattr("glacier_fastai.data.sources.vectors.PACKED", (2**20, 100))
        refused(r"o\.parquet: its 100 rows unpack to 10,\d{3},\d{3} bytes and more, from \d\d,\d{3}", path)
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 2**25)
    monkeypatch.setattr("glacier_fastai.memory.LEAST", 0)
    with pytest.raises(DataError, match=r"o\.parquet: its 100 rows need 0\.0 GB of memory, but 0\.0 GB are free"):
        open_vector(path)


def test_lists_of_geoparquet_are_left_out(tmp_path):
    table = geopandas.read_file(outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)]))
    table.assign(k="x", many=[[1, 2]]).to_parquet(tmp_path / "o.parquet", geometry_encoding="geoarrow")
    layer = open_vector(tmp_path / "o.parquet")
    assert {*layer.columns} == {*table.columns, "k"} - {"geometry"}
    assert layer.read(np.array([0]), ["k"])["k"].tolist() == ["x"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [6, 7, 1007, 0xA0000007])  # several polygons, collections, with heights, of PostGIS
def test_geometries_of_geoparquet_are_no_deeper_than_can_be_read(tmp_path, kind, order):
    import pyarrow as pa
    from pyarrow import parquet

    def nested(depth):
        parts = 3 if kind % 1000 == 7 else 1  # beside points, and polygons with a hole
        begin = struct.pack(f"{order}BII", order == "<", kind, parts)
        begin = begin[:5] + (struct.pack(f"{order}I", 4326) if kind > 2**29 else b"") + begin[5:]
        point, polygon = (shapely.to_wkb(g, byte_order=order == "<") for g in (Point(1, 2), HOLED))
        return begin + (point + polygon if parts == 3 else b"") + (nested(depth - 1) if depth else point)

    table = parquet.read_table(outlines(tmp_path / "o.parquet", [rectangle(10, 20, 30, 40)]))
    for name, depth in (("deep", 40), ("flat", 20)):
        wkb = pa.array([nested(depth)], pa.binary())
        parquet.write_table(pa.table({"geometry": wkb}, metadata=table.schema.metadata), tmp_path / f"{name}.parquet")
        wkb = wkb.cast(pa.binary(len(wkb[0].as_py())))
        parquet.write_table(pa.table({"geometry": wkb}, metadata=table.schema.metadata), tmp_path / "fixed.parquet")
        refused("its geometry is of a fixed length, as no geometries are", tmp_path / "fixed.parquet")
    refused("a geometry is nested more than 32 deep", tmp_path / "deep.parquet")
    assert kind == 6 or len(open_vector(tmp_path / "flat.parquet").bounds) == 1  # of points it is none


HOLED = Point(5, 5).buffer(3).difference(Point(5, 5).buffer(1))
ENDLESS = "(with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c)"


@pytest.mark.parametrize(
    "change",
    [
        ["alter table o rename to base", f"create view o as select fid, geom, {ENDLESS} as kind from base"],
        [
            "alter table o rename to base", f"create view É as select fid, geom, {ENDLESS} as kind from base",
            "update gpkg_contents set table_name = 'É'",
        ],
        ["alter table gpkg_contents rename to base", f"create view gpkg_contents as select *, {ENDLESS} from base"],
        ["alter table o add column big as (zeroblob(900000000))"],
    ],
)  # fmt: skip
def test_geopackages_that_compute(tmp_path, change):
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)])
    with closing(sqlite3.connect(path)) as db:
        for (trigger,) in db.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            db.execute(f'drop trigger "{trigger}"')
        for sql in change:
            db.execute(sql)
        db.commit()
    refused(r"o\.gpkg: .*(view|computed|gpkg_contents)", path)


def test_a_geopackage_in_use_stays_as_it_is(tmp_path):
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)])
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
    assert burn(path)[1] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["o.gpkg"]
    size = path.stat().st_size
    os.truncate(path, 2**40)  # it would be copied
    refused(r"o\.gpkg: longer than its pages", path)
    os.truncate(path, size)
    Path(f"{path}-wal").touch()
    os.truncate(f"{path}-wal", 2**40)
    refused(r"o\.gpkg: longer than its pages", path)


def test_what_is_read_again_and_again(tmp_path):
    shp = outlines(tmp_path / "o.shp", [rectangle(10, 20, 30, 40)] * 2)
    shx = shp.with_suffix(".shx")
    shx.write_bytes(shx.read_bytes() + shx.read_bytes()[100:108] * 100)
    refused(r"o\.shp: its \.shx names more", shp)
    for side in ("shx", "prj"):
        os.truncate(outlines(tmp_path / f"{side}.shp", [rectangle(10, 20, 30, 40)]).with_suffix(f".{side}"), 2**40)
    refused(r"shx\.shp: its \.shx names more", tmp_path / "shx.shp")
    refused(r"prj\.prj: has more than 1,048,576 bytes", tmp_path / "prj.shp")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("o.geojson", bytes(300 * 2**20))
    refused(r"bomb\.zip: o\.geojson unpacks to 314,572,800 bytes", tmp_path / "bomb.zip")


THREE = [rectangle(10, 20, 30, 40), rectangle(60, 20, 10, 10), rectangle(80, 20, 5, 5)]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_rows_of_a_geopackage_are_counted_whatever_it_says(tmp_path, count):
    path = outlines(tmp_path / "o.gpkg", THREE)
    with closing(sqlite3.connect(path)) as db:
        db.execute("update gpkg_ogr_contents set feature_count = ?", (count,))
        db.commit()
    layer = open_vector(path)
    assert len(layer.bounds) == 3
    assert [len(layer.read(np.array(rows))) for rows in ([2], [0, 1, 2])] == [1, 3]


def test_rows_of_a_flatgeobuf_are_counted(tmp_path):
    path = tmp_path / "o.fgb"
    geopandas.GeoSeries(THREE, crs=CRS).to_file(path, SPATIAL_INDEX="NO")
    content = path.read_bytes()
    assert len(open_vector(path).bounds) == 3
    at = content.index(struct.pack("<Q", 3), 12)
    path.write_bytes(content[:at] + b"\2" + content[at + 1 :])
    refused(r"o\.fgb: says it has 2 rows, and holds more", path)


def test_an_index_that_names_fewer_polygons_than_there_are(tmp_path):
    shp = outlines(tmp_path / "o.shp", THREE)
    shx = shp.with_suffix(".shx")
    content = shx.read_bytes()
    shx.write_bytes(content[:24] + struct.pack(">i", (len(content) - 8) // 2) + content[28:-8])
    refused(r"o\.shp: its \.shp holds 3 records, and its \.shx names 2", shp)
    shx.write_bytes(outlines(tmp_path / "other.shp", THREE[:1]).with_suffix(".shx").read_bytes())
    refused(r"o\.shp: its \.shp holds 3 records, and its \.shx names 1", shp)


def test_a_shapefile_that_was_edited_keeps_what_a_polygon_was(tmp_path):
    shp = outlines(tmp_path / "o.shp", THREE)
    shx, (content, index) = shp.with_suffix(".shx"), (f.read_bytes() for f in (shp, shp.with_suffix(".shx")))
    words = int.from_bytes(index[104:108])  # of the first, which is now found at the end
    grown = content + content[100 : 108 + 2 * words]
    shp.write_bytes(grown[:24] + struct.pack(">i", len(grown) // 2) + grown[28:])
    shx.write_bytes(index[:100] + struct.pack(">i", len(content) // 2) + index[104:])
    assert len(open_vector(shp).bounds) == 3
    shp.write_bytes(shp.read_bytes() + content[100:])  # and nothing after its end belongs to it
    assert len(open_vector(shp).bounds) == 3


def test_nothing_temporary_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = outlines(tmp_path / "o.gpkg", [rectangle(10, 20, 30, 40)])
    layer = open_vector(path)
    assert len(layer.read(np.array([0]))) == 1
    del layer
    gc.collect()
    (tmp_path / "text.shp").write_text("hello")
    refused("not a vector file", tmp_path / "text.shp")
    assert not [*(tmp_path / "tmp").iterdir()]


@pytest.mark.parametrize(
    "begin", ["<!---->" * 40 + "x", " " * 65_000, "<?x?>" * 13_000, "<!--" * 16_000, "<" + "a:" * 32_000]
)
def test_text_that_begins_like_xml_and_goes_on_for_ever(tmp_path, begin):
    (tmp_path / "o.gml").write_text(begin)
    refused(r"o\.gml: not a vector file, or damaged", tmp_path / "o.gml")


def test_what_is_set_for_gdal_fills_no_hole(tmp_path, monkeypatch):
    ring, hole = shapely.box(86, 27, 87, 28), shapely.box(86.4, 27.4, 86.6, 27.6)
    geopandas.GeoSeries([ring - hole], crs="EPSG:4326").to_file(tmp_path / "o.shp")
    monkeypatch.setenv("OGR_ORGANIZE_POLYGONS", "SKIP")
    layer = open_vector(tmp_path / "o.shp")
    assert shapely.area(layer.read(np.arange(1), []).geometry.array).tolist() == pytest.approx([0.96])
    monkeypatch.undo()
    assert pyogrio.get_gdal_config_option("OGR_ORGANIZE_POLYGONS") is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("GML_SWAP_COORDINATES", "YES"),
        ("GML_INVERT_AXIS_ORDER_IF_LAT_LONG", "NO"),
        ("GML_CONSIDER_EPSG_AS_URN", "YES"),
    ],
)
def test_what_is_set_for_gdal_turns_no_axes(tmp_path, monkeypatch, option, value):
    place = [86.0, 27.0, 87.0, 28.0]
    text = (
        '<w:c xmlns:w="http://w" xmlns:gml="http://www.opengis.net/gml"><gml:featureMember><w:g><w:at><gml:Polygon '
        'srsName="{crs}"><gml:outerBoundaryIs><gml:LinearRing><gml:coordinates>{ring}</gml:coordinates>'
        "</gml:LinearRing></gml:outerBoundaryIs></gml:Polygon></w:at></w:g></gml:featureMember></w:c>"
    )
    rings = {
        "urn:ogc:def:crs:EPSG::4326": "27,86 28,86 28,87 27,87 27,86",  # latitude first, as EPSG says
        "EPSG:4326": "86,27 86,28 87,28 87,27 86,27",
    }
    for k, (crs, ring) in enumerate(rings.items()):
        (tmp_path / f"o{k}.gml").write_text(text.format(crs=crs, ring=ring))
        monkeypatch.delenv(option, raising=False)
        assert open_vector(tmp_path / f"o{k}.gml").bounds[0].tolist() == place
        monkeypatch.setenv(option, value)
        assert open_vector(tmp_path / f"o{k}.gml").bounds[0].tolist() == place


def test_xml_may_begin_with_comments_and_instructions(tmp_path):
    text = (
        "\ufeff<?xml version='1.0'?>\n<?a b='>'?><!-- <gml> --> <!----><kml xmlns='http://www.opengis.net/kml/2.2'>"
        "<Placemark><Polygon><outerBoundaryIs><LinearRing><coordinates>86,28 87,28 87,29 86,28</coordinates>"
        "</LinearRing></outerBoundaryIs></Polygon></Placemark></kml>"
    )
    (tmp_path / "o.kml").write_text(text, "utf-8")
    assert len(open_vector(tmp_path / "o.kml").bounds) == 1
    (tmp_path / "o.kml").write_text(text[:150], "utf-8")
    refused(r"o\.kml: not a vector file, or damaged \(ERROR parsing kml o\.kml ", tmp_path / "o.kml")
