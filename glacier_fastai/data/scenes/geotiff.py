"""Scenes in one file that GDAL reads, such as a GeoTIFF: bands by name, what has data, the grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from ...bands import SENSORS, Bands, canonical_band
from ...errors import DataError, did_you_mean
from .raster import open_raster, reading

__all__ = ["SceneRaster"]


class SceneRaster:
    """A scene on disk: its bands by name, its grid, and windows of values with their valid pixels.

    Use as a context manager. A pixel has no data where any band wanted declares it so (nodata value or mask), where any
    of them is NaN or infinite, or, in unsigned integers, where all of them are 0. A band named "-" is left out; if it
    is the alpha band, it masks.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads
        bands: Sequence[str] | None = None,  # names of its bands, default its band descriptions
        sensor: str | None = None,  # one of `bands.SENSORS`, to read names such as "B4"
    ):
        self.path = Path(path)
        if sensor is not None and sensor not in SENSORS:
            raise DataError(f"unknown sensor {sensor!r}: use {', '.join(SENSORS)}{did_you_mean(sensor, SENSORS)}")
        self.raster = open_raster(self.path)
        try:
            self.bands, self._numbers = self._names(bands, sensor)
            if self.raster.crs is None:
                raise DataError(f"{self.path}: has no coordinate reference system; assign one (gdal_edit.py -a_srs)")
            if any(t.startswith("complex") for t in self.raster.dtypes):
                raise DataError(f"{self.path}: holds complex numbers; give real ones, such as amplitudes")
        except BaseException:
            self.raster.close()
            raise
        self.height, self.width = self.raster.height, self.raster.width
        self.crs, self.transform = self.raster.crs, self.raster.transform
        self.dtype = np.result_type(*self.raster.dtypes)

    def _names(self, bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], list[int]]:
        count, where = self.raster.count, f"{self.path}: {self.raster.count} bands"
        given = list(bands) if bands else list(self.raster.descriptions)
        if bands and len(given) != count:
            raise DataError(f"{where}, but `bands` names {len(given)}: name every band of the file in its order")
        if unnamed := [i + 1 for i, d in enumerate(given) if not d]:
            raise DataError(
                f"{where}, band {unnamed[0]} has no description; name all of them by `bands`: blue,green,red,nir"
            )
        numbers = [i + 1 for i, b in enumerate(given) if b.strip() != "-"]
        try:
            return Bands(canonical_band(given[n - 1], sensor) for n in numbers), numbers
        except DataError as err:
            raise DataError(f"{self.path}: {err}; `bands` names those of the file, '-' leaves one out") from err

    def read_window(
        self,
        index: Sequence[int],  # positions of the bands wanted
        row: int,  # first row
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values `(C, H, W)` as delivered, and bool `(H, W)`: True where every wanted band has data."""
        window, numbers = Window(col, row, width, height), [self._numbers[i] for i in index]
        with reading(self.path):
            values = self.raster.read(numbers, window=window, out_dtype=self.dtype)  # bands may differ in type
            valid = np.ones(values.shape[1:], bool)
            for number in self._masks(numbers):
                valid &= self.raster.read_masks(number, window=window) > 0
        for band, number in zip(values, numbers, strict=True):
            nodata = self.raster.nodatavals[number - 1]
            if nodata is not None and not np.isnan(nodata):
                valid &= band != nodata
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
        elif values.dtype.kind == "u":
            valid &= (values != 0).any(0)
        return values, valid

    def _masks(self, numbers: Sequence[int]) -> list[int]:
        """Return the bands whose mask counts: GDAL takes any fourth band of bytes for alpha, which nir is not."""
        flags, kinds = self.raster.mask_flag_enums, self.raster.colorinterp
        own = [n for n in numbers if MaskFlags.per_dataset in flags[n - 1] and MaskFlags.alpha not in flags[n - 1]]
        skipped_alpha = any(k == ColorInterp.alpha and n not in self._numbers for n, k in enumerate(kinds, 1))
        return own or (list(numbers[:1]) if skipped_alpha else [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.raster.close()
