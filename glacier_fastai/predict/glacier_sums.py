"""Sums over the glaciers of a map that is read strip by strip, each pixel of ice given to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from pyproj import CRS, Transformer
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from rasterio.windows import Window

from ..bands import CLASSES, ICE, IGNORE
from ..core.areas import LEAST, area_interval, glacier_interval
from ..core.glaciers import NO_DATA, WITHOUT, default_reach, glacier_margin, nearest_glacier
from ..data.scenes.dem import SceneTerrain
from ..data.scenes.raster import reading, steps
from ..data.scenes.scene import Place
from ..data.sources.inventory import Inventory
from ..errors import DataError, note
from ..memory import fits
from .outlines import NOT_ICE, affine, crs_of_areas
from .sink import ROWS, writing

__all__ = ["ENOUGH", "GlacierSums", "pixel_sides"]

ENOUGH = 0.95
"""Share of a glacier that must be seen for its area to be compared with another."""

CLEAN, DEBRIS, LAKE = (CLASSES.index(name) for name in ("glacier", "debris", "lake"))
KNOTS = 65  # places along each side of a scene at which the area of a pixel is computed
ROUNDING = 1e-3  # by which programs that rewrite a map may move a probability
HELD = 80  # bytes for each pixel of a strip
SUMS = ("pixels", "area_km2", "glacier_km2", "debris_km2", "confidence", "doubt")


class GlacierSums:
    """Takes the map strip by strip, twice: to give ice to glaciers, and to sum over them.

    Between the two, all that is kept of the pixels lies on the disk: the number of their glacier in the order of the
    inventory, from 1 on; n + 1 is ice of none of them.
    """

    def __init__(
        self,
        rasters: Mapping[str, rasterio.DatasetReader],  # `classes`, `confidence`, `probabilities`, open
        maps: Mapping[str, Path],  # their files, for messages
        inventory: Inventory,
        buffer: float | None,  # metres, see `core.glaciers.default_reach`
        min_area: float,  # of new glaciers, km2
        grid: Place,  # size and grid of the map
        notes: list[str],  # see `errors.note`
        expecting: bool = False,  # sum up the probability of ice within each outline, for `table`
    ):
        self.rasters, self.maps, self.inventory, self.grid = rasters, maps, inventory, grid
        self.notes, self.n, self.min_area = notes, len(inventory), min_area
        self.near = crs_of_areas(grid, maps["classes"].name)
        self.km2 = _PixelAreas(grid, self.near)
        self.sides = pixel_sides(grid)
        self.pixel = float(np.sqrt(self.sides[0] * self.sides[1]))
        self.buffer = default_reach(self.pixel) if buffer is None else float(buffer)
        self.reach = 1.005 * self.buffer  # a pixel of 30 m is 30.01 m on the ground in the middle of a UTM zone
        self.halo = min(int(self.reach / self.sides[0]), grid.height)
        held = (HELD * ROWS + 8 * self.halo) * grid.width
        fits(held, f"{maps['classes']}: {ROWS} rows of {grid.width:,} px", "use a smaller buffer, or cut the map")
        self.outline = np.zeros((4, self.n))  # of each outline: pixels, those seen, those of ice; lake, km2
        self.expected = np.zeros(self.n) if expecting else None  # pixels of ice within it and the buffer
        self.new: np.ndarray = np.empty(0, object)  # patches of ice that become glaciers
        self.heights: list[tuple[np.ndarray, np.ndarray]] = []  # numbers of glaciers, and heights of their pixels

    def run(
        self,
        labels: Path,  # file that is made meanwhile
        terrain: SceneTerrain | None = None,  # for heights, slope and aspect
    ) -> None:
        """Give the ice to glaciers, and sum over them."""
        try:
            with writing(labels):  # what could not be written cannot be read again
                self._give(labels)
                self.polygons = self._drawn(labels)
                self._count(labels, terrain)
        finally:
            labels.unlink(missing_ok=True)

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
            values = np.where(values == IGNORE, np.float32(0), values * np.float32(raster.scales[0]))
        values = np.nan_to_num(values, nan=0.0)
        low, high = values.min(), values.max()
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise DataError(
                f"{self.maps[kind]}: holds {high if high > 1 else low:g}; {kind} are from 0 to 1, bytes by a scale of "
                "1/254 in the file's tags; map the scene again, or move it away"
            )
        return values

    def burned(self, polygons: np.ndarray, row: int, height: int, code: Any) -> np.ndarray:
        """Return polygons in pixels burned into rows of the scene, int32; of two the first is on top."""
        _, top, _, bottom = shapely.bounds(polygons).T if len(polygons) else np.empty((4, 0))
        at = np.flatnonzero((top < row + height) & (bottom > row))[::-1]
        out = np.zeros((height, self.grid.width), np.int32)
        if len(at):
            burn = ((polygons[i], code(i)) for i in at)
            rasterize(burn, out=out, transform=Affine.translation(0, row))
        return out

    def _give(self, labels: Path) -> None:
        """Write the number of each pixel's glacier."""
        shapes_, n, over = self.inventory.shapes, self.n, 0
        profile = {"driver": "GTiff", "count": 1, "dtype": "int32", "height": self.grid.height}
        profile |= {"width": self.grid.width, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer"}
        profile |= {"crs": self.grid.crs, "transform": self.grid.transform, "blockysize": 64}
        with rasterio.open(labels, "w", **profile) as file:
            for row, height in self.strips():
                (classes,) = self.read("classes", row, height)
                top = min(self.halo, row)
                rows = top + height + min(self.halo, self.grid.height - row - height)
                outlines = self.burned(shapes_, row - top, rows, lambda i: int(i) + 1)
                seen, ice = classes != IGNORE, np.isin(classes, ICE)
                every = ice if self.expected is None else seen
                found = nearest_glacier(outlines, every, top, self.sides, self.reach)
                if self.expected is not None:
                    probs = self.read("probabilities", row, height)[list(ICE)].sum(0)
                    self.expected += np.bincount(found.clip(0).ravel(), probs.ravel(), n + 1)[1:]
                    found[~ice] = 0
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

    def _drawn(self, labels: Path) -> np.ndarray:
        """Return the ice of each glacier as multipolygons; sets the patches of ice that become glaciers."""
        with rasterio.open(labels) as file:
            layer = rasterio.band(file, 1)
            drawn = shapes(layer, rasterio.band(self.rasters["classes"], 1))  # not of the background
            found = [(shapely.geometry.shape(polygon), int(code)) for polygon, code in drawn if code > 0]
        code = np.array([code for _, code in found], int)
        every = np.empty(len(found), object)
        every[:] = [polygon for polygon, _ in found]
        free = every[code == self.n + 1]
        far = free[self._km2(free) >= self.min_area]
        self.new = shapely.transform(far, lambda xy: np.rint(affine(xy, ~self.grid.transform)))
        first = shapely.bounds(self.new)
        order = np.lexsort((first[:, 0], first[:, 1]))
        far, self.new = far[order], self.new[order]
        out = np.empty(self.n, object)  # None without ice: an empty one has no place in a spatial index
        mine = np.flatnonzero(code <= self.n)
        mine = mine[np.argsort(code[mine], kind="stable")]
        shapely.multipolygons(every[mine], indices=code[mine] - 1, out=out)
        return np.concatenate([out, shapely.multipolygons(far, indices=np.arange(len(far))) if len(far) else far])

    def _km2(self, polygons: np.ndarray) -> np.ndarray:
        fine = geopandas.GeoSeries(polygons, crs=CRS(self.grid.crs))
        return fine.to_crs(self.near).area.to_numpy() / 1e6

    def _count(self, path: Path, terrain: SceneTerrain | None) -> None:
        """Sum over the glaciers; what is left of the ice is counted at 0."""
        size, above = self.n + len(self.new), np.full((1, self.grid.width), NO_DATA, np.int32)
        self.sums, self.slopes = np.zeros((len(SUMS), size + 1)), np.zeros((4, size))
        self.margin, self.edge = np.zeros(size), np.zeros(size, bool)  # edge: its ice reaches that of the scene
        with rasterio.open(path) as file:
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

    def _sum(self, row: int, height: int, ice: np.ndarray, of: np.ndarray, terrain: SceneTerrain | None) -> None:
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

    def table(
        self,
        area: tuple[float, float] | None,  # of `Calibration`
        glacier: tuple[float, float, float, float, float] | None = None,  # of `Calibration`; needs `expecting`
    ) -> geopandas.GeoDataFrame:
        """Return a row per glacier, first those of the inventory, then the new ones.

        Intervals are those of ice within outlines, else, and of new ones, those of connected ice.
        """
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
        ends = np.full((2, n + m), np.nan)
        if area:
            ends = np.stack(area_interval(pixels, sums["doubt"].clip(0, pixels), *area))
        if glacier and self.expected is not None:
            ends[:, :n] = glacier_interval(pixels[:n], self.expected, *glacier)
        low, high = ends * np.divide(km2, pixels, out=np.full(n + m, np.nan), where=pixels >= LEAST)
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
        return geopandas.GeoDataFrame(columns, geometry=self.polygons, crs=CRS(self.grid.crs))

    def _terrain(self, size: int) -> dict[str, np.ndarray]:
        of, height = (np.concatenate(parts) for parts in zip(*self.heights, strict=True))
        found = pd.Series(height.astype(float)).groupby(of).agg(["min", "median", "max"]).reindex(range(1, size + 1))
        n, slope, east, north = self.slopes
        some = np.where(n > 0, n, np.nan)
        out = {f"{name}_m": found[k].to_numpy() for name, k in (("zmin", "min"), ("zmed", "median"), ("zmax", "max"))}
        aspect = np.degrees(np.arctan2(east / some, north / some)) % 360
        return {**out, "slope_deg": slope / some, "aspect_deg": aspect}

    def totals(self) -> dict[str, Any]:
        """Return pixels and km2 of all ice, of what was given to glaciers, and of what was not."""
        parts = {"inventory": slice(1, self.n + 1), "new": slice(self.n + 1, None), "uncounted": slice(0, 1)}
        found = {name: self.sums[:2, at].sum(1) for name, at in parts.items()}
        found = {"ice": sum(found.values()), **found}
        out: dict[str, Any] = {k: {"pixels": int(v[0]), "km2": round(float(v[1]), 6)} for k, v in found.items()}
        out["inventory"]["glaciers"], out["new"]["glaciers"] = self.n, len(self.new)
        return out


class _PixelAreas:
    """Areas of the pixels of a scene, by an equal-area projection."""

    def __init__(self, grid: Place, near: CRS):
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


def pixel_sides(
    grid: Place,  # size and grid of a map
) -> tuple[float, float]:
    """Return height and width of a pixel on the ground at the centre of a scene, metres."""
    t = grid.transform
    x, y = t * (grid.width / 2, grid.height / 2)
    high, wide = (float(steps(grid.crs, x, y, *by)) for by in ((t.b, t.e), (t.a, t.d)))
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
