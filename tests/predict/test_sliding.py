import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from glacier_fastai.predict.sliding import sliding_probabilities


def run(image, model, size, overlap, batch=3):
    reads = []

    def read(row, col, height, width):
        reads.append((row, col, height, width))
        return image[:, row : row + height, col : col + width]

    out = np.full((2, *image.shape[1:]), np.nan, np.float32)
    at = 0
    for row, probs in sliding_probabilities(read, model, *image.shape[1:], size, overlap, batch):
        assert row == at
        out[:, row : row + probs.shape[1]] = probs
        at += probs.shape[1]
    assert at == image.shape[1]
    return out, reads


def pixelwise(x):
    return np.stack([x[:, 0], 1 - x[:, 0]], 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pixelwise_model_gives_the_same_blended_as_direct(data):
    height, width, size = (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), data.draw(st.integers(2, 40)))
    overlap, batch = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 5))
    image = np.random.default_rng(height * width).random((1, height, width)).astype(np.float32)
    out, _ = run(image, pixelwise, size, overlap, batch)
    np.testing.assert_allclose(out, pixelwise(image[None])[0], atol=1e-5)


def test_a_model_with_context_has_no_seams_where_its_field_allows():
    image = np.random.default_rng(0).random((1, 90, 75)).astype(np.float32)

    def blur(x):
        return np.stack([uniform_filter(w[0], 3, mode="nearest") for w in x])[:, None].repeat(2, 1)

    out, _ = run(image, blur, 32, 16)
    direct = blur(image[None])[0]
    # only the outermost pixel of a window sees too little, and there its weight is smallest
    assert np.abs(out - direct).max() < 0.02
    assert np.abs(out - direct)[:, 1:13, 1:13].max() < 1e-6


def test_a_row_of_windows_at_a_time_and_each_window_once():
    image = np.zeros((1, 200, 50), np.float32)
    _, reads = run(image, pixelwise, 50, 25)
    assert len(reads) == len(set(reads)) == 7
    assert [r[0] for r in reads] == sorted(r[0] for r in reads)


@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (100, 5)])
def test_scenes_smaller_than_a_window(shape):
    image = np.random.default_rng(1).random((1, *shape)).astype(np.float32)
    out, reads = run(image, pixelwise, 32, 16)
    np.testing.assert_allclose(out[0], image[0], atol=1e-6)
    assert {read[2:] for read in reads} == {(min(shape[0], 32), min(shape[1], 32))}
