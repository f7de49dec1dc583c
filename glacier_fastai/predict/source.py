"""What a scene is read from at prediction: the bands of a bundle, by name, normalised as it was trained."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..bands import texture_of
from ..data.sources.scene import SceneRaster
from ..data.texture import Texture
from ..errors import BundleError
from ..train.bundle import ModelBundle
from ..train.evaluate import normalise

__all__ = ["SceneSource"]


class SceneSource(SceneRaster):
    """A scene seen with a bundle's bands and statistics, texture bands computed on the way. Use as context manager."""

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads
        bundle: ModelBundle,  # says which bands, and how they are normalised
        bands: Sequence[str] | None = None,  # names of the file's bands, default its band descriptions
        sensor: str | None = None,  # one of `bands.SENSORS`
    ):
        super().__init__(path, bands, sensor)
        try:
            bundle.check(self.path, self.bands)
        except BundleError:
            self.raster.close()
            raise
        self.bundle, self.texture = bundle, Texture(**bundle.texture) if bundle.texture else None
        bases = [t[1] for b in bundle.bands if b not in self.bands and (t := texture_of(b))]
        self.names = list(dict.fromkeys([*(b for b in bundle.bands if b in self.bands), *bases]))
        self.index = [self.bands.index(b) for b in self.names]

    def window(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """Return a window `(C, h, w)`, float32, normalised, 0 where there is no data."""
        halo = self.texture.window // 2 if self.texture else 0  # texture looks beyond the window
        top, left = max(row - halo, 0), max(col - halo, 0)
        bottom, right = min(row + height + halo, self.height), min(col + width + halo, self.width)
        values, valid = self.read(self.index, top, left, bottom - top, right - left)
        image = np.where(valid, values, np.nan).astype(np.float32)
        if self.texture:
            image = self.texture.compute(image, self.names, self.bundle.bands)
        inner = image[:, row - top : row - top + height, col - left : col - left + width]
        return normalise(inner, self.bundle.mean, self.bundle.std)

    def valid(self, row: int, height: int) -> np.ndarray:
        """Return bool `(height, W)`: True where every band of the bundle has data."""
        return self.read(self.index, row, 0, height, self.width)[1]
