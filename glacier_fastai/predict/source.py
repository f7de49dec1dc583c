"""What a scene is read from at prediction: the channels that models take, derived ones computed on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..bands import Bands
from ..core.moments import moments
from ..data.channels import Channel, compute_channels
from ..data.scenes.geotiff import SceneRaster
from ..errors import DataError

__all__ = ["SceneSource", "Source"]

ROWS = 256  # rows that are read at once


class Source(Protocol):
    """A scene, whatever it is read from."""

    height: int
    width: int
    crs: Any  # coordinate reference system
    transform: Any  # affine transform from (col, row) to it

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""


class SceneSource(SceneRaster):
    """A raster file as `Source`. Use as context manager."""

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads
        channels: Sequence[Channel],  # what is wanted, in this order
        bands: Sequence[str] | None = None,  # names of the file's bands, default its band descriptions
        sensor: str | None = None,  # one of `bands.SENSORS`
    ):
        super().__init__(path, bands, sensor)
        self.channels = tuple(channels)
        self.names = Bands(band for band, _ in channels).made_of(self.bands) if channels else ()
        self.index = [self.bands.index(b) for b in self.names]
        self.halo = max((t.window // 2 for band, t in channels if t and band not in self.bands), default=0)

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""
        top, bottom = max(row - self.halo, 0), min(row + height + self.halo, self.height)  # texture looks further
        values, valid = self.read_window(self.index, top, 0, bottom - top, self.width)
        with np.errstate(over="ignore"):
            image = values.astype(np.float32)
        image[:, ~(valid & np.isfinite(image).all(0))] = np.nan
        return compute_channels(image, self.names, self.channels)[:, row - top : row - top + height]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel over the scene's pixels with data, each float64 `(C,)`.

        Raises:
            DataError: No pixel has data, or a band is constant.
        """
        n, sums, squares = 0, np.zeros(len(self.channels)), np.zeros(len(self.channels))
        for row in range(0, self.height, ROWS):
            image = self.read(row, min(ROWS, self.height - row))
            valid = ~np.isnan(image).any(0)
            first, second = moments(np.nan_to_num(image), valid)
            n, sums, squares = n + valid.sum(), sums + first, squares + second
        if not n:
            raise DataError(f"{self.path}: every pixel is nodata, so there is nothing to map")
        mean = sums / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 0))
        for (band, _), m, s in zip(self.channels, mean, std, strict=True):
            if not s > 1e-6 * max(abs(m), 1e-6):
                raise DataError(f"{self.path}: band {band} is constant ({m:g}); use the bundle's statistics")
        return mean, std
