import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from scipy.special import ndtr

from glacier_fastai.core import areas
from glacier_fastai.core.areas import (
    area_interval,
    fit_area_interval,
    fit_glacier_interval,
    glacier_interval,
    matched_area,
    outlined_area,
)
from glacier_fastai.errors import DataError


def slow_matched(regions, truth, known, reach):
    """Least and most ice of each glacier, as pixels at one distance from two may go to either."""
    n = regions.max()
    least, most = np.zeros(n, int), np.zeros(n, int)
    for r, c in np.argwhere(truth & known):
        away = [((np.argwhere(regions == k + 1) - (r, c)) ** 2).sum(1).min() for k in range(n)]
        nearest = np.flatnonzero(away == np.min(away)) if np.min(away) <= reach**2 else []
        most[nearest] += 1
        least[nearest] += len(nearest) == 1
    return least, most


@pytest.mark.parametrize("reach", [0, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_matched_area_equals_a_slow_plain_one(seed, reach):
    g = np.random.default_rng(seed)
    latent = gaussian_filter(g.standard_normal((40, 32)), 3)
    regions, n = label(latent > 0.1)
    truth = latent + gaussian_filter(g.standard_normal((40, 32)), 2) * 0.7 > 0.05
    known = g.random((40, 32)) > 0.1
    assert n > 2
    found = matched_area(regions, truth, known, reach)
    least, most = slow_matched(regions, truth, known, reach)
    assert (found >= least).all()
    assert (found <= most).all()
    assert found.sum() >= (truth & known & (regions > 0)).sum()
    if reach == 0:
        np.testing.assert_array_equal(found, np.bincount(regions[truth & known], minlength=n + 1)[1:])
    small = matched_area(regions.astype(np.uint8), truth, known, reach)
    np.testing.assert_array_equal(small, found)
    changed = truth ^ ~known
    np.testing.assert_array_equal(matched_area(regions, changed, known, reach), found)


def test_matched_area_by_hand():
    regions = np.array([[1, 0, 0, 0, 0, 2, 0, 0, 0]])
    truth = np.ones((1, 9), bool)
    known = np.arange(9)[None] != 6
    assert matched_area(regions, truth, known, 2).tolist() == [3, 4]
    assert matched_area(regions, ~truth, known).tolist() == [0, 0]
    assert matched_area(0 * regions, truth, known).shape == (0,)


def test_coverage_is_exact_for_exchangeable_glaciers():
    g = np.random.default_rng(0)
    area, covered = np.full(39, 100.0), []
    for _ in range(2000):
        low, high = fit_area_interval(area, 0 * area, 95 + 15 * g.random(39))
        covered.append((min(high, 10) - max(low, -5)) / 15)
    # 39 glaciers: the second from either end, so 1 - 2 * 2 / 40
    assert np.mean(covered) == pytest.approx(0.9, abs=4 * np.std(covered) / math.sqrt(2000))


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 3), (0.8, 9), (0.9, 19), (0.95, 39), (0.99, 199)])
def test_too_few_glaciers_are_refused(coverage, needed):
    area = np.arange(needed, dtype=float) + 10
    truth = area + np.linspace(-3, 5, needed)
    assert fit_area_interval(area, 0 * area, truth, coverage) == (-3, 5)
    message = f"{needed - 1} glaciers: intervals that cover {coverage} need at least {needed}"
    with pytest.raises(DataError, match=message):
        fit_area_interval(area[1:], 0 * area[1:], truth[1:], coverage)


def test_intervals_hold_the_area_and_no_negative_one():
    area, doubt = np.array([4.0, 100.0, 1e6]), np.array([4.0, 0.0, 1e4])
    scale = (1 + doubt) ** 0.75
    lower, upper = area_interval(area, doubt, -2.0, 3.0)
    np.testing.assert_allclose(lower, np.maximum(area - 2 * scale, 0))
    np.testing.assert_allclose(upper, area + 3 * scale)
    assert lower[0] == 0
    lower, upper = area_interval(area, doubt, 1.0, 3.0)  # of a map that misses ice
    np.testing.assert_array_equal(lower, area)
    np.testing.assert_allclose(upper, area + 3 * scale)
    np.testing.assert_array_equal(area_interval(area, doubt, -3.0, -1.0)[1], area)


def field(g: np.random.Generator, size: int, reach: float) -> np.ndarray:
    """Standard normal noise, correlated over `reach` pixels."""
    dot = np.zeros((size, size))
    dot[0, 0] = 1
    kernel = gaussian_filter(dot, reach, mode="wrap")
    return gaussian_filter(g.standard_normal((size, size)), reach, mode="wrap") / np.sqrt((kernel**2).sum())


