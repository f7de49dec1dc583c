"""The page of a map, or of two dates: one HTML file to look at it with its scene, that asks the network for nothing."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import rasterio
import shapely
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..bands import CLASS_COLOURS, CLASSES, ICE_COLOUR, ICE_OF_ANY_KIND, UNKNOWN_ICE
from ..data.scenes.address import Address, named
from ..data.scenes.opening import HowRead
from ..data.scenes.raster import open_raster, placeless
from ..data.sources.vectors import open_vector
from ..errors import DataError, OutputError, note
from ..files import digest, names_only, replaceable, write_text
from ..predict.glaciers import stem_of
from ..predict.outlines import affine, equal_area_crs
from ..predict.whole import page_name, read_record
from ..reading import read_text
from .pictures import CONFIDENCE, IMAGES, PageGrid, ScenePicture, class_picture, confidence_picture, page_grid

__all__ = ["page_of", "write_page"]

GLACIERS = 2000  # rows of the table, at most
CORNERS = 200_000  # of all outlines together, at most
PART = 4  # coordinates are in fractions of a pixel
COLUMNS = {  # of a layer `glaciers`: what is shown of it, in these words and units
    "area_km2": ("Area", "km²"),
    "debris_share": ("Debris", "%"),
    "confidence": ("Confidence", "%"),
    "share_seen": ("Seen", "%"),
}
MOST = 1e12  # no area, share or probability is larger; sums of such are finite
BESIDE = ("area_low_km2", "area_high_km2")
MARK, LONGEST = "<!-- ", 2**28  # what stands before the digest at the end of a page, and its largest size, bytes
STATIC = Path(__file__).parent / "static"


def write_page(
    maps: Sequence[str | os.PathLike],  # a map of classes, `SCENE_classes.tif`, or two of one place
    out: str | os.PathLike,  # HTML file to write
    scenes: Sequence[str | os.PathLike] = (),  # one for each map; of a single map several, where it is a composite
    *,
    overwrite: bool = False,  # replace the file
    **how: Unpack[HowRead],
) -> None:
    """Write a page to look at a map with its scene, or at two dates: image, classes, confidence, outlines.

    What lies beside a map is shown, too: `SCENE_confidence.tif`, and the outlines of `SCENE_glaciers.gpkg`, else of
    `SCENE_outlines.gpkg`, with a table. Pictures have at most 4096 x 4096 pixels, two maps half as many each.

    Raises:
        DataError: A map or what lies beside it cannot be read, two maps show other ground, or a scene does.
        OutputError: The file exists already or cannot be written.
    """
    out, paths, notes = Path(out), [Path(path) for path in maps], list[str]()
    if os.path.lexists(out) and not overwrite:
        raise OutputError(f"{out}: exists already; overwrite it, or choose another file")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it first, or choose another file")
    if not 1 <= len(paths) <= 2 or len({path.resolve() for path in paths}) < len(paths):
        raise DataError(f"{len(paths)} maps; give one, or two different ones of the same place")
    if scenes and len(paths) == 2 and len(scenes) != 2:
        raise DataError(f"{len(scenes)} scenes for two maps; give one for each, in the same order, or none")
    with ExitStack() as stack:
        rasters = [stack.enter_context(_opened(path)) for path in paths]
        grid = page_grid(rasters, paths)
        shown = []
        for k, (path, raster) in enumerate(zip(paths, rasters, strict=True)):
            own = [named(scene) for scene in (scenes if len(paths) == 1 else scenes[k : k + 1])]
            shown.append(_map(path, raster, grid, own, IMAGES // len(paths), how, notes))
    rows, tables = [], []
    for k, path in enumerate(paths):
        table, found = _glaciers(path, grid, GLACIERS // len(paths), CORNERS // len(paths), notes)
        rows += [{"map": k, **row} for row in found]
        tables.append(table)
    for each, total in zip(shown, tables, strict=True):
        each["total"] = total
        each["date"] = each["date"] or (total["date"] if total else "")
    codes = set.union(*(each.pop("codes") for each in shown))
    kinds = [*zip(CLASSES, CLASS_COLOURS, strict=True)][bool(scenes) :]  # over an image the background is clear
    kinds += [(UNKNOWN_ICE, ICE_COLOUR)] * (ICE_OF_ANY_KIND in codes)
    wide, high = grid.metres
    data = {
        "size": [grid.width, grid.height],
        "metres": [wide, high],
        "part": PART,
        "maps": shown,
        "columns": [[key, *COLUMNS[key]] for key in COLUMNS if any(row[key] is not None for row in rows)],
        "rows": rows,
    }
    page = _html(data, kinds, [names_only(text, *paths, *scenes) for text in notes])
    write_text(out, f"{page}{MARK}{digest(page)} -->\n")


def page_of(
    files: Mapping[str, str],  # of a map, as `predict_scene` returns them
    scenes: Sequence[str | os.PathLike],  # it was made of
    made_before: bool,  # the map was there already: its page is kept
    overwrite: bool = False,  # of such a map, too, make the page anew
    **how: Any,  # see `HowRead`
) -> Path:
    """Write the page of a map that was just made, `SCENE_map.html` beside it, and return its path."""
    classes = Path(files["classes"])
    out = classes.with_name(page_name(stem_of(classes)))
    replaceable([out])
    if overwrite or not made_before or not _whole(out):
        write_page([classes], out, scenes, overwrite=True, **how)
    return out


def _whole(page: Path) -> bool:
    """Return whether a page is there, and as it was written."""
    with suppress(DataError):
        text, _, end = read_text(page, DataError, LONGEST).rpartition(MARK)
        return end == f"{digest(text)} -->\n"
    return False


def _opened(path: Path, kind: str = "classes") -> rasterio.DatasetReader:
    raster = open_raster(path)
    odd = ""
    if raster.count != 1 or raster.dtypes[0] != "uint8":
        odd = f"{raster.count} bands of {raster.dtypes[0]}, so no map of {kind}, which has one of uint8"
    elif raster.crs is None or placeless(raster.transform):
        odd = "does not say where it lies; assign a coordinate reference system and a geotransform"
    if odd:
        raster.close()
        raise DataError(f"{path}: {odd}")
    return raster


def _map(
    path: Path,
    raster: rasterio.DatasetReader,
    grid: PageGrid,
    scenes: Sequence[Path | Address],
    most: int,  # characters of its pictures, if quality allows
    how: HowRead,
    notes: list[str],
) -> dict[str, Any]:
    """Return what is said of a map, and its pictures."""
    record = read_record(path.with_name(f"{stem_of(path)}_prediction.json"))
    made_of = [str(r["scene"]) for r in (record, *_list(record, "scenes")) if isinstance(r, dict) and r.get("scene")]
    layers, date, said = dict[str, str](), str(record.get("date") or ""), ""
    picture = ScenePicture(grid)
    if scenes:
        for scene in scenes:
            if made_of and scene.name not in made_of:
                note(f"{scene}: {path.name} was made of {', '.join(made_of)}; shown all the same", notes)
            picture.add(scene, **how)
        said = ", ".join(dict.fromkeys(picture.composites))
        date = date or " and ".join(dict.fromkeys(day[:10] for day in picture.dates))
    else:
        note(f"{path}: no scene is given, so its image is not on the page", notes)
    layers["classes"], codes = class_picture(raster, path, grid, picture.rgba[..., 3] > 0 if scenes else None)
    confidence = path.with_name(f"{stem_of(path)}_confidence.tif")
    if confidence.is_file():
        with _opened(confidence, "confidence") as beside:
            layers["confidence"] = confidence_picture(beside, confidence, grid)
    if scenes:
        layers["image"] = picture.uri(most - sum(map(len, layers.values())))
    for text in _list(record, "notes"):
        notes.append(names_only(str(text)))
    models = [str(m.get("bundle")) for m in _list(record, "models") if isinstance(m, dict) and m.get("bundle")]
    return {
        "name": stem_of(path),
        "date": date[:10] if len(scenes) < 2 else date,
        "models": ", ".join(dict.fromkeys(models)),
        "composite": said,
        "layers": layers,
        "codes": codes,
    }


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _glaciers(
    path: Path,
    grid: PageGrid,
    most: int,  # rows
    corners: int,  # of all outlines
    notes: list[str],
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return number and area of the glaciers of a map, and a row for each of the largest; None where it has none."""
    beside = [path.with_name(f"{stem_of(path)}_{kind}.gpkg") for kind in ("glaciers", "outlines")]
    file = next((file for file in beside if file.is_file()), None)
    if file is None:
        note(f"{path}: no outlines beside it, so there is no table of glaciers on the page", notes)
        return None, []
    layer = open_vector(file, "glaciers")
    wanted = [c for c in ("id", "name", "date", *COLUMNS, *BESIDE) if c in layer.columns]
    table = layer.read(np.arange(len(layer.bounds)), wanted).reset_index(drop=True)
    numbers = table.reindex(columns=[*COLUMNS, *BESIDE]).apply(pd.to_numeric, errors="coerce").astype(float)
    if (odd := numbers.abs() > MOST).any(axis=None):
        note(f"{file}: {int(odd.sum(axis=None))} of its numbers are too large to be any; they are left out", notes)
        numbers = numbers.mask(odd)
    if "area_km2" not in wanted and len(table):
        place = table.geometry.total_bounds
        near = equal_area_crs(table.crs, place[[0, 2]].mean(), place[[1, 3]].mean())
        numbers["area_km2"] = table.geometry.to_crs(near).area / 1e6
        note(f"{file}: has no column area_km2, so areas are those of its polygons", notes)
    texts = table.reindex(columns=["id", "name", "date"]).astype(object).where(lambda t: t.notna(), "").astype(str)
    if file == beside[1]:
        texts["id"] = "Patch " + texts["id"]  # of connected ice, which may be many glaciers, or one's half
    order = np.argsort(-numbers["area_km2"].fillna(0).to_numpy(), kind="stable")
    if len(order) > most:
        left, km2 = len(order) - most, numbers["area_km2"].iloc[order[most:]].sum()
        note(f"{file}: the {left:,} smallest of {len(order):,} glaciers, {km2:,.3f} km2, are left out", notes)
    total = {
        "glaciers": len(order),
        "km2": float(numbers["area_km2"].sum()),
        "date": texts["date"].max() if len(order) else "",
    }
    order = order[:most]
    drawn = _outlines(table.geometry.iloc[order], grid, corners)
    rows = []
    for at, outline in zip(order, drawn, strict=True):
        values = {k: float(v) if np.isfinite(v) else None for k, v in numbers.iloc[at].items()}
        rows.append({**texts.iloc[at][["id", "name"]].str.strip().to_dict(), **values, "outline": outline})
    return total, rows


