import numpy as np
import pytest

from glacier_fastai.core.strata import count_errors, edge_distance, patch_size

# two patches of glacier that touch by a corner only, and two of background, parted by pixels without data
MASK = np.array(
    [
        [0, 0, 0, 255, 1],
        [0, 0, 255, 255, 1],
        [0, 0, 255, 1, 255],
        [255, 255, 0, 255, 255],
    ],
    np.uint8,
)


def test_distance_is_to_the_nearest_pixel_of_another_class_and_nodata_makes_no_edge():
    r = np.sqrt
    np.testing.assert_allclose(
        edge_distance(MASK),
        [
            [r(13), r(8), 2, 0, 2],
            [r(10), r(5), 0, 0, r(5)],
            [3, 2, 0, r(2), 0],
            [0, 0, r(2), 0, 0],
        ],
    )


def test_distance_equals_a_search_over_all_pixels():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 3, 255], (17, 23), p=[0.5, 0.2, 0.04, 0.01, 0.25]).astype(np.uint8)
    found = edge_distance(mask)
    known = np.argwhere(mask != 255)
    for at in known:
        others = known[mask[tuple(known.T)] != mask[tuple(at)]]
        assert found[tuple(at)] == pytest.approx(np.hypot(*(others - at).T).min())
    assert (found[mask == 255] == 0).all()


@pytest.mark.parametrize("mask, expected", [([[2, 2, 255]], [[np.inf, np.inf, 0]]), ([[255, 255]], [[0, 0]])])
def test_without_another_class_there_is_no_edge(mask, expected):
    np.testing.assert_array_equal(edge_distance(np.array(mask, np.uint8)), expected)


def test_ice_of_unknown_kind_has_no_edge_with_glacier_or_debris():
    mask = np.array([[254, 1, 254, 2, 2, 0, 254, 3]], np.uint8)
    np.testing.assert_array_equal(edge_distance(mask), [[5, 2, 3, 2, 1, 1, 1, 1]])
    np.testing.assert_array_equal(patch_size(mask), [[1, 1, 1, 2, 2, 1, 1, 1]])


def test_patches_are_of_one_class_touch_along_their_sides_and_end_at_nodata():
    np.testing.assert_array_equal(
        patch_size(MASK),
        [
            [7, 7, 7, 0, 2],
            [7, 7, 0, 0, 2],
            [7, 7, 0, 1, 0],
            [0, 0, 1, 0, 0],
        ],
    )
    np.testing.assert_array_equal(patch_size(np.full((2, 2), 255, np.uint8)), np.zeros((2, 2)))


def test_bins_hold_their_upper_edge_and_the_outer_ones_what_lies_beyond():
    truth = np.array([[0, 1, 1, 2, 255, 1, 254]], np.uint8)
    values = np.array([[-5.0, 1.0, 1.5, 2.0, 1.0, 99.0, 2.0]])
    wrong = np.array([[True, False, True, False, True, True, True]])
    pixels, errors = count_errors(values, wrong, truth, (0, 1, 2, 3))
    np.testing.assert_array_equal(pixels, [[1, 1, 0, 0, 0], [0, 1, 1, 0, 1], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(errors, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 1, 0, 0, 0]])
