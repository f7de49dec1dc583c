import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.core.folds import (
    ALWAYS,
    NEVER,
    _deal_units,
    assign_folds,
    counted_once,
    neighbours,
    touching,
    train_valid,
)
from glacier_fastai.errors import DataError


def boxes(row, col, size):
    row, col = np.asarray(row), np.asarray(col)
    return np.stack([col, row, col + size, row + size], 1).astype(float)


def counts(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1000, (n, 4))


@given(st.integers(2, 8), st.integers(0, 40), st.integers(0, 100))
def test_folds_are_a_balanced_partition(n_folds, more, seed):
    fold = assign_folds(counts(n_folds + more, seed), n_folds)
    sizes = np.bincount(fold, minlength=n_folds)
    assert sizes.sum() == n_folds + more
    assert sizes.max() - sizes.min() <= 1


def test_rare_classes_are_spread_over_the_folds():
    c = np.zeros((25, 4), np.int64)
    c[:, 0] = 1000
    c[:5, 3] = 10  # lakes in 5 tiles
    c[5:10, 2] = 100  # debris in 5 others
    fold = assign_folds(c, 5)
    assert sorted(fold[:5]) == sorted(fold[5:10]) == [0, 1, 2, 3, 4]


def test_the_same_tiles_give_the_same_folds_for_ever():
    assert assign_folds(counts(12), 3).tolist() == [2, 0, 2, 2, 1, 0, 2, 0, 1, 0, 1, 1]


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(5, 9), st.integers(5, 9), st.integers(0, 16))
def test_spatial_folds_never_touch(n_folds, rows, cols, overlap):
    size = 64
    row, col = (a.ravel() * (size - overlap) for a in np.mgrid[:rows, :cols])
    place = {"frame": ["s"] * len(row), "box": boxes(row, col, size)}
    fold = assign_folds(counts(len(row)), n_folds, spatial=True, unit=["s"] * len(row), **place)
    seen = np.zeros(len(row), int)
    for k in range(n_folds):
        train, valid = train_valid(fold, k, **place)
        seen[valid] += 1
        for i in train:
            apart_r = abs(row[valid] - row[i]) > size
            apart_c = abs(col[valid] - col[i]) > size
            assert (apart_r | apart_c).all()
    assert (seen == 1).all()


@settings(deadline=None)
@given(st.integers(2, 6), st.sets(st.integers(0, 99), min_size=10, max_size=40), st.integers(0, 100))
def test_spatial_folds_of_scattered_tiles_are_a_balanced_partition(n_folds, cells, seed):
    row, col = np.divmod(np.array(sorted(cells)), 10)
    n, place = len(row), {"frame": ["grid"] * len(row), "box": boxes(row * 8, col * 8, 8)}
    fold = assign_folds(counts(n, seed), n_folds, spatial=True, unit=["grid"] * n, **place)
    sizes = np.bincount(fold, minlength=n_folds)
    assert sizes.min() > 0
    assert sizes.max() <= 3 * n / n_folds  # no unit fills two folds, and the largest are dealt out first
    near = neighbours(**place)
    for k in range(n_folds):
        try:
            train, valid = train_valid(fold, k, **place)
        except DataError as err:
            assert "every other tile touches" in str(err)
            continue
        assert not (np.isin(near[0], train) & np.isin(near[1], valid)).any()
        assert (fold[train] != k).all() and (fold[valid] == k).all()


def test_patches_of_a_grid_stay_whole_where_they_can():
    row = [0, 0, 1, 5, 5, 9, 9, 9, 5, 0]
    col = [0, 1, 1, 5, 6, 0, 1, 2, 0, 9]
    place = {"frame": ["grid"] * 10, "box": boxes(np.array(row) * 8, np.array(col) * 8, 8)}
    fold = assign_folds(counts(10), 3, spatial=True, unit=["grid"] * 10, **place)
    for patch in ([0, 1, 2], [3, 4], [5, 6, 7]):
        assert len(set(fold[patch])) == 1
    for k in range(3):
        train, valid = train_valid(fold, k, **place)
        assert len(train) + len(valid) == 10  # nothing had to be left out


