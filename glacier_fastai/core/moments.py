"""Sums over the pixels with data, from which the statistics of any set of tiles follow exactly; and their use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..bands import ASPECT, LOCATION
from ..errors import DataError

if TYPE_CHECKING:  # what prepares tiles needs no torch
    from torch import Tensor

__all__ = ["constant", "fixed_statistics", "moments", "scene_statistics", "standardise"]


def moments(
    values: np.ndarray,  # (C, H, W), any integer or float type
    valid: np.ndarray,  # (H, W) bool, True where there is data
) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and sum of squares of each band over `valid`, float64 `(C,)` each; exact for integers.

    >>> moments(np.array([[[1, 2, 99]]], np.uint8), np.array([[True, True, False]]))
    (array([3.]), array([5.]))
    """
    chosen = np.where(valid, values, values.dtype.type(0)).reshape(len(values), -1).astype(np.float64)
    return chosen.sum(1), np.einsum("cp,cp->c", chosen, chosen)


def constant(
    mean: float,  # of a band
    std: float,  # its standard deviation
) -> bool:
    """Return whether a band is constant, but for rounding.

    >>> constant(7.0, 1e-9), constant(0.0, 0.1)
    (True, False)
    """
    return not std > 1e-6 * max(abs(mean), 1e-6)


def fixed_statistics(
    bands: Sequence[str],  # names of C bands
    mean: Sequence[float] | np.ndarray,  # of each
    std: Sequence[float] | np.ndarray,  # its standard deviation
) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistics to normalise with, of which those of some bands are the same for all data.

    Those of aspect are of all directions alike, so that it can be turned; those of latitude and longitude make radians
    of degrees.

    >>> fixed_statistics(["red", "aspect_sin", "latitude"], [0.2, 0.3, 28.0], [0.1, 0.6, 0.1])[1].round(3).tolist()
    [0.1, 0.707, 57.296]
    """
    mean, std = np.array(mean, np.float64), np.array(std, np.float64)
    directed = [band in ASPECT for band in bands]
    mean[directed], std[directed] = 0, 0.5**0.5
    located = [band in LOCATION for band in bands]
    mean[located], std[located] = 0, np.degrees(1)
    return mean, std


def scene_statistics(
    where: str | os.PathLike,  # named in errors
    images: Iterable[np.ndarray],  # (C, H, W) each, NaN where there is no data
    bands: Sequence[str],  # names of the C bands
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each band over all pixels with data, each float64 `(C,)`.

    >>> [float(v[0]) for v in scene_statistics("s.tif", [np.array([[[1.0, np.nan]]]), np.array([[[3.0]]])], ["red"])]
    [2.0, 1.0]

    Raises:
        DataError: No pixel has data, or a band is constant.
    """
    n, sums, squares = 0, np.zeros(len(bands)), np.zeros(len(bands))
    for image in images:
        valid = ~np.isnan(image).any(0)
        first, second = moments(np.nan_to_num(image), valid)
        n, sums, squares = n + int(valid.sum()), sums + first, squares + second
    if not n:
        raise DataError(f"{where}: every pixel is nodata, so there is nothing to map")
    mean = sums / n
    mean, std = fixed_statistics(bands, mean, np.sqrt(np.maximum(squares / n - mean**2, 0)))
    for band, m, s in zip(bands, mean, std, strict=True):
        if constant(m, s):
            raise DataError(f"{where}: band {band} is constant ({m:g}); use the bundle's statistics")
    return mean, std


def standardise(
    x: Tensor,  # (..., C, H, W) float, NaN where there is no data
    mean: Tensor,  # (C, 1, 1), mean of each band
    std: Tensor,  # (C, 1, 1), its standard deviation
) -> Tensor:
    """Return `(x - mean) / std`, exactly 0 where there is no data.

    >>> import torch
    >>> x = torch.tensor([3.0, torch.nan]).view(1, 1, 2)
    >>> standardise(x, torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 4.0))
    tensor([[[0.5000, 0.0000]]])
    """
    return (x - mean).div_(std).nan_to_num_(nan=0.0)
