import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from glacier_fastai.core.morphology import context, majority, postprocess, sieve
from glacier_fastai.errors import DataError

K, IGNORE = 4, 255
NONE = (0,) * K

maps = st.tuples(st.integers(1, 14), st.integers(1, 5), st.integers(2, 6)).flatmap(
    # few codes more often than all of them, so that components grow
    lambda s: arrays(np.uint8, s[:2], elements=st.sampled_from([0, 1, 2, 3, IGNORE, 0, 1][: s[2] + 1]), fill=st.just(0))
)
sizes = st.lists(st.integers(0, 6), min_size=K, max_size=K)
any_settings = st.tuples(sizes, sizes, st.integers(0, 2))


def slow_majority(classes, radius):
    out = classes.copy()
    for r, c in zip(*np.nonzero(classes != IGNORE), strict=True):
        window = classes[max(0, r - radius) : r + radius + 1, max(0, c - radius) : c + radius + 1]
        counts = [(window == k).sum() for k in range(K)]
        out[r, c] = max(range(K), key=lambda k: (counts[k], k == classes[r, c], -k))
    return out


def components(classes, k):
    """Pixels of each component of a class, and the pixels that border it, one per pair; None stands for the edge."""
    labels, n = ndimage.label(classes == k)
    for i in range(1, n + 1):
        pixels = [tuple(p) for p in np.argwhere(labels == i).tolist()]
        border = []
        for r, c in pixels:
            for p in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                inside = 0 <= p[0] < classes.shape[0] and 0 <= p[1] < classes.shape[1]
                if p not in pixels:
                    border.append(p if inside else None)
        yield pixels, border


def slow_sieve(classes, min_size, fill_holes):
    all_of = [(k, *c) for k in range(1, K) for c in components(classes, k)]
    gone = {p for k, pixels, _ in all_of if len(pixels) < min_size[k] for p in pixels}
    out = classes.copy()
    for k, pixels, border in all_of:
        if len(pixels) < min_size[k]:
            votes = [classes[p] for p in border if p and p not in gone and classes[p] != IGNORE]
            for p in pixels:
                out[p] = max(range(K), key=lambda k: (votes.count(k), -k))
    filled = out.copy()
    for pixels, border in components(out, 0):
        if all(p and out[p] != IGNORE for p in border):
            votes = [out[p] for p in border]
            into = max(range(1, K), key=lambda k: (votes.count(k), -k))
            if len(pixels) < fill_holes[into]:
                for p in pixels:
                    filled[p] = into
    return filled


@settings(max_examples=300, deadline=None)
@given(maps, any_settings)
def test_equals_a_slow_plain_version(classes, how):
    before = classes.copy()
    min_size, fill_holes, smooth = how
    np.testing.assert_array_equal(majority(classes, smooth), slow_majority(classes, smooth))
    np.testing.assert_array_equal(sieve(classes, min_size, fill_holes), slow_sieve(classes, min_size, fill_holes))
    want = slow_sieve(slow_majority(classes, smooth), min_size, fill_holes)
    np.testing.assert_array_equal(postprocess(classes, *how), want)
    np.testing.assert_array_equal(classes, before)


@pytest.mark.parametrize("patch", [1, 4, 9])
def test_equals_a_slow_plain_version_on_maps_like_real_ones(patch):
    g = np.random.default_rng(patch)
    classes = g.choice(np.array([0, 0, 1, 1, 2, 3, IGNORE], np.uint8), (60 // patch + 1, 70 // patch + 1))
    classes = classes.repeat(patch, 0).repeat(patch, 1)[:60, :70].copy()
    noise = g.random(classes.shape) < 0.1
    classes[noise] = g.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), noise.sum())
    how = (0, 30, 20, 10), (0, 40, 9, 3)
    for smooth in (0, 1, 3):
        want = slow_sieve(slow_majority(classes, smooth), *how)
        np.testing.assert_array_equal(postprocess(classes, *how, smooth), want)


# Strips


def in_strips(classes, how, cuts, rows):
    """Process each strip between `cuts` with so many rows beside it."""
    ends = sorted({0, len(classes), *(c for c in cuts if c < len(classes))})
    out = []
    for top, end in zip(ends, ends[1:], strict=False):
        first = max(0, top - rows)
        out.append(postprocess(classes[first : end + rows], *how)[top - first : end - first])
    return np.concatenate(out)


