"""The ice of a map, given to glaciers: each pixel to one, the same in whatever strips the map comes."""

from __future__ import annotations

import math

import numpy as np

from ..errors import DataError
from .jit import jit

__all__ = ["BUFFER", "BUFFER_PIXELS", "NO_DATA", "WITHOUT", "default_reach", "glacier_margin", "nearest_glacier"]

BUFFER, BUFFER_PIXELS = 60.0, 2
"""How far around its outline ice belongs to a glacier by default, metres, and the least of it in pixels."""

WITHOUT, NO_DATA = -1, -2
"""Codes beside 0, no ice, and glaciers from 1 on: ice of no glacier, and pixels that were not seen."""

CLOSE = 1 + 1e-9  # squared distances that differ by less are equal but for rounding


def default_reach(
    pixel: float,  # side of a pixel, metres
) -> float:
    """Return how far around its outline ice belongs to a glacier by default, metres.

    >>> default_reach(30), default_reach(250)
    (60.0, 500.0)
    """
    return max(BUFFER, BUFFER_PIXELS * float(pixel))


def nearest_glacier(
    outlines: np.ndarray,  # (n, W) int32, glaciers 1, 2, ... within their outlines, elsewhere 0
    ice: np.ndarray,  # (h, W) bool, rows of the map
    top: int,  # row of `outlines` on which the first of `ice` lies
    sides: tuple[float, float],  # height and width of a pixel, any unit of length
    reach: float,  # how far from an outline ice belongs to it, in that unit
) -> np.ndarray:
    """Return the glacier of each pixel of ice, int32 `(h, W)`: `WITHOUT` one, and 0 where there is no ice.

    Within an outline it is the outline's, elsewhere the one whose outline has the nearest pixel, from centre to centre,
    at most `reach` away; of equals the lowest number. `outlines` needs ``reach / sides[0]`` rows more on either side.

    >>> nearest_glacier(np.array([[2, 0, 0, 1, 0, 0]], np.int32), np.ones((1, 6), bool), 0, (30, 30), 30)
    array([[ 2,  2,  1,  1,  1, -1]], dtype=int32)

    Raises:
        DataError: Shapes or types do not fit, or a length is not positive and finite.
    """
    if outlines.dtype != np.int32 or ice.dtype != bool or outlines.ndim != 2 or ice.ndim != 2:
        raise DataError(f"outlines {outlines.dtype}, ice {ice.dtype}: use int32 and bool, (rows, columns) each")
    if outlines.shape[1] != ice.shape[1] or not 0 <= top <= len(outlines) - len(ice):
        raise DataError(f"outlines {outlines.shape} do not hold ice {ice.shape} from row {top} on")
    if not (min(sides) > 0 and math.isfinite(max(sides)) and 0 <= reach < math.inf):
        raise DataError(f"pixels of {sides} and a reach of {reach:g}: use positive numbers")
    return jit(_nearest)(outlines, ice, top, float(sides[0]), float(sides[1]), float(reach))


def _nearest(outlines, ice, top, high, wide, reach):
    (h, w), n = ice.shape, len(outlines)
    found = np.zeros((h, w), np.int32)
    rows = np.full((2, h, w), -1, np.int32)  # of the nearest outline above and below in the same column
    for side in range(2):
        last = np.full(w, -1, np.int32)
        for k in range(n):
            r = n - 1 - k if side else k
            for c in range(w):
                if outlines[r, c] > 0:
                    last[c] = r
                if 0 <= r - top < h:
                    rows[side, r - top, c] = last[c]
    for i in range(h):
        for c in range(w):
            if not ice[i, c]:
                continue
            own, best, d = outlines[top + i, c], reach * reach * CLOSE, 0
            while outlines[top + i, c] == 0 and d < w and (d * wide) ** 2 <= best:
                for at in (c - d, c + d):
                    for side in range(2):
                        if not 0 <= at < w or rows[side, i, at] < 0:
                            continue
                        r = rows[side, i, at]
                        away = (d * wide) ** 2 + ((r - top - i) * high) ** 2
                        if own > 0 and best / CLOSE**2 <= away <= best:
                            own = min(own, outlines[r, at])
                        elif away <= best:
                            own, best = outlines[r, at], away * CLOSE
                d += 1
            found[i, c] = own if own > 0 else WITHOUT
    return found


def glacier_margin(
    labels: np.ndarray,  # (h, W) int32, glaciers from 1 on, 0 no ice, others unknown
    n: int,  # glaciers
    sides: tuple[float, float],  # height and width of a pixel
) -> np.ndarray:
    """Return the length of each glacier's margin, along the sides of pixels, float64 `(n,)`.

    That is its border with ground that was seen and is no ice; divides between glaciers are none.

    >>> glacier_margin(np.array([[0, 1, 2, -2]], np.int32), 2, (30, 30))
    array([30.,  0.])
    """
    out = np.zeros(n + 1)
    for a, b, side in ((labels[:, :-1], labels[:, 1:], sides[0]), (labels[:-1], labels[1:], sides[1])):
        for own, other in ((a, b), (b, a)):
            out += np.bincount(own[(own > 0) & (other == 0)], minlength=n + 1) * float(side)
    return out[1:]
