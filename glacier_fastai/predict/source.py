"""What a scene is read from at prediction: the channels that models take, derived ones computed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bands import Bands
from ..core.moments import scene_statistics
from ..data.channels import Channel, Corner, compute_channels
from ..data.scenes.address import Address
from ..data.scenes.masks import MaskCounts
from ..data.scenes.scene import Scene

__all__ = ["Grid", "SceneSource"]

ROWS = 256  # rows that are read at once


@dataclass
class Grid:
    """Where a map lies."""

    path: Path | Address
    crs: Any
    transform: Any
    height: int
    width: int


class SceneSource:
    """A scene as models take it, which counts what it reads."""

    def __init__(
        self,
        scene: Scene,
        channels: Sequence[Channel],  # what is wanted, in this order
    ):
        self.scene, self.path, self.channels = scene, scene.path, tuple(channels)
        self.height, self.width, self.crs, self.transform = scene.height, scene.width, scene.crs, scene.transform
        self.names = Bands(band for band, _ in channels).made_of(scene.bands)
        self.index = [scene.bands.index(b) for b in self.names]
        self.halo = max((t.window // 2 for band, t in channels if t and band not in scene.bands), default=0)
        self.masked = MaskCounts()
        self._where: list[tuple[int, int, int]] = []

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""
        top, bottom = max(row - self.halo, 0), min(row + height + self.halo, self.height)  # texture looks further
        image, _ = self._channels(self.scene, top, 0, bottom - top, self.width)
        masked = self.masked.add(self.scene.masked(row, 0, height, self.width))
        if masked is not None:
            places = [(int(masked[:, col : col + ROWS].sum()), row, col) for col in range(0, self.width, ROWS)]
            self._where += [place for place in places if place[0]]
        return image[:, row - top : row - top + height]

    def _channels(self, scene: Scene, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the channels of a window, and where there is data, bool `(h, w)`."""
        values, valid = scene.read_window(self.index, row, col, height, width)
        image = scene.in_units(values, self.index)
        image[:, ~(valid & np.isfinite(image).all(0))] = np.nan
        return compute_channels(image, self.names, self.channels, Corner(self.crs, self.transform, row, col)), valid

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel over the scene's pixels with data, each float64 `(C,)`.

        Raises:
            DataError: No pixel has data, or a band is constant.
        """
        rows = range(0, self.height, ROWS)
        strips = (self.read(row, min(ROWS, self.height - row)) for row in rows)
        found = scene_statistics(self.path, strips, [band for band, _ in self.channels])
        self.masked, self._where = MaskCounts(), []  # it is read again
        return found

    def most_masked(
        self,
        many: int,  # windows at most
    ) -> list[tuple[int, int]]:
        """Return first row and column of places where most is masked, of what was read."""
        return [(row, col) for _, row, col in sorted(self._where, reverse=True)[:many]]

    def behind(
        self,
        row: int,  # of a place, from `most_masked`
        col: int,
        size: int,  # side of a window, pixels
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return channels of a window as if nothing were masked, and bool `(h, w)`: True where it is."""
        top, left = max(min(row, self.height - size), 0), max(min(col, self.width - size), 0)
        shape = min(size, self.height), min(size, self.width)
        image, valid = self._channels(self.scene.unmasked, top, left, *shape)
        return image, MaskCounts().add(self.scene.masked(top, left, *shape)) & valid
