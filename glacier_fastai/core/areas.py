"""Intervals of glacier areas that hold the true ones as often as they say, fitted to out-of-fold predictions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..errors import DataError
from .glaciers import nearest_glacier

__all__ = [
    "LEAST",
    "GlacierFit",
    "area_interval",
    "fit_area_interval",
    "fit_glacier_interval",
    "glacier_interval",
    "matched_area",
    "outlined_area",
]

LEAST = 10
"""Pixels of a mapped glacier whose area gets an interval: about 0.01 km2 of Landsat, the least that RGI lists."""

POWER = 0.75  # of doubt, to which area errors are proportional; see `_scale`
STEEPEST = 5.0  # slope of `fit_glacier_interval`; on real ground it was 1.4 to 1.9
EXACT = 0.02  # relative error under which one glacier is no better than another
ROUNDING = 1e-9


class GlacierFit(NamedTuple):
    """What `glacier_interval` takes; from `fit_glacier_interval`."""

    slope: float
    middle: float
    power: float
    low: float
    high: float


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
    tail, n = _tail(coverage), len(area)
    _enough(n, tail, coverage)
    rank = math.floor((n + 1) * tail + ROUNDING)
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


def outlined_area(
    outlines: np.ndarray,  # (H, W) int32, glaciers 1 to n within their outlines, elsewhere 0
    ice: np.ndarray,  # (H, W) bool, mapped as ice
    probability: np.ndarray,  # (H, W) float32, calibrated probability of ice
    seen: np.ndarray,  # (H, W) bool
    reach: float,  # pixels around an outline whose ice belongs to it, as `nearest_glacier`
) -> tuple[np.ndarray, np.ndarray]:
    """Return mapped and expected area of each glacier within its outline and the buffer, pixels, float64 `(n,)` each.

    The expected area is the sum of the probabilities of all pixels that are seen there, mapped as ice or not.

    >>> outlines, ice = np.array([[0, 1, 1, 0, 0]], np.int32), np.array([[False, True, False, False, True]])
    >>> outlined_area(outlines, ice, np.array([[0.5, 1, 0.25, 0, 1]]), np.ones_like(ice), 1)
    (array([1.]), array([1.75]))

    Raises:
        DataError: Shapes or types do not fit.
    """
    if not outlines.shape == ice.shape == probability.shape == seen.shape:
        raise DataError(
            f"outlines {outlines.shape}, ice {ice.shape}, probability {probability.shape} and seen {seen.shape}: use "
            "one shape (H, W)"
        )
    own, n = nearest_glacier(outlines, seen, 0, (1, 1), reach).clip(min=0).ravel(), int(outlines.max(initial=0))
    mapped, expected = (np.bincount(own, w.ravel(), n + 1)[1:] for w in (ice, probability))
    return mapped, expected


def fit_glacier_interval(
    area: np.ndarray,  # (n, m), mapped ice of each glacier, pixels, by m ways to draw its outline
    expected: np.ndarray,  # (n, m), its expected area, as from `outlined_area`
    truth: np.ndarray,  # (n,), true areas
    coverage: float = 0.9,  # share of the glaciers whose interval is to hold the true area
) -> GlacierFit:
    """Return the numbers of `glacier_interval`, by split conformal prediction.

    A glacier of which much was missed has doubtful ice within its outline: the line that leads from the logarithm of
    expected over mapped area to that of true over mapped area (least squares; its height is the median) is the middle.
    What is left falls with a power of the area, another line in logarithms. Low and high are order statistics of what
    is left in units of that. Those of the m outlines of a glacier are alike, so they count as one: with K glaciers and
    a = 1 - coverage, it is the (floor(m (K + 1) a / 2) - m + 1)-th from either end. If the glaciers and a new one are
    exchangeable, its true area lies beneath the interval of an outline, drawn by chance of the m, with a probability of
    at most a / 2, and above it likewise; but for both lines, which are fitted to the same glaciers.

    >>> area = np.full((19, 1), 100.0)
    >>> fit = fit_glacier_interval(area, area + np.arange(19)[:, None], np.full(19, 101.0))
    >>> fit.slope, round(fit.middle, 2), fit.power, fit.low, fit.high
    (0.0, 0.01, 0.0, 0.0, 0.0)

    Sources: Lee, Barber and Willett 2023, arXiv 2306.06342 (several scores of one group); else as `fit_area_interval`.

    Raises:
        DataError: The input does not fit, or there are too few glaciers: 2 / a - 1 are needed, 19 for 0.9.
    """
    ratio = _log_ratio(area, expected)
    truth = np.asarray(truth, np.float64)
    if ratio.ndim != 2 or truth.shape != ratio.shape[:1] or not (np.isfinite(truth) & (truth >= 0)).all():
        raise DataError(f"areas {ratio.shape} and true areas {truth.shape}: use (n, m) and one number per glacier")
    (n, m), tail = ratio.shape, _tail(coverage)
    _enough(n, tail, coverage)
    size = np.log1p(np.asarray(area, np.float64))
    error = np.log1p(truth)[:, None] - size
    slope = min(max(0.0, _slope(ratio, error)), STEEPEST)  # more ice expected is never less ice
    left = error - slope * ratio
    middle = float(np.median(left))
    left = left - middle
    power = min(max(0.0, -_slope(size, np.log(abs(left) + EXACT))), 0.5)  # 0.5: as if every pixel erred on its own
    left = np.sort((left * np.exp(power * size)).ravel())
    rank = math.floor(m * (n + 1) * tail + ROUNDING) - (m - 1)
    return GlacierFit(slope, middle, power, float(left[rank - 1]), float(left[-rank]))


def glacier_interval(
    area: np.ndarray,  # (n,), mapped ice of each glacier, pixels
    expected: np.ndarray,  # (n,), its expected area, as from `outlined_area`
    slope: float,  # as from `fit_glacier_interval`
    middle: float,
    power: float,
    low: float,
    high: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper ends of the areas, pixels, float64 `(n,)` each.

    They are ``area (expected / area)^slope exp(middle + low / area^power)``, and so with `high`, of pixels plus one
    each. As of `area_interval`, an interval always holds the area mapped.

    >>> low, high = glacier_interval(np.array([99.0]), np.array([199.0]), 1.0, 0.0, 0.0, -0.5, 0.25)
    >>> low.round(), high.round()
    (array([99.]), array([256.]))

    Raises:
        DataError: The input does not fit, `slope` or `power` are negative, or `low` is above `high`.
    """
    ratio, area = _log_ratio(area, expected), np.asarray(area, np.float64)
    if not (-math.inf < low <= high < math.inf and 0 <= slope < math.inf and 0 <= power < math.inf):
        raise DataError(
            f"interval from {low:g} to {high:g}, slope {slope:g}, power {power:g}: use two finite numbers in ascending "
            "order, and a slope and a power of at least 0"
        )
    spread = (1 + area) ** -power
    lower, upper = ((1 + area) * np.exp(slope * ratio + middle + end * spread) - 1 for end in (low, high))
    return lower.clip(0, area), np.maximum(upper, area)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of a line by least squares; 0 where all x are one."""
    x = x - x.mean()
    return float((x * y).sum() / max((x**2).sum(), ROUNDING))


def _log_ratio(area: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Check mapped and expected areas and return the logarithm of their ratio, of pixels and one more."""
    area, expected = np.asarray(area, np.float64), np.asarray(expected, np.float64)
    if area.shape != expected.shape:
        raise DataError(f"areas {area.shape} and expected areas {expected.shape} differ in shape")
    if not ((area >= 0) & (area < np.inf) & (expected >= 0) & (expected < np.inf)).all():
        raise DataError("areas and expected areas: use pixels, at least 0")
    return np.log((1 + expected) / (1 + area))


def _tail(coverage: float) -> float:
    if not 0 < coverage < 1:
        raise DataError(f"coverage {coverage:g}: use a number between 0 and 1")
    return (1 - coverage) / 2


def _enough(n: int, tail: float, coverage: float) -> None:
    if math.floor((n + 1) * tail + ROUNDING) < 1:
        needed = math.ceil(1 / tail - 1 - ROUNDING)
        raise DataError(f"{n} glaciers: intervals that cover {coverage:g} need at least {needed}")


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
