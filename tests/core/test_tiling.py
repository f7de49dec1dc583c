import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glacier_fastai.core.tiling import blend_window, starts
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


@given(st.integers(1, 64), st.integers(1, 64))
def test_blending_weights_are_positive_and_symmetric(height, width):
    w = blend_window(height, width)
    assert w.shape == (height, width)
    assert (w > 0).all()
    assert np.allclose(w, w[::-1])
    assert np.allclose(w, w[:, ::-1])
    assert np.allclose(w, blend_window(width, height).T)
