"""What a scene is read from at prediction: the channels that models take, derived ones computed on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..bands import Bands
from ..core.moments import scene_statistics
from ..data.channels import Channel, compute_channels
from ..data.scenes.geotiff import SceneRaster
from ..data.scenes.units import Given

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
        path: str | os.PathLike,  # a GeoTIFF, or another of `raster.DRIVERS`
        channels: Sequence[Channel],  # what is wanted, in this order
        bands: Sequence[str] | None = None,  # names of the file's bands, default its band descriptions
        sensor: str | None = None,  # one of `data.scenes.names.SENSORS`
        **scaling: Given,  # `scale` and `offset` of `SceneRaster`
    ):
        super().__init__(path, bands, sensor, **scaling)
        self.channels = tuple(channels)
        self.names = Bands(band for band, _ in channels).made_of(self.bands) if channels else ()
        self.index = [self.bands.index(b) for b in self.names]
        self.halo = max((t.window // 2 for band, t in channels if t and band not in self.bands), default=0)

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""
        top, bottom = max(row - self.halo, 0), min(row + height + self.halo, self.height)  # texture looks further
        values, valid = self.read_window(self.index, top, 0, bottom - top, self.width)
        image = self.in_units(values, self.index)
        image[:, ~(valid & np.isfinite(image).all(0))] = np.nan
        return compute_channels(image, self.names, self.channels)[:, row - top : row - top + height]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel over the scene's pixels with data, each float64 `(C,)`.

        Raises:
            DataError: No pixel has data, or a band is constant.
        """
        rows = range(0, self.height, ROWS)
        strips = (self.read(row, min(ROWS, self.height - row)) for row in rows)
        return scene_statistics(self.path, strips, [band for band, _ in self.channels])
