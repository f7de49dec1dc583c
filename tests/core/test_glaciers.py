import numpy as np
import pytest

from glacier_fastai.core.glaciers import NO_DATA, WITHOUT, glacier_margin, nearest_glacier
from glacier_fastai.errors import DataError


def slow(outlines, ice, top, sides, reach):
    """Each pixel of ice compared with each pixel of an outline."""
    places, found = np.argwhere(outlines > 0), np.zeros(ice.shape, np.int32)
    for i, j in np.argwhere(ice):
        away = np.hypot((places[:, 0] - top - i) * sides[0], (places[:, 1] - j) * sides[1])
        near = away <= min(reach, away.min(initial=np.inf)) + 1e-6
        found[i, j] = min((outlines[tuple(p)] for p in places[near]), default=WITHOUT)
    return found


@pytest.mark.parametrize("sides", [(30.0, 30.0), (20.0, 31.5), (29.99, 29.99)])
@pytest.mark.parametrize("reach", [0, 30, 65, 400])
def test_ice_goes_to_the_nearest_outline_and_the_lowest_number_of_equals(sides, reach):
    rng = np.random.default_rng(reach)
    outlines = rng.integers(1, 5, (50, 30)).astype(np.int32) * (rng.random((50, 30)) < 0.03)
    ice = rng.random((20, 30)) < 0.5
    found = nearest_glacier(outlines.astype(np.int32), ice, 15, sides, reach)
    np.testing.assert_array_equal(found, slow(outlines, ice, 15, sides, reach))


def test_a_strip_with_as_many_rows_around_it_as_the_reach_needs_no_more():
    rng = np.random.default_rng(1)
    outlines = (rng.integers(1, 5, (90, 30)) * (rng.random((90, 30)) < 0.02)).astype(np.int32)
    ice = rng.random((90, 30)) < 0.5
    whole = nearest_glacier(outlines, ice, 0, (30, 30), 95)
    strips = [
        nearest_glacier(outlines[max(r - 3, 0) : r + 13], ice[r : r + 10], min(r, 3), (30, 30), 95)
        for r in range(0, 90, 10)
    ]
    np.testing.assert_array_equal(np.concatenate(strips), whole)


def test_without_outlines_ice_is_of_no_glacier():
    found = nearest_glacier(np.zeros((2, 3), np.int32), np.array([[True, False, True]]), 1, (1, 1), 5)
    assert found.tolist() == [[WITHOUT, 0, WITHOUT]]


def test_the_margin_has_no_divides_and_no_border_with_the_unseen():
    labels = np.zeros((6, 8), np.int32)
    labels[1:4, 1:4], labels[1:4, 4:6], labels[4, 1:4], labels[0, 1] = 1, 2, WITHOUT, NO_DATA
    margin = glacier_margin(labels, 3, (30, 20))  # height, width
    assert margin.tolist() == [2 * 20 + 3 * 30, 2 * 20 + 3 * 30 + 2 * 20, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outlines": np.zeros((2, 3))}, "use int32 and bool"),
        ({"ice": np.zeros((1, 4), bool)}, "do not hold ice"),
        ({"top": 2}, "from row 2 on"),
        ({"sides": (0.0, 1.0)}, "positive"),
        ({"reach": np.inf}, "positive"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"outlines": np.zeros((2, 3), np.int32), "ice": np.zeros((1, 3), bool), "top": 0}
    with pytest.raises(DataError, match=message):
        nearest_glacier(**{**given, "sides": (1.0, 1.0), "reach": 1.0, **change})
