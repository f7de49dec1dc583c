"""What a scene is read from at prediction: the channels that models take, derived ones computed on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..bands import INDICES, texture_of
from ..core.moments import moments
from ..data.sources.scene import SceneRaster
from ..data.texture import Texture
from ..errors import DataError

__all__ = ["Channel", "SceneSource", "Source", "compute_channels"]

Channel = tuple[str, Texture | None]
"""A band, and how it is computed where it is texture that the scene does not hold."""

ROWS = 256  # rows that are read at once


class Source(Protocol):
    """A scene, whatever it is read from."""

    height: int
    width: int
    crs: Any  # coordinate reference system
    transform: Any  # affine transform from (col, row) to it

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""


def compute_channels(
    image: np.ndarray,  # (C, H, W) float32, NaN in every band where there is no data
    names: Sequence[str],  # its bands
    channels: Sequence[Channel],  # what is wanted
) -> np.ndarray:
    """Return the channels, float32 `(len(channels), H, W)`: bands, indices (0 where undefined) and textures."""
    if [band for band, _ in channels] == list(names):
        return image
    bases = {texture_of(band)[1] for band, texture in channels if texture and band not in names} - set(names)
    for base in sorted(bases):  # texture of an index
        image, names = np.concatenate([image, _index(image, names, base)[None]]), [*names, base]
    out = np.empty((len(channels), *image.shape[1:]), np.float32)
    textures: list[tuple[Texture, list[int]]] = []
    for k, (band, texture) in enumerate(channels):
        if band in names:
            out[k] = image[names.index(band)]
        elif band in INDICES:
            out[k] = _index(image, names, band)
        elif places := next((p for known, p in textures if known == texture), None):
            places.append(k)
        else:
            textures.append((texture, [k]))
    for texture, places in textures:
        out[places] = texture.compute(image, names, [channels[k][0] for k in places])
    return out


def _index(image: np.ndarray, names: Sequence[str], index: str) -> np.ndarray:
    a, b = (image[names.index(n)] for n in INDICES[index])
    return np.where(a + b == 0, 0, (a - b) / np.where(a + b == 0, 1, a + b))


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
        wanted = [self._made_of(band) for band, _ in channels]
        self.names = list(dict.fromkeys(b for bases in wanted for b in bases))
        self.index = [self.bands.index(b) for b in self.names]
        self.halo = max((t.window // 2 for band, t in channels if t and band not in self.bands), default=0)

    @staticmethod
    def derivable(bands: Sequence[str]) -> tuple[str, ...]:
        """Return the bands, and the indices that can be computed of them."""
        return (*bands, *(i for i, of in INDICES.items() if i not in bands and set(of) <= set(bands)))

    def _made_of(self, band: str) -> tuple[str, ...]:
        if band in self.bands:
            return (band,)
        return INDICES[band] if band in INDICES else self._made_of(texture_of(band)[1])

    def read(self, row: int, height: int) -> np.ndarray:
        """Return channels `(C, height, W)` from `row` on, float32, NaN in every channel where there is no data."""
        top, bottom = max(row - self.halo, 0), min(row + height + self.halo, self.height)  # texture looks further
        values, valid = super().read(self.index, top, 0, bottom - top, self.width)
        with np.errstate(over="ignore"):
            image = values.astype(np.float32)
        image[:, ~(valid & np.isfinite(image).all(0))] = np.nan
        return compute_channels(image, self.names, self.channels)[:, row - top : row - top + height]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel over the scene's pixels with data, each float64 `(C,)`.

        Raises:
            DataError: No pixel has data, or a band is constant.
        """
        n, sums, squares = 0, 0.0, 0.0
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
                raise DataError(f"{self.path}: band {band} is constant ({m:g}); use --stats bundle")
        return mean, std
