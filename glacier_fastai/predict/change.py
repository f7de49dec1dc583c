"""How glaciers change from one date to another: of each, by size class and in all, with what is sure about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely

from .. import __version__
from ..data.scenes.raster import same_crs
from ..data.sources.inventory import parse_date
from ..data.sources.vectors import open_vector
from ..errors import DataError, OutputError, note
from ..files import file_hash, names_only, replaceable, take_names, whole_file, work_folder, write_text
from ..reading import read_json, read_table
from .glacier_sums import ENOUGH
from .glaciers import as_csv, glaciers
from .outlines import rows_digest, write_layer

__all__ = ["SIZES", "change", "compared", "summary"]

SIZES = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of the size classes, km2."""

YEAR = 365.25
NUMBERS = ("area_km2", "area_low_km2", "area_high_km2", "buffer_km2", "inventory_km2", "share_seen")
TEXTS = ("id", "name", "scene", "date", "sensor", "model", "inventory")
EMPTY = ("", "nan", "na", "none", "null")  # how programs write that there is no value
AREA = 5.2e8, "area in km2"  # largest, that of the Earth
ROUNDING = 1e-6
WHOLE = 0.999  # share seen from which on loss and gain are drawn


@dataclass(frozen=True)
class _Table:
    """Glaciers at a date."""

    path: Path  # as the user named it, for messages
    stem: str
    rows: pd.DataFrame  # `TEXTS` and `NUMBERS`, and `geometry` where there are polygons
    about: dict[str, Any]  # what the JSON beside it says
    crs: Any  # of the polygons; None without

    def told(self, name: str) -> str:
        """Return what all rows say."""
        values = self.rows[name].unique() if len(self.rows) else [self.about.get(name, "")]
        if len(values) > 1:
            raise DataError(f"{self.path}: rows are of several {name}s, {values[0]} and {values[1]}; give one of them")
        return str(values[0])

    @property
    def day(self) -> date:
        """When its scene was taken."""
        if len(text := parse_date(self.told("date"))) < 10:
            raise DataError(
                f"{self.path}: the date of its scene is not known, so there is no rate; make the table anew and give it"
            )
        return date.fromisoformat(text)


def change(
    first: str | os.PathLike,  # table of glaciers, `SCENE_glaciers.gpkg` or `.csv`; or a map of classes
    second: str | os.PathLike,  # of another date
    out: str | os.PathLike,  # folder for what is found
    *,
    inventory: str | os.PathLike | None = None,  # of `glaciers`, for maps
    buffer: float | None = None,  # as in `ByGlacier`, for maps
    dates: tuple[str, str] = ("", ""),  # of maps, YYYY-MM-DD; default what their records or names say
    force: bool = False,  # compare what was made by different models, buffers or on different grids
    overwrite: bool = False,  # replace what is there
) -> dict[str, Any]:
    """Write `A_to_B_change.csv`, `.gpkg`, `.png` and `.json`, and `A_to_B_sizes.csv`; see `compared` for the columns.

    The GeoPackage has a layer `loss_gain`, of glaciers that were wholly seen twice, and a layer `glaciers`.

    Returns:
        What the JSON says, and `files` (paths by kind).

    Raises:
        DataError: A table cannot be read or lacks columns, a date is unknown or both are the same, or the two cannot be
            compared fairly: of other inventories, models, buffers, or grids.
        OutputError: A file exists already, or cannot be written.
    """
    out, notes = Path(out), list[str]()
    if os.path.realpath(first) == os.path.realpath(second):
        raise DataError(f"{first}: is compared with itself; give two dates")
    if not any(_is_map(Path(path)) for path in (first, second)) and (inventory, buffer) != (None, None):
        raise DataError(f"{first}: a table, in which inventory and buffer stand already; leave them out, or give maps")
    stems = [_stem(Path(path)) for path in (first, second)]
    busy = f"{out}: another process is comparing the same"
    with work_folder(out, f"{stems[0]}_{stems[1]}_change", busy) as work:
        tables = [
            _table(Path(path), work / str(k), inventory, buffer, dates[k], notes)
            for k, path in enumerate((first, second))
        ]
        a, b = sorted(tables, key=lambda table: table.day)
        if a is not tables[0]:
            note(f"{b.path}: is of a later date than {a.path}, so the two change places", notes)
        _check_fair(a, b, force, notes)
        return _written(a, b, out, work, notes, overwrite)


