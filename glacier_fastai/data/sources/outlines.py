"""Outlines: polygons of classes as inventories have them, burned into the mask of a scene."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from affine import Affine
from rasterio.features import rasterize

from ...bands import CLASSES, ICE, ICE_OF_ANY_KIND
from ...errors import DataError, did_you_mean, note
from ...reading import parse_number
from .pixels import ToPixels, finite, make_valid, tangled, turn, unwrap
from .vectors import VectorLayer, open_vector

__all__ = [
    "OutlineFile",
    "Outlines",
    "burn_outlines",
    "open_outlines",
    "parse_outlines",
    "polygons_on",
    "unused_classes",
]

Outlines = str | os.PathLike | tuple[str, str | os.PathLike]
"""A file of polygons, or a class and the file of its polygons."""

BACKGROUND, GLACIER, DEBRIS, LAKE = range(4)
GLIMS = {"glac_bound": GLACIER, "debris_cov": DEBRIS, "pro_lake": LAKE, "supra_lake": LAKE, "intrnl_rock": BACKGROUND}
"""Classes of GLIMS's column `line_type`; what else it holds, such as basins and snow lines, is none.

A glacier's bound says glacier or debris, so it is of the file's class, or ice of unknown kind."""

DATES = ("anlys_time", "src_date")
"""GLIMS's columns of when a glacier was outlined, and of the image."""

VOID = {"glac_stat": "gone", "rec_status": "erroneous", "rec_stat": "erroneous"}
"""GLIMS's columns, and what they hold of rows that show no glacier."""

LEFT_OUT = -1
FIRST = 1000  # rows that tell what a column holds
RIM = 1e-3  # pixels: polygons that meet the rim of a scene cross it by rounding alone
WHOLE = 0.99  # share of a polygon that lies within another for it to count as covered: rims are drawn by hand


def parse_outlines(
    texts: Iterable[str],  # FILE, or CLASS=FILE, as people write them
) -> list[Outlines]:
    """Return outlines as `prepare_scenes` takes them.

    >>> parse_outlines(["rgi.gpkg", "debris=covered.shp", "a=b.gpkg"])
    ['rgi.gpkg', ('debris', 'covered.shp'), ('a', 'b.gpkg')]
    """
    out: list[Outlines] = []
    for text in texts:
        name, sign, path = text.partition("=")
        file = name not in CLASSES and (Path(text).exists() or "/" in name or "." in name)  # its name may hold the sign
        out.append(text if file or not sign else (name, path))
    return out


@dataclass(frozen=True)
class OutlineFile:
    """An opened file of outlines, and what its polygons are."""

    layer: VectorLayer
    class_name: str | None  # class of every polygon, where one was named; else they are ice of unknown kind
    class_field: str | None  # column of class names or codes

    @property
    def path(self) -> str:
        """The file as the user wrote it."""
        return self.layer.path

    def column(self, name: str) -> str | None:
        """Return the column of a name in any case, as shapefiles write them in capitals."""
        return next((c for c in self.layer.columns if c.lower() == name), None)


def open_outlines(
    outlines: Iterable[Outlines],
    class_field: str | None = None,  # column of class names or codes, in files without class; default: all are ice
    layer: str = "",  # that is taken where a file has several
) -> list[OutlineFile]:
    """Open files of outlines for `burn_outlines`.

    Raises:
        DataError: Unreadable, without polygons or coordinate reference system, several layers, an unknown class, or no
            such column.
    """
    files = []
    for item in outlines:
        name, path = item if isinstance(item, tuple) else (None, item)
        if name is not None and name not in CLASSES:
            raise DataError(f"{path}: {name!r} is no class; use {', '.join(CLASSES)}{did_you_mean(name, CLASSES)}")
        opened = open_vector(path, layer)
        _check_degrees(opened)
        column = class_field if name is None else None
        if column is not None and column not in opened.columns:
            held = ", ".join(opened.columns) or "none"
            raise DataError(f"{path}: no column {column!r}; it has {held}{did_you_mean(column, opened.columns)}")
        files.append(OutlineFile(opened, name, column))
    return files


