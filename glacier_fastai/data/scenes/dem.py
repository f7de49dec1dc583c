"""Terrain: height, slope, aspect and curvature of an elevation model (DEM), on the grid of a scene."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from ...bands import ASPECT, TERRAIN, natural_unit
from ...core.fill import NO_VALUE, likely_fill
from ...core.sampling import sample
from ...core.terrain import REACH, aspect, curvature, slope
from ...core.tiling import spread
from ...errors import DataError, note
from ...memory import fits
from .address import named
from .raster import check_place, horizontal, open_raster, parse_crs, placeless, reading, same_crs, steps, unknown_shift
from .scene import Declared, Scene
from .units import NONE
from .web import unversioned

__all__ = ["SceneTerrain", "Terrain"]

METRES = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("dm", "decimetre", "decimeter"), 0.1),
    **dict.fromkeys(("cm", "centimetre", "centimeter"), 0.01),
    **dict.fromkeys(("ft", "foot", "feet", "ift", "international foot", "international feet", "foot_intl"), 0.3048),
    **dict.fromkeys(("us survey foot", "us survey feet", "us-ft", "us_ft", "ftus", "foot_us", "sft"), 1200 / 3937),
    **dict.fromkeys(("us_survey_foot", "us foot", "survey foot", "survey feet"), 1200 / 3937),
}
"""What files call units of height, in lower case, and their metres."""

NO_HEIGHTS = re.compile(r"(?i)(hill[ _-]?shade|shaded[ _-]?relief|slope|aspect|(ice[ _-]?)?thickness)(?![a-z-])")
"""How descriptions of bands begin that hold something else."""

LOWEST, HIGHEST = -500.0, 9000.0  # metres; no ground lies beyond
FILLS = (-32768, -32767, 32767, 65535, -9999, -99999)  # what stands in voids, declared or not
MOST_ODD = 0.01  # share of heights beyond these, from which on they are no heights
SAMPLE = 8, 32  # windows along each side, and their side, pixels
CHUNK = 2**19  # pixels of the DEM that are held at once
HALO = REACH + 1  # pixels of the DEM beyond those around a place that its values depend on
STEP = 32  # pixels of the DEM between places that are brought to another CRS
TRUE = 0.01  # relative error of a CRS's lengths up to which they are taken as they are
FINEST = 4096  # pixels along a side of one of the scene, at most
ROUND = 33  # places along a side of a grid that are looked up in another


class Terrain:
    """A DEM in one raster, of any grid and CRS, as bands on the grid of scenes. Use as a context manager.

    Heights are metres, or feet by the unit of its band or the vertical unit of its CRS. A void is what is declared,
    what is no number, a fill value by its looks, and what no ground can be.

    Raises:
        DataError: It cannot be read, has no place, several bands, or values that are no heights.
    """

    bands = TERRAIN

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF, or another of `raster.DRIVERS`, or an address of one
    ):
        self.path = named(path)
        self.raster = open_raster(self.path)
        self.notes = unversioned(self.raster)
        """What is odd about it; said by those who use it."""
        try:
            with reading(self.path):
                self._check()
            self.transform, self.crs = self.raster.transform, self.raster.crs
            degrees = self.raster.width * self.transform.a if self.crs.is_geographic else 0.0
            self.around = abs(degrees - 360) < abs(self.transform.a) / 2
            """Whether its last column touches its first."""
            scale, offset = self.raster.scales[self._band - 1], self.raster.offsets[self._band - 1]
            metres = self._unit()
            self._metres = np.float64(scale) * metres, np.float64(offset) * metres
            if not np.isfinite(self._metres).all() or not scale:
                raise DataError(f"{self.path}: its scale or offset is of no use; mend it (gdal_edit.py -scale)")
            self._fills: list[float] = []
            self._look()
        except BaseException:
            self.raster.close()
            raise

    @property
    def units(self) -> dict[str, str]:
        """Unit of each band."""
        return {band: natural_unit(band) or "dn" for band in self.bands}

    @property
    def files(self) -> list[str]:
        """The files that it is made of, as those that a VRT names."""
        return list(dict.fromkeys([self.raster.name, *self.raster.files]))

    def _check(self) -> None:
        raster, path = self.raster, self.path
        bands = [n for n, kind in enumerate(raster.colorinterp, 1) if kind != ColorInterp.alpha]
        if len(bands) != 1:
            raise DataError(
                f"{path}: has {len(bands)} bands, but an elevation model has one; give the file of the heights, or "
                "take them out (gdal_translate -b)"
            )
        self._band = bands[0]
        if "complex" in raster.dtypes[self._band - 1] or raster.colorinterp[self._band - 1] == ColorInterp.palette:
            raise DataError(f"{path}: holds colours or complex numbers, no heights; give an elevation model")
        if said := NO_HEIGHTS.match((raster.descriptions[self._band - 1] or "").strip()):
            raise DataError(f"{path}: its band is described as {said[0]}, no heights; give an elevation model")
        check_place(raster, path)
        if placeless(raster.transform):
            raise DataError(
                f"{path}: has no geotransform that says where its pixels lie; warp it to a grid (gdalwarp), or assign "
                "its edges (gdal_edit.py -a_ullr)"
            )

    def _unit(self) -> float:
        """Return the metres of its unit of height."""
        said, crs = (self.raster.units[self._band - 1] or "").strip(), parse_crs(self.crs)
        tag = METRES.get(said.lower())
        up = next((axis for axis in crs.axis_info if axis.direction == "up"), None)
        if tag and up and abs(tag / up.unit_conversion_factor - 1) > 1e-9:
            self.notes.append(
                f"{self.path}: its heights are in {said!r} by its band, in {up.unit_name!r} by its CRS: the band's is "
                "taken; mend it (gdal_edit.py -a_srs) if that is wrong"
            )
        if tag or up:
            return tag or float(up.unit_conversion_factor)  # type: ignore[union-attr]
        across = crs.axis_info[0] if crs.is_projected and crs.axis_info else None
        if said.lower() not in NONE:
            odd = f"its heights are in {said!r}, which is not known"
        elif across and abs(across.unit_conversion_factor - 1) > 0.01:
            odd = f"nothing says the unit of its heights, and its CRS is in {across.unit_name}"
        else:
            return 1.0
        self.notes.append(f"{self.path}: {odd}: taken as metres; say their unit (gdal_edit.py -units ft)")
        return 1.0

    def _look(self) -> None:
        """Find fill values that nobody declared, and refuse what holds no heights, by a sample."""
        many, side = SAMPLE
        places = [spread(length, side, many) for length in self.raster.shape]
        found = [self._numbers(row, col, side, side) for row in places[0] for col in places[1]]
        numbers, known = (np.concatenate([part[k].ravel() for part in found]) for k in (0, 1))
        if not known.any():
            raise DataError(f"{self.path}: holds no heights, only voids; give another elevation model")
        fills = likely_fill(["elevation"], numbers[None], known, np.zeros(known.shape, bool))
        self._fills, nodata = [value for _, value, _ in fills], self.raster.nodatavals[self._band - 1]
        for value in self._fills:
            share = (numbers[known] == value).mean()
            mend = f"declare it (gdal_edit.py -a_nodata {value:g})" if nodata is None else f"make it {nodata:g}"
            self.notes.append(
                f"{self.path}: {value:g} on {share:.0%} of its pixels looks like a fill value, but is not declared: "
                f"taken for voids; {mend}"
            )
        known &= ~np.isin(numbers, [*FILLS, *(value for _, value, _ in fills)]) | self._is_ground(numbers)
        heights = self._in_metres(numbers[known])
        beyond = ~self._is_ground(numbers[known])
        if not heights.size or beyond.mean() > MOST_ODD:
            low, high = (heights.min(), heights.max()) if heights.size else (numbers.min(), numbers.max())
            raise DataError(
                f"{self.path}: holds {low:.6g} to {high:.6g}, which are no heights in metres ({LOWEST:g} to {HIGHEST:g}"
                "); say their unit (gdal_edit.py -units ft) or scale, or give an elevation model"
            )

    def _numbers(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers of a window, as far as it lies inside, and bool: True where they are declared as data."""
        window = Window(col, row, min(width, self.raster.width - col), min(height, self.raster.height - row))
        with reading(self.path):
            numbers = self.raster.read(self._band, window=window)
            known = self.raster.read_masks(self._band, window=window) > 0
        if numbers.dtype.kind == "f":
            known &= np.isfinite(numbers) & (np.abs(numbers) < NO_VALUE)
        return numbers, known

    def _in_metres(self, numbers: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return numbers * self._metres[0] + self._metres[1]

    def _is_ground(self, numbers: np.ndarray) -> np.ndarray:
        heights = self._in_metres(numbers)
        return (heights >= LOWEST) & (heights <= HIGHEST)

    def heights(
        self,
        row: int,  # first row, in the DEM's own pixels; it may lie outside
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
        notes: list[str] | None = None,  # what is odd is said, and added to them
    ) -> np.ndarray:
        """Return heights in metres, float32 `(height, width)`, NaN in voids and outside."""
        if self.around and not 0 <= col <= col + width <= self.raster.width:
            turns = [k for k in range(col + 1, col + width) if k % self.raster.width == 0]
            parts = pairwise([col, *turns, col + width])
            return np.hstack([self.heights(row, a % self.raster.width, height, b - a, notes) for a, b in parts])
        out = np.full((height, width), np.nan, np.float32)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.raster.height), min(col + width, self.raster.width)
        if top >= bottom or left >= right:
            return out
        numbers, known = self._numbers(top, left, bottom - top, right - left)
        if self._fills:
            known &= ~np.isin(numbers, self._fills)
        ground = self._is_ground(numbers)
        if (known & ~ground & ~np.isin(numbers, FILLS)).any():
            note(
                f"{self.path}: holds heights below {LOWEST:g} m or above {HIGHEST:g} m: taken for voids",
                self.notes if notes is None else notes,
            )
        inside = np.where(known & ground, self._in_metres(numbers), np.nan)
        out[top - row : bottom - row, left - col : right - col] = inside
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.raster.close()


