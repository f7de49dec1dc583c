"""A map's ice by glacier: a row for each outline of an inventory, and for each new patch of ice, with areas."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from rasterio.windows import Window

from .. import __version__
from ..bands import CLASSES, ICE, IGNORE
from ..core.areas import LEAST, area_interval
from ..core.glaciers import NO_DATA, WITHOUT, glacier_margin, nearest_glacier
from ..data.scenes.raster import block_cache, open_raster, reading, same_crs, same_grid
from ..data.sources.inventory import Inventory, parse_date, read_inventory
from ..errors import DataError, OutputError, cell, note
from ..files import digest, file_hash, locked, names_only, remove, whole_file, write_text
from ..memory import fits
from ..reading import read_json
from .outlines import NOT_ICE, crs_of_areas, write_layer
from .sink import ROWS, writing

if TYPE_CHECKING:
    from .export import Format

__all__ = [
    "BUFFER",
    "ENOUGH",
    "ByGlacier",
    "Terrain",
    "as_csv",
    "find_maps",
    "glacier_files",
    "glaciers",
    "inventory_on",
    "summary",
    "write_glaciers",
]

BUFFER, BUFFER_PIXELS = 60.0, 2
"""How far around its outline ice belongs to a glacier by default, metres, and the least of it in pixels."""
ENOUGH = 0.95
"""Share of a glacier that must be seen for its area to be compared with another."""

CLEAN, DEBRIS, LAKE = (CLASSES.index(name) for name in ("glacier", "debris", "lake"))
KNOTS = 65  # places along each side of a scene at which the area of a pixel is computed
HELD = 80  # bytes for each pixel of a strip
SUMS = ("pixels", "area_km2", "glacier_km2", "debris_km2", "confidence", "doubt")
DAY = re.compile(r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)")


class Terrain(Protocol):
    """An elevation model on the grid of a scene."""

    def read(self, names: Sequence[str], row: int, col: int, height: int, width: int) -> np.ndarray:
        """Return `(len(names), height, width)` of elevation, slope, aspect_sin and aspect_cos, NaN in voids."""


@dataclass(frozen=True)
class ByGlacier:
    """How ice is given to glaciers."""

    inventory: str | os.PathLike  # outlines of glaciers: RGI, GLIMS, or others
    buffer: float | None = None  # how far around its outline ice belongs to a glacier, metres; default see `BUFFER`
    min_area: float = 0.01  # least area of new glaciers, away from all outlines, km2

    def __post_init__(self):
        for name, value in (("buffer", self.buffer), ("min_area", self.min_area)):
            if value is not None and not 0 <= value < np.inf:
                raise DataError(f"{name} {value}: use a number of at least 0")


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
    inventory: str | os.PathLike,  # as in `ByGlacier`
    out: str | os.PathLike | None = None,  # folder for the tables, default that of the map
    *,
    buffer: float | None = None,  # as in `ByGlacier`
    min_area: float = 0.01,
    date: str = "",  # of the scene, YYYY-MM-DD; default as the record of the map says, or its name
    geoparquet: bool = False,  # write `SCENE_glaciers.parquet`, too
    form: Format | None = None,  # write `SCENE_FORM.gpkg`, too: an inventory in that format, see `export`
    analyst: str = "",  # who answers for that inventory
    terrain: Terrain | None = None,  # for heights, slope and aspect
    overwrite: bool = False,  # replace what is there
) -> dict[str, Any]:
    """Write `SCENE_glaciers.gpkg`, `.csv` and `.json`: the ice of a map by the glaciers of an inventory.

    >>> import warnings
    >>> from tempfile import TemporaryDirectory
    >>> from geopandas import GeoDataFrame
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
        DataError: The map or the inventory cannot be read, they lie apart, or what lies beside the map is on another
            grid.
        OutputError: A table exists already, is being written by another process, or cannot be written.
    """
    classes, by, notes = Path(classes), ByGlacier(inventory, buffer, min_area), list[str]()
    stem = classes.name.removesuffix(".tif").removesuffix("_classes")
    maps = {"classes": classes}
    for kind in ("confidence", "probabilities"):
        if (path := classes.with_name(f"{stem}_{kind}.tif")).is_file():
            maps[kind] = path
    out = classes.parent if out is None else Path(out)
    record = _record(classes, stem, notes)
    with open_raster(classes) as raster:
        own = inventory_on(by, _grid(raster, classes), classes, notes)
    files = {kind: out / name for kind, name in glacier_files(stem, geoparquet, form).items()}
    every = [out / name for name in glacier_files(stem, True, form).values()]
    partial = out / f".{stem}_glaciers.partial"
    busy = f"{out}: another process is writing the glaciers of {stem}; wait until it ends"
    with locked(out / f".{stem}_glaciers.lock", busy):
        there = next((path for path in every if path.exists()), None)
        if there and not overwrite:
            raise OutputError(f"{there}: exists already; overwrite it, or choose another folder")
        try:
            remove(partial)
            partial.mkdir()
            how: dict[str, Any] = {
                "date": date,
                "geoparquet": geoparquet,
                "form": form,
                "analyst": analyst,
                "terrain": terrain,
            }
            about = write_glaciers(maps, by, own, partial, stem, record, notes, **how)
            for path in every:
                path.unlink(missing_ok=True)
            for path in files.values():
                (partial / path.name).replace(path)
        except OutputError as err:
            raise OutputError(str(err).replace(str(partial), str(out))) from err
        finally:
            remove(partial)
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
    grid: Any,  # a `Source`: size and grid of the scene
    scene: str | os.PathLike,  # for messages
    notes: list[str],  # see `errors.note`
) -> Inventory:
    """Return the glaciers of the inventory that lie on a scene; raises `DataError`, see `read_inventory`."""
    near = crs_of_areas(grid, Path(scene).name)
    return read_inventory(by.inventory, grid.crs, grid.transform, (grid.height, grid.width), near, notes, scene)


def write_glaciers(
    maps: Mapping[str, Path],  # `classes`, and `confidence` and `probabilities` where there are any
    by: ByGlacier,
    inventory: Inventory,  # of `inventory_on`
    folder: Path,  # where the tables are written
    stem: str,  # of the scene
    record: Mapping[str, Any],  # what `SCENE_prediction.json` says, as far as it is known
    notes: list[str],  # see `errors.note`; those kept in `SCENE_glaciers.json`
    *,
    date: str = "",
    geoparquet: bool = False,
    form: Format | None = None,
    analyst: str = "",
    terrain: Terrain | None = None,
) -> dict[str, Any]:
    """Write the tables of a scene, and return what `SCENE_glaciers.json` says; see `glaciers`."""
    files = {kind: folder / name for kind, name in glacier_files(stem, geoparquet, form).items()}
    with ExitStack() as stack:
        rasters = {kind: stack.enter_context(open_raster(path)) for kind, path in maps.items()}
        grid = _grid(rasters["classes"], maps["classes"])
        _check_same_grid(rasters, maps)
        stack.enter_context(block_cache(*rasters.values()))
        work = _Work(rasters, maps, inventory, by, grid, folder / f".{stem}_labels.tif", notes)
        try:
            work.give()
            polygons = work.polygons()
            work.count(terrain)
        finally:
            work.labels.unlink(missing_ok=True)
    table = work.table(polygons, _interval(record, work, notes))
    about: dict[str, Any] = {
        "version": __version__,
        "map": maps["classes"].name,
        "scene": str(record.get("scene") or maps["classes"].name),
        "date": _date(date, record, stem, notes),
        "sensor": str(record.get("sensor") or ""),
        "model": _model(record),
        "prediction": str(record.get("hash") or ""),
        "inventory": {"name": Path(inventory.path).name, "sha256": inventory.sha256, "glaciers": len(inventory)},
        "buffer_m": round(work.buffer, 3),
        "min_area_km2": by.min_area,
        "pixel_m": round(work.pixel, 4),
        "grid": [grid.crs.to_string(), list(grid.transform[:6]), [grid.height, grid.width]],
        "totals": work.totals(table),
        "notes": [names_only(text) for text in notes],
    }
    for name in ("scene", "date", "sensor", "model"):
        table[name] = about[name]
    table["inventory"] = about["inventory"]["name"]
    if form:
        from .export import check_inventory, inventory_of

        with open_raster(maps["classes"]) as raster, reading(maps["classes"]):
            reach = work.buffer / work.pixel * abs(grid.transform.determinant) ** 0.5
            kept = inventory_of(form, table, raster, reach, work.pixel, analyst, notes)
        write_layer(kept, files["inventory"], "glaciers", "MultiPolygon")
        check_inventory(files["inventory"], form)
        about["notes"] = [names_only(text) for text in notes]
    write_layer(table, files["glaciers.gpkg"], "glaciers", "MultiPolygon", files.get("glaciers.parquet"))
    with whole_file(files["glaciers.csv"]) as file:
        as_csv(pd.DataFrame(table.drop(columns="geometry")), file)
    about["sha256"] = {p.name: file_hash(p) for k, p in files.items() if k != "glaciers.json"}
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


class _Work:
    """Takes the map strip by strip, twice: to give ice to glaciers, and to sum over them.

    Between the two, all that is kept of the pixels lies on the disk: the number of their glacier in the order of the
    inventory, from 1 on; n + 1 is ice of none of them.
    """

    def __init__(
        self,
        rasters: Mapping[str, rasterio.DatasetReader],
        maps: Mapping[str, Path],
        inventory: Inventory,
        by: ByGlacier,
        grid: Any,
        labels: Path,
        notes: list[str],
    ):
        self.rasters, self.maps, self.inventory, self.grid = rasters, maps, inventory, grid
        self.labels, self.notes, self.n, self.min_area = labels, notes, len(inventory), by.min_area
        self.near = crs_of_areas(grid, maps["classes"].name)
        self.km2 = _PixelAreas(grid, self.near)
        self.sides = _sides(grid)
        self.pixel = float(np.sqrt(self.sides[0] * self.sides[1]))
        self.buffer = max(BUFFER, BUFFER_PIXELS * self.pixel) if by.buffer is None else float(by.buffer)
        self.reach = 1.005 * self.buffer  # a pixel of 30 m is 30.01 m on the ground in the middle of a UTM zone
        self.halo = min(int(self.reach / self.sides[0]), grid.height)
        held = (HELD * ROWS + 8 * self.halo) * grid.width
        fits(held, f"{maps['classes']}: {ROWS} rows of {grid.width:,} px", "use a smaller buffer, or cut the map")
        self.outline = np.zeros((4, self.n))  # of each outline: pixels, those seen, those of ice; lake, km2
        self.new: np.ndarray = np.empty(0, object)  # patches of ice that become glaciers
        self.heights: list[tuple[np.ndarray, np.ndarray]] = []  # numbers of glaciers, and heights of their pixels

    def strips(self) -> Iterator[tuple[int, int]]:
        """Yield first row and height."""
        for row in range(0, self.grid.height, ROWS):
            yield row, min(ROWS, self.grid.height - row)

    def read(self, kind: str, row: int, height: int) -> np.ndarray:
        """Return the bands of a map, `(bands, height, W)`; probabilities as numbers, 0 without data."""
        raster = self.rasters[kind]
        with reading(self.maps[kind]):
            values = raster.read(window=Window(0, row, self.grid.width, height))
        if kind == "classes":
            odd = np.setdiff1d(np.unique(values), [*range(len(CLASSES)), IGNORE])
            if len(odd):
                raise DataError(
                    f"{self.maps[kind]}: holds {odd[0]}; a map of classes has 0 to {len(CLASSES) - 1}, and 255 without "
                    "data"
                )
            return values
        if values.dtype == np.uint8:
            return np.where(values == IGNORE, np.float32(0), values * np.float32(raster.scales[0]))
        return np.nan_to_num(values, nan=0.0)

    def burned(self, polygons: np.ndarray, row: int, height: int, code: Any) -> np.ndarray:
        """Return polygons in pixels burned into rows of the scene, int32; of two the first is on top."""
        _, top, _, bottom = shapely.bounds(polygons).T if len(polygons) else np.empty((4, 0))
        at = np.flatnonzero((top < row + height) & (bottom > row))[::-1]
        out = np.zeros((height, self.grid.width), np.int32)
        if len(at):
            burn = ((polygons[i], code(i)) for i in at)
            rasterize(burn, out=out, transform=Affine.translation(0, row))
        return out

    def give(self) -> None:
        """Write the number of each pixel's glacier."""
        shapes_, n, over = self.inventory.shapes, self.n, 0
        profile = {"driver": "GTiff", "count": 1, "dtype": "int32", "height": self.grid.height}
        profile |= {"width": self.grid.width, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer"}
        profile |= {"crs": self.grid.crs, "transform": self.grid.transform, "blockysize": 64}
        with writing(self.labels), rasterio.open(self.labels, "w", **profile) as file:
            for row, height in self.strips():
                (classes,) = self.read("classes", row, height)
                top = min(self.halo, row)
                rows = top + height + min(self.halo, self.grid.height - row - height)
                outlines = self.burned(shapes_, row - top, rows, lambda i: int(i) + 1)
                seen, ice = classes != IGNORE, np.isin(classes, ICE)
                found = nearest_glacier(outlines, ice, top, self.sides, self.reach)
                own = outlines[top : top + height]
                lake = (classes == LAKE) * self.km2(row, height)
                for k, weight in enumerate((None, seen, ice, lake)):
                    total = np.bincount(own.ravel(), None if weight is None else weight.ravel(), n + 1)
                    self.outline[k] += total[1:]
                over += self._overlaps(own, row, height)
                found[found == WITHOUT] = n + 1
                found[~seen] = NO_DATA
                file.write(found, 1, window=Window(0, row, self.grid.width, height))
        if over:
            note(
                f"{self.inventory.path}: outlines overlap on {over:,} pixels of {self.maps['classes'].name}; these "
                "belong to the first id of each two",
                self.notes,
            )

    def _overlaps(self, own: np.ndarray, row: int, height: int) -> int:
        """Return how many pixels of a strip lie in several outlines: the order of burning tells."""
        return int((own != self.burned(self.inventory.shapes[::-1], row, height, lambda i: self.n - int(i))).sum())

    def polygons(self) -> np.ndarray:
        """Return the ice of each glacier as multipolygons; sets the patches of ice that become glaciers."""
        with rasterio.open(self.labels) as file:
            layer = rasterio.band(file, 1)
            drawn = shapes(layer, rasterio.band(self.rasters["classes"], 1))  # not of the background
            found = [(shapely.geometry.shape(polygon), int(code)) for polygon, code in drawn if code > 0]
        code = np.array([code for _, code in found], int)
        every = np.empty(len(found), object)
        every[:] = [polygon for polygon, _ in found]
        free = every[code == self.n + 1]
        far = free[self._km2(free) >= self.min_area]
        self.new = shapely.transform(far, self._pixels)
        first = shapely.bounds(self.new)
        order = np.lexsort((first[:, 0], first[:, 1]))
        far, self.new = far[order], self.new[order]
        out = np.empty(self.n, object)  # None without ice: an empty one has no place in a spatial index
        mine = np.flatnonzero(code <= self.n)
        mine = mine[np.argsort(code[mine], kind="stable")]
        shapely.multipolygons(every[mine], indices=code[mine] - 1, out=out)
        return np.concatenate([out, shapely.multipolygons(far, indices=np.arange(len(far))) if len(far) else far])

    def _pixels(self, xy: np.ndarray) -> np.ndarray:
        a, b, c, d, e, f = (~self.grid.transform)[:6]
        return np.rint(xy @ np.array([[a, d], [b, e]]) + np.array([c, f]))

    def _km2(self, polygons: np.ndarray) -> np.ndarray:
        fine = geopandas.GeoSeries(polygons, crs=CRS(self.grid.crs))
        return fine.to_crs(self.near).area.to_numpy() / 1e6

    def count(self, terrain: Terrain | None) -> None:
        """Sum over the glaciers; what is left of the ice is counted at 0."""
        size, above = self.n + len(self.new), np.full((1, self.grid.width), NO_DATA, np.int32)
        self.sums, self.slopes = np.zeros((len(SUMS), size + 1)), np.zeros((4, size))
        self.margin, self.edge = np.zeros(size), np.zeros(size, bool)  # edge: its ice reaches that of the scene
        with rasterio.open(self.labels) as file:
            for row, height in self.strips():
                labels = file.read(1, window=Window(0, row, self.grid.width, height))
                free = labels == self.n + 1
                new = self.burned(self.new, row, height, lambda i: self.n + 1 + int(i))
                labels[free] = np.where(new[free] > 0, new[free], WITHOUT)
                both = np.concatenate([above, labels])
                self.margin += glacier_margin(both, size, self.sides)
                self.margin -= glacier_margin(above, size, self.sides)  # along the row, of which it was counted before
                above = labels[-1:]
                rim = [labels[:, 0], labels[:, -1]]
                rim += [labels[0]] if row == 0 else []
                rim += [labels[-1]] if row + height == self.grid.height else []
                at = np.unique(np.concatenate(rim))
                self.edge[at[at > 0] - 1] = True
                ice = (labels > 0) | (labels == WITHOUT)
                self._sum(row, height, ice, labels[ice].clip(0), terrain)

    def _sum(self, row: int, height: int, ice: np.ndarray, of: np.ndarray, terrain: Terrain | None) -> None:
        (classes,), km2 = self.read("classes", row, height), self.km2(row, height)[ice]
        classes = classes[ice]
        layers = [None, km2, km2 * (classes == CLEAN), km2 * (classes == DEBRIS)]
        zero = np.zeros(len(km2), np.float32)
        if "probabilities" in self.maps:
            probs = self.read("probabilities", row, height)[:, ice]
            layers += [np.take_along_axis(probs, classes[None].astype(np.intp), 0)[0], probs[NOT_ICE].sum(0)]
        else:
            layers += [zero, zero]
        if "confidence" in self.maps:
            layers[4] = self.read("confidence", row, height)[0][ice]
        for k, layer in enumerate(layers):
            self.sums[k] += np.bincount(of, layer, self.sums.shape[1])
        if terrain is not None:
            names = ("elevation", "slope", "aspect_sin", "aspect_cos")
            ground = terrain.read(names, row, 0, height, self.grid.width)[:, ice]
            known = (of > 0) & np.isfinite(ground[0])
            self.heights.append((of[known].astype(np.int32), ground[0][known].astype(np.float32)))
            sloped = known & np.isfinite(ground[1:]).all(0)
            for k, layer in enumerate((None, *ground[1:, sloped])):
                self.slopes[k] += np.bincount(of[sloped], layer, self.slopes.shape[1] + 1)[1:]

    def table(self, polygons: np.ndarray, area: tuple[float, float] | None) -> geopandas.GeoDataFrame:
        """Return a row per glacier, first those of the inventory, then the new ones."""
        own, n, m = self.inventory, self.n, len(self.new)
        sums = dict(zip(SUMS, self.sums[:, 1:], strict=True))
        pixels, km2 = sums["pixels"], sums["area_km2"]
        outlined, seen, hits, lake = self.outline
        share = np.divide(seen, outlined, out=np.full(n, np.nan), where=outlined > 0) * own.inside
        recall = np.divide(hits, seen, out=np.full(n, np.nan), where=seen > 0)
        share, recall, lake, given = (
            np.concatenate([x, np.full(m, np.nan)]) for x in (share, recall, lake, own.table["km2"])
        )
        change = np.where(share >= ENOUGH, km2 - given, np.nan)
        low = high = np.full(n + m, np.nan)
        if area:
            ends = area_interval(pixels, sums["doubt"].clip(0, pixels), *area)
            scale = np.divide(km2, pixels, out=np.full(n + m, np.nan), where=pixels >= LEAST)
            low, high = (end * scale for end in ends)
        cut = self.edge | np.concatenate([own.cut, np.zeros(m, bool)])
        mean = {k: np.divide(sums[k], d, out=np.full(n + m, np.nan), where=d > 0) for k, d in
                (("debris_km2", km2), ("confidence", pixels))}  # fmt: skip
        sure = {"confidence", "probabilities"} & {*self.maps}
        columns: dict[str, Any] = {
            "id": [*own.table["id"], *[""] * m],
            "name": [*own.table["name"], *[""] * m],
            "glims_id": [*own.table["glims_id"], *[""] * m],
            "inventory_date": [*own.table["date"], *[""] * m],
            "inventory_km2": given,
            "area_km2": km2,
            "area_low_km2": low,
            "area_high_km2": high,
            "buffer_km2": self.margin / 1e3 * self.pixel / 2e3,
            "change_km2": change,
            "change_percent": 100 * change / given,
            "glacier_km2": sums["glacier_km2"],
            "debris_km2": sums["debris_km2"],
            "lake_km2": lake,
            "debris_share": mean["debris_km2"],
            "confidence": mean["confidence"] if sure else np.full(n + m, np.nan),
            "share_seen": share,
            "recall": recall,
            "cut": cut,
            "remarks": _remarks(pixels, share, np.isnan(share) & (np.arange(n + m) < n), cut),
            "pixels": pixels.astype(np.int64),
            "margin_km": self.margin / 1e3,
        }
        if self.heights:
            columns |= self._terrain(n + m)
        return geopandas.GeoDataFrame(columns, geometry=polygons, crs=CRS(self.grid.crs))

    def _terrain(self, size: int) -> dict[str, np.ndarray]:
        of, height = (np.concatenate(parts) for parts in zip(*self.heights, strict=True))
        found = pd.Series(height.astype(float)).groupby(of).agg(["min", "median", "max"]).reindex(range(1, size + 1))
        n, slope, east, north = self.slopes
        some = np.where(n > 0, n, np.nan)
        out = {f"{name}_m": found[k].to_numpy() for name, k in (("zmin", "min"), ("zmed", "median"), ("zmax", "max"))}
        aspect = np.degrees(np.arctan2(east / some, north / some)) % 360
        return {**out, "slope_deg": slope / some, "aspect_deg": aspect}

    def totals(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return pixels and km2 of all ice, of what was given to glaciers, and of what was not."""
        parts = {"inventory": slice(1, self.n + 1), "new": slice(self.n + 1, None), "uncounted": slice(0, 1)}
        found = {name: self.sums[:2, at].sum(1) for name, at in parts.items()}
        found = {"ice": sum(found.values()), **found}
        out: dict[str, Any] = {k: {"pixels": int(v[0]), "km2": round(float(v[1]), 6)} for k, v in found.items()}
        out["inventory"]["glaciers"], out["new"]["glaciers"] = self.n, len(self.new)
        return out


class _PixelAreas:
    """Areas of the pixels of a scene, by an equal-area projection."""

    def __init__(self, grid: Any, near: CRS):
        self.width = grid.width
        self.rows, cols = (np.linspace(0.5, n - 0.5, min(n, KNOTS)) for n in (grid.height, grid.width))
        row, col = np.meshgrid(self.rows, cols, indexing="ij")
        a, b, c, d, e, f = grid.transform[:6]
        x, y = ([g + p * (col + dc) + q * (row + dr) for dr, dc in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))]
                for p, q, g in ((a, b, c), (d, e, f)))  # fmt: skip
        x, y = Transformer.from_crs(CRS(grid.crs).to_2d(), near, always_xy=True).transform(np.array(x), np.array(y))
        twice = (x[2] - x[0]) * (y[3] - y[1]) - (x[3] - x[1]) * (y[2] - y[0])
        self.knots = np.stack([np.interp(np.arange(grid.width) + 0.5, cols, line) for line in abs(twice) / 2e6])

    def __call__(self, row: int, height: int) -> np.ndarray:
        """Return the areas in km2, `(height, W)`."""
        at = np.interp(np.arange(row, row + height) + 0.5, self.rows, np.arange(len(self.rows)))
        low = np.minimum(at.astype(int), max(len(self.rows) - 2, 0))
        part = (at - low)[:, None]
        high = np.minimum(low + 1, len(self.rows) - 1)
        return self.knots[low] * (1 - part) + self.knots[high] * part


def _sides(grid: Any) -> tuple[float, float]:
    """Return height and width of a pixel on the ground at the centre of a scene, metres."""
    a, b, c, d, e, f = grid.transform[:6]
    x, y = (g + p * grid.width / 2 + q * grid.height / 2 for p, q, g in ((a, b, c), (d, e, f)))
    to_degrees = Transformer.from_crs(CRS(grid.crs).to_2d(), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform([x, x + a, x + b], [y, y + d, y + e])
    _, _, (wide, high) = Geod(ellps="WGS84").inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])
    return high, wide


def _remarks(pixels: np.ndarray, share: np.ndarray, unseen: np.ndarray, cut: np.ndarray) -> list[str]:
    """Say of each glacier what is to be known before its numbers are used."""
    texts = {
        "cut by the edge": cut,
        "outline covers no pixel": unseen,
        "not seen": share == 0,
        "seen in part": (share > 0) & (share < ENOUGH),
        "no ice found": (pixels == 0) & (share > 0),
    }
    return ["; ".join(text for text, true in texts.items() if true[k]) for k in range(len(pixels))]


def _grid(raster: rasterio.DatasetReader, path: Path) -> Any:
    """Return size and grid of a map of classes; raises `DataError` if it is none."""
    if raster.count != 1 or raster.dtypes[0] != "uint8":
        raise DataError(
            f"{path}: {raster.count} bands of {raster.dtypes[0]}, so no map of classes; give SCENE_classes.tif"
        )
    if raster.nodata not in (None, IGNORE):
        raise DataError(f"{path}: declares {raster.nodata:g} as nodata; in a map of classes it is 255")
    if raster.crs is None or raster.transform.is_identity or raster.transform.is_degenerate:
        raise DataError(f"{path}: does not say where it lies; assign a coordinate reference system and a geotransform")
    return SimpleNamespace(height=raster.height, width=raster.width, crs=raster.crs, transform=raster.transform)


def _check_same_grid(rasters: Mapping[str, rasterio.DatasetReader], maps: Mapping[str, Path]) -> None:
    first = rasters["classes"]
    for kind, raster in rasters.items():
        same = raster.shape == first.shape and raster.crs is not None and same_crs(raster.crs, first.crs)
        if not same or not same_grid(raster.transform, first.transform, first.shape):
            raise DataError(
                f"{maps[kind]}: lies on another grid than {maps['classes'].name}, so it is not of that map; move it "
                "away, or map the scene again"
            )
        bands = len(CLASSES) if kind == "probabilities" else 1
        if raster.count != bands or raster.dtypes[0] not in ("uint8", "float32"):
            raise DataError(f"{maps[kind]}: {raster.count} bands of {raster.dtypes[0]}; {kind} are {bands} of bytes")


def _record(classes: Path, stem: str, notes: list[str]) -> dict[str, Any]:
    """Return what the record of a map says of it; nothing if there is none."""
    path = classes.with_name(f"{stem}_prediction.json")
    if not path.exists():
        note(f"{classes}: no {path.name} beside it, so its scene, model and intervals are not known", notes)
        return {}
    record = read_json(path, DataError)
    sums = record.get("sha256")
    if isinstance(sums, dict) and file_hash(classes) != sums.get(classes.name):
        note(f"{classes}: is not as {path.name} says; it was changed since it was made", notes)
    return record


def _interval(record: Mapping[str, Any], work: _Work, notes: list[str]) -> tuple[float, float] | None:
    """Return what intervals were calibrated to; says why there are none."""
    calibration = record.get("calibration")
    area = calibration.get("area") if isinstance(calibration, dict) else None
    name = work.maps["classes"].name
    if not isinstance(area, list | tuple) or len(area) != 2:
        if record:
            note(f"{name}: its model has no calibrated area intervals, so there are none of glaciers", notes)
        return None
    if "probabilities" not in work.maps:
        note(f"{name}: intervals of areas need the map of probabilities beside it, so there are none", notes)
        return None
    return float(area[0]), float(area[1])


def _date(given: str, record: Mapping[str, Any], stem: str, notes: list[str]) -> str:
    """Return when the scene was taken, as far as it is known."""
    if given:
        if len(date := parse_date(given)) < 10:
            raise DataError(f"date {given!r}: write it as YYYY-MM-DD")
        return date
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
    if not isinstance(models, list):
        return ""
    return digest(
        [[[m.get("weight"), m.get("sha256")] for m in models], record.get("predict"), record.get("calibration")]
    )
