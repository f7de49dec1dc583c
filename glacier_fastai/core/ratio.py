"""Band ratios, by which inventories map ice: the index, and the thresholds that tell ice from the rest best."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

__all__ = ["best_thresholds", "contrast", "counts"]

Values = TypeVar("Values", np.ndarray, Tensor)
LEAST = 1e-4  # reflectance that whatever is darker counts as: correction leaves 0 and less in shade
BRIGHT = 1.6  # reflectance up to which thresholds against shade are tried, what Landsat's numbers can hold
BINS = (1023, 319)  # of contrast from -1 to 1, and of reflectance from 0: their edges are the thresholds tried


def contrast(
    a: Values,  # reflectance
    b: Values,  # reflectance, of the same shape
) -> Values:
    """Return `(a - b) / (a + b)`, -1 to 1, which grows with the ratio a / b: NDSI, if they are green and SWIR1.

    A threshold t of the ratio is one of `(t - 1) / (t + 1)`, so that ratios and NDSI are one formula.

    >>> contrast(np.array([0.6, 0.1, -0.01]), np.array([0.2, 0.4, 0.0])).round(3)
    array([ 0.5, -0.6,  0. ])

    Source: Hall et al. 1995, doi 10.1016/0034-4257(95)00137-P; Paul et al. 2013, doi 10.3189/2013AoG63A296.
    """
    a, b = a.clip(LEAST), b.clip(LEAST)
    return (a - b) / (a + b)


def counts(
    index: np.ndarray,  # (N,) contrast
    light: np.ndarray,  # (N,) reflectance of the band that tells shade
    ice: np.ndarray,  # (N,) bool, the truth
) -> np.ndarray:
    """Return pixels by truth (rest, ice), bin of the contrast and bin of the reflectance, int64 `(2, *BINS)`."""
    rows = ((index.clip(-1, 1) + 1) * (BINS[0] / 2)).astype(np.int64).clip(0, BINS[0] - 1)
    cols = (light.clip(0, BRIGHT) * (BINS[1] / BRIGHT)).astype(np.int64).clip(0, BINS[1] - 1)
    flat = (ice.astype(np.int64) * BINS[0] + rows) * BINS[1] + cols
    return np.bincount(flat, minlength=2 * BINS[0] * BINS[1]).reshape(2, *BINS)


def best_thresholds(
    found: np.ndarray,  # (2, *BINS) as from `counts`
) -> tuple[float, float, np.ndarray]:
    """Return the thresholds of contrast and reflectance whose map has the best MCC, and its `(2, 2)` matrix.

    Ice is what reaches both. Of thresholds that are equally good those in the middle are taken, or one that all reach.

    >>> index, light, ice = np.array([0.9, 0.8, 0.1]), np.array([0.9, 0.8, 0.9]), np.array([True, True, False])
    >>> *thresholds, matrix = best_thresholds(counts(index, light, ice))
    >>> [round(t, 1) for t in thresholds], matrix.tolist()
    ([0.5, 0.0], [[1, 0], [0, 2]])
    """
    wrong, hits = found[:, ::-1, ::-1].cumsum(1).cumsum(2)[:, ::-1, ::-1].astype(np.float64)
    rest, ice = wrong[0, 0], hits[0, 0]
    called = wrong + hits
    spread = np.sqrt(ice * rest) * np.sqrt(called * (rest + ice - called))
    mcc = np.divide(hits * rest - wrong * ice, spread, out=np.zeros_like(spread), where=spread > 0)
    best = mcc == mcc.max()
    i = _middle(best.any(1))
    j = _middle(best[i])
    matrix = np.array([[rest - wrong[i, j], wrong[i, j]], [ice - hits[i, j], hits[i, j]]]).astype(np.int64)
    return 2 * i / BINS[0] - 1, BRIGHT * j / BINS[1], matrix


def _middle(best: np.ndarray) -> int:
    """Return the middle one of the places that are best, or the first of all if it is one of them."""
    return 0 if best[0] else int(np.flatnonzero(best)[np.count_nonzero(best) // 2])
