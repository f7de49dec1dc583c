"""Values of rasters between their pixels, NaN where there are none."""

from __future__ import annotations

import math

import numpy as np

from .jit import jit

__all__ = ["sample"]


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
    out = np.full((len(values), *col.shape), np.nan)
    jit(_sample)(values.astype(np.float64), col.astype(np.float64), row.astype(np.float64), cubic, out)
    return out


def _sample(values, col, row, cubic, out):
    bands, height, width = values.shape
    along, across = np.empty(4), np.empty(4)
    for r in range(col.shape[0]):
        for c in range(col.shape[1]):
            x, y = col[r, c], row[r, c]
            if not (-1 < x < width and -1 < y < height):  # nor what is no number
                continue
            left, top = int(math.floor(x)), int(math.floor(y))
            inside = cubic and 1 <= left < width - 2 and 1 <= top < height - 2
            for weights, t in ((along, x - left), (across, y - top)):
                weights[0] = ((2 - t) * t - 1) * t / 2
                weights[1] = ((3 * t - 5) * t * t + 2) / 2
                weights[2] = ((4 - 3 * t) * t + 1) * t / 2
                weights[3] = (t - 1) * t * t / 2
            for band in range(bands):
                total = np.nan
                if inside:
                    total = 0.0
                    for i in range(4):
                        for j in range(4):
                            total += across[i] * along[j] * values[band, top + i - 1, left + j - 1]
                if np.isnan(total):
                    total, weight = 0.0, 0.0
                    for i in range(max(top, 0), min(top + 2, height)):
                        for j in range(max(left, 0), min(left + 2, width)):
                            if not np.isnan(values[band, i, j]):
                                share = (1 - abs(y - i)) * (1 - abs(x - j))
                                total += share * values[band, i, j]
                                weight += share
                    total = total / weight if weight > 0.5 - 1e-6 else np.nan
                out[band, r, c] = total
