"""How layers of a GeoPackage look in QGIS: styles in its table `layer_styles`, where QGIS keeps those that it saves.

QGIS shows a layer by its default style when it opens the file; GDAL takes the table for one of attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple
from xml.sax.saxutils import quoteattr

import pandas as pd
from matplotlib.colors import to_rgb
from pyogrio import list_layers, write_dataframe

from ..bands import CLASS_COLOURS, CLASSES
from .sink import writing

__all__ = ["Look", "write_styles"]

Look = Literal["classes", "glaciers", "doubtful"]
"""Of polygons with a column `class`; of outlines with an `id`; of boxes with a `rank` and a box to tick, `checked`."""

TABLE = "layer_styles"
OPTIONS = {"FID": "id", "DATETIME_PRECISION": "MILLISECOND"}  # older GDAL finds fault with whole seconds
ICE_LINE, LABEL = "#0b3c8c", "#1a1a1a"
CONFIDENCE = ((0.0, 0.5, "#b2182b"), (0.5, 0.7, "#ef8a62"), (0.7, 0.9, "#fddbc7"), (0.9, 1.0, "#67a9cf"))


class _Symbol(NamedTuple):
    """What polygons of a kind look like."""

    label: str
    value: str  # of the column
    fill: str  # hex colour
    line: str
    opacity: float = 0.6  # of the fill
    width: float = 0.3  # of the line, mm


def write_styles(
    path: Path,  # GeoPackage, with its layers
    *layers: Look,  # which are called as they look
) -> None:
    """Write the styles of layers, the first of each as its default; raises `OutputError`.

    Columns are those that QGIS and GDAL write: https://docs.qgis.org, "Saving into database".
    """
    rows = []
    for layer in layers:
        for k, (name, about, qml) in enumerate(_styles(layer)):
            rows.append(
                {
                    "f_table_catalog": "",
                    "f_table_schema": "",  # empty, not void: so QGIS asks for it
                    "f_table_name": layer,
                    "f_geometry_column": "geom",
                    "styleName": name,
                    "styleQML": qml,
                    "styleSLD": "",
                    "useAsDefault": k == 0,
                    "description": about,
                    "owner": "",
                    "ui": None,
                    "update_time": pd.Timestamp(datetime.now(UTC).replace(microsecond=0)),
                }
            )
    with writing(path):
        table = pd.DataFrame(rows).astype({"ui": "str"})
        write_dataframe(table, path, layer=TABLE, driver="GPKG", layer_options=OPTIONS)
        if not {*layers, TABLE} <= {str(name) for name, _ in list_layers(path)}:
            raise OSError("its layers are not there any more")


def _styles(look: Look) -> list[tuple[str, str, str]]:
    """Return name, description and QML of the styles of a kind of layer."""
    sure = ("Confidence", "mean probability that the class shown is right", _qml(_by_confidence()))
    if look == "classes":
        kinds = [_Symbol(name, name, CLASS_COLOURS[k], _darker(CLASS_COLOURS[k])) for k, name in enumerate(CLASSES)]
        kinds = [*kinds[1:], kinds[0], _Symbol("no class yet", "", "#ff00ff", "#ff00ff")]
        widget = _widget("class", "ValueMap", _options("map", {name: name for name in CLASSES}))
        return [("Classes", "glacier, debris, lake", _qml(_categories("class", kinds), fields=widget)), sure]
    if look == "glaciers":
        line = _Symbol("", "", "#ffffff", ICE_LINE, 0.0, 0.46)
        one = f'<renderer-v2 type="singleSymbol"><symbols>{_symbol(0, line)}</symbols></renderer-v2>'
        return [("Glaciers", "outlines with their ids", _qml(one, label="id")), sure]
    ticks = [
        _Symbol("not looked at", "false", "#e69f00", "#e69f00", 0.15, 0.66),
        _Symbol("looked at", "true", "#009e73", "#009e73", 0.05, 0.66),
    ]
    widget = _widget("checked", "CheckBox", "")
    return [("Doubtful places", "rank; tick those looked at", _qml(_categories("checked", ticks), "rank", widget))]


def _qml(renderer: str, label: str = "", fields: str = "") -> str:
    labels = ""
    if label:
        labels = (
            f'<labeling type="simple"><settings calloutType="simple"><text-style fieldName={quoteattr(label)} '
            f'isExpression="0" fontSize="8" fontSizeUnit="Point" textColor="{_rgba(LABEL, 1)}">'
            '<text-buffer bufferDraw="1" bufferSize="0.8" bufferSizeUnits="MM" bufferColor="255,255,255,255"/>'
            '</text-style><placement placement="1" polygonPlacementFlags="2" centroidInside="1"/></settings></labeling>'
        )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        f'<qgis version="3.22" styleCategories="Symbology|Labeling|Forms" labelsEnabled="{int(bool(label))}">'
        f"{renderer}{labels}{fields}<layerGeometryType>2</layerGeometryType></qgis>"
    )


def _categories(column: str, kinds: Sequence[_Symbol]) -> str:
    rows = "".join(
        f'<category value={quoteattr(kind.value)} label={quoteattr(kind.label)} symbol="{k}" render="true"/>'
        for k, kind in enumerate(kinds)
    )
    symbols = "".join(_symbol(k, kind) for k, kind in enumerate(kinds))
    begin = f'<renderer-v2 type="categorizedSymbol" attr="{column}">'
    return f"{begin}<categories>{rows}</categories><symbols>{symbols}</symbols></renderer-v2>"


def _by_confidence() -> str:
    ranges, symbols = "", ""
    for k, (low, high, colour) in enumerate(CONFIDENCE):
        ranges += f'<range lower="{low}" upper="{high}" label="{low:g} to {high:g}" symbol="{k}" render="true"/>'
        symbols += _symbol(k, _Symbol("", "", colour, _darker(colour), 0.8))
    begin = '<renderer-v2 type="graduatedSymbol" attr="confidence" graduatedMethod="GraduatedColor">'
    return f"{begin}<ranges>{ranges}</ranges><symbols>{symbols}</symbols></renderer-v2>"


def _symbol(name: int, look: _Symbol) -> str:
    options = {
        "color": _rgba(look.fill, look.opacity),
        "outline_color": _rgba(look.line, 1),
        "outline_style": "solid",
        "outline_width": f"{look.width:g}",
        "outline_width_unit": "MM",
        "style": "solid" if look.opacity else "no",
    }
    inner = "".join(f'<Option name="{k}" type="QString" value="{v}"/>' for k, v in options.items())
    layer = f'<layer class="SimpleFill" enabled="1" locked="0" pass="0"><Option type="Map">{inner}</Option></layer>'
    return f'<symbol type="fill" name="{name}" alpha="1">{layer}</symbol>'


def _widget(column: str, kind: str, options: str) -> str:
    """Return how a column is edited."""
    config = f'<config><Option type="Map">{options}</Option></config>'
    widget = f'<editWidget type="{kind}">{config}</editWidget>'
    return f'<fieldConfiguration><field name="{column}">{widget}</field></fieldConfiguration>'


def _options(name: str, values: Mapping[str, str]) -> str:
    rows = "".join(
        f'<Option type="Map"><Option name={quoteattr(k)} type="QString" value={quoteattr(v)}/></Option>'
        for k, v in values.items()
    )
    return f'<Option name="{name}" type="List">{rows}</Option>'


def _rgba(colour: str, opacity: float) -> str:
    return ",".join(str(round(255 * v)) for v in (*to_rgb(colour), opacity))


def _darker(colour: str) -> str:
    return "#" + "".join(f"{round(180 * v):02x}" for v in to_rgb(colour))