def made_up_glaciers(reaches: tuple[int, ...], scenes: int = 300, size: int = 128) -> list[np.ndarray]:
    """Per scene the glaciers of at least 11 pixels: area, doubt, true, expected and pixel-wise variance of the area.

    The model sees the latent field but not the noise, so its probabilities are calibrated by construction.
    """
    out = []
    for seed in range(scenes):
        g = np.random.default_rng(seed)
        latent = field(g, size, g.choice([8, 16, 24])) - g.uniform(0, 1)
        noise = g.uniform(0.05, 0.3)
        truth = latent + noise * field(g, size, g.choice(reaches)) > 0
        p = ndtr(latent / noise)
        regions, n = label(p > 0.5)
        if n == 0:
            continue
        true = matched_area(regions, truth, np.ones_like(truth))
        at = areas.distance_transform_edt(regions == 0, return_indices=True)
        owner = np.where(at[0] <= 10, regions[*at[1]], 0).ravel()
        sums = [np.bincount(regions.ravel(), w.ravel())[1:] for w in (np.ones_like(p), 1 - p)]
        sums += [true] + [np.bincount(owner, w.ravel(), n + 1)[1:] for w in (p, p * (1 - p))]
        table = np.stack(sums, 1)
        out.append(table[table[:, 0] >= 11])
    return out


@pytest.fixture(scope="module")
def halves():
    """Two halves of the made-up scenes, with errors that reach 4 to 16 pixels."""
    scenes = made_up_glaciers((4, 8, 16), scenes=600)
    return scenes[::2], scenes[1::2]


