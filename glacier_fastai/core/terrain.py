"""Slope, aspect and curvature of a height model.

Heights are float `(H, W)`, metres, NaN where there is none, rows from north to south. Pixels need not be square: `dx`
and `dy` are their sides in metres, numbers or `(H, 1)` by row. What looks at a pixel without height, or beyond the
edge, is NaN.
"""

from __future__ import annotations

import numpy as np

__all__ = ["REACH", "aspect", "curvature", "slope"]

REACH = 2
"""Pixels around one that are looked at, at most."""

Side = float | np.ndarray


def slope(
    height: np.ndarray,  # (H, W), m
    dx: Side,  # pixel's side along a row, m
    dy: Side,  # pixel's side along a column, m
) -> np.ndarray:
    """Return the slope in degrees, float64 `(H, W)`, by the 3 x 3 pixels of Horn 1981 (doi 10.1109/PROC.1981.11918).

    >>> z = np.arange(9.0).reshape(3, 3) % 3  # rises to the east by 1 m
    >>> slope(z, 1, 1).round(3)[1]
    array([nan, 45., nan])
    """
    return np.degrees(np.arctan(np.hypot(*_gradient(height, dx, dy))))


def aspect(
    height: np.ndarray,  # (H, W), m
    dx: Side,  # pixel's side along a row, m
    dy: Side,  # pixel's side along a column, m
) -> tuple[np.ndarray, np.ndarray]:
    """Return sine and cosine of the direction of steepest descent, clockwise from north, float64 `(H, W)` each.

    By the gradient of `slope`. On flat ground, which faces nowhere, both are 0.

    >>> z = np.arange(9.0).reshape(3, 3) % 3
    >>> [float(v[1, 1]) for v in aspect(z, 1, 1)]  # falls to the west
    [-1.0, 0.0]
    """
    east, north = _gradient(height, dx, dy)
    steep = np.hypot(east, north)
    steep[steep == 0] = 1
    return 0 - east / steep, 0 - north / steep


def curvature(
    height: np.ndarray,  # (H, W), m
    dx: Side,  # pixel's side along a row, m
    dy: Side,  # pixel's side along a column, m
) -> np.ndarray:
    """Return -(z_xx + z_yy) in 1/m, float64 `(H, W)`: positive where the ground bulges, as on ridges, negative in troughs.

    This is the curvature of Zevenbergen and Thorne 1987 (doi 10.1002/esp.3290120107), the sum of theirs along and
    across the slope, so it needs no direction and holds on flat ground. The derivatives are those of the cubic fitted
    to 5 x 5 pixels of Florinsky 2009 (doi 10.1080/13658810802527499), in which noise of heights weighs less than a tenth of
    what it does in differences of neighbours.

    >>> y, x = np.mgrid[:5, :5] - 2.0
    >>> float(curvature(x**2 / 200 + y**2 / 400, 1, 1)[2, 2].round(9))
    -0.015
    """  # noqa: E501
    out = np.full(height.shape, np.nan)
    h, w = (n - 2 * REACH for n in height.shape)
    if min(h, w) > 0:
        z, fives = height.astype(np.float64), range(5)
        down, across = np.zeros((h, w + 4)), np.zeros((h + 4, w))
        for i in fives:
            down += z[i : i + h]
            across += z[:, i : i + w]
        z_xx, z_yy = np.zeros((h, w)), np.zeros((h, w))
        for i, k in zip(fives, (2, -1, -2, -1, 2), strict=True):
            z_xx += k * down[:, i : i + w]
            z_yy += k * across[i : i + h]
        z_xx, z_yy = z_xx / (35 * _inner(dx, REACH) ** 2), z_yy / (35 * _inner(dy, REACH) ** 2)
        out[REACH:-REACH, REACH:-REACH] = 0 - (z_xx + z_yy)
    return out


def _gradient(height: np.ndarray, dx: Side, dy: Side) -> tuple[np.ndarray, np.ndarray]:
    """Return the rise to the east and to the north, m per m."""
    z = height.astype(np.float64)
    east, north = (np.full(z.shape, np.nan) for _ in range(2))
    if min(z.shape) > 2:
        own = 0 * z[1:-1, 1:-1]  # it has no weight, but without it there is nothing
        down = z[:-2] + 2 * z[1:-1] + z[2:]
        across = z[:, :-2] + 2 * z[:, 1:-1] + z[:, 2:]
        east[1:-1, 1:-1] = (down[:, 2:] - down[:, :-2]) / (8 * _inner(dx, 1)) + own
        north[1:-1, 1:-1] = (across[:-2] - across[2:]) / (8 * _inner(dy, 1)) + own
    return east, north


def _inner(side: Side, reach: int) -> Side:
    return side[reach:-reach] if isinstance(side, np.ndarray) and side.ndim else side
