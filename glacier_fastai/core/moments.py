"""Sums over the pixels with data, from which the statistics of any set of tiles follow exactly; and their use."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .jit import jit

__all__ = ["blank", "moments", "standardise"]


def moments(
    values: np.ndarray,  # (C, H, W), any integer or float type
    valid: np.ndarray,  # (H, W) bool, True where there is data
) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and sum of squares of each band over `valid`, float64 `(C,)` each; exact for integers."""
    values = values.astype(np.float32) if values.dtype == np.float16 else values  # which numba does not know
    sums = np.zeros((2, len(values)))
    jit(_moments, reorder=True)(values.reshape(len(values), -1), valid.ravel(), sums)
    return sums[0], sums[1]


def blank(
    values: np.ndarray,  # (C, H, W), contiguous, changed in place
    valid: np.ndarray,  # (H, W) bool
    fill: float,  # what is put into every band where there is no data
) -> None:
    """Put `fill` where there is no data."""
    bits = np.dtype(f"u{values.dtype.itemsize}")
    jit(_blank)(values.reshape(len(values), -1).view(bits), valid.ravel(), values.dtype.type(fill).view(bits))


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


def _moments(values, valid, sums):
    for c in range(len(values)):
        first, second = 0.0, 0.0
        for i in range(values.shape[1]):
            v = float(values[c, i]) if valid[i] else 0.0
            first += v
            second += v * v
        sums[0, c], sums[1, c] = first, second


def _blank(bits, valid, fill):
    for c in range(len(bits)):
        for i in range(bits.shape[1]):
            bits[c, i] = bits[c, i] if valid[i] else fill