@settings(max_examples=200, deadline=None)
@given(maps, any_settings, st.lists(st.integers(1, 13), max_size=5))
def test_strips_with_context_are_the_whole(classes, how, cuts):
    np.testing.assert_array_equal(in_strips(classes, how, cuts, context(*how)), postprocess(classes, *how))


@pytest.mark.parametrize("step", ["specks", "holes", "smooth", "all"])
def test_strips_with_context_are_the_whole_where_much_depends_on_far_rows(step):
    """In one of ten to a hundred of these maps, one row of context less is not enough."""
    g = np.random.default_rng(0)
    for _ in range(200):
        codes = [0, 1] if step == "holes" else [0, 0, 1, 2, 3, IGNORE]
        columns = [g.choice(codes, 16).repeat(g.integers(1, 4, 16))[:16] for _ in range(g.integers(1, 4))]
        classes = np.pad(np.stack(columns, 1).astype(np.uint8), 1 if step == "holes" else 0, constant_values=1)
        min_size = g.integers(0, 5, K) if step in ("specks", "all") else NONE
        fill_holes = g.integers(0, 5, K) if step in ("holes", "all") else NONE
        how = min_size, fill_holes, int(g.integers(0, 3)) if step in ("smooth", "all") else 0
        np.testing.assert_array_equal(in_strips(classes, how, range(18), context(*how)), postprocess(classes, *how))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(8, 40))
