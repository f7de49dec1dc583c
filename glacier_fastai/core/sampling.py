"""Values of rasters between their pixels, NaN where there are none."""

from __future__ import annotations

import numpy as np

__all__ = ["sample"]

PAD = 3  # of what is looked at beyond the edge


def sample(
    values: np.ndarray,  # (C, H, W), NaN where there is no value
    col: np.ndarray,  # (h, w), where values are wanted: whole numbers are centres of pixels
    row: np.ndarray,  # (h, w)
    cubic: bool = False,  # by 4 x 4 pixels where all of them have a value
) -> np.ndarray:
    """Return values at places, float64 `(C, h, w)`, NaN where pixels without value have more than half of the weight.

    Bilinear, by those of the 4 pixels around that have a value; or by cubic convolution (Keys 1981, doi
    10.1109/TASSP.1981.1163711), whose slopes have no jumps.

    >>> sample(np.array([[[0.0, 2.0, np.nan]]]), np.array([[0.5, 1.2, 1.8]]), np.zeros((1, 3)))
    array([[[ 1.,  2., nan]]])
    """
    height, width = values.shape[1:]
    flat = np.pad(values, ((0, 0), (PAD, PAD), (PAD, PAD)), constant_values=np.nan).reshape(len(values), -1)
    (left, right), (top, down) = (_split(at, length) for at, length in ((col, width), (row, height)))
    first = (top + PAD) * (width + 2 * PAD) + left + PAD
    total, weight = np.zeros((2, len(values), *col.shape))
    for i, across in ((0, 1 - down), (1, down)):
        for j, along in ((0, 1 - right), (1, right)):
            found, share = flat[:, first + i * (width + 2 * PAD) + j], across * along
            known = np.isfinite(found)
            total += np.where(known, found * share, 0)
            weight += known * share
    with np.errstate(invalid="ignore"):
        out = np.where(weight > 0.5 - 1e-6, total / weight, np.nan)
    if cubic:
        total[:] = 0
        for i, across in zip(range(-1, 3), _keys(down), strict=True):
            for j, along in zip(range(-1, 3), _keys(right), strict=True):
                total += flat[:, first + i * (width + 2 * PAD) + j] * (across * along)
        out = np.where(np.isnan(total), out, total)
    return out


def _split(at: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole part of positions along an axis, beyond its ends at most two, and what is left."""
    at = np.where(np.isfinite(at), at, -2.0).clip(-2, length)
    whole = np.floor(at)
    return whole.astype(np.int64), at - whole


def _keys(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the weights of 4 pixels in a row, of which the second lies `t` before."""
    return (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
