import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from glacier_fastai.core.divides import LEAST, PARAMETERS, _grow, _without_slivers, divide, margin
from glacier_fastai.core.jit import jit
from glacier_fastai.errors import DataError

SIDES = 30.0, 30.0
KM = 1000 / 30  # pixels


def places(height=170, width=170):
    """Rows and columns from the middle, km."""
    row, col = np.mgrid[:height, :width].astype(float)
    return (row - (height - 1) / 2) / KM, (col - (width - 1) / 2) / KM


def divided(ice, heights, sides=SIDES, unseen=None):
    unseen = np.zeros(ice.shape, bool) if unseen is None else unseen
    glaciers, deep = divide(ice, heights.astype(float), unseen, sides)
    assert glaciers.dtype == np.int32 and ((glaciers > 0) == ice).all()  # each pixel of ice once
    first = [np.flatnonzero(glaciers == k)[0] for k in range(1, glaciers.max() + 1)]
    assert first == sorted(first)  # in reading order, none left out
    assert all(label(glaciers == k)[1] == 1 for k in range(1, glaciers.max() + 1))
    return glaciers, deep


@pytest.mark.parametrize("angle", [0, 20, 45, 70, 120])
def test_a_ridge_divides_ice_wherever_it_points(angle):
    y, x = places()
    u = np.radians(angle)
    across, along = x * np.cos(u) + y * np.sin(u), y * np.cos(u) - x * np.sin(u)
    ice = np.hypot(x, y) < 2
    glaciers, deep = divided(ice, 4000 - 300 * abs(across) - 20 * along)
    assert glaciers.max() == 2 and deep == 0
    for k in (1, 2):
        side = np.sign(across[glaciers == k])
        assert (side == np.sign(side.sum())).mean() > 0.985


def test_two_cones_are_divided_at_their_saddle():
    y, x = places(130, 220)
    away = [np.hypot(x - at, y) for at in (-1.2, 1.2)]
    ice = np.minimum(*away) < 1.6
    glaciers, _ = divided(ice, 4000 - 400 * np.minimum(*away) - 150 * y)
    west, east = (glaciers[65, 110 + sign * 40] for sign in (-1, 1))  # their tops
    assert west != east and glaciers.max() == 3  # and what flows off the saddle uphill, between them
    for own, side in ((west, x < 0), (east, x > 0)):
        assert side[glaciers == own].mean() > 0.99 and (glaciers == own)[ice & side & (y > -0.5)].mean() > 0.9


def test_a_dome_without_lowest_places_and_a_bowl_without_outlets_stay_whole():
    y, x = places()
    for heights in (4000 - 200 * np.hypot(x, y), 4000 + 400 * np.hypot(x, y)):
        assert divided(np.hypot(x, y) < 2, heights)[0].max() == 1


def fan(between, bump):
    """A slope whose lower margin has two lowest places so far apart, km, with a swell in between, metres."""
    y, x = places(200, 260)
    ice = (abs(x) < 3.2) & (abs(y) < 1.5)
    return ice, 4000 - 150 * y + bump * np.cos(2 * np.pi * x / between) + 40 * abs(x) * (abs(x) > between)


def test_sheds_whose_outlets_are_close_are_one_glacier():
    ice, heights = fan(0.5, 30)
    assert divided(ice, heights)[0].max() == 1
    ice, heights = fan(3, 60)
    glaciers, _ = divided(ice, heights)
    assert glaciers.max() == 2 and set(glaciers[100, [80, 180]]) == {1, 2}


def test_swells_of_less_than_the_elevation_models_error_divide_nothing():
    ice, heights = fan(3, 9)  # 18 m
    assert divided(ice, heights)[0].max() == 1
    ice, heights = fan(3, 14)
    assert divided(ice, heights)[0].max() == 2


