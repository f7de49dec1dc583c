"""A map's ice by glacier: a row for each outline of an inventory, and for each new patch of ice, with areas."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from pydantic import ValidationError

from .. import __version__
from ..bands import CLASSES, IGNORE
from ..core.glaciers import default_reach
from ..data.scenes.dem import SceneTerrain, Terrain
from ..data.scenes.names import DAY
from ..data.scenes.raster import block_cache, open_raster, placeless, reading
from ..data.scenes.scene import Place, on_grid_of
from ..data.sources.inventory import Inventory, parse_date, read_inventory
from ..errors import DataError, OutputError, cell, note
from ..files import digest, file_hash, names_only, replaceable, take_names, whole_file, work_folder, write_text
from ..model.fitted import Calibration
from ..reading import read_json
from ..recipe import explain
from .divides import check_divides, divided
from .glacier_sums import GlacierSums
from .inventories import Format, check_inventory, inventory_of
from .outlines import check_geoparquet, crs_of_areas, rows_digest, write_layer
from .sink import ROWS
from .source import Grid
from .styles import write_styles

__all__ = [
    "ByGlacier",
    "as_csv",
    "find_maps",
    "glacier_files",
    "glaciers",
    "inventory_on",
    "stem_of",
    "summary",
    "write_glaciers",
]


@dataclass(frozen=True)
class ByGlacier:
    """How ice is given to glaciers."""

    inventory: str | os.PathLike | None = None  # outlines of glaciers: RGI, GLIMS, or others
    buffer: float | None = None  # metres around its outline whose ice is a glacier's, see `core.glaciers.default_reach`
    min_area: float = 0.01  # least area of new glaciers, away from all outlines, km2
    divides: str | os.PathLike | None = None  # in place of an inventory: elevation model, see `divides.divided`

    def __post_init__(self):
        if (self.inventory is None) == (self.divides is None):
            raise DataError("ice is given to glaciers by an inventory, or by divides of an elevation model; give one")
        for name, value in (("buffer", self.buffer), ("min_area", self.min_area)):
            if value is not None and not 0 <= value < np.inf:
                raise DataError(f"{name} {value}: use a number of at least 0")


def stem_of(
    classes: Path,  # map of classes
) -> str:
    """Return the name of a map's scene, which the names of all its files begin with."""
    return classes.name.removesuffix(".tif").removesuffix("_classes")


def glacier_files(
    stem: str,  # of the scene
    geoparquet: bool = False,
    form: str | None = None,  # of an inventory
) -> dict[str, str]:
    """Return the names of the tables of a scene, by kind."""
    ends = ("gpkg", "csv", "json", "parquet") if geoparquet else ("gpkg", "csv", "json")
    names = {f"glaciers.{end}": f"{stem}_glaciers.{end}" for end in ends}
    return {**names, "inventory": f"{stem}_{form}.gpkg"} if form else names


