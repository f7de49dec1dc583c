import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glacier_fastai.core.tiling import blend_weights, starts
from glacier_fastai.errors import DataError


@given(st.data())
def test_windows_cover_the_axis_and_overlap_enough(data):
    size = data.draw(st.integers(1, 64))
    overlap = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(size, 1000))
    first = starts(length, size, overlap)
    assert first[0] == 0
    assert first[-1] + size == length
    steps = np.diff(first)
    assert (steps >= 1).all()
    assert (steps <= size - overlap).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1  # evenly spread
    if size > overlap:
        fewest = -(-(length - size) // (size - overlap)) + 1
        assert len(first) == fewest


@pytest.mark.parametrize(
    ("args", "message"),
    [((10, 20), "do not fit into 10 px"), ((20, 10, 10), "overlap 10 px"), ((20, 10, -1), "overlap -1 px")],
)
def test_impossible_windows_are_refused(args, message):
    with pytest.raises(DataError, match=message):
        starts(*args)


@given(st.data())
def test_blending_weights_are_symmetric_and_leave_no_gap_where_windows_overlap(data):
    size = data.draw(st.integers(1, 64))
    overlap = data.draw(st.integers(0, size - 1))
    w = blend_weights(size, overlap)
    assert w.shape == (size,)
    assert w.dtype == np.float32
    assert np.allclose(w, w[::-1])
    cut = overlap // 4
    assert (w[:cut] == 0).all() and (w[cut : size - cut] > 0).all()
    middle = w[overlap : size - overlap]
    assert (middle == 1).all()
    if 2 * overlap <= size:  # else a third window lies there, too
        assert np.allclose(w[size - overlap :] + w[:overlap], 1, atol=1e-6)