def test_where_the_map_ends_nothing_is_joined():
    ice, heights = fan(0.8, 60)
    assert divided(ice, heights)[0].max() == 1
    y, _ = places(*ice.shape)
    glaciers, _ = divided(ice, heights, unseen=(y > 1.5))
    assert glaciers.max() > 3


def test_a_moraine_keeps_no_ice_back():
    y, x = places()
    ice = (abs(x) < 2) & (abs(y) < 1)
    dammed = 4000 - 300 * abs(x) + 90 * (~ice & (x < 0.1))  # all around, higher than the ice beside it
    assert divided(ice, dammed)[0].max() == 2


def test_tongues_beside_each_other_are_two_glaciers():
    y, x = places()
    tongues = (abs(abs(x) - 0.35) < 0.2) & (y > -1.1) & (y < 2)
    basin = (abs(x) < 0.55) & (y > -2) & (y < -1)
    glaciers, _ = divided(tongues | basin, 4000 - 200 * y - 150 * np.minimum(abs(x), 0.3) * (y < -0.9))
    assert glaciers.max() == 2  # though one ends within 500 m of the other's ice, beyond rock
    assert len(np.unique(glaciers[tongues & (x < 0)])) == len(np.unique(glaciers[tongues & (x > 0)])) == 1


def test_ice_drains_across_rock_but_glaciers_do_not():
    y, x = places()
    heights = 4000 - 200 * y
    ring = (np.hypot(x, y) < 2) & (np.hypot(x, y) > 0.6)
    assert divided(ring, heights)[0].max() == 1
    # a cirque whose water crosses rock to the tongue, and which touches it by a neck of ice beyond a ridge
    ice = (abs(x) < 0.5) & (y > -0.2) & (y < 2.2)
    cirque = (abs(x) < 0.9) & (y > -2) & (y < -0.6)
    neck = (x > 0.8) & (x < 0.9) & (y >= -0.7) & (y < 0.2) | (x >= 0.4) & (x < 0.9) & (y > 0.1) & (y < 0.2)
    assert divided(ice | cirque | neck, heights)[0].max() <= 2


def test_pixels_may_be_oblong_and_arrays_turned():
    y, x = places()
    ice, heights = np.hypot(x, y / 1.5) < 1.5, 4000 - 300 * abs(x + 0.3 * y) - 30 * y
    glaciers, _ = divided(ice, heights)
    turned, _ = divided(np.ascontiguousarray(ice.T), np.ascontiguousarray(heights.T))
    assert glaciers.max() == turned.max() == 2
    same = (glaciers == glaciers[85, 60]) == (turned.T[85, 60] == turned.T)
    assert same[ice].mean() > 0.995
    half, _ = divided(np.repeat(ice, 2, 0), np.repeat(heights, 2, 0), (15.0, 30.0))
    assert half.max() == 2 and ((half[::2] == half[170, 60]) == (glaciers == glaciers[85, 60]))[ice].mean() > 0.985


def test_nearest_heights_stand_in_for_voids():
    y, x = places()
    ice, heights = np.hypot(x, y) < 2, 4000 - 300 * abs(x) - 30 * y
    whole, _ = divided(ice, heights)
    holed = np.where(np.hypot(x - 1, y) < 0.3, np.nan, heights)
    assert (divided(ice, holed)[0] == whole)[ice].mean() > 0.99
    assert divided(ice, np.full(ice.shape, np.nan))[0].max() == 1


def test_deep_pits_are_counted():
    y, x = places()
    ice, heights = np.hypot(x, y) < 2, 4000 - 100 * y
    deep = np.hypot(x, y) < 0.4
    glaciers, count = divided(ice, heights - 200 * deep)
    assert glaciers.max() == 1 and 0.6 * deep.sum() < count <= 1.2 * deep.sum()
    assert divided(ice, heights - 10 * deep)[1] == 0


def test_small_complexes_stay_whole():
    y, x = places()
    heights = 4000 - 500 * abs(x)
    side = LEAST**0.5 / 2
    assert divided((abs(x) < 0.95 * side) & (abs(y) < 0.95 * side), heights)[0].max() == 1
    assert divided((abs(x) < 2 * side) & (abs(y) < 2 * side), heights)[0].max() == 2


