"""What a map is written to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.colors import to_rgb
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ..bands import CLASS_COLOURS, CLASSES, IGNORE
from ..errors import OutputError

__all__ = ["ClassMapSink"]


class ClassMapSink:
    """Writes a class map as GeoTIFF, strip by strip: uint8, colour table, nodata 255, on the scene's grid.

    Use as a context manager: the file appears under its name only when it is whole.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # file to write; must not exist
        height: int,  # rows
        width: int,  # columns
        crs: Any,  # coordinate reference system of the scene
        transform: Any,  # affine transform of the scene
    ):
        self.path = Path(path)
        if self.path.exists():
            raise OutputError(f"{self.path}: exists already; choose another --out or remove it first")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(f"{self.path.parent}: cannot be made ({err.strerror}); choose another --out") from err
        self.profile = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": 1,
            "dtype": "uint8",
            "crs": crs,
            "transform": transform,
            "nodata": IGNORE,
            "compress": "deflate",
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
        }

    def __enter__(self) -> ClassMapSink:
        try:
            self.raster = rasterio.open(self.partial, "w", **self.profile)
        except RasterioError as err:
            raise OutputError(f"{self.path}: cannot be written ({' '.join(str(err).split())})") from err
        colours = {k: tuple(round(255 * v) for v in to_rgb(c)) for k, c in enumerate(CLASS_COLOURS)}
        self.raster.write_colormap(1, {k: (*rgb, 255) for k, rgb in colours.items()})
        self.raster.set_band_description(1, "class: " + ", ".join(f"{k} {c}" for k, c in enumerate(CLASSES)))
        return self

    def write(self, row: int, classes: np.ndarray) -> None:
        """Write class codes `(rows, W)`, uint8, from `row` on."""
        self.raster.write(classes, 1, window=Window(0, row, classes.shape[1], classes.shape[0]))

    def __exit__(self, kind, value, trace) -> None:
        self.raster.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