def _outlines(geometry: Any, grid: PageGrid, corners: int) -> list[list[list[list[int]]]]:
    """Return polygons as rings of a row of numbers, x, y, and then steps, in fractions of a pixel; simplified."""
    parts, row = shapely.get_parts(geometry.to_crs(grid.crs).to_numpy(), return_index=True)
    polygons = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & np.isfinite(shapely.bounds(parts)).all(1)
    rings, part = shapely.get_rings(parts := parts[polygons], return_index=True)
    row, outer = row[polygons], np.diff(part, prepend=-1) > 0
    rings = shapely.transform(rings, lambda xy: affine(xy, ~grid.transform))
    boxes, tolerance = shapely.get_exterior_ring(shapely.box(*shapely.bounds(rings).T)), 0.5
    while True:  # as lines: polygons, GEOS would mend, which takes minutes of a large one
        simple = shapely.simplify(rings, tolerance, preserve_topology=False)
        flat = shapely.get_num_coordinates(simple) < 4
        simple, kept = np.where(flat, boxes, simple), outer | ~flat
        if shapely.get_num_coordinates(simple[kept]).sum() <= corners or tolerance > 100:
            break
        tolerance *= 2
    drawn: list[list[list[list[int]]]] = [[] for _ in range(len(geometry))]
    left = corners
    for ring, of, first in zip(simple[kept], row[part[kept]], outer[kept], strict=True):
        left -= shapely.get_num_coordinates(ring)
        if left < 0:
            break
        at = np.rint(shapely.get_coordinates(ring)[:-1] * PART).astype(int)
        steps = np.diff(at, axis=0, prepend=[[0, 0]]).ravel().tolist()
        drawn[of].append([steps]) if first else drawn[of][-1].append(steps)
    return drawn