def unused_classes(
    file: OutlineFile,
) -> str:
    """Return what to say of a column of class names that was not named, by its first rows; empty if there is none."""
    if file.class_name or file.class_field or not file.layer.columns:
        return ""
    table = file.layer.read(np.arange(min(len(file.layer.bounds), FIRST)), file.layer.columns)
    for column in file.layer.columns:
        held = {str(value).strip().lower() for value in table[column].dropna()}
        if held and held <= {*CLASSES} and (len(held) > 1 or "class" in column.lower()):
            names = ", ".join(c for c in CLASSES if c in held)
            return (
                f"{file.path}: its column {column} holds {names}, but every polygon is taken for ice of unknown kind; "
                "name the column (class_field)"
            )
    return ""


def _check_degrees(layer: VectorLayer) -> None:
    """Refuse metres that are called degrees."""
    if not (full := turn(layer.crs)):
        return
    most = np.array([full, full / 4, full, full / 4]) + 1e-6
    rows, at = np.nonzero(abs(layer.bounds) > most)
    if rows.size:
        value = layer.bounds[rows[0], at[0]]
        why = (
            "GeoJSON without a CRS is longitude and latitude"
            if "json" in layer.driver.lower()
            else f"its coordinate reference system ({layer.crs.name}) is longitude and latitude"
        )
        raise DataError(
            f"{layer.path}: {why}, but a coordinate is {value:.10g} (row {rows[0]}); name the CRS it is in: "
            f"ogr2ogr -a_srs EPSG:CODE right.gpkg {Path(layer.path).name}"
        )


def burn_outlines(
    files: Sequence[OutlineFile],  # of `open_outlines`
    crs: Any,  # coordinate reference system of the scene
    transform: Any,  # its affine geotransform
    shape: tuple[int, int],  # its rows and columns
    *,
    all_touched: bool = False,  # burn every pixel that a polygon touches, not only those whose centre it covers
    notes: list[str],  # notes of what is being made, see `errors.note`
    scene: str | os.PathLike,  # the scene's file, for messages
) -> tuple[np.ndarray, int]:
    """Return the mask of a scene, uint8 `shape`, and how many polygons lie on it; outside of them is background.

    Polygons without class are ice of unknown kind (254), below all that have one. Debris lies over glacier, lake over
    both; background, such as a rock, cuts all of them, whichever file it is in. Only a background polygon that covers
    whole polygons of other classes is an extent and lies below them. Invalid polygons are repaired; what is odd is
    noted.

    >>> from tempfile import TemporaryDirectory
    >>> from geopandas import GeoDataFrame
    >>> from rasterio import Affine
    >>> ice, rock = shapely.box(0, 0, 120, 90), shapely.box(30, 30, 60, 60)
    >>> table = GeoDataFrame({"kind": ["glacier", "background"]}, geometry=[ice, rock], crs="EPSG:32645")
    >>> with TemporaryDirectory() as folder:
    ...     table.to_file(Path(folder) / "o.gpkg")
    ...     files = open_outlines([Path(folder) / "o.gpkg"], "kind")
    ...     grid = {"crs": "EPSG:32645", "transform": Affine(30, 0, 0, 0, -30, 90), "shape": (3, 5)}
    ...     burn_outlines(files, **grid, notes=[], scene="s.tif")
    (array([[1, 1, 1, 1, 0],
           [1, 0, 1, 1, 0],
           [1, 1, 1, 1, 0]], dtype=uint8), 2)

    Raises:
        DataError: A geometry other than polygons, a class that is unknown or empty, or coordinate reference systems
            that cannot be brought together.
    """
    shapes, codes = [], []
    for file in files:
        to_pixels = ToPixels(file.layer.crs, crs, transform, shape, file.path, scene)
        found, classes, table = polygons_on(file, to_pixels, notes)
        _note_dates(file, scene, table[np.isin(classes, (*ICE, ICE_OF_ANY_KIND))], notes)
        shapes.append(found)
        codes.append(classes)
        if not all_touched and (unseen := _unseen(found, shape)):
            note(
                f"{file.path}: {unseen} of {len(found)} polygons on {scene} cover no pixel centre and leave no trace; "
                "all_touched burns them",
                notes,
            )
    every, code = np.concatenate(shapes), np.concatenate(codes)
    if not len(every):
        return np.zeros(shape, np.uint8), 0
    order, extents = _order(every, code, shape)
    if extents:
        names = ", ".join(f.path for f, c in zip(files, codes, strict=True) if (c == BACKGROUND).any())
        note(
            f"{names}: {extents} background polygons on {scene} cover whole polygons of other classes, so they are "
            "taken for extents and lie below all others",
            notes,
        )
    burned = ((every[i], int(code[i])) for i in order)
    return rasterize(burned, out_shape=shape, fill=0, dtype="uint8", all_touched=all_touched), len(every)