def held_out(halves: tuple[list, list], swap: bool) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Fit on one half; return per glacier of the other area, whether it is covered (also per scene) and log width."""
    fit, test = halves[::-1] if swap else halves
    ends = fit_area_interval(*np.concatenate(fit)[:, :3].T)
    inside, widths = [], []
    for scene in test:
        lower, upper = area_interval(scene[:, 0], scene[:, 1], *ends)
        inside.append((lower <= scene[:, 2]) & (scene[:, 2] <= upper))
        widths.append(np.log(upper - lower))
    return np.concatenate(test)[:, 0], inside, np.concatenate(widths)


@pytest.mark.slow
@pytest.mark.parametrize("swap", [False, True])
def test_intervals_cover_glaciers_of_other_scenes(halves, swap):
    _, inside, _ = held_out(halves, swap)
    n = sum(map(len, inside))
    # glaciers of one scene share their errors, and the half that was fitted on is as small as the other
    error = math.sqrt(2 * sum((x - 0.9).sum() ** 2 for x in inside)) / n
    assert error < 0.02
    assert np.concatenate(inside).mean() == pytest.approx(0.9, abs=3 * error)


def test_pixels_do_not_err_independently(halves):
    _, _, true, expected, variance = np.concatenate(halves[0] + halves[1]).T
    # as if they did: centred on the expectation, and still far too narrow
    assert (abs(true - expected) <= 1.645 * np.sqrt(variance)).mean() < 0.3


def test_small_and_large_glaciers_are_covered_alike(halves, monkeypatch):
    uneven, width = {}, {}
    for power in (0.5, 0.75, 1.0):
        monkeypatch.setattr(areas, "POWER", power)
        runs = [held_out(halves, swap) for swap in (False, True)]
        area = np.concatenate([area for area, _, _ in runs])
        inside = np.concatenate([scene for _, scenes, _ in runs for scene in scenes])
        quarter = np.searchsorted(np.quantile(area, [0.25, 0.5, 0.75]), area)
        uneven[power] = np.ptp([inside[quarter == k].mean() for k in range(4)])
        width[power] = np.mean([widths.mean() for _, _, widths in runs])
    assert uneven[0.75] < 0.06 < min(uneven[0.5], uneven[1.0])
    assert width[0.75] < min(width[0.5], width[1.0])


def test_areas_that_cannot_be_used():
    regions, ice = np.ones((4, 5), int), np.ones((4, 5), bool)
    with pytest.raises(DataError, match=r"truth \(4, 4\) and known \(4, 5\): use one shape \(H, W\)"):
        matched_area(regions, ice[:, 1:], ice)
    with pytest.raises(DataError, match="int64 regions, uint8 truth, bool known: use integers, bool, bool"):
        matched_area(regions, ice.astype(np.uint8), ice)
    for bad, reach in ((-regions, 10), (regions, -1)):
        with pytest.raises(DataError, match="regions and reach: use numbers of at least 0"):
            matched_area(bad, ice, ice, reach)
    area = np.full(30, 10.0)
    for doubt in (area + 2, -area, area * math.nan):
        with pytest.raises(DataError, match="areas and doubts: use pixels, with a doubt of 0 to the area"):
            area_interval(area, doubt, -1.0, 1.0)
    with pytest.raises(DataError, match=r"areas \(30,\) and doubts \(29,\) differ in shape"):
        fit_area_interval(area, area[1:], area)
    for truth in (area[1:], -area, area * math.inf):
        with pytest.raises(DataError, match="use one number of at least 0 per glacier"):
            fit_area_interval(area, area / 2, truth)
    for coverage in (0, 1, 90):
        with pytest.raises(DataError, match="coverage .*: use a number between 0 and 1"):
            fit_area_interval(area, area / 2, area, coverage)
    with pytest.raises(DataError, match="interval from 1 to -1: use two finite numbers in ascending order"):
        area_interval(area, area / 2, 1.0, -1.0)


def forests(g: np.random.Generator, n: int, perimeter: float = 0.6):
    """Mapped, expected and true areas of made-up glaciers: errors grow with the perimeter, doubt tells of them."""
    truth = np.exp(g.uniform(np.log(30), np.log(30_000), n))
    missed = g.beta(1, 3, n)  # share of the margin that was not mapped
    rim = np.minimum(perimeter * 4 * np.sqrt(truth) * g.uniform(1, 3, n), 0.8 * truth)
    area = np.rint(truth - missed * rim)
    expected = area + missed * rim * g.uniform(0.4, 0.8, n) + g.normal(0, 0.02, n) * area
    return area, expected.clip(1), truth


def test_intervals_by_expected_ice_cover_and_are_narrower_than_those_without():
    g, held, widths, plain = np.random.default_rng(0), [], [], []
    for _ in range(300):
        area, expected, truth = forests(g, 79)
        fit = fit_glacier_interval(area[:, None], expected[:, None], truth)
        other = fit_glacier_interval(area[:, None], area[:, None], truth)
        assert fit.slope > 0 == other.slope
        area, expected, truth = forests(g, 50)
        low, high = glacier_interval(area, expected, *fit)
        assert (low <= area).all() and (area <= high).all() and (low >= 0).all()
        held.append(((low <= truth) & (truth <= high)).mean())
        widths.append(np.median((high - low) / truth))
        low, high = glacier_interval(area, area, *other)
        plain.append(np.median((high - low) / truth))
    assert 0.89 < np.mean(held) < 0.97  # more than 0.9, as intervals are widened to hold what was mapped
    assert np.mean(widths) < 0.6 * np.mean(plain)


def test_several_outlines_of_a_glacier_count_as_one():
    g = np.random.default_rng(1)
    area, expected, truth = forests(g, 59)
    one = fit_glacier_interval(area[:, None], expected[:, None], truth)
    twice = fit_glacier_interval(np.stack([area, area], 1), np.stack([expected, expected], 1), truth)
    assert twice[:3] == pytest.approx(one[:3])
    left = np.log((1 + truth) / (1 + area)) - one.slope * np.log((1 + expected) / (1 + area))
    assert np.median(left) == pytest.approx(one.middle)
    left = np.sort((left - one.middle) * (1 + area) ** one.power)
    assert one[3:] == pytest.approx((left[2], left[-3]))  # the third from either end: 60 / 20
    assert twice[3:] == pytest.approx(one[3:])  # the fifth of twice as many, so that of the third
    wide = fit_glacier_interval(np.stack([area, area], 1), np.stack([expected, 2 * expected], 1), truth)
    every = np.log((1 + truth) / (1 + area))[:, None] - wide.slope * np.log(
        (1 + np.stack([expected, 2 * expected], 1)) / (1 + area[:, None])
    )
    every = np.sort(((every - wide.middle) * (1 + area[:, None]) ** wide.power).ravel())
    assert wide[3:] == pytest.approx((every[4], every[-5]))  # 2 x 60 / 20 - 1
    low, high = (glacier_interval(area, expected, *fit) for fit in (one, wide))  # of an outline that is too large
    assert np.median(high[1] - high[0]) > np.median(low[1] - low[0])


def test_intervals_narrow_with_area_as_errors_do():
    g = np.random.default_rng(2)
    area = np.exp(g.uniform(np.log(30), np.log(30_000), 400))
    for power in (0.0, 0.2):
        truth = area * np.exp(g.normal(0, 1, 400) * (1 + area) ** -power)
        fit = fit_glacier_interval(area[:, None], area[:, None], truth)
        assert fit.power == pytest.approx(power, abs=0.06)
        low, high = glacier_interval(area, area, *fit)
        for part in (area < 1000, area >= 1000):
            assert ((low <= truth) & (truth <= high))[part].mean() == pytest.approx(0.9, abs=0.05)


def test_a_slope_is_never_negative_nor_found_in_nothing():
    area = np.linspace(100, 200, 40)[:, None]
    truth = np.linspace(90, 260, 40)
    assert fit_glacier_interval(area, area, truth).slope == 0  # as much as was mapped
    falling = area * np.exp(-np.log((1 + truth[:, None]) / (1 + area)))
    assert fit_glacier_interval(area, falling, truth).slope == 0
    for scale in (1, 1000):  # whatever the size
        low, high = glacier_interval(np.array([0.0, 10 * scale]), np.array([0.0, 0.0]), 1.5, 0.1, 0.2, -0.5, 0.5)
        assert np.isfinite(high).all() and (low >= 0).all() and (low <= high).all()


def test_outlined_area_by_hand():
    outlines = np.zeros((6, 9), np.int32)
    outlines[1:3, 1:3], outlines[1:3, 6:8] = 1, 2
    ice, seen = outlines > 0, np.ones((6, 9), bool)
    ice[1, 1], ice[1, 3], ice[5, 0] = False, True, True
    seen[2, 2] = ice[2, 2] = False
    p = np.where(ice, 0.75, 0.25)
    area, expected = outlined_area(outlines, ice, p, seen, 1)
    assert area.tolist() == [3, 4]
    # 11 seen pixels at most one away from the first, three of them ice; 12 of the second, four of them ice
    assert expected.tolist() == [3 * 0.75 + 8 * 0.25, 4 * 0.75 + 8 * 0.25]
    assert outlined_area(0 * outlines, ice, p, seen, 1)[0].shape == (0,)
    with pytest.raises(DataError, match=r"seen \(6, 8\): use one shape \(H, W\)"):
        outlined_area(outlines, ice, p, seen[:, 1:], 1)


@pytest.mark.parametrize(("coverage", "needed"), [(0.8, 9), (0.9, 19)])
@pytest.mark.parametrize("ways", [1, 2, 3])
def test_too_few_glaciers_within_outlines_are_refused(coverage, needed, ways):
    area = np.repeat(np.arange(needed, dtype=float)[:, None] + 10, ways, 1)
    truth = area[:, 0] + 3
    fit = fit_glacier_interval(area, area, truth, coverage)
    left = (np.log((1 + truth) / (1 + area[:, 0])) - fit.middle) * (1 + area[:, 0]) ** fit.power
    assert fit.slope == 0 and (fit.low, fit.high) == pytest.approx((left.min(), left.max()))
    with pytest.raises(DataError, match=f"{needed - 1} glaciers: intervals that cover {coverage} need at least"):
        fit_glacier_interval(area[1:], area[1:], truth[1:], coverage)


def test_expected_areas_that_cannot_be_used():
    area = np.full((30, 2), 10.0)
    with pytest.raises(DataError, match=r"areas \(30, 2\) and expected areas \(30, 1\) differ in shape"):
        fit_glacier_interval(area, area[:, :1], area[:, 0])
    for bad in (-area, area * math.nan, area * math.inf):
        with pytest.raises(DataError, match="areas and expected areas: use pixels, at least 0"):
            fit_glacier_interval(area, bad, area[:, 0])
    for truth in (area, area[1:, 0], -area[:, 0], area[:, 0] * math.nan):
        with pytest.raises(DataError, match="one number per glacier"):
            fit_glacier_interval(area, area, truth)
    with pytest.raises(DataError, match="coverage 90: use a number between 0 and 1"):
        fit_glacier_interval(area, area, area[:, 0], 90)
    for slope, power, low, high in ((1, 0, 0.5, -0.5), (-1, 0, -0.5, 0.5), (1, -0.1, 0, 1), (1, 0, -math.inf, 0.5)):
        with pytest.raises(DataError, match="ascending order, and a slope and a power of at least 0"):
            glacier_interval(area[:, 0], area[:, 0], slope, 0.0, power, low, high)