def _written(a: _Table, b: _Table, out: Path, work: Path, notes: list[str], overwrite: bool) -> dict[str, Any]:
    import matplotlib.pyplot as plt

    from ..plots.glaciers import area_change

    years = (b.day - a.day).days / YEAR
    table = compared(a.rows, b.rows, years)
    sizes = _by_size(table, years)
    stem = f"{a.stem}_to_{b.stem}"
    names = {k: f"{stem}_{k.replace(' ', '.')}" for k in ("change csv", "sizes csv", "change png", "change json")}
    every = [out / name for name in (*names.values(), f"{stem}_change.gpkg")]
    replaceable(every)
    layers = _layers(a, b, table, notes)
    names |= {"change gpkg": f"{stem}_change.gpkg"} if layers else {}
    if not overwrite and (there := next((path for path in every if path.exists()), None)):
        raise OutputError(f"{there}: exists already; overwrite it, or choose another folder")
    for name, layer in layers.items():
        write_layer(layer, work / names["change gpkg"], name, "MultiPolygon")
    for key, rows in (("change csv", table), ("sizes csv", sizes)):
        with whole_file(work / names[key]) as file:
            as_csv(rows, file)
    title = f"{a.day} to {b.day}"
    figure = area_change(table, sizes, title)
    with whole_file(work / names["change png"]) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    about = {
        "version": __version__,
        "first": {"scene": a.told("scene"), "date": str(a.day), "sensor": a.told("sensor"), "model": a.told("model")},
        "second": {"scene": b.told("scene"), "date": str(b.day), "sensor": b.told("sensor"), "model": b.told("model")},
        "years": round(years, 4),
        "total": {k: None if pd.isna(v) else v for k, v in sizes.to_dict("records")[-1].items()},
        "glaciers": len(table),
        "compared": int(table["change_km2"].notna().sum()),
        "beyond_noise": int(table["beyond_noise"].sum()),
        "notes": [names_only(text, a.path, b.path) for text in notes],
    }
    write_text(work / names["change json"], json.dumps(about, indent=1))
    take_names(out, [work / name for name in names.values()], every)  # polygons of another comparison go, too
    return {**about, "files": {kind: str(out / name) for kind, name in names.items()}}


def summary(
    made: Mapping[str, Any],  # what `change` returned
) -> str:
    """Return in a line how much changed."""
    total = made["total"]
    rate = "" if total["rate_percent"] is None else f", {total['rate_percent']:+.2f} % a year"
    days = f"{made['first']['date']} to {made['second']['date']}"
    return (
        f"{days}: {total['area_a_km2']:,.3f} to {total['area_b_km2']:,.3f} km2, {total['change_km2']:+,.3f} "
        f"({total['low_km2']:+,.3f} to {total['high_km2']:+,.3f}){rate}; "
        f"{made['compared']} of {made['glaciers']} glaciers seen enough, {made['beyond_noise']} beyond their noise"
    )


