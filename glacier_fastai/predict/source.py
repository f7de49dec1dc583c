"""What a scene is read from at prediction: the bands of a bundle, by name, normalised as it was trained."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..data.sources.scene import SceneRaster
from ..errors import BundleError
from ..train.bundle import ModelBundle
from ..train.evaluate import normalise

__all__ = ["SceneSource"]


class SceneSource(SceneRaster):
    """A scene seen with a bundle's bands and statistics. Use as a context manager."""

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads
        bundle: ModelBundle,  # says which bands, and how they are normalised
        bands: Sequence[str] | None = None,  # names of the file's bands, default its band descriptions
        sensor: str | None = None,  # one of `bands.SENSORS`
    ):
        super().__init__(path, bands, sensor)
        if missing := [b for b in bundle.bands if b not in self.bands]:
            self.raster.close()
            raise BundleError(
                f"{self.path}: the bundle needs band {', '.join(missing)}; the scene holds {', '.join(self.bands)}"
            )
        self.bundle, self.index = bundle, [self.bands.index(b) for b in bundle.bands]

    def window(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """Return a window `(C, h, w)`, float32, normalised, 0 where there is no data."""
        values, valid = self.read(self.index, row, col, height, width)
        image = values.astype(np.float32)
        image[:, ~valid] = np.nan
        return normalise(image, self.bundle.mean, self.bundle.std)

    def valid(self, row: int, height: int) -> np.ndarray:
        """Return bool `(height, W)`: True where every band of the bundle has data."""
        return self.read(self.index, row, 0, height, self.width)[1]
