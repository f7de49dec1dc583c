"""Intervals of glacier areas that hold the true ones as often as they say, fitted to out-of-fold predictions."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..errors import DataError

__all__ = ["LEAST", "area_interval", "fit_area_interval", "matched_area"]

LEAST = 10
"""Pixels of a mapped glacier whose area gets an interval: about 0.01 km2 of Landsat, the least that RGI lists."""

POWER = 0.75  # of doubt, to which area errors are proportional; see `_scale`


def matched_area(
    regions: np.ndarray,  # (H, W) integer, mapped glaciers 1 to n, elsewhere 0
    truth: np.ndarray,  # (H, W) bool, ice
    known: np.ndarray,  # (H, W) bool, where `truth` is known
    reach: int = 10,  # pixels
) -> np.ndarray:
    """Return the true ice that belongs to each mapped glacier, known pixels, int64 `(n,)`.

    That is the ice inside it, and the ice outside all of them that is nearest to it (any one of equals) and at most
    `reach` away.

    >>> regions = np.array([[1, 1, 0, 0, 2]])
    >>> matched_area(regions, regions < 2, np.ones_like(regions, bool), reach=1)
    array([3, 1])

    Raises:
        DataError: Shapes or types do not fit, or a number is negative.
    """
    if not regions.shape == truth.shape == known.shape or regions.ndim != 2:
        raise DataError(f"regions {regions.shape}, truth {truth.shape} and known {known.shape}: use one shape (H, W)")
    if regions.dtype.kind not in "iu" or truth.dtype != bool or known.dtype != bool:
        raise DataError(f"{regions.dtype} regions, {truth.dtype} truth, {known.dtype} known: use integers, bool, bool")
    if regions.min(initial=0) < 0 or reach < 0:
        raise DataError("regions and reach: use numbers of at least 0")
    n = int(regions.max(initial=0))
    if n == 0:
        return np.zeros(0, np.int64)
    ice, free = truth & known, regions == 0
    at = np.argwhere(ice & free).T
    nearest = distance_transform_edt(free, return_distances=False, return_indices=True)[:, *at]
    nearest = nearest[:, ((nearest - at) ** 2).sum(0) <= reach**2]
    owners = np.concatenate([regions[ice & ~free], regions[*nearest]])
    return np.bincount(owners.astype(np.int64), minlength=n + 1)[1:]


def fit_area_interval(
    area: np.ndarray,  # (n,), mapped glaciers, pixels
    doubt: np.ndarray,  # (n,), sum of 1 - p over the pixels of each, p the calibrated probability of ice
    truth: np.ndarray,  # (n,), true areas, as from `matched_area`
    coverage: float = 0.9,  # share of the glaciers whose interval is to hold the true area
) -> tuple[float, float]:
    """Return low and high for `area_interval`, by split conformal prediction; both of one sign if the map is biased.

    They are order statistics of the signed errors ``(truth - area) / (1 + doubt)^0.75``: with a = 1 - coverage, the
    floor((n + 1) a / 2)-th from either end. If the glaciers and a new one are exchangeable, its true area lies beneath
    the interval with a probability of at most a / 2, and above it likewise, whatever the errors' distribution.
    Glaciers of one scene share their errors: many scenes are worth more than many glaciers.

    >>> low, high = fit_area_interval(np.full(19, 100), np.zeros(19), np.arange(91, 110))
    >>> low, high
    (-9.0, 9.0)

    Sources: Vovk et al. 2005, doi 10.1007/b106715; Romano et al. 2019, arXiv 1905.03222 (either side on its own);
    Lei et al. 2018, doi 10.1080/01621459.2017.1307116 (errors in units of a scale).

    Raises:
        DataError: The input does not fit, or there are too few glaciers: 2 / a - 1 are needed, 19 for 0.9.
    """
    area, scale = _scale(area, doubt)
    truth = np.asarray(truth, np.float64)
    if area.ndim != 1 or truth.shape != area.shape or not (np.isfinite(truth) & (truth >= 0)).all():
        raise DataError(f"areas {area.shape} and true areas {truth.shape}: use one number of at least 0 per glacier")
    if not 0 < coverage < 1:
        raise DataError(f"coverage {coverage:g}: use a number between 0 and 1")
    tail, n, rounding = (1 - coverage) / 2, len(area), 1e-9
    rank = math.floor((n + 1) * tail + rounding)
    if rank < 1:
        needed = math.ceil(1 / tail - 1 - rounding)
        raise DataError(f"{n} glaciers: intervals that cover {coverage:g} need at least {needed}")
    errors = np.sort((truth - area) / scale)
    return float(errors[rank - 1]), float(errors[n - rank])


def area_interval(
    area: np.ndarray,  # (n,), mapped glaciers, pixels
    doubt: np.ndarray,  # (n,), as in `fit_area_interval`
    low: float,  # as from `fit_area_interval`
    high: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper ends of the areas, pixels, float64 `(n,)` each.

    An interval always holds the area mapped, even if all errors had one sign: it gets wider by that, never narrower.

    >>> area_interval(np.array([100, 4]), np.array([0, 0]), -9.0, 9.0)
    (array([91.,  0.]), array([109.,  13.]))

    Raises:
        DataError: The input does not fit, or `low` is above `high`.
    """
    area, scale = _scale(area, doubt)
    if not -math.inf < low <= high < math.inf:
        raise DataError(f"interval from {low:g} to {high:g}: use two finite numbers in ascending order")
    return (area + min(low, 0.0) * scale).clip(min=0), area + max(high, 0.0) * scale


def _scale(area: np.ndarray, doubt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check `area` and `doubt` and return the areas, and what their errors are proportional to.

    Doubt sums up wherever the map may be wrong, along outlines as on debris. Did every pixel err on its own, errors
    would grow as its square root; did a glacier err as a whole, as doubt itself. With a power between the two, small
    and large glaciers are covered alike where errors reach some pixels to a glacier's width. Analysts, too, differ by
    area^0.7 (Pfeffer et al. 2014, doi 10.3189/2014JoG13J176).
    """
    area, doubt = np.asarray(area, np.float64), np.asarray(doubt, np.float64)
    if area.shape != doubt.shape:
        raise DataError(f"areas {area.shape} and doubts {doubt.shape} differ in shape")
    if not ((area >= 0) & (area < np.inf) & (doubt > -1) & (doubt < area + 1)).all():  # 1 for rounding
        raise DataError("areas and doubts: use pixels, with a doubt of 0 to the area")
    return area, (1 + doubt.clip(min=0)) ** POWER