def glaciers(
    classes: str | os.PathLike,  # map of classes, `SCENE_classes.tif`; what lies beside it is used, too
    inventory: str | os.PathLike | None = None,  # as in `ByGlacier`
    out: str | os.PathLike | None = None,  # folder for the tables, default that of the map
    *,
    buffer: float | None = None,  # as in `ByGlacier`
    min_area: float = 0.01,
    divides: str | os.PathLike | None = None,
    date: str = "",  # of the scene, YYYY-MM-DD; default as the record of the map says, or its name
    geoparquet: bool = False,  # write `SCENE_glaciers.parquet`, too
    form: Format | None = None,  # write `SCENE_FORM.gpkg`, too: an inventory in that format, see `inventories`
    analyst: str = "",  # who answers for that inventory
    dem: str | os.PathLike | None = None,  # elevation model, for heights, slope and aspect; default `divides`
    overwrite: bool = False,  # replace what is there
) -> dict[str, Any]:
    """Write `SCENE_glaciers.gpkg`, `.csv` and `.json`: the ice of a map by the glaciers of an inventory, or its own.

    >>> import warnings
    >>> from tempfile import TemporaryDirectory
    >>> from geopandas import GeoDataFrame
    >>> from rasterio import Affine
    >>> from shapely import box
    >>> grid = {"crs": "EPSG:32645", "transform": Affine(30, 0, 500_000, 0, -30, 3_100_000)}
    >>> ice = np.zeros((40, 60), np.uint8)
    >>> ice[10:30, 5:35], ice[2:6, 50:55] = 1, 2
    >>> outlines = [box(500_150, 3_099_100, 500_600, 3_099_700), box(500_600, 3_099_100, 501_050, 3_099_700)]
    >>> with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
    ...     GeoDataFrame({"rgi_id": ["A", "B"]}, geometry=outlines, crs=grid["crs"]).to_file(f"{folder}/rgi.gpkg")
    ...     profile = {"driver": "GTiff", "width": 60, "height": 40, "count": 1, "dtype": "uint8", **grid}
    ...     with rasterio.open(f"{folder}/s_classes.tif", "w", **profile) as file:
    ...         file.write(ice, 1)
    ...     made = glaciers(f"{folder}/s_classes.tif", f"{folder}/rgi.gpkg")
    ...     pd.read_csv(f"{folder}/s_glaciers.csv")[["id", "pixels", "debris_share"]].fillna("").values.tolist()
    [['A', 300, 0], ['B', 300, 0], ['', 20, 1]]
    >>> made["totals"]["ice"]["pixels"], made["totals"]["uncounted"]["pixels"]
    (620, 0)

    Returns:
        What `SCENE_glaciers.json` says, and `files` (paths by kind).

    Raises:
        DataError: The map, the inventory or the elevation model cannot be read, they lie apart, or what lies beside the
            map is on another grid.
        PredictionError: GeoParquet is wanted, and pyarrow is not installed.
        OutputError: A table exists already, is being written by another process, or cannot be written.
    """
    classes, by, notes = Path(classes), ByGlacier(inventory, buffer, min_area, divides), list[str]()
    if date and len(parse_date(date)) < 10:
        raise DataError(f"date {date!r}: write it as YYYY-MM-DD")
    if geoparquet:
        check_geoparquet()
    stem = stem_of(classes)
    maps = {"classes": classes}
    for kind in ("confidence", "probabilities"):
        if (path := classes.with_name(f"{stem}_{kind}.tif")).is_file():
            maps[kind] = path
    out = classes.parent if out is None else Path(out)
    with ExitStack() as stack:  # what is far longer than its pixels is refused here, and not hashed
        rasters = {kind: stack.enter_context(open_raster(path)) for kind, path in maps.items()}
        own = inventory_on(by, _grid(rasters["classes"], classes), classes, notes)
        _check_same_grid(rasters, maps)
    record = _record(maps, stem, notes)
    files = {kind: out / name for kind, name in glacier_files(stem, geoparquet, form).items()}
    every = [out / name for name in glacier_files(stem, True, form).values()]
    busy = f"{out}: another process is writing the glaciers of {stem}; wait until it ends"
    with work_folder(out, f"{stem}_glaciers", busy) as partial:
        replaceable(every)
        if not overwrite and (there := next((path for path in every if path.exists()), None)):
            raise OutputError(f"{there}: exists already; overwrite it, or choose another folder")
        how: dict[str, Any] = {"date": date, "geoparquet": geoparquet, "form": form, "analyst": analyst, "dem": dem}
        about = write_glaciers(maps, by, own, partial, stem, record, notes, **how)
        take_names(out, [partial / path.name for path in files.values()], every)
    return {**about, "files": {kind: str(path) for kind, path in files.items()}}


def find_maps(
    names: Sequence[str | os.PathLike],  # maps, or patterns such as "maps/*_classes.tif"
) -> list[Path]:
    """Return the maps of classes that are meant, each once; raises `DataError` if a pattern matches none."""
    found: list[Path] = []
    for name in map(str, names):
        matches = (
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not Path(name).exists() else [name]
        )
        maps = [Path(m) for m in matches if not m.endswith(("_confidence.tif", "_probabilities.tif"))]
        if not maps:
            raise DataError(f"{name}: no map of classes; give SCENE_classes.tif")
        found += maps
    return list(dict.fromkeys(found))


def summary(
    made: Mapping[str, Any],  # what `glaciers` returned
) -> str:
    """Return in a line how much ice went where."""
    totals = made["totals"]
    ice, own, new, left = (totals[k] for k in ("ice", "inventory", "new", "uncounted"))
    return (
        f"{made['map']}: {ice['km2']:,.3f} km2 of ice; {own['km2']:,.3f} in {own['glaciers']:,} glaciers of "
        f"{made['inventory']['name']}, {new['km2']:,.3f} in {new['glaciers']:,} new ones, {left['km2']:,.3f} in "
        "smaller patches, which are not counted"
    )


def inventory_on(
    by: ByGlacier,
    grid: Place,  # of the scene
    scene: str | os.PathLike,  # for messages
    notes: list[str],  # see `errors.note`
) -> Inventory | None:
    """Return the glaciers of the inventory that lie on a scene; none where it is divided, when there is a map.

    Raises:
        DataError: See `read_inventory`; or the elevation model cannot be used.
    """
    if by.inventory is None:
        check_divides(by.divides or "", grid, scene)
        return None
    near = crs_of_areas(grid, Path(scene).name)
    return read_inventory(by.inventory, grid.crs, grid.transform, (grid.height, grid.width), near, notes, scene)