def test_rare_classes_are_spread_over_spatial_folds_too():
    c = np.zeros((20, 4), np.int64)
    c[:, 0] = 1000
    c[:5, 3] = 10  # lakes in 5 scenes of one tile
    c[5:10, 2] = 100  # debris in 5 others
    place = {"frame": [f"s{i}" for i in range(20)], "box": boxes([0] * 20, [0] * 20, 8)}
    fold = assign_folds(c, 5, spatial=True, unit=place["frame"], **place)
    assert sorted(fold[:5]) == sorted(fold[5:10]) == [0, 1, 2, 3, 4]
    assert (np.bincount(fold) == 4).all()


def test_the_same_tiles_give_the_same_spatial_folds_for_ever():
    row, col = np.divmod(np.array([0, 1, 3, 12, 13, 25, 26, 36, 44, 47, 58, 60, 61, 70, 79]), 10)
    place = {"frame": ["grid"] * 15, "box": boxes(row * 8, col * 8, 8)}
    fold = assign_folds(counts(15), 4, spatial=True, unit=["grid"] * 15, **place)
    assert fold.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 1, 1, 3, 3, 3, 2]


def test_no_fold_is_empty_however_small_a_unit_is():
    brings = np.array([[2**22, 5, 5, 5], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert sorted(_deal_units(brings, 3)) == [0, 1, 2]


def test_neighbours_are_what_a_comparison_of_all_pairs_finds():
    rng = np.random.default_rng(3)
    box = boxes(rng.integers(0, 60, 50), rng.integers(0, 60, 50), 9)
    frame = rng.choice(["a", "b", "c"], 50)
    i, j = neighbours(frame, box)
    got = np.zeros((50, 50), bool)
    got[i, j] = True
    low, high = box[:, :2], box[:, 2:]
    meets = ((low[:, None] <= high) & (low <= high[:, None])).all(2)
    np.testing.assert_array_equal(got, meets & (frame[:, None] == frame))


def test_ground_of_overlapping_tiles_counts_once():
    row, col = (p.ravel() for p in np.meshgrid(range(0, 385, 64), range(0, 385, 64), indexing="ij"))
    overlapping = counted_once(["a"] * len(row), boxes(row, col, 128))
    np.testing.assert_array_equal(overlapping, (row % 128 == 0) & (col % 128 == 0))
    ends = np.array([0, 128, 234])  # the last tile of a scene of 362 px is moved back by 22 px
    row, col = (p.ravel() for p in np.meshgrid(ends, ends, indexing="ij"))
    assert counted_once(["a"] * 9, boxes(row, col, 128)).all()
    assert counted_once(np.arange(9).astype(str), boxes(row * 0, col * 0, 128)).all()  # of nine scenes


def test_tiles_kept_aside_are_in_no_fold():
    fold = np.array([0, NEVER, ALWAYS, 0, ALWAYS])
    train, valid = train_valid(fold, 0)
    assert (train.tolist(), valid.tolist()) == ([2, 4], [0, 3])
    with pytest.raises(DataError, match="fold 1: there is fold 0 only"):
        train_valid(fold, 1)


def test_with_enough_scenes_whole_scenes_stay_together():
    scene = np.repeat(["a", "b", "c", "d"], 5)
    place = {"frame": scene, "box": boxes([0] * 20, np.arange(20) * 32, 32)}
    fold = assign_folds(counts(20), 2, spatial=True, unit=scene, **place)
    for s in "abcd":
        assert len(set(fold[scene == s])) == 1
    train, valid = train_valid(fold, 0, **place)
    assert len(train) + len(valid) == 20  # nothing had to be left out


def test_scenes_of_the_same_ground_are_never_parted():
    scene = np.repeat(["2000", "2010", "away", "far"], 3)
    left = [0, 10, 20, 5, 15, 25, 100, 110, 120, 200, 210, 220]
    place = {"frame": ["EPSG:32645"] * 12, "box": boxes([0] * 12, left, 10)}
    fold = assign_folds(counts(12), 3, spatial=True, unit=scene, **place)
    assert len(set(fold[:6])) == 1
    assert sorted({fold[0], fold[6], fold[9]}) == [0, 1, 2]


@pytest.mark.parametrize(("scenes", "tiles", "n_folds"), [(2, 3, 5), (3, 4, 5), (1, 7, 7), (4, 2, 5)])
def test_no_fold_is_empty(scenes, tiles, n_folds):
    n = scenes * tiles
    scene = np.repeat([f"s{i}" for i in range(scenes)], tiles)
    place = {"frame": scene, "box": boxes([0] * n, np.tile(np.arange(tiles) * 100, scenes), 32)}
    fold = assign_folds(counts(n), n_folds, spatial=True, unit=scene, **place)
    assert np.bincount(fold, minlength=n_folds).min() > 0


def test_touching_knows_edges_corners_and_other_frames():
    box = boxes([0, 32, 0, 65, 64], [0, 0, 0, 0, 0], 32)
    near = [touching(np.arange(5) == i, ["a", "a", "b", "a", "a"], box).tolist() for i in range(5)]
    assert near == [
        [True, True, False, False, False],
        [True, True, False, False, True],
        [False, False, True, False, False],
        [False, False, False, True, True],
        [False, True, False, True, True],
    ]


def test_tiles_of_other_frames_meet_on_the_ground():
    """Two rows of tiles, the same ground in two frames; a third frame lies nowhere."""
    left = np.arange(8) * 10
    box = np.concatenate([boxes([0] * 8, left, 10), boxes([5000] * 8, left * 3 + 7, 30), boxes([0] * 8, left, 10)])
    degrees = [shapely.box(x, 0, x + 10, 10) for x in left]
    place = {"frame": np.repeat(["a", "b", "c"], 8), "box": box, "ground": np.array([*degrees, *degrees, *[None] * 8])}
    near = touching(np.arange(24) == 0, **place)
    assert np.flatnonzero(near).tolist() == [0, 1, 8, 9]
    fold = assign_folds(counts(24), 3, spatial=True, unit=np.repeat(["x", "y", "z"], 8), **place)
    for k in range(3):
        train, valid = train_valid(fold, k, **place)
        on_ground = [set(part[part < 16] % 8) for part in (train, valid)]
        assert not on_ground[0] & on_ground[1]
    assert touching(np.arange(24) == 0, place["frame"], box)[8:].sum() == 0


def test_a_large_patch_of_two_frames_is_divided_into_runs_on_the_ground():
    left = np.arange(12) * 10
    degrees = np.array([shapely.box(x, 0, x + 10, 10) for x in left])
    frame = np.array(["a", "b"] * 6)
    box = boxes([0] * 12, np.where(frame == "a", left, 9000 - left), 10)
    place = {"frame": frame, "box": box, "ground": degrees}
    fold = assign_folds(counts(12), 3, spatial=True, unit=["s"] * 12, **place)
    assert (np.diff(fold) != 0).sum() == 2


@pytest.mark.parametrize(
    ("n", "n_folds", "message"),
    [(3, 5, "3 tiles cannot make 5 folds"), (5, 1, "at least 2 are needed"), (1, 5, "a single tile makes no folds")],
)
def test_impossible_folds_are_refused(n, n_folds, message):
    with pytest.raises(DataError, match=message):
        assign_folds(counts(n), n_folds)


def test_fold_out_of_range_and_nothing_left():
    fold = assign_folds(counts(6), 3)
    with pytest.raises(DataError, match="fold 3: there are folds 0 to 2"):
        train_valid(fold, 3)
    with pytest.raises(DataError, match="fold -1"):
        train_valid(fold, -1)
    with pytest.raises(DataError, match="every other tile touches"):
        train_valid(fold, 0, frame=["s"] * 6, box=boxes([0] * 6, [0] * 6, 8))