def compared(
    first: pd.DataFrame,  # columns of `glaciers`: `id`, areas, `buffer_km2`, `inventory_km2`, `share_seen`
    second: pd.DataFrame,  # of the later date
    years: float,  # between the two
) -> pd.DataFrame:
    """Return a row per glacier of either table: areas, change, and rate per year, each with its interval.

    The interval of a change adds the intervals of both areas in quadrature, as those of independent errors. Where one
    of the areas has none, the buffer method takes its place at both: the margin times half a pixel (Granshaw and
    Fountain 2006, doi 10.3189/172756506781828782). What of an outline was not seen may be ice, and widens it. A change
    is `beyond_noise` if its interval does not hold 0. Of glaciers that either date sees too little of (`ENOUGH`) there
    is no change; those without id, away from the inventory, are left out.

    >>> row = {"id": ["A"], "name": "", "inventory_km2": 1.0, "share_seen": 1.0, "buffer_km2": 0.03}
    >>> a = pd.DataFrame({**row, "area_km2": 1.0, "area_low_km2": 0.96, "area_high_km2": 1.04})
    >>> b = pd.DataFrame({**row, "area_km2": 0.9, "area_low_km2": 0.87, "area_high_km2": 0.93})
    >>> compared(a, b, 10.0)[["change_km2", "low_km2", "high_km2", "rate_km2", "beyond_noise"]].round(3).values.tolist()
    [[-0.1, -0.15, -0.05, -0.01, True]]
    """
    a, b = (rows[rows["id"] != ""].set_index("id") for rows in (first, second))
    ids = a.index.union(b.index)
    a, b = a.reindex(ids), b.reindex(ids)
    out = pd.DataFrame({"id": ids, "name": a["name"].combine_first(b["name"]).fillna("").to_numpy()})
    inventory = a["inventory_km2"].combine_first(b["inventory_km2"]).to_numpy(float)
    seen = [rows["share_seen"].fillna(0).to_numpy(float) for rows in (a, b)]
    areas = [rows["area_km2"].to_numpy(float) for rows in (a, b)]
    ends = [[rows[f"area_{k}_km2"].to_numpy(float) for k in ("low", "high")] for rows in (a, b)]
    calibrated = np.isfinite(ends).all((0, 1))
    below, above = [], []
    for rows, area, (low, high), share in zip((a, b), areas, ends, seen, strict=True):
        reach = rows["buffer_km2"].to_numpy(float)
        below.append(np.where(calibrated, area - low, reach))
        above.append(np.where(calibrated, high - area, reach) + (1 - share).clip(0) * inventory)
    enough = np.minimum(*seen) >= ENOUGH
    moved = np.where(enough, areas[1] - areas[0], np.nan)
    low, high = moved - np.hypot(above[0], below[1]), moved + np.hypot(below[0], above[1])
    base = np.where(areas[0] > 0, areas[0], np.nan)
    out["inventory_km2"], out["area_a_km2"], out["area_b_km2"] = inventory, *areas
    out["share_seen_a"], out["share_seen_b"] = seen
    for unit, scale in (("km2", 1.0), ("percent", 100 / base)):
        for name, value in (("change", moved), ("low", low), ("high", high)):
            out[f"{name}_{unit}"] = value * scale
    for unit, scale in (("km2", 1 / years), ("percent", 100 / base / years)):
        for name, value in (("rate", moved), ("rate_low", low), ("rate_high", high)):
            out[f"{name}_{unit}"] = value * scale
    out["beyond_noise"] = enough & ((low > 0) | (high < 0))
    out["interval"] = np.select([~enough, calibrated], ["", "calibrated"], "buffer")
    out["remarks"] = np.where(enough, "", "not seen enough at both dates")
    return out


def _by_size(table: pd.DataFrame, years: float) -> pd.DataFrame:
    """Return sums by the size at the first date, the last row of all; ends add up, as errors of one map are alike."""
    edges = [0.0, *SIZES, np.inf]
    known, rows = table[table["change_km2"].notna()], []
    for low, high in [*zip(edges[:-1], edges[1:], strict=True), (0.0, np.inf)]:
        part = known[(known["area_a_km2"] >= low) & (known["area_a_km2"] < high)]
        sums = part[["area_a_km2", "area_b_km2", "change_km2"]].sum()
        ends = {k: sums["change_km2"] + (part[f"{k}_km2"] - part["change_km2"]).sum() for k in ("low", "high")}
        base = sums["area_a_km2"] or np.nan
        name = "all" if (low, high) == (0, np.inf) else f"< {high:g}" if not low else f"{low:g}-{high:g}"
        row = {"size": f"> {low:g}" if low and high == np.inf else name, "glaciers": len(part)}
        row |= {"beyond_noise": int(part["beyond_noise"].sum()), **sums, **{f"{k}_km2": v for k, v in ends.items()}}
        for k, value in (("rate", sums["change_km2"]), ("rate_low", ends["low"]), ("rate_high", ends["high"])):
            row |= {f"{k}_km2": value / years, f"{k}_percent": 100 * value / base / years}
        rows.append(row)
    return pd.DataFrame(rows)


