import sqlite3
import xml.etree.ElementTree as xml
from contextlib import closing

import numpy as np
import pyogrio
import pytest
from glacier_maps import ground, inventory, write_map
from polygons import GRID
from rasterio import CRS

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.sources.vectors import open_vector
from glacier_fastai.errors import OutputError
from glacier_fastai.predict.glaciers import glaciers
from glacier_fastai.predict.outlines import Outlines
from glacier_fastai.predict.sink import Strip
from glacier_fastai.predict.source import Grid
from glacier_fastai.predict.styles import write_styles

# as QGIS writes the table
COLUMNS = ["f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName", "styleQML"]
COLUMNS += ["styleSLD", "useAsDefault", "description", "owner", "ui", "update_time"]


@pytest.fixture
def outlines(tmp_path):
    classes = ground()
    path = tmp_path / "s_outlines.gpkg"
    with Outlines(path, Grid(path, CRS.from_epsg(32645), GRID, *classes.shape)) as made:
        made.write(Strip(0, classes, np.full((4, *classes.shape), 0.25, np.float32)))
    return path


def styles(path):
    return pyogrio.read_dataframe(path, layer="layer_styles").set_index(["f_table_name", "styleName"])


def parsed(table, *key):
    return xml.fromstring(table.loc[key, "styleQML"])


def test_the_table_is_as_qgis_writes_it(outlines):
    assert pyogrio.read_info(outlines, layer="layer_styles")["fields"].tolist() == COLUMNS
    table = styles(outlines)
    assert sorted(table.index) == sorted((n, s) for n in ("classes", "glaciers") for s in ("Confidence", n.title()))
    assert table["useAsDefault"].groupby("f_table_name").sum().tolist() == [1, 1]
    assert (table[["f_table_catalog", "f_table_schema", "styleSLD"]] == "").all(axis=None)
    with closing(sqlite3.connect(outlines)) as file:
        kinds = dict(file.execute("SELECT table_name, data_type FROM gpkg_contents"))
        assert kinds == {"glaciers": "features", "classes": "features", "layer_styles": "attributes"}
        keys = [name for _, name, _, _, _, key in file.execute("PRAGMA table_info(layer_styles)") if key]
        columns = dict(file.execute("SELECT table_name, column_name FROM gpkg_geometry_columns"))
    assert keys == ["id"]
    assert set(table["f_geometry_column"]) == set(columns.values())


def test_classes_have_their_colours_and_a_list_to_choose_from(outlines):
    style = parsed(styles(outlines), "classes", "Classes")
    renderer = style.find("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    shown = [c.get("value") for c in renderer.iter("category")]
    assert set(shown) == {*CLASSES, ""}
    assert [s.get("name") for s in renderer.iter("symbol")] == [c.get("symbol") for c in renderer.iter("category")]
    colours = [o.get("value") for o in renderer.iter("Option") if o.get("name") == "color"]
    assert colours[shown.index("glacier")] == "86,180,233,153"
    widget = style.find("fieldConfiguration/field[@name='class']/editWidget")
    assert widget.get("type") == "ValueMap"
    assert [o.get("value") for o in widget.iter("Option") if o.get("value")] == list(CLASSES)


def test_glaciers_have_their_ids_and_all_layers_their_confidence(outlines):
    table = styles(outlines)
    style = parsed(table, "glaciers", "Glaciers")
    assert style.get("labelsEnabled") == "1"
    assert style.find("labeling/settings/text-style").get("fieldName") == "id"
    for layer in ("glaciers", "classes"):
        renderer = parsed(table, layer, "Confidence").find("renderer-v2")
        assert (renderer.get("type"), renderer.get("attr")) == ("graduatedSymbol", "confidence")
        ends = [(float(r.get("lower")), float(r.get("upper"))) for r in renderer.iter("range")]
        assert (ends[0][0], ends[-1][1]) == (0, 1)
        assert all(a[1] == b[0] for a, b in zip(ends[:-1], ends[1:], strict=True))


def test_columns_of_the_styles_are_those_of_the_layers(outlines, tmp_path):
    made = glaciers(write_map(tmp_path / "maps", ground()), inventory(tmp_path / "rgi.gpkg"))
    for path in (outlines, made["files"]["glaciers.gpkg"]):
        for (layer, name), row in styles(path).iterrows():
            style = xml.fromstring(row["styleQML"])
            used = {e.get("attr") for e in style.iter("renderer-v2")} | {e.get("name") for e in style.iter("field")}
            used |= {e.get("fieldName") for e in style.iter("text-style")}
            assert used - {None} <= {*pyogrio.read_info(path, layer=layer)["fields"]}, name


def test_our_own_reader_sees_the_layers_alone(outlines, tmp_path):
    assert len(open_vector(outlines, "classes").bounds) == 5
    made = glaciers(write_map(tmp_path / "maps", ground()), inventory(tmp_path / "rgi.gpkg"))
    layer = open_vector(made["files"]["glaciers.gpkg"])
    assert (layer.name, layer.left_out) == ("glaciers", "")


def test_what_cannot_be_written_is_one_line(outlines):
    outlines.write_bytes(b"SQLite format 3\0 and no more")  # GDAL makes a new file of it, without a word
    with pytest.raises(OutputError, match=r"outlines\.gpkg: cannot be written \(its layers are not .*\); make room"):
        write_styles(outlines, "classes")
