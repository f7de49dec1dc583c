"""Glacier inventories: the outlines of RGI 5, 6, 7 and GLIMS on a scene, one for each glacier, with what they tell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoSeries
from pyproj import CRS

from ...bands import ICE_OF_ANY_KIND
from ...errors import DataError, note
from ...files import digest
from ..scenes.web import fingerprint
from .outlines import RIM, OutlineFile, open_outlines, polygons_on
from .pixels import ToPixels, make_valid
from .vectors import vector_files

__all__ = ["CUT", "Inventory", "parse_date", "read_inventory"]

LARGEST = 2**33  # bytes, which are hashed; the RGI of the whole Earth has a quarter
COLUMNS = {  # what is known of a glacier, and the columns that tell it, in any case: RGI 7, RGI 5 and 6, GLIMS
    "id": ("rgi_id", "rgiid", "glac_id", "glims_id", "glimsid", "id"),
    "glims_id": ("glims_id", "glimsid", "glac_id"),
    "name": ("glac_name", "name"),
    "date": ("src_date", "bgndate", "anlys_time", "date"),
    "km2": ("area_km2", "area", "db_area"),
}
CUT = 0.95
"""An outline of less than this share of the area that the inventory gives was cut."""
NO_DATE = re.compile(r"(?i)[-09.]*|nan|nat|none|null|n/?a|unknown")
METRES = 1e4  # times its outline: an area given in m2, not km2
HECTARES = 0.1  # relative error of 100 times its outline within which every area is one in hectares


@dataclass(frozen=True)
class Inventory:
    """The glaciers of an inventory that lie on a scene, in the order of their ids.

    Its own area (`km2`) is empty where there was none before, as of glaciers that the scene's ice was divided into.
    """

    path: str
    sha256: str  # of the file, or what `web.fingerprint` says; of several, as of a shapefile, of theirs together
    table: pd.DataFrame  # `id`, `glims_id`, `name`, `date` (as ISO 8601 as far as known), `km2`
    shapes: np.ndarray  # (n,) outlines in pixels of the scene
    inside: np.ndarray  # (n,) share of the glacier's area that lies on the scene
    cut: np.ndarray  # (n,) bool, whether an outline reaches the scene's edge, or is a part of its glacier
    divides: Mapping[str, Any] = field(default_factory=dict)  # how ice was divided by `path`, an elevation model

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"divides of {Path(self.path).name}" if self.divides else Path(self.path).name


def parse_date(
    value: Any,  # as inventories write it
) -> str:
    """Return a date as ISO 8601, as far as it is known; empty if it is not.

    >>> parse_date("20020105"), parse_date("20030799"), parse_date("20009999"), parse_date("-9999999")
    ('2002-01-05', '2003-07', '2000', '')
    >>> parse_date("2015-09-09 00:00:00"), parse_date("9.9.2015"), parse_date("9/9/2015")
    ('2015-09-09', '2015-09-09', '')
    """
    text = re.sub(r"^(\d\d?)\.(\d\d?)\.(\d{4})\b", lambda m: f"{m[3]}{m[2]:0>2}{m[1]:0>2}", str(value).strip())
    found = re.match(r"(1[89]\d\d|20\d\d)(?:-?(0[1-9]|1[0-2])(?:-?(0[1-9]|[12]\d|3[01])(?!\d))?)?", text)
    if not found:
        return ""
    text = "-".join(part for part in found.groups() if part)
    return text if len(text) < 10 or not pd.isna(pd.to_datetime(text, errors="coerce")) else text[:7]


def read_inventory(
    path: str | os.PathLike,  # see `vectors.open_vector`
    crs: Any,  # coordinate reference system of the scene
    transform: Any,  # its affine geotransform
    shape: tuple[int, int],  # its rows and columns
    equal_area: CRS,  # projection around the scene, in metres
    notes: list[str],  # see `errors.note`
    scene: str | os.PathLike,  # for messages
) -> Inventory:
    """Return the glaciers of an inventory that lie on a scene.

    Rows of one id are parts of one glacier, unless they have different dates: then the newest counts. Of GLIMS,
    `glac_bound` are the glaciers, and `intrnl_rock` is cut out of them. Areas in m2 or hectares are turned into km2;
    where there is none it is that of the outline. All of it is noted.

    Raises:
        DataError: No polygons, or it lies elsewhere on the Earth.
    """
    if Path(path).is_file() and (size := Path(path).stat().st_size) > LARGEST:
        raise DataError(
            f"{path}: has {size:,} bytes, and an inventory at most {LARGEST:,}; cut out its region (ogr2ogr)"
        )
    (file,) = open_outlines([path])
    to_pixels = ToPixels(file.layer.crs, crs, transform, shape, file.path, scene)
    bounds = file.layer.bounds[np.isfinite(file.layer.bounds).all(1)]
    if not len(bounds):
        raise DataError(f"{path}: holds no polygon; give an inventory of glaciers, such as the RGI")
    extent = np.array([[*bounds[:, :2].min(0), *bounds[:, 2:].max(0)]])
    if not len(to_pixels.candidates(extent)):
        west, south, east, north = extent[0]
        left, bottom, right, top = to_pixels.frame
        raise DataError(
            f"{path}: lies elsewhere, from {west:.6g}, {south:.6g} to {east:.6g}, {north:.6g}, and {scene} from "
            f"{left:.6g}, {bottom:.6g} to {right:.6g}, {top:.6g} in its coordinates; give the inventory of that region"
        )
    columns = {k: _column(file, names) for k, names in COLUMNS.items()}
    shapes, codes, found = polygons_on(file, to_pixels, notes, [c for c in columns.values() if c])
    broken = ~shapely.is_valid(shapes)  # by rounding
    shapes[broken] = make_valid(shapes[broken])
    rock, ice = codes == 0, codes == ICE_OF_ANY_KIND
    texts = {k: columns[k] for k in ("id", "name", "glims_id")}
    table = pd.DataFrame({k: [_text(v) for v in found[c]] if c else [""] * len(found) for k, c in texts.items()})
    dates = [str(v).strip() for v in found[columns["date"]]] if columns["date"] else [""] * len(found)
    table["date"] = [parse_date(text) for text in dates]
    table["unread"] = [text if not (parse_date(text) or NO_DATE.fullmatch(text)) else "" for text in dates]
    table["km2"] = pd.to_numeric(found[columns["km2"]], errors="coerce").to_numpy(float) if columns["km2"] else np.nan
    table["row"] = found.index
    _name(table, file, columns["id"], ice, notes)
    if (unread := table["unread"][ice & (table["unread"] != "")]).size:
        note(
            f"{path}: {unread.size} dates of {columns['date']} cannot be read, such as {unread.iloc[0]!r}, so they are "
            "not known, and the first of them counts where an id has several; write YYYY-MM-DD",
            notes,
        )
    own = found.geometry.to_numpy().astype(object)
    kept = _one_each(table, ice, rock, shapes, own, file.path, notes)
    order = kept[np.argsort(table["id"].to_numpy(object)[kept], kind="stable")]
    table, shapes, own = table.iloc[order].reset_index(drop=True), shapes[order], own[order]
    if not len(order):
        note(f"{path}: none of its glaciers lies on {scene}, so all ice there is new", notes)
    fine = GeoSeries(shapely.segmentize(own, to_pixels.step), crs=file.layer.crs)
    outline = fine.to_crs(equal_area).area.to_numpy() / 1e6
    _areas(table, outline, columns["km2"], file.path, notes)
    left, upper, right, lower = shapely.bounds(shapes).T
    edge = (left < RIM) | (upper < RIM) | (right > shape[1] - RIM) | (lower > shape[0] - RIM)
    within = outline.copy()
    a, b, c, d, e, f = transform[:6]
    part = shapely.intersection(shapes[edge], shapely.box(0, 0, shape[1], shape[0]))
    part = shapely.transform(
        shapely.segmentize(part, 64), lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False
    )
    within[edge] = GeoSeries(part, crs=CRS(crs)).to_crs(equal_area).area.to_numpy() / 1e6
    whole = np.where(outline < CUT * table["km2"], table["km2"], outline)
    inside = np.divide(within, whole, out=np.zeros(len(whole)), where=whole > 0).clip(0, 1)
    sums = [fingerprint(part) for part in vector_files(path)]
    sha256 = sums[0] if len(sums) == 1 else digest(sums, 64)
    table = table.drop(columns=["row", "unread"])
    return Inventory(file.path, sha256, table, shapes, inside, edge | (whole > outline))


def _column(file: OutlineFile, names: Sequence[str]) -> str | None:
    return next((c for name in names if (c := file.column(name))), None)


def _text(value: Any) -> str:
    if isinstance(value, list | np.ndarray):  # as GeoJSON may hold
        return ", ".join(map(_text, value))
    if isinstance(value, float) and value.is_integer():  # of a column of numbers with gaps
        value = int(value)
    return "" if pd.isna(value) else "".join(c for c in str(value).strip() if c.isprintable())


def _name(table: pd.DataFrame, file: OutlineFile, column: str | None, ice: np.ndarray, notes: list[str]) -> None:
    """Give glaciers without id the number of their row."""
    void = (table["id"] == "").to_numpy()
    table.loc[void, "id"] = [f"row {row}" for row in table["row"][void]]
    if column is None:
        note(f"{file.path}: no column of ids ({', '.join(COLUMNS['id'])}); glaciers go by their row", notes)
    elif (void & ice).any():
        some = f"{int((void & ice).sum())} glaciers have no {column}, the first is {table['id'][void & ice].iloc[0]}"
        note(f"{file.path}: {some}; they go by their row", notes)


def _one_each(
    table: pd.DataFrame,
    ice: np.ndarray,
    rock: np.ndarray,
    shapes: np.ndarray,
    own: np.ndarray,
    path: str,
    notes: list[str],
) -> np.ndarray:
    """Return the position of one outline per glacier; the others are joined to it, and rocks cut out, in place."""
    ids, dates, unread = table["id"].tolist(), table["date"].to_numpy(str), table["unread"].tolist()
    rows: dict[str, list[int]] = {}
    for at in np.flatnonzero(ice):
        rows.setdefault(ids[at], []).append(int(at))
    old = joined = 0
    for name, every in rows.items():
        newest = [at for at in every if dates[at] == max(dates[every])]
        old += len(newest) < len(every)
        newest = [at for at in newest if unread[at] == unread[newest[0]]]
        rows[name], keep = newest, newest[0]
        if len(newest) > 1:
            joined += 1
            for polygons in (shapes, own):
                polygons[keep] = make_valid(np.array([shapely.union_all(polygons[newest])], object))[0]
            if table["km2"].iloc[newest].nunique(dropna=False) > 1:
                table.loc[keep, "km2"] = np.nan
    if old:
        note(f"{path}: {old} glaciers have outlines of several dates; the newest of each is used", notes)
    if joined:
        note(f"{path}: {joined} ids have several polygons, which are taken for parts of one glacier each", notes)
    for at in np.flatnonzero(rock):
        for keep in rows.get(ids[at], [])[:1]:
            for polygons in (shapes, own):
                polygons[keep] = shapely.difference(polygons[keep], polygons[at])
    return np.array([newest[0] for newest in rows.values()], int)


def _areas(table: pd.DataFrame, outline: np.ndarray, column: str | None, path: str, notes: list[str]) -> None:
    """Bring the inventory's areas to km2, and take those of outlines where it has none."""
    given = (table["km2"] > 0).to_numpy()
    times = table["km2"][given] / outline[given]
    m2 = given.any() and np.median(times) > METRES
    if m2 or given.any() and (abs(times / 100 - 1) < HECTARES).all():
        table.loc[given, "km2"] /= 1e6 if m2 else 100
        note(f"{path}: {column} is in {'m2' if m2 else 'hectares'}, by the areas of its outlines", notes)
    table.loc[~given, "km2"] = outline[~given]
    if (~given).any():
        missing = f"{int((~given).sum())} glaciers have no area of their own" if column else "no column of areas"
        note(f"{path}: {missing}; those of the outlines are taken, in an equal-area projection", notes)
    if (cut := outline < CUT * table["km2"]).any():
        worst = table["id"][(outline / table["km2"]).idxmin()]
        note(
            f"{path}: {int(cut.sum())} outlines are smaller than their areas in {column}, such as {worst}: they were "
            "cut, and count as seen in part",
            notes,
        )
    if (large := outline * CUT > table["km2"]).any():
        worst = table["id"][(outline / table["km2"]).idxmax()]
        note(f"{path}: {int(large.sum())} outlines are larger than their areas in {column}, such as {worst}", notes)