def _layers(a: _Table, b: _Table, table: pd.DataFrame, notes: list[str]) -> dict[str, Any]:
    """Return the layers of the GeoPackage; none where a table has no polygons."""
    if a.crs is None or b.crs is None or not same_crs(a.crs, b.crs):
        note(
            f"{(a if a.crs is None else b).path}: no polygons to lay on the other's, so loss and gain are not drawn",
            notes,
        )
        return {}
    drawn = [dict(zip(t.rows["id"], t.rows.geometry, strict=True)) for t in (a, b)]
    whole = table[(table["share_seen_a"] >= WHOLE) & (table["share_seen_b"] >= WHOLE)]
    if left := int((table["change_km2"].notna()).sum()) - len(whole):
        note(f"{left} glaciers were seen in part, so their loss and gain are not drawn", notes)
    rows = []
    for name in whole["id"]:
        before, after = (d.get(name) or shapely.MultiPolygon() for d in drawn)
        for kind, part in (("loss", shapely.difference(before, after)), ("gain", shapely.difference(after, before))):
            parts = shapely.get_parts(part)
            parts = parts[shapely.area(parts) > 0]
            if len(parts):
                rows.append((name, kind, shapely.multipolygons(parts)))
    moved = geopandas.GeoDataFrame(
        pd.DataFrame(rows, columns=["id", "kind", "geometry"]), geometry="geometry", crs=a.crs
    )
    later = geopandas.GeoDataFrame(table, geometry=[drawn[1].get(k) or drawn[0].get(k) for k in table["id"]], crs=a.crs)
    return {"glaciers": later, "loss_gain": moved}


def _stem(path: Path) -> str:
    return path.stem.removesuffix("_classes").removesuffix("_glaciers")


