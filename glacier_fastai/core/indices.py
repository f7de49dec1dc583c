"""Indices of two bands."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["normalised_difference"]

T = TypeVar("T")  # array of NumPy or torch


def normalised_difference(
    a: T,  # any shape, NaN where there is no data
    b: T,
) -> T:
    """Return (a - b) / (a + b), 0 where both are 0; values below 0, as atmospheric correction leaves them, count as 0.

    >>> import numpy as np
    >>> normalised_difference(np.float32([3, 0, -1]), np.float32([1, 0, 2]))
    array([ 0.5,  0. , -1. ], dtype=float32)
    """
    both: tuple[Any, Any] = a, b
    x, y = (v * (v > 0) for v in both)
    return (x - y) / (x + y + (x + y == 0))
