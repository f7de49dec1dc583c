"""One band of a raster on the grid of a scene, pixel by the nearest pixel, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from ...errors import DataError
from ...memory import fits
from .address import Address
from .raster import horizontal, same_crs
from .scene import Place

__all__ = ["applied", "blocks", "columns_and_rows", "read_known"]

STRIP = 2**22  # pixels that are read at once
SIDE = 256  # of the squares in which a raster is brought to another grid, pixels


def applied(transform: Sequence[float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x and y as an affine transform takes them, `(2, ...)`."""
    a, b, c, d, e, f = transform[:6]
    return np.array([a * x + b * y + c, d * x + e * y + f])


def read_known(raster: Any, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return values of a window, and True where there is one: not masked and not NaN. Declared nodata is a value."""
    values = raster.read(1, window=window)
    if raster.count == 2:
        known = raster.read(2, window=window) > 0
    elif MaskFlags.nodata in raster.mask_flag_enums[0]:
        known = np.ones(values.shape, bool)
    else:
        known = raster.read_masks(1, window=window) > 0
    return values, known & np.isfinite(values) if values.dtype.kind == "f" else known


def columns_and_rows(raster: Any, path: Path | str, scene: Place) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what turns columns and rows of a scene into those of a raster, infinite where its CRS does not reach."""
    crs, to_raster = raster.crs or scene.crs, None
    if not same_crs(crs, scene.crs):
        try:
            to_raster = Transformer.from_crs(horizontal(scene.crs), horizontal(crs), always_xy=True)
        except ProjError as err:
            raise DataError(
                f"{path}: is in {horizontal(crs).name}, which cannot be brought to {horizontal(scene.crs).name}"
            ) from err
    edges = applied(raster.transform, np.array([0, 0, 1, 1]) * raster.width, np.array([0, 1, 0, 1]) * raster.height)
    west, inverse = edges[0].min(), ~raster.transform

    def there(cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x, y = applied(scene.transform, cols, rows)
        if to_raster is not None:
            x, y = to_raster.transform(x, y)
        with np.errstate(invalid="ignore"):
            if crs.is_geographic:
                x = west + (x - west) % 360
            return applied(inverse, x, y)

    return there


def blocks(
    raster: Any,
    path: Path | Address,
    scene: Place,
    moved: bool,  # whether the raster lies on another grid than the scene
) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Yield part by part of the scene's grid, values of the first band, and True where there is one."""
    height, width = scene.height, scene.width
    if not moved:
        block = min(raster.block_shapes[0][0], SIDE)
        step = max(STRIP // width // block, 1) * block
        for row, col in product(range(0, height, step), range(0, width, STRIP // step)):
            rows, cols = slice(row, min(row + step, height)), slice(col, min(col + STRIP // step, width))
            yield (rows, cols), *read_known(raster, Window.from_slices(rows, cols))
        return
    there = columns_and_rows(raster, path, scene)
    for row, col in np.ndindex(-(-height // SIDE), -(-width // SIDE)):
        at = np.s_[row * SIDE : min((row + 1) * SIDE, height), col * SIDE : min((col + 1) * SIDE, width)]
        rows, cols = np.mgrid[at]
        cols, rows = np.floor(there(cols + 0.5, rows + 0.5))
        inside = (rows >= 0) & (rows < raster.height) & (cols >= 0) & (cols < raster.width)
        values, known = np.zeros(inside.shape, raster.dtypes[0]), np.zeros(inside.shape, bool)
        if inside.any():
            rows, cols = rows[inside].astype(int), cols[inside].astype(int)
            top, left = rows.min(), cols.min()
            high, wide = int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
            held = high * wide * (values.itemsize + 3)
            fits(held, f"{path}: its {high:,} x {wide:,} px under {SIDE} of {scene.path}", "warp it there (gdalwarp)")
            part = read_known(raster, Window(left, top, wide, high))
            values[inside], known[inside] = (array[rows - top, cols - left] for array in part)
        yield at, values, known
