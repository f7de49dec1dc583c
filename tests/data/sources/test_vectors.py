import sys
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
from polygons import CRS, X, Y, burn, outlines, rectangle, refused, want
from shapely.geometry import LineString, Point


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
    "name", ["https://x.org/o.gpkg", "/vsicurl/https://x.org/o.gpkg", "s3://b/o.gpkg", "/vsis3/b/o.gpkg"]
)
def test_only_files_on_this_disk_are_read(name):
    refused("only files on this disk", name)


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
