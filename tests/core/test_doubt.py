import numpy as np
import pytest

from glacier_fastai.core.doubt import BLOCK, DoubtSums
from glacier_fastai.errors import DataError


def summed(doubt, known, step):
    sums = DoubtSums(*doubt.shape)
    for row in range(0, len(doubt), step):
        sums.add(row, doubt[row : row + step], known[row : row + step])
    return sums


def made_up(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((height, width)) ** 4, rng.random((height, width)) > 0.2


@pytest.mark.parametrize("shape", [(100, 70), (16, 16), (5, 90), (33, 3)])
def test_places_are_those_of_a_plain_search(shape):
    doubt, known = made_up(*shape)
    lost, side = np.where(known, doubt, 0), 2 * BLOCK
    rows, cols = (range(0, max(1, -(-n // BLOCK) - 1) * BLOCK, BLOCK) for n in shape)
    boxes = [(lost[r : r + side, c : c + side].sum(), r, c) for r in rows for c in cols]
    wanted, left = [], {(r, c): wrong for wrong, r, c in boxes}
    while left and max(left.values()) > 0:
        row, col = max(left, key=left.get)
        wanted.append((next(w for w, r, c in boxes if (r, c) == (row, col)), row, col))
        for r, c in [*left]:
            away = max(abs(row - r), abs(col - c))
            if away < side:
                del left[r, c]
            elif away < 2 * side:
                left[r, c] /= 2
    found = summed(doubt, known, 7).places(10_000)
    assert list(zip(found.row, found.col, strict=True)) == [(r, c) for _, r, c in wanted]
    np.testing.assert_allclose(found.wrong, [w for w, _, _ in wanted], rtol=1e-5)
    assert found.known.tolist() == [known[r : r + side, c : c + side].sum() for _, r, c in wanted]


def test_it_does_not_matter_how_a_map_is_cut():
    doubt, known = made_up(90, 64)
    whole, cut = (summed(doubt, known, step).places(6) for step in (90, 13))
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_there_are_no_places_where_nothing_is_in_doubt_or_known():
    doubt, known = made_up(40, 40)
    assert len(summed(doubt, np.zeros_like(known), 40).places(3).row) == 0
    assert len(summed(np.zeros_like(doubt), known, 40).places(3).row) == 0


def test_strips_of_other_widths_are_refused():
    with pytest.raises(DataError, match=r"doubt \(2, 9\) and known \(2, 9\): use \(rows, 8\)"):
        DoubtSums(8, 8).add(0, np.zeros((2, 9)), np.zeros((2, 9), bool))
