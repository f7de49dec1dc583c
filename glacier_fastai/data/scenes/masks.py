"""Clouds, shadows and the like: pixels whose flags say that the ground is not seen have no data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt

from ...errors import DataError, did_you_mean
from ...memory import fits
from .address import Address
from .product import Flag
from .raster import open_raster, reading, same_crs, same_grid
from .scene import Scene

__all__ = ["KINDS", "Masked", "check_keep"]

KINDS: dict[str, str] = {
    "clouds": "cloud",
    "dilated": "next to a cloud, as the flags say",
    "cirrus": "cirrus",
    "shadows": "shadow of a cloud",
    "saturated": "brighter than the sensor can measure, or defective",
}
"""What has no data unless it is kept. What is fill has none; snow is not among them."""

WIDENED = ("clouds", "dilated", "cirrus", "shadows")
OWN = "mask"  # the kind of what the user's own mask hides

Kinds = Mapping[str, tuple[int, tuple[int, ...]]]


def check_keep(
    keep: Collection[str],
) -> frozenset[str]:
    """Return the kinds that are to be kept; raises `DataError` for one that is not known."""
    for kind in keep:
        if kind not in KINDS:
            raise DataError(f"keep {kind!r}: masks are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return frozenset(keep)


class Masked(Scene):
    """A scene of which pixels that flags speak of have no data."""

    def __init__(
        self,
        scene: Scene,
        flags: Sequence[tuple[Path | Address, Flag]],  # with their files
        keep: Collection[str] = (),  # of `KINDS`: what has data all the same
        buffer: float = 0.0,  # metres by which clouds and shadows are widened
        own: Path | Address | None = None,  # the user's mask: a raster, not 0 where it masks, or polygons
    ):
        self.scene, self.keep = scene, check_keep(keep)
        self.path, self.sensor, self.date, self.notes = scene.path, scene.sensor, scene.date, scene.notes
        self.bands, self.declared, self.dtype = scene.bands, scene.declared, scene.dtype
        self.height, self.width, self.crs, self.transform = scene.height, scene.width, scene.crs, scene.transform
        self.rasters, self.also_close = [*scene.rasters], scene.also_close
        self.unpacked_from, self.other_files = scene.unpacked_from, [str(own)] if isinstance(own, Path) else []
        self._layers: list[tuple[Any, int, Kinds]] = []
        self._last: tuple[tuple[int, ...], dict[str, np.ndarray]] = ((0, 0, 0, 0), {})
        self._burnt: np.ndarray | None = None
        if not 0 <= buffer < np.inf:
            raise DataError(f"mask buffer {buffer}: give metres, 0 or more")
        size = scene.pixel_size if buffer else 1.0
        if size is None:
            raise DataError(f"{scene.path}: its coordinate reference system does not tell how far a metre is")
        self.buffer = buffer / size
        try:
            for path, flag in flags:
                self._add(path, flag.band, flag.kinds)
            if own is not None:
                self._add_own(own)
        except BaseException:
            self.close()
            raise

    @property
    def scaling(self):
        """As of the scene."""
        return self.scene.scaling

    @property
    def unmasked(self) -> Scene:
        """The scene within."""
        return self.scene

    def _add(self, path: Path | Address, band: int, kinds: Kinds) -> None:
        raster = open_raster(path)
        self.rasters.append(raster)
        if not 1 <= band <= raster.count or not np.issubdtype(raster.dtypes[band - 1], np.number):
            raise DataError(f"{path}: {raster.count} bands, so no band {band} of flags")
        shape = self.height, self.width
        if raster.crs is None:
            raise DataError(f"{path}: has no coordinate reference system, so it masks nothing; assign one")
        here = same_crs(raster.crs, self.crs) and same_grid(raster.transform, self.transform, shape)
        if here and raster.shape == shape:
            self._layers.append((raster, band, kinds))
            return
        coarser = same_crs(raster.crs, self.crs) and abs((~raster.transform * self.transform).determinant) > 1.0001
        how = Resampling.mode if coarser else Resampling.nearest
        with reading(path):
            grid = {"crs": self.crs, "transform": self.transform, "height": self.height, "width": self.width}
            warped = WarpedVRT(raster, resampling=how, **grid)
        self.also_close = [*self.also_close, warped.close]
        self._layers.append((warped, band, kinds))

    def _add_own(self, path: Path | Address) -> None:
        from ..sources.outlines import burn_outlines, open_outlines
        from ..sources.vectors import SUFFIXES

        if isinstance(path, Path) and path.suffix.lower() in SUFFIXES:
            fits(
                2 * self.height * self.width, f"{path}: burnt on {self.path}", "cut the scene (gdal_translate -srcwin)"
            )
            grid = (self.crs, self.transform, (self.height, self.width))
            mask, found = burn_outlines(
                open_outlines([path], None), *grid, all_touched=True, notes=self.notes, scene=self.path
            )
            if not found:
                self.notes.append(f"{path}: no polygon lies on {self.path}, so nothing is masked by it")
            self._burnt = mask != 0
            return
        self._add(path, 1, {})
        raster = self.rasters[-1]
        if raster.count != 1 or raster.dtypes[0].startswith("complex"):
            raise DataError(f"{path}: {raster.count} bands; a mask has one, not 0 where pixels are to be left out")

    def masked(self, row: int, col: int, height: int, width: int) -> dict[str, np.ndarray]:
        """Return where pixels have no data because of a mask: of `KINDS` that are not kept, "fill", and "mask"."""
        (top, left, high, wide), flags = self._last
        if not (top <= row and left <= col and row + height <= top + high and col + width <= left + wide and flags):
            top, left, flags = row, col, self._flags(row, col, height, width)
            self._last = (row, col, height, width), flags
        at = np.s_[row - top : row - top + height, col - left : col - left + width]
        return {kind: flag[at] for kind, flag in flags.items()}

    def _flags(self, row: int, col: int, height: int, width: int) -> dict[str, np.ndarray]:
        halo = int(np.ceil(self.buffer))
        top, left = max(row - halo, 0), max(col - halo, 0)
        bottom, right = min(row + height + halo, self.height), min(col + width + halo, self.width)
        window, out = Window(left, top, right - left, bottom - top), dict[str, np.ndarray]()
        for raster, band, kinds in self._layers:
            with reading(self.path):
                numbers = raster.read(band, window=window)
            if not kinds:
                known = numbers != (0 if raster.nodata is None else raster.nodata)
                out[OWN] = out.get(OWN, False) | (known & (numbers != 0) & ~np.isnan(numbers))
            for kind, (mask, values) in kinds.items():
                if kind not in self.keep:
                    out[kind] = out.get(kind, False) | np.isin(numbers & mask, values)
        inner = np.s_[row - top : row - top + height, col - left : col - left + width]
        for kind in [k for k in out if halo and k in WIDENED and out[k].any()]:
            out[kind] = distance_transform_edt(~out[kind]) <= self.buffer
        out = {kind: flag[inner] for kind, flag in out.items()}
        if self._burnt is not None:
            out[OWN] = self._burnt[row : row + height, col : col + width]
        return out

    def _read(self, index, row, col, height, width):
        numbers, valid = self.scene._read(index, row, col, height, width)
        for flag in self.masked(row, col, height, width).values():
            valid &= ~flag
        return numbers, valid