@example(seed=2, patch=2, height=8)
def test_strips_of_a_long_map_are_the_whole(seed, patch, height):
    g = np.random.default_rng(seed)
    classes = g.choice(np.array([0, 0, 1, 2, 3, IGNORE], np.uint8), (300 // patch, 12)).repeat(patch, 0)
    how = (0, 12, 7, 5), (0, 9, 14, 3), 1
    got = in_strips(classes, how, range(height, len(classes), height), context(*how))
    np.testing.assert_array_equal(got, postprocess(classes, *how))


def test_context_is_what_it_says():
    assert context() == context((9, 1, 0, 1), (9, 0, 1, 1)) == 0
    assert context((0, 100, 80, 30), (0, 50, 20, 0), 2) == 99 + 79 + 49 + 2
    assert context((0, 5, 0, 0), NONE) == 4


@pytest.mark.parametrize(
    ("how", "classes"),
    [
        # a speck joins a component that is just large enough to stay
        (((0, 0, 3, 4), NONE, 0), np.array([[2, 2, 3, 3, 3, 3]], np.uint8).T),
        # a hole of which the last pixel closes it
        ((NONE, (0, 5, 0, 0), 0), np.pad(np.zeros((4, 1), np.uint8), 1, constant_values=1)),
        # a window that ends where the majority turns
        ((NONE, NONE, 2), np.array([[0, 1, 1]], np.uint8).T),
    ],
)
def test_one_row_less_is_not_enough(how, classes):
    whole = postprocess(classes, *how)
    wrong = [
        cut for cut in range(1, len(classes)) if (in_strips(classes, how, [cut], context(*how) - 1) != whole).any()
    ]
    assert wrong
    np.testing.assert_array_equal(in_strips(classes, how, wrong, context(*how)), whole)


# What is promised


def with_patch(around, patch, rows, cols, size=24, extra=0):
    """A map of one class with a patch of another, rows x cols and so many pixels beside it."""
    out = np.full((size, size), around, np.uint8)
    out[6 : 6 + rows, 6 : 6 + cols] = patch
    out[6 + rows, 6 : 6 + extra] = patch
    return out


@pytest.mark.parametrize("around", [0, 1])
def test_99_pixels_go_and_100_stay(around):
    for patch in (2, 3):
        stays, goes = with_patch(around, patch, 10, 10), with_patch(around, patch, 9, 10, extra=9)
        assert ((stays == patch).sum(), (goes == patch).sum()) == (100, 99)
        how = (0, 100, 100, 100), NONE
        np.testing.assert_array_equal(sieve(stays, *how), stays)
        np.testing.assert_array_equal(sieve(goes, *how), np.full_like(goes, around))
        assert (sieve(goes, tuple(99 if k == patch else 100 for k in range(K)), NONE) == goes).all()


def test_components_that_wind_are_found_whole():
    spiral = np.zeros((41, 41), np.uint8)
    for k in range(0, 20, 2):
        spiral[k, max(k - 1, 0) : 41 - k] = spiral[k : 41 - k, 40 - k] = spiral[40 - k, k : 41 - k] = 1
        spiral[k + 2 : 41 - k, k] = 1
    comb = np.zeros((30, 61), np.uint8)
    comb[:, ::2] = comb[-1] = 1
    for classes in (spiral, spiral.T, comb, comb[::-1], comb.T):
        n = int(classes.sum())
        np.testing.assert_array_equal(sieve(classes, (0, n, 0, 0), NONE), classes)
        assert not sieve(classes, (0, n + 1, 0, 0), NONE).any()


def test_a_hole_of_49_pixels_is_filled_and_one_of_50_is_not():
    for around in (1, 2, 3):
        stays, goes = with_patch(around, 0, 5, 10), with_patch(around, 0, 4, 10, extra=9)
        fill = tuple(50 if k == around else 0 for k in range(K))
        np.testing.assert_array_equal(sieve(stays, NONE, fill), stays)
        np.testing.assert_array_equal(sieve(goes, NONE, fill), np.full_like(goes, around))
        np.testing.assert_array_equal(sieve(goes, NONE, tuple(0 if k == around else 99 for k in range(K))), goes)


def test_a_speck_of_debris_in_a_glacier_becomes_glacier_and_one_beside_it_background():
    classes = np.zeros((9, 20), np.uint8)
    classes[:, :12] = 1
    classes[4, 5] = classes[4, 12] = 2
    out = sieve(classes, (0, 5, 5, 5), NONE)
    assert out[4, 5] == 1
    assert out[4, 12] == 0  # one pair with the glacier, three with the background
    assert (out != classes).sum() == 2


def test_specks_do_not_vote_on_specks():
    classes = np.array([[2, 3, 2], [3, 2, 3], [1, 1, 1]], np.uint8)
    assert (sieve(classes, (0, 3, 2, 2), NONE)[1] == 1).all()
    assert (sieve(classes, (0, 4, 2, 2), NONE) == 0).all()


def test_corners_do_not_touch():
    classes = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.uint8)
    assert sieve(classes, (0, 5, 0, 0), NONE).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    ring = np.array([[2, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.uint8)
    assert (sieve(ring, NONE, (0, 2, 0, 0)) == np.where(ring == 0, 1, ring)).all()  # two holes of one pixel


def test_ties_go_to_the_lower_code_and_the_own_class():
    assert sieve(np.array([[1, 3, 2]], np.uint8), (0, 1, 1, 9), NONE).tolist() == [[1, 1, 2]]
    assert sieve(np.array([[0, 3, 1]], np.uint8), (0, 1, 1, 9), NONE).tolist() == [[0, 0, 1]]
    hole = np.array([[3, 3, 2], [3, 0, 2], [3, 2, 2]], np.uint8)
    assert sieve(hole, NONE, (0, 0, 2, 2))[1, 1] == 2
    assert majority(np.array([[3, 2], [1, 2], [3, 1]], np.uint8), 9).tolist() == [[3, 2], [1, 2], [3, 1]]
    assert majority(np.array([[3, 1, 0, 1, 3]], np.uint8), 9).tolist() == [[3, 1, 1, 1, 3]]


@pytest.mark.parametrize("where", ["edge", "nodata", "corner of nodata"])
def test_holes_at_the_edge_or_at_nodata_stay(where):
    classes = np.ones((7, 7), np.uint8)
    classes[2:4, 3] = 0
    assert (sieve(classes, NONE, (0, 9, 9, 9)) == 1).all()
    if where == "edge":
        classes[:2, 3] = 0
    elif where == "nodata":
        classes[3, 4] = IGNORE
    else:
        classes[4, 4] = IGNORE  # corners do not touch
        assert (sieve(classes, NONE, (0, 9, 9, 9)) == np.where(classes == 0, 1, classes)).all()
        return
    np.testing.assert_array_equal(sieve(classes, NONE, (0, 9, 9, 9)), classes)


def test_pixels_that_no_class_borders_become_background():
    classes = np.full((5, 5), IGNORE, np.uint8)
    classes[2, 2] = 1
    assert sieve(classes, (0, 2, 0, 0), NONE)[2, 2] == 0
    assert (sieve(np.full((3, 3), 2, np.uint8), (0, 0, 10, 0), NONE) == 0).all()


@settings(max_examples=100, deadline=None)
@given(maps, any_settings)
def test_nodata_stays_and_is_never_counted(classes, how):
    out = postprocess(classes, *how)
    assert out.dtype == np.uint8
    assert out.shape == classes.shape
    np.testing.assert_array_equal(out == IGNORE, classes == IGNORE)
    # a frame of nodata is a frame of nothing
    framed = postprocess(np.pad(classes, 3, constant_values=IGNORE), *how)
    np.testing.assert_array_equal(framed[3:-3, 3:-3], out)


@settings(max_examples=100, deadline=None)
@given(maps, sizes, sizes)
def test_sieving_twice_changes_nothing_more_and_leaves_no_speck(classes, min_size, fill_holes):
    once = sieve(classes, min_size, fill_holes)
    np.testing.assert_array_equal(sieve(once, min_size, fill_holes), once)
    for k in range(1, K):
        assert all(len(pixels) >= min_size[k] for pixels, _ in components(once, k))


def test_smoothing_comes_first_for_it_breaks_thin_parts_off():
    classes = np.zeros((9, 20), np.uint8)
    classes[2:7, 1:6] = classes[3:6, 9:12] = 1
    classes[4, 6:9] = 1  # a bridge of one pixel
    how = (0, 12, 0, 0), NONE
    broken = majority(sieve(classes, *how), 1)
    assert min(len(pixels) for pixels, _ in components(broken, 1)) < 12
    assert [len(pixels) >= 12 for pixels, _ in components(postprocess(classes, *how, 1), 1)] == [True]


def test_nothing_to_do_is_a_copy():
    classes = np.array([[0, 1], [2, IGNORE]], np.uint8)
    for out in (postprocess(classes), majority(classes, 0), sieve(classes, NONE, NONE)):
        np.testing.assert_array_equal(out, classes)
        assert not np.shares_memory(out, classes)
    for shape in ((0, 4), (4, 0)):
        assert postprocess(np.empty(shape, np.uint8), (0, 9, 9, 9), (0, 9, 9, 9), 2).shape == shape
    assert (postprocess(np.full((4, 4), IGNORE, np.uint8), (0, 9, 9, 9), (0, 9, 9, 9), 2) == IGNORE).all()


def test_windows_of_any_radius():
    g = np.random.default_rng(0)
    classes = g.choice(np.array([0, 1, 1, 2, 3, IGNORE], np.uint8), (200, 40))
    for radius in (3, 30, 127):
        np.testing.assert_array_equal(majority(classes, radius), slow_majority(classes, radius))
    assert (majority(np.ones((300, 300), np.uint8), 127) == 1).all()  # no count overflows into the next class


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": np.zeros((3, 3), np.int64)}, r"class map int64 \(3, 3\): use uint8 \(H, W\)"),
        ({"classes": np.zeros((1, 3, 3), np.uint8)}, r"class map uint8 \(1, 3, 3\)"),
        ({"classes": np.full((3, 3), 85, np.uint8)}, "class map has code 85: use 0 to 3, 255 where there is no data"),
        ({"min_size": (0, 1, 2)}, r"min_size \[0, 1, 2\]: use a number of pixels, 0 or more, for each of background"),
        ({"fill_holes": (0, 1, 2, -1)}, "fill_holes .*: use a number of pixels"),
        ({"min_size": (0, 1, 2, 0.5)}, "min_size .*: use a number of pixels"),
        ({"smooth": -1}, "radius of -1 px: use 0 to 127"),
        ({"smooth": 128}, "radius of 128 px"),
        ({"smooth": 1.5}, "radius of 1.5 px"),
    ],
)
def test_refusals(change, message):
    how = {"classes": np.zeros((3, 3), np.uint8), "min_size": NONE, "fill_holes": NONE, "smooth": 0} | change
    with pytest.raises(DataError, match=message):
        postprocess(**how)
    if "classes" not in change:
        del how["classes"]
        with pytest.raises(DataError, match=message):
            context(**how)