def _is_map(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _table(path: Path, work: Path, inventory: Any, buffer: float | None, day: str, notes: list[str]) -> _Table:
    """Return a table as it is, or made of a map."""
    named = path
    if _is_map(path):
        if inventory is None:
            raise DataError(f"{path}: a map; give the inventory whose glaciers are compared, or tables of glaciers")
        made = glaciers(path, inventory, work, buffer=buffer, date=day)
        notes += [text for text in made["notes"] if text not in notes]
        path = Path(made["files"]["glaciers.gpkg"])
    crs = None
    if path.suffix.lower() == ".csv":
        rows: Any = read_table(path, DataError, {}, link=True)
    else:
        layer = open_vector(path)
        rows, crs = layer.read(np.arange(len(layer.bounds)), layer.columns), layer.crs
    if lacking := [c for c in (*TEXTS, *NUMBERS) if c not in rows]:
        raise DataError(f"{path}: no column {', '.join(lacking)}; give SCENE_glaciers.gpkg or .csv as it was made")
    for name in TEXTS:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    for name in NUMBERS:
        rows[name] = _numbers(rows[name], path, *((1.0, "share from 0 to 1") if name == "share_seen" else AREA))
    if (wrong := rows["area_low_km2"] > rows["area_high_km2"] + ROUNDING).any():
        raise DataError(
            f"{path}: area_low_km2 is above area_high_km2 in {wrong.sum()} rows, first "
            f"{rows.loc[wrong, 'id'].iloc[0][:40]!r}; mend them, or make the table anew"
        )
    ids = rows["id"][rows["id"] != ""]
    if ids.duplicated().any():
        raise DataError(f"{path}: {ids[ids.duplicated()].iloc[0]} occurs twice; a table has each glacier once")
    _check_numbers(rows, path)
    beside = path.with_suffix(".json")
    about = read_json(beside, DataError) if beside.is_file() else {}
    kind, of = ("sha256", file_hash) if path.suffix.lower() == ".csv" else ("rows", rows_digest)
    if isinstance(sums := about.get(kind), Mapping) and path.name in sums and of(path) != sums[path.name]:
        note(f"{path}: is not as {beside.name} says; it was changed since it was made", notes)
    table = _Table(named, _stem(path), rows, about, crs)
    if day and not _is_map(named) and parse_date(day) != str(table.day):
        raise DataError(f"{named}: a table of {table.day}, not of {day}; leave its date out, or make it anew")
    return table


def _check_numbers(rows: pd.DataFrame, path: Path) -> None:
    """Raise `DataError` where a number is missing that intervals rest on."""
    listed, seen = rows["id"] != "", rows["share_seen"].fillna(0)
    for name, where in (
        ("buffer_km2", listed & rows["area_km2"].notna()),
        ("inventory_km2", listed & seen.between(ENOUGH, 1, inclusive="left")),
    ):
        if (lacking := where & rows[name].isna()).any():
            raise DataError(
                f"{path}: {name} is empty in {lacking.sum()} rows, first {rows.loc[lacking, 'id'].iloc[0][:40]!r}; "
                "mend them, or make the table anew"
            )


def _numbers(column: pd.Series, path: Path, most: float, what: str) -> pd.Series:
    """Return the numbers of a column, NaN where it is empty; raises `DataError` for what is none, or cannot be."""
    empty = column.isna() | column.astype(str).str.strip().str.lower().isin(EMPTY)
    numbers = pd.to_numeric(column.where(~empty), errors="coerce").astype(float)
    if (wrong := ~empty & ~numbers.between(-ROUNDING, most * (1 + ROUNDING))).any():
        value = str(column[wrong].iloc[0])[:40]
        raise DataError(
            f"{path}: column {column.name} holds {value!r}, which is no {what}; mend it, or make the table anew"
        )
    return numbers


def _check_fair(a: _Table, b: _Table, force: bool, notes: list[str]) -> None:
    """Raise `DataError` where a difference of two tables would not be one of their glaciers."""
    if a.day == b.day:
        raise DataError(f"{a.path} and {b.path}: both are of {a.day}; give two dates")
    if not set(a.rows["id"]) & set(b.rows["id"]) - {""}:
        raise DataError(f"{a.path} and {b.path}: have no glacier in common; give tables of one region")
    sources = [t.about.get("inventory") for t in (a, b)]
    hashes = [str(s.get("sha256", "")) if isinstance(s, Mapping) else "" for s in sources]
    names = a.told("inventory"), b.told("inventory")
    if names[0] != names[1] or (all(hashes) and hashes[0] != hashes[1]):
        raise DataError(
            f"{a.path} and {b.path}: are of different inventories ({names[0]}, {names[1]}), whose outlines and divides "
            "differ; make both tables with one"
        )
    unfair = []
    models = a.told("model"), b.told("model")
    if not all(models):
        note(
            f"{(b if models[0] else a).path}: its model is not known; areas of two models differ by more than ice",
            notes,
        )
    elif models[0] != models[1]:
        unfair.append("they were mapped by different models, whose errors differ")
    if (sensors := (a.told("sensor"), b.told("sensor")))[0] != sensors[1] and all(sensors):
        note(f"{b.path}: is of {sensors[1]}, and {a.path} of {sensors[0]}; two sensors see margins differently", notes)
    for name, what in (("buffer_m", "buffers"), ("pixel_m", "pixel sizes")):
        one, two = (v if isinstance(v := t.about.get(name), int | float) else None for t in (a, b))
        if one is None or two is None:
            where = (a if one is None else b).path
            note(f"{where}: no {where.stem}.json beside it, so {what} are not compared", notes)
        elif abs(one - two) > 0.01 * max(one, two):
            unfair.append(f"their {what} are {one:g} and {two:g} m")
    if a.crs is not None and b.crs is not None and not same_crs(a.crs, b.crs):
        unfair.append("they are in different coordinate reference systems")
    if unfair and not force:
        raise DataError(f"{a.path} and {b.path}: {', and '.join(unfair)}, so a change of area would not be one of ice")
    for why in unfair:
        note(f"{a.path} and {b.path}: {why}; they were compared all the same", notes)