def _html(data: dict[str, Any], classes: Sequence[tuple[str, str]], notes: Sequence[str]) -> str:
    library = re.sub(r"\n//# sourceMappingURL=.*", "", _static("leaflet.js"))
    library = library.replace(' href="https://leafletjs.com"', "")  # of a line that is not shown
    licence = _static("leaflet.LICENSE")
    script = f"\n/*\n{licence}*/\n{library}\n{_static('page.js')}\n"
    style = re.sub(r"url\((?!#)[^)]*\)", "none", _static("leaflet.css")) + _static("page.css")
    env = Environment(
        loader=FileSystemLoader(STATIC),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    hidden = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # so that no text ends the script that holds it
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return env.get_template("page.html.jinja").render(
        title=" and ".join(", ".join(filter(None, (each["name"], each["date"]))) for each in data["maps"]),
        maps=data["maps"],
        classes=classes,
        confidence=CONFIDENCE,
        notes=[*dict.fromkeys(notes)],
        version=__version__,
        licence=licence,
        style=Markup(style),
        script=Markup(script),
        digest=b64encode(sha256(script.encode()).digest()).decode(),
        data=Markup(re.sub("[<>&]", lambda found: hidden[found[0]], packed)),
    )


def _static(name: str) -> str:
    text = read_text(STATIC / name, OutputError, link=True)  # as some installers link files
    return text.replace("\r\n", "\n")  # as browsers do before they hash a script
