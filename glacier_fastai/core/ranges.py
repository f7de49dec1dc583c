"""How much of the values of some data lies where those of other data do, by the quantiles of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["QUANTILES", "outside", "spread", "unlike"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BEYOND, TIMES = 0.9, 1.5
"""Share beyond the central nine tenths, and ratio of the medians, of values of another kind: no season does both."""


def outside(
    known: Sequence[float],  # `QUANTILES` of the values that are known
    found: Sequence[float],  # those of the values to compare with them
) -> float:
    """Return about which share of the values found lies beyond the central nine tenths of those known.

    >>> outside([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])
    0.1
    >>> outside([1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17])
    1.0
    """
    low, high = np.interp((known[1], known[-2]), found, QUANTILES, left=0.0, right=1.0)
    return round(float(low + 1 - high), 6)


def unlike(
    known: Sequence[float],  # as in `outside`
    found: Sequence[float],
) -> bool:
    """Return whether values are of another kind: nearly all beyond those known, and larger or smaller by far.

    >>> unlike([1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17]), unlike([30, 30, 30, 31, 31, 32, 32], [40] * 7)
    (True, False)
    """
    small, large = sorted((abs(known[3]), abs(found[3])))
    return outside(known, found) > BEYOND and (large > TIMES * small or known[3] * found[3] < 0)


def spread(
    known: Sequence[float],  # as in `outside`
    found: Sequence[float],
) -> float:
    """Return how much wider the central nine tenths of the values found are than those of the known.

    >>> spread([1, 2, 3, 4, 5, 6, 7], [10, 20, 30, 40, 50, 60, 70])
    10.0
    """
    width = known[-2] - known[1]
    return (found[-2] - found[1]) / width if width > 0 else np.inf