def polygons_on(
    file: OutlineFile,
    to_pixels: ToPixels,  # of the scene
    notes: list[str],  # see `errors.note`
    wanted: Sequence[str] = (),  # columns of the file that are read, too
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return the polygons of a file that lie on a scene, in its pixels, their classes, and a GeoDataFrame of them.

    They are valid, in their own CRS, too. The index of the table is their positions in the file.
    """
    path, scene, layer = file.path, to_pixels.scene, file.layer
    if layer.left_out:
        note(f"{path}: layer {layer.name} is read; left out: {layer.left_out}", notes)
    glims = file.column("line_type") if file.class_field is None or file.class_field.lower() == "line_type" else None
    dated = [c for name in ("glac_id", *DATES) if (c := file.column(name))] if glims else []
    by_glims = glims or file.class_field is None
    states = {c: value for name, value in VOID.items() if by_glims and (c := file.column(name))}
    columns = dict.fromkeys(c for c in (file.class_field, glims, *dated, *states, *wanted) if c)
    table = layer.read(to_pixels.candidates(layer.bounds), list(columns))
    void = table.geometry.isna() | table.geometry.is_empty
    table = table[~void]
    codes = _codes(file, table, glims, scene, notes)
    for column, value in states.items():
        gone = (table[column].astype(str).str.strip().str.lower() == value).to_numpy() & (codes != LEFT_OUT)
        if gone.any():
            note(f"{path}: rows near {scene} whose {column} is {value} are left out: {int(gone.sum())}", notes)
            codes[gone] = LEFT_OUT
    table, codes = table[codes != LEFT_OUT], codes[codes != LEFT_OUT]
    if not (kinds := set(table.geom_type)) <= {"Polygon", "MultiPolygon", "GeometryCollection"}:
        raise DataError(f"{path}: holds {', '.join(sorted(kinds))}; outlines must be polygons")
    drawn = table.geometry.to_numpy().astype(object)
    xy, of = shapely.get_coordinates(drawn, return_index=True)
    odd, drawn = np.unique(of[~np.isfinite(xy).all(1)]), finite(drawn)
    if (odd := odd[~shapely.is_empty(drawn[odd])]).size:
        note(
            f"{path}: {odd.size} polygons near {scene} have vertices that are no numbers, which are left out (the "
            f"first is row {table.index[odd[0]]})",
            notes,
        )
    straight, moved = unwrap(drawn, to_pixels.turn) if to_pixels.turn else (drawn, np.zeros(len(drawn), bool))
    valid, broken = _repaired(path, straight, table.index.to_numpy())
    shapes = to_pixels(valid)
    height, width = to_pixels.shape
    on = shapely.intersects(shapes, shapely.box(RIM, RIM, width - RIM, height - RIM))
    if to_pixels.odd and on.any():
        note(f"{path}: {to_pixels.odd}", notes)
    if moved.any() and (across := moved & (on | to_pixels.on(drawn))).any():
        note(
            f"{path}: {int(across.sum())} polygons near {scene} have edges over more than half of the globe; they are "
            "taken to go the short way, across 180 degrees of longitude or around a pole",
            notes,
        )
    if (broken & on).any():
        before, after = (shapely.area(p[broken & on]) for p in (straight, valid))
        change = abs(after - before) / np.maximum(after, before)
        row = table.index[broken & on][change.argmax()]
        note(
            f"{path}: {len(change)} of {int(on.sum())} polygons on {scene} are invalid (rings that cross or touch "
            f"themselves and the like) and were repaired; the largest change of area is {change.max():.2%} (row {row})",
            notes,
        )
    if (lost := shapely.is_empty(valid)).any():
        note(
            f"{path}: {int(lost.sum())} polygons near {scene} have no area, or coordinates that are no numbers, and "
            f"are left out (the first is row {table.index[lost][0]})",
            notes,
        )
    return shapes[on], codes[on], table.set_geometry(valid, crs=table.crs)[on]


def _repaired(path: str, polygons: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return valid polygons, and which of them were not."""
    collection = shapely.get_type_id(polygons) == shapely.GeometryType.GEOMETRYCOLLECTION
    broken = ~shapely.is_valid(polygons) | collection
    valid = polygons.copy()
    if (row := next((r for r, p in zip(rows[broken], polygons[broken], strict=True) if tangled(p)), None)) is not None:
        raise DataError(f"{path}: the polygon of row {row} crosses itself too often to be repaired; leave it out")
    try:
        valid[broken] = make_valid(polygons[broken])
    except shapely.errors.ShapelyError as err:
        whys = shapely.is_valid_reason(polygons[broken])
        row, why = next((r, w) for r, w in zip(rows[broken], whys, strict=True) if "Coordinate" in w or w == whys[-1])
        raise DataError(
            f"{path}: the polygon of row {row} cannot be repaired ({why}); mend it or leave it out"
        ) from err
    return valid, broken


def _codes(file: OutlineFile, table: Any, glims: str | None, scene: Any, notes: list[str]) -> np.ndarray:
    """Return the class of each row, `LEFT_OUT` where a line of GLIMS bounds none."""
    named = ICE_OF_ANY_KIND if file.class_name is None else CLASSES.index(file.class_name)
    if glims:
        kinds = ["empty" if pd.isna(v) else str(v).strip().lower() for v in table[glims]]
        if file.column("glac_id") or file.column("anlys_id") or set(kinds) & set(GLIMS):
            classes = {**GLIMS, "glac_bound": named}
            codes = np.array([classes.get(kind, LEFT_OUT) for kind in kinds], int)
            if odd := Counter(k for k, c in zip(kinds, codes, strict=True) if c == LEFT_OUT):
                held = ", ".join(f"{n} {kind}" for kind, n in odd.items())
                note(f"{file.path}: rows near {scene} whose {glims} bounds no class are left out: {held}", notes)
            return codes
    if file.class_field is None:
        return np.full(len(table), named)
    values = table[file.class_field]
    empty = values.isna() | (values.astype(str).str.strip() == "")
    if empty.any():
        raise DataError(
            f"{file.path}: {file.class_field} is empty in {int(empty.sum())} rows near {scene}, the first is row "
            f"{table.index[empty][0]} (from 0); give each a class: {_allowed()}"
        )
    return np.array([_class_code(v, file.path, file.class_field) for v in values], int)


def _class_code(value: Any, path: str, field: str) -> int:
    text = str(value).strip().lower()
    if text in CLASSES:
        return CLASSES.index(text)
    try:
        if (number := parse_number(text)) in range(len(CLASSES)):
            return int(number)
    except ValueError:
        pass
    raise DataError(f"{path}: {field} holds {value!r}; allowed are {_allowed()}{did_you_mean(text, CLASSES)}")


def _allowed() -> str:
    return ", ".join(f"{c} ({k})" for k, c in enumerate(CLASSES))


def _note_dates(file: OutlineFile, scene: Any, table: Any, notes: list[str]) -> None:
    """Say that a glacier has outlines of several dates, as GLIMS keeps them all."""
    names = {c.lower(): c for c in table.columns}
    for date in (names[d] for d in DATES if d in names and "glac_id" in names):
        count = table.groupby(names["glac_id"])[date].nunique()
        if (count > 1).any():
            some = table[table[names["glac_id"]] == count.idxmax()][date].astype(str).str[:10]
            note(
                f"{file.path}: {int((count > 1).sum())} glaciers on {scene} occur for several dates, such as "
                f"{count.idxmax()} ({date} {some.min()} to {some.max()}); all are burned together, so keep one",
                notes,
            )
            return


def _unseen(shapes: np.ndarray, shape: tuple[int, int]) -> int:
    """Return how many polygons within the scene cover no pixel centre."""
    height, width = shape
    left, top, right, bottom = shapely.bounds(shapes).T
    within = (left > -RIM) & (top > -RIM) & (right < width + RIM) & (bottom < height + RIM)
    rings = np.bincount(shapely.get_rings(shapes, return_index=True)[1], minlength=len(shapes))
    # what is not thin holds a circle as wide as a pixel's diagonal, and in it a centre
    thin = shapely.area(shapes) < shapely.length(shapes) + 2 * rings
    unseen = 0
    for i in np.flatnonzero(within & thin):
        row, col = int(top[i]), int(left[i])
        size = (int(bottom[i]) - row + 1, int(right[i]) - col + 1)
        unseen += not rasterize([shapes[i]], size, transform=Affine.translation(col, row), dtype="uint8").any()
    return unseen


def _order(shapes: np.ndarray, codes: np.ndarray, shape: tuple[int, int]) -> tuple[list[int], int]:
    """Return in which order to burn, and how many background polygons are extents, which come first.

    A rock comes after all ice, and what lies on the rock after it.
    """
    others, back = np.flatnonzero(codes != BACKGROUND), np.flatnonzero(codes == BACKGROUND)
    others = others[np.argsort(codes[others] % ICE_OF_ANY_KIND, kind="stable")]  # ice of unknown kind below the rest
    if not len(back):
        return list(others), 0
    broken = ~shapely.is_valid(shapes)  # by rounding
    shapes = shapes.copy()
    shapes[broken] = make_valid(shapes[broken])
    area, bounds = shapely.area(shapes), shapely.bounds(shapes)
    height, width = shape
    whole = (bounds[:, :2] > -RIM).all(1) & (bounds[:, 2] < width + RIM) & (bounds[:, 3] < height + RIM)
    scene = shapely.box(0, 0, width, height)
    extents, rocks = [], []
    for b in back[np.argsort(-area[back], kind="stable")]:
        size = bounds[b, 2:] - bounds[b, :2]
        near = (bounds[others, :2] > bounds[b, :2] - size / 10) & (bounds[others, 2:] < bounds[b, 2:] + size / 10)
        inner = others[near.all(1) & whole[others]]
        inner = inner[shapely.area(shapely.intersection(shapes[inner], shapes[b])) >= WHOLE * area[inner]]
        if not len(inner) and not shapely.covers(shapes[b], scene):
            rocks += [b]
            continue
        holders = np.setdiff1d(others[shapely.intersects(shapes[others], shapes[b])], inner)
        held = shapely.area(shapely.intersection(shapes[holders], shapes[b])) >= WHOLE * area[b]
        if held.any() and not shapely.covers(shapes[b], scene):
            rocks += [b, *inner]
        else:
            extents.append(b)
    return [*extents, *others, *rocks], len(extents)
