"""Where windows lie along an axis, and how overlapping windows are weighted when they are blended."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

__all__ = ["blend_weights", "spread", "starts"]


def starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Return the first pixel of each window of `size` along an axis of `length` pixels.

    The first window starts at 0 and the last one ends at `length`. Neighbours share at least `overlap` pixels; what
    does not divide evenly is spread over all of them, so no two windows are nearly the same.

    >>> starts(1000, 512, 128)
    [0, 244, 488]

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


def spread(length: int, size: int, many: int) -> list[int]:
    """Return the first pixels of at most `many` windows of `size`, spread evenly from one end of an axis to the other.

    >>> spread(100, 10, 4), spread(8, 10, 4)
    ([0, 30, 60, 90], [0])
    """
    return sorted({round(k * max(length - size, 0) / (many - 1)) for k in range(many)})


def blend_weights(size: int, overlap: int) -> np.ndarray:
    """Return blending weights along a side of a window, float32 `(size,)`: a Hann ramp where windows overlap, else 1.

    The outermost quarter of the overlap has no weight at all, so what a model says there, where it sees least, is left
    out. Neighbours that share `overlap` pixels or more never leave a gap.

    >>> blend_weights(6, 4).round(2)
    array([0.  , 0.15, 0.85, 0.85, 0.15, 0.  ], dtype=float32)
    """
    cut = overlap // 4
    ramp = overlap - 2 * cut
    at = (np.arange(size) - cut + 0.5) / ramp if ramp else np.ones(size)
    weights = np.sin(np.pi / 2 * np.clip(at, 0, 1)) ** 2
    return np.minimum(weights, weights[::-1]).astype(np.float32)
