"""Where windows lie along an axis, and how overlapping windows are weighted when they are blended."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

__all__ = ["blend_window", "starts"]


def starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Return the first pixel of each window of `size` along an axis of `length` pixels.

    The first window starts at 0 and the last one ends at `length`. Neighbours share at least `overlap` pixels; what
    does not divide evenly is spread over all of them, so no two windows are nearly the same.

    Raises:
        DataError: `size` is larger than `length`, or `overlap` is not within 0 .. size - 1.
    """
    if not 0 <= overlap < size:
        raise DataError(f"overlap {overlap} px: must be at least 0 and less than the window of {size} px")
    if size > length:
        raise DataError(f"windows of {size} px do not fit into {length} px")
    last = length - size
    n = -(-last // (size - overlap))  # steps, rounded up
    return [0] if n == 0 else [(2 * i * last + n) // (2 * n) for i in range(n + 1)]


def blend_window(height: int, width: int) -> np.ndarray:
    """Return blending weights of shape `(height, width)`, float32: a Hann window that is positive to its edge."""
    rows, cols = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width))
    return np.outer(rows, cols).astype(np.float32)