class SceneTerrain(Scene):
    """The bands of a DEM on the grid of a scene. As long as its `Terrain` is open.

    Slope, aspect and curvature are derived at the DEM's own resolution: of its pixels as they are, if it is in the
    scene's CRS, else of pixels of that size in this CRS (cubic). Then they are averaged where the scene's pixels are
    larger (half of one must have a height), bilinear where they are not. Aspect counts from the north of the scene's
    CRS (grid north), in which direction its images are turned. Lengths are those of the CRS, or metres on the ground
    where these differ by over 1 %, as in degrees and in Web Mercator.

    Raises:
        DataError: The DEM shows other ground, or cannot be brought to the scene's CRS.
    """

    def __init__(
        self,
        terrain: Terrain,
        crs: Any,  # of the scene
        transform: Any,  # its affine transform
        shape: tuple[int, int],  # its rows and columns
        name: str | os.PathLike,  # what it is called in messages
        bands: Sequence[str] = TERRAIN,  # those it is to have
    ):
        self.terrain, self.path, self.shape, self.crs = terrain, terrain.path, shape, crs
        (self.height, self.width), self.transform, self.dtype = shape, Affine(*transform[:6]), np.dtype("float32")
        self.bands = tuple(bands)  # type: ignore[assignment]  # none is legal
        self.declared = [Declared(unit=terrain.units[band], zero_is_fill=None) for band in bands]
        self.rasters, self.other_files, self.notes = [terrain.raster], terrain.files, [*terrain.notes]
        try:
            # heights of a datum count nowhere here
            self._to_dem = Transformer.from_crs(horizontal(crs), horizontal(terrain.crs), always_xy=True)
        except ProjError as err:
            raise DataError(f"{terrain.path}: cannot be brought to the CRS of {name}; give one that can") from err
        if odd := unknown_shift(terrain.crs, crs, self.transform, shape):
            self.notes.append(f"{terrain.path}: {odd}")
        self._middle = _at(self.transform, shape[1] / 2, shape[0] / 2)
        turns = self._check_cover(name)
        own, self._same = terrain.transform, same_crs(crs, terrain.crs)
        self._native = self._same and own.b == own.d == 0 and own.a > 0 > own.e and len(turns) == 1
        if self._native:
            own = Affine.translation(-turns[0], 0) * own
        self._grid = own if self._native else self._own_grid(name)
        a, b, _, d, e, _ = (~self._grid * self.transform)[:6]
        # of a pixel of the scene along its row and column, each looked at between pixels of the DEM
        if max(map(abs, (a, b, d, e))) > FINEST:
            raise DataError(
                f"{terrain.path}: its pixels are more than {FINEST} times finer than those of {name}; average it first "
                "(gdalwarp -r average -tr)"
            )
        self._parts = max(1, int(np.ceil(np.hypot(a, d) - 1e-3))), max(1, int(np.ceil(np.hypot(b, e) - 1e-3)))
        self._sides = self._ground_sides()
        if self.transform.b or self.transform.d or self.transform.a < 0 or self.transform.e > 0:
            self.notes.append(
                f"{name}: its rows do not run from west to east and north to south: aspect counts from north, but "
                "turned views and augmentation turn it as if they did; warp it (gdalwarp) for a model with aspect"
            )

    def _check_cover(self, name: str | os.PathLike) -> list[float]:
        """Refuse a DEM that shows other ground, say if it shows a part only, and return the turns at which it does."""
        dem, found = self.terrain.raster, {}
        for turn, col, row in self._in_dem(*_places(self.transform, self.shape)):
            found[turn] = _inside(col % dem.width if self.terrain.around else col, row, dem.shape)
        share = np.any([*found.values()], axis=0).mean()
        if not share:  # or it is smaller than what lies between
            places = self._to_dem.transform(*_places(dem.transform, dem.shape), direction="INVERSE")
            if not _inside(*_at(~self.transform, *places), self.shape).any():
                raise DataError(f"{self.terrain.path}: does not cover {name}: it shows other ground; give another one")
        if share < 1:
            share = np.clip(share, 0.01, 0.99)
            self.notes.append(f"{self.terrain.path}: covers about {share:.0%} of {name}; the rest has no heights")
        return [turn for turn, inside in found.items() if inside.any()] or [0.0]

    def _in_dem(self, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        """Yield columns and rows of the DEM at places in the scene's CRS, for each turn around the Earth, degrees."""
        lon, lat = self._to_dem.transform(x, y)
        turns = (0.0, 360.0, -360.0) if self.terrain.crs.is_geographic and not self.terrain.around else (0.0,)
        if self.terrain.crs.is_geographic:  # no jump within a scene
            middle, _ = self._to_dem.transform(*self._middle)
            with np.errstate(invalid="ignore"):
                lon = middle + (lon - middle + 180) % 360 - 180
        for turn in turns:
            yield turn, *_at(~self.terrain.transform, lon + turn, lat)

    def _own_grid(self, name: str | os.PathLike) -> Affine:
        """Return a grid in the scene's CRS, north up, with pixels as large as those of the DEM are at its middle."""
        x, y = self._middle
        own = self.terrain.transform
        at = self._to_dem.transform(x, y)
        along, across = (steps(self.terrain.crs, *at, *by) for by in ((own.a, own.d), (own.b, own.e)))
        side = np.sqrt(along * across)
        if self._same and not np.isfinite(side):  # a local grid
            right = up = np.sqrt(abs(own.determinant))
        else:
            unit = 1e-3 if self._geographic else 100.0
            right, up = (side * unit / steps(self.crs, x, y, *by) for by in ((unit, 0.0), (0.0, unit)))
        if not (np.isfinite([right, up]).all() and right > 0 and up > 0):
            raise DataError(f"{self.terrain.path}: how large its pixels are in the CRS of {name} is not known")
        return Affine(float(right), 0.0, x, 0.0, -float(up), y)

    @property
    def _geographic(self) -> bool:
        return parse_crs(self.crs).is_geographic

    def _ground_sides(self) -> tuple[float, float] | None:
        """Return the sides of a pixel of the DEM in metres where they are the same everywhere, else None."""
        grid, crs = self._grid, horizontal(self.crs)
        if self._geographic:
            return None
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        said = grid.a * unit, -grid.e * unit
        true = steps(self.crs, *self._middle, grid.a, 0.0), steps(self.crs, *self._middle, 0.0, grid.e)
        # of a local grid nobody knows
        return None if any(abs(t / s - 1) > TRUE for t, s in zip(true, said, strict=True)) else said

    def _sides_of(self, row: int, height: int) -> tuple[Any, Any]:
        """Return the sides of pixels of the DEM in metres, numbers or `(height, 1)`: the same whatever the window."""
        if self._sides:
            return self._sides
        x, _ = self._middle
        y = self._grid.f + self._grid.e * (row + np.arange(height)[:, None] + 0.5)
        return steps(self.crs, x, y, self._grid.a, 0.0), steps(self.crs, x, y, 0.0, self._grid.e)

    def read(
        self,
        names: Sequence[str],  # some of `TERRAIN`
        row: int,  # first row, in the scene's pixels
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
    ) -> np.ndarray:
        """Return bands `(n, height, width)`, float32, NaN in voids."""
        out = np.empty((len(names), height, width), np.float32)
        side = max(1, int(np.sqrt(CHUNK / np.prod(self._parts))))
        for top in range(0, height, side):
            for left in range(0, width, side):
                h, w = min(side, height - top), min(side, width - left)
                out[:, top : top + h, left : left + w] = self._block(names, row + top, col + left, h, w)
        return out

    def _read(self, index, row, col, height, width):
        values = self.read([self.bands[i] for i in index], row, col, height, width)
        return values, np.isfinite(values).all(0)

    def _block(self, names: Sequence[str], row: int, col: int, height: int, width: int) -> np.ndarray:
        across, down = self._parts
        cols = col + (np.arange(width * across) + 0.5) / across
        rows = row + (np.arange(height * down)[:, None] + 0.5) / down
        c, r = (v - 0.5 for v in _at(~self._grid * self.transform, cols, rows))
        left, right = int(np.floor(c.min())) - HALO, int(np.ceil(c.max())) + HALO + 1
        top, bottom = int(np.floor(r.min())) - HALO, int(np.ceil(r.max())) + HALO + 1
        shape = bottom - top, right - left
        fits(80.0 * shape[0] * shape[1], f"{self.terrain.path}: {shape[0]:,} x {shape[1]:,} px", "make it coarser")
        heights = self._heights(top, left, *shape)
        dx, dy = self._sides_of(top, shape[0])
        found = {"elevation": heights}
        if "slope" in names:
            found["slope"] = slope(heights, dx, dy)
        if {*ASPECT} & {*names}:
            found |= zip(ASPECT, aspect(heights, dx, dy), strict=True)
        if "curvature" in names:
            found["curvature"] = curvature(heights, dx, dy)
        out = sample(np.stack([found[name] for name in names]), c - left, r - top)
        if across * down == 1:
            return out
        total, count = np.zeros((2, len(names), height, width))
        for i, j in np.ndindex(down, across):
            part = out[:, i::down, j::across]
            known = ~np.isnan(part)
            np.add(total, part, out=total, where=known)
            count += known
        return np.where(2 * count >= across * down, total / np.maximum(count, 1), np.nan)

    def _heights(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return heights on `_grid`: the DEM's own, or cubic ones between them."""
        if self._native:
            return self.terrain.heights(top, left, height, width, self.notes)
        (first_row, rows), (first_col, cols) = (_nodes(at, n) for at, n in ((top, height), (left, width)))
        x, y = _at(self._grid, first_col + STEP * np.arange(cols), first_row + STEP * np.arange(rows)[:, None])
        out = np.full((height, width), np.nan)
        dem = self.terrain.raster
        most = 90 / abs(dem.transform.a) if dem.crs.is_geographic and dem.transform.a else np.inf
        for _, *at in self._in_dem(x, y):
            col, row = (_between(v, top - first_row, left - first_col, height, width, most) - 0.5 for v in at)
            near = np.isfinite(col) & (row > -1) & (row < dem.height)
            near &= self.terrain.around | (col > -1) & (col < dem.width)
            if not near.any():
                continue
            (west, east), (north, south) = (
                (int(np.floor(v[near].min())) - 2, int(np.floor(v[near].max())) + 4) for v in (col, row)
            )
            size = south - north, east - west
            fits(40.0 * size[0] * size[1], f"{self.terrain.path}: {size[0]:,} x {size[1]:,} px", "warp it (gdalwarp)")
            heights = self.terrain.heights(north, west, *size, self.notes)
            found = sample(heights[None], col - west, row - north, cubic=True)[0]
            out = np.where(np.isnan(out), found, out)
        return out


def _nodes(first: int, length: int) -> tuple[int, int]:
    """Return the first of the nodes around some pixels, a multiple of `STEP`, and their number."""
    start = first // STEP * STEP
    return start, -(-(first + length - start) // STEP) + 1


def _between(nodes: np.ndarray, top: int, left: int, height: int, width: int, most: float) -> np.ndarray:
    """Return values at pixels' centres of those at nodes `STEP` pixels apart, NaN between any that differ by more."""
    for axis, first, length in ((1, left, width), (0, top, height)):
        at = (first + np.arange(length) + 0.5) / STEP
        i, share = at.astype(int), at % 1
        before = nodes.take(i, axis)
        with np.errstate(invalid="ignore"):
            further = nodes.take(i + 1, axis) - before
            further[np.abs(further) > most] = np.nan  # around a pole
            nodes = before + further * (share if axis else share[:, None])
    return nodes


def _at(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    with np.errstate(invalid="ignore"):  # a CRS may have no such place, which is infinite
        return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _places(transform: Affine, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of pixels spread over a grid, those at its edges included."""
    cols, rows = np.meshgrid(*(np.linspace(0.5, n - 0.5, ROUND) for n in (shape[1], shape[0])))
    return _at(transform, cols.ravel(), rows.ravel())


def _inside(col: np.ndarray, row: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return (col >= 0) & (col <= shape[1]) & (row >= 0) & (row <= shape[0])