def test_noise_of_any_kind_leaves_no_pixel_out_and_no_sliver():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rough = sum(np.kron(rng.normal(size=(192 // k, 192 // k)), np.ones((k, k))) * k * 8 for k in (4, 16, 48))
        ice = np.pad(rough[8:-8, 8:-8] > np.percentile(rough, 40), 8)
        ice = label(ice)[0]
        ice = ice == np.bincount(ice[ice > 0]).argmax()
        unseen = rng.random(ice.shape) < 0.1
        glaciers, _ = divided(ice, 4000 + np.where(rng.random(ice.shape) < 0.05, np.nan, rough), unseen=unseen)
        sizes = np.bincount(glaciers.ravel())[1:] * 9e-4
        assert len(sizes) == 1 or sizes.min() >= PARAMETERS["sliver_km2"]


def test_slivers_go_to_what_they_border_on_most_the_smallest_first():
    labels = np.zeros((60, 60), np.int32)
    labels[5:35, 5:55], labels[35:50, 5:55] = 1, 2
    labels[30:35, 20:30] = 3  # borders on 1 along 20 sides, on 2 along 10
    labels[40:43, 52:55] = 4
    labels[52:54, 10:20] = 5  # touches nothing
    found = _without_slivers(labels, (30, 30))
    assert found.max() == 3 and (found[30:35, 20:30] == found[10, 10]).all()
    assert (found[40:43, 52:55] == found[45, 10]).all() and found[52, 10] == 3
    thin = np.zeros((12, 80), np.int32)
    thin[2:4, 2:78], thin[4:10, 2:78] = 1, 2  # 0.14 km2, 38 times as long as wide
    assert _without_slivers(thin, (30, 30)).max() == 1
    wide = np.zeros((30, 30), np.int32)
    wide[2:14, 2:15], wide[14:28, 2:15] = 1, 2  # 0.14 km2, nearly square
    assert _without_slivers(wide, (30, 30)).max() == 2


def test_the_ways_down_a_cone_are_straight():
    y, x = places(301, 301)
    for start in (0.0, 1.0):
        away, around = np.hypot(x, y), (np.arctan2(y, x) + start) % (2 * np.pi)
        sector = (around / (2 * np.pi) * 12).astype(np.int32) + 1
        level = (-100 * away).astype(np.float32)
        down, right = np.gradient(level, *SIDES)
        inside = away < 4
        sheds = np.where(binary_dilation(inside, np.ones((3, 3))) & ~inside, sector, 0).astype(np.int32)
        area = inside | (sheds > 0)
        jit(_grow)(sheds, level, area, down, right, *SIDES)
        assert (sheds == sector)[inside & (away > 0.1)].mean() > 0.98  # by the steepest of eight neighbours: 0.88


def test_what_cannot_be_divided_is_refused():
    ice, heights = np.zeros((9, 9), bool), np.zeros((9, 9))
    unseen = ice.copy()
    with pytest.raises(DataError, match="use bool and floats"):
        divide(ice.astype(int), heights, unseen, SIDES)
    with pytest.raises(DataError, match="use bool and floats"):
        divide(ice, heights[1:], unseen, SIDES)
    with pytest.raises(DataError, match="use bool of one shape"):
        divide(ice, heights, unseen[1:], SIDES)
    with pytest.raises(DataError, match="ice reaches the edge"):
        divide(~ice, heights, unseen, SIDES)
    for sides in ((0, 30), (30, np.inf)):
        with pytest.raises(DataError, match="use positive numbers"):
            divide(ice, heights, unseen, sides)


def test_the_frame_is_as_wide_as_heights_are_smoothed():
    assert [margin((side, side)) for side in (10, 30, 90, 500)] == [12, 5, 3, 2]
