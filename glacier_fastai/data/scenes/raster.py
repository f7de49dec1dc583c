"""Rasters as GDAL reads them: opened, read, and what cannot be read as one line; whether two lie on one grid."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ...errors import DataError

__all__ = ["horizontal", "open_raster", "pixel_size", "reading", "same_crs", "same_grid"]


@contextmanager
def reading(
    path: str | os.PathLike,  # file that is read, for the message
) -> Iterator[None]:
    """Turn what GDAL cannot read into a `DataError`."""
    try:
        yield
    except RasterioError as err:
        why = " ".join(str(err).split())
        raise DataError(f"{path}: not a raster, cut short or damaged ({why}); copy it again") from err


def open_raster(
    path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads; it may have no georeference
) -> rasterio.DatasetReader:
    """Open a raster for reading; raises `DataError`. What is read from it later belongs into `reading`."""
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise DataError(f"{path}: is a folder; name the file in it")
        elsewhere = "://" in str(path) or str(path).startswith("/vsi")
        raise DataError(f"{path}: {'only files on this disk are read; copy it here' if elsewhere else 'no such file'}")
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def horizontal(
    crs: Any,  # coordinate reference system, as rasterio or pyproj have it, or as text
) -> CRS:
    """Return the horizontal part of a CRS, on which maps are drawn: of a compound one, that without the heights.

    >>> horizontal("EPSG:32645+5773").to_epsg()
    32645
    """
    return CRS.from_user_input(crs).to_2d()


def same_crs(
    a: Any,  # as in `horizontal`
    b: Any,
) -> bool:
    """Return whether two CRSs have the same horizontal part, however they are written."""
    return a == b or horizontal(a).equals(horizontal(b), ignore_axis_order=True)


def same_grid(
    a: Any,  # affine transform, its six coefficients first
    b: Any,
    shape: tuple[int, int],  # rows and columns of both
) -> bool:
    """Return whether pixels lie on one another, to a hundredth of a pixel over the whole raster, whatever the unit.

    >>> same_grid((30, 0, 500_000, 0, -30, 900), (30, 0, 500_000.2, 0, -30, 900), (64, 64))
    True
    >>> same_grid((3e-4, 0, 86, 0, -3e-4, 28), (3e-4, 0, 86.0001, 0, -3e-4, 28), (64, 64))
    False
    """
    height, width = shape
    first, second = np.array(a[:6], float), np.array(b[:6], float)
    shift = np.abs(first - second) * (width, height, 1, width, height, 1)
    side = np.sqrt(abs(first[0] * first[4] - first[1] * first[3]))
    return bool(shift.max() <= 0.01 * side)


def pixel_size(
    crs: Any,  # as in `horizontal`
    transform: Any,  # affine transform, its six coefficients first
    shape: tuple[int, int],  # rows and columns
) -> float | None:
    """Return the side of a pixel on the ground at the centre of a raster, metres; None where the CRS does not tell.

    >>> round(pixel_size("EPSG:32645", (30, 0, 500_000, 0, -30, 3_100_000), (64, 64)), 1)
    30.0
    >>> round(pixel_size("EPSG:3857", (30, 0, 0, 0, -30, 8_400_000), (64, 64)), 1)
    15.0
    """
    a, b, c, d, e, f = transform[:6]
    x, y = (g + p * shape[1] / 2 + q * shape[0] / 2 for p, q, g in ((a, b, c), (d, e, f)))
    try:
        to_degrees = Transformer.from_crs(horizontal(crs), "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform([x, x + a, x + b], [y, y + d, y + e])
    except ProjError:
        return None
    if not np.isfinite([lon, lat]).all():
        return None
    _, _, (along, across) = Geod(ellps="WGS84").inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])
    return float(np.sqrt(along * across))
