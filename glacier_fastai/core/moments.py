"""Sums over the pixels with data, from which the statistics of any set of tiles follow exactly; and their use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # what prepares tiles needs no torch
    from torch import Tensor

__all__ = ["moments", "standardise"]


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