def write_glaciers(
    maps: Mapping[str, Path],  # `classes`, and `confidence` and `probabilities` where there are any
    by: ByGlacier,
    inventory: Inventory | None,  # of `inventory_on`
    folder: Path,  # where the tables are written
    stem: str,  # of the scene
    record: Mapping[str, Any],  # what `SCENE_prediction.json` says, as far as it is known
    notes: list[str],  # see `errors.note`; those kept in `SCENE_glaciers.json`
    *,
    date: str = "",
    geoparquet: bool = False,
    form: Format | None = None,
    analyst: str = "",
    dem: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Write the tables of a scene, and return what `SCENE_glaciers.json` says; see `glaciers`."""
    files = {kind: folder / name for kind, name in glacier_files(stem, geoparquet, form).items()}
    with ExitStack() as stack:
        rasters = {kind: stack.enter_context(open_raster(path)) for kind, path in maps.items()}
        grid = _grid(rasters["classes"], maps["classes"])
        pixel = sum(np.dtype(t).itemsize for raster in rasters.values() for t in raster.dtypes)
        stack.enter_context(block_cache(ROWS * grid.width * pixel))
        if inventory is None:
            dem = by.divides if dem is None else dem
            inventory = divided(rasters["classes"], maps["classes"], grid, by.divides or "", by.min_area, notes)
        fitted = _calibration(record, maps, by.inventory is not None, notes)
        expecting = fitted.glacier is not None
        work = GlacierSums(rasters, maps, inventory, by.buffer, by.min_area, grid, notes, expecting)
        terrain = None
        if dem is not None:
            place = grid.crs, grid.transform, (grid.height, grid.width)
            terrain = SceneTerrain(stack.enter_context(Terrain(dem)), *place, maps["classes"].name)
        work.run(folder / f".{stem}_labels.tif", terrain)
    glacier = fitted.glacier
    if glacier and not math.isclose(work.buffer, usual := default_reach(work.pixel), rel_tol=0.01):
        note(
            f"{maps['classes'].name}: intervals of glaciers were fitted to a buffer of {usual:.3g} m, so with "
            f"{work.buffer:g} m they are those of connected ice",
            notes,
        )
        glacier = None
    table = work.table(fitted.area, glacier)
    for text in terrain.notes if terrain else ():
        note(text, notes)
    known = [*maps.values(), by.inventory, by.divides, dem]
    about: dict[str, Any] = {
        "version": __version__,
        "map": maps["classes"].name,
        "scene": str(record.get("scene") or maps["classes"].name),
        "date": _date(date, record, stem, notes),
        "sensor": str(record.get("sensor") or ""),
        "model": _model(record),
        "prediction": str(record.get("hash") or ""),
        "inventory": {"name": inventory.name, "sha256": inventory.sha256, "glaciers": len(inventory)},
        "buffer_m": round(work.buffer, 3),
        "min_area_km2": by.min_area,
        "pixel_m": round(work.pixel, 4),
        "grid": [grid.crs.to_string(), list(grid.transform[:6]), [grid.height, grid.width]],
        "totals": work.totals(),
        "notes": [names_only(text, *known) for text in notes],
    }
    if inventory.divides:
        about["inventory"]["divides"] = inventory.divides
    for name in ("scene", "date", "sensor", "model"):
        table[name] = about[name]
    table["inventory"] = about["inventory"]["name"]
    if form:
        with open_raster(maps["classes"]) as raster, reading(maps["classes"]):
            reach = work.buffer / work.pixel * abs(grid.transform.determinant) ** 0.5
            kept = inventory_of(form, table, raster, reach, work.pixel, analyst, notes)
        write_layer(kept, files["inventory"], "glaciers", "MultiPolygon")
        check_inventory(files["inventory"], form)
        about["notes"] = [names_only(text, *known) for text in notes]
    write_layer(table, files["glaciers.gpkg"], "glaciers", "MultiPolygon", files.get("glaciers.parquet"))
    write_styles(files["glaciers.gpkg"], "glaciers")
    with whole_file(files["glaciers.csv"]) as file:
        as_csv(pd.DataFrame(table.drop(columns="geometry")), file)
    about["sha256"] = {p.name: file_hash(p) for k, p in files.items() if k != "glaciers.json"}
    about["rows"] = {files["glaciers.gpkg"].name: rows_digest(files["glaciers.gpkg"])}
    write_text(files["glaciers.json"], json.dumps(about, indent=1))
    return about


def as_csv(
    table: pd.DataFrame,
    file: Any,  # open for bytes
) -> None:
    """Write a table as CSV whose texts no spreadsheet takes for formulas."""
    texts: Sequence[Any] = list(table.select_dtypes("str"))
    table = table.assign(**{name: table[name].map(cell) for name in texts})
    table.to_csv(file, index=False, float_format="%.9g")


def _grid(raster: rasterio.DatasetReader, path: Path) -> Grid:
    """Return size and grid of a map of classes; raises `DataError` if it is none."""
    if raster.count != 1 or raster.dtypes[0] != "uint8":
        raise DataError(
            f"{path}: {raster.count} bands of {raster.dtypes[0]}, so no map of classes; give SCENE_classes.tif"
        )
    if raster.nodata not in (None, IGNORE):
        raise DataError(f"{path}: declares {raster.nodata:g} as nodata; in a map of classes it is 255")
    if raster.crs is None or placeless(raster.transform):
        raise DataError(f"{path}: does not say where it lies; assign a coordinate reference system and a geotransform")
    return Grid(path, raster.crs, raster.transform, raster.height, raster.width)


def _check_same_grid(rasters: Mapping[str, rasterio.DatasetReader], maps: Mapping[str, Path]) -> None:
    first = rasters["classes"]
    for kind, raster in rasters.items():
        if raster.crs is None or not on_grid_of(raster, first):
            raise DataError(
                f"{maps[kind]}: lies on another grid than {maps['classes'].name}, so it is not of that map; move it "
                "away, or map the scene again"
            )
        bands = len(CLASSES) if kind == "probabilities" else 1
        if raster.count != bands or raster.dtypes[0] not in ("uint8", "float32"):
            raise DataError(f"{maps[kind]}: {raster.count} bands of {raster.dtypes[0]}; {kind} are {bands} of bytes")


def _record(maps: Mapping[str, Path], stem: str, notes: list[str]) -> dict[str, Any]:
    """Return what the record of a map says of it; nothing if there is none."""
    path = maps["classes"].with_name(f"{stem}_prediction.json")
    if not path.exists():
        note(f"{maps['classes']}: no {path.name} beside it, so its scene, model and intervals are not known", notes)
        return {}
    record = read_json(path, DataError)
    sums = record.get("sha256")
    for each in maps.values():
        if isinstance(sums, dict) and file_hash(each) != sums.get(each.name):
            note(f"{each}: is not as {path.name} says; it was changed since it was made", notes)
    return record


def _calibration(record: Mapping[str, Any], maps: Mapping[str, Path], outlined: bool, notes: list[str]) -> Calibration:
    """Return what intervals were calibrated to; says why there are none.

    Unless outlines come from elsewhere (`outlined`) they are those of connected ice: a map's own tell nothing new.
    """
    name = maps["classes"].name
    try:
        found = Calibration.model_validate(record.get("calibration") or {})
    except ValidationError as err:
        raise DataError(
            f"{name}: the calibration in its record cannot be used ({explain(err, Calibration)}); map the scene again, "
            "or remove the record to do without intervals"
        ) from err
    none = found.model_copy(update={"area": None, "glacier": None})
    if found.area is None and found.glacier is None:
        if record:
            note(f"{name}: its model has no calibrated area intervals, so there are none of glaciers", notes)
        return none
    if "probabilities" not in maps:
        note(f"{name}: intervals of areas need the map of probabilities beside it, so there are none", notes)
        return none
    if not outlined:
        return found.model_copy(update={"glacier": None})
    if found.glacier is None:
        note(
            f"{name}: its model was calibrated to connected ice alone, so intervals of glaciers are the wider ones of "
            "that; calibrate it anew for others",
            notes,
        )
    return found


def _date(given: str, record: Mapping[str, Any], stem: str, notes: list[str]) -> str:
    """Return when the scene was taken, as far as it is known."""
    if given:
        return parse_date(given)
    if date := parse_date(record.get("date", "")):
        return date
    if (found := DAY.search(stem)) and (date := parse_date(found[0])):
        note(f"{stem}: its date, {date}, is read off its name", notes)
        return date
    note(f"{stem}: its date is not known, so it cannot be compared with another; give it", notes)
    return ""


def _model(record: Mapping[str, Any]) -> str:
    """Return a hash of the models of a map and how they were used."""
    models = record.get("models")
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        return ""
    calibration = record.get("calibration")
    if isinstance(calibration, dict):  # maps of before do not know these intervals, and are made the same
        calibration = {k: v for k, v in calibration.items() if k != "glacier"}
    return digest([[[m.get("weight"), m.get("sha256")] for m in models], record.get("predict"), calibration])
