import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.predict.sliding import ahead, sliding_probabilities


def run(image, model, size, overlap):
    """Return the blended result, and the first row and height of each read."""
    reads, height, width = [], *image.shape[1:]

    def read(row, rows):
        reads.append((row, rows))
        return image[:, row : row + rows]

    strips = list(sliding_probabilities(read, model, height, width, size, overlap, 2))
    assert [row for row, *_ in strips] == list(np.cumsum([0] + [p.shape[1] for _, p, _ in strips])[:-1])
    probs = torch.cat([p for _, p, _ in strips], 1).numpy()
    valid = np.concatenate([v for *_, v in strips])
    assert probs.shape == (2, height, width) and valid.shape == (height, width)
    return probs, valid, reads


def pixelwise(windows):
    return [torch.from_numpy(np.stack([np.nan_to_num(w[0]), 1 - np.nan_to_num(w[0])])) for w in windows]


def blur(radius):
    """A translation-invariant model that looks `radius` pixels far, and takes what it cannot see for 0, as a U-Net."""

    def model(windows):
        kernel = torch.ones(1, 1, 2 * radius + 1, 2 * radius + 1) / (2 * radius + 1) ** 2
        for window in windows:
            x = F.conv2d(torch.from_numpy(np.ascontiguousarray(window))[None], kernel, padding=radius)[0, 0]
            yield torch.stack([x, 1 - x])

    return model


def scene(height, width, seed=0):
    return np.random.default_rng(seed).random((1, height, width)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pixelwise_model_gives_the_same_blended_as_direct_and_every_row_is_read_once(data):
    height, width, size = (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), data.draw(st.integers(2, 40)))
    overlap = data.draw(st.integers(0, size - 1))
    image = scene(height, width)
    probs, valid, reads = run(image, pixelwise, size, overlap)
    np.testing.assert_allclose(probs, pixelwise([image])[0], atol=1e-5)
    assert valid.all()
    assert [row for row, _ in reads] == [sum(n for _, n in reads[:k]) for k in range(len(reads))]
    assert sum(n for _, n in reads) == height


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_model_with_context_has_no_seams_whatever_the_size_of_windows(data):
    radius = data.draw(st.integers(1, 3))
    overlap = data.draw(st.integers(4 * radius, 20))  # a quarter of it is left out at either side
    size = data.draw(st.integers(overlap + 1, 48))
    image = scene(data.draw(st.integers(size + 1, 100)), data.draw(st.integers(size + 1, 100)))
    reflected = np.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    direct = next(blur(radius)([reflected]))[:, radius:-radius, radius:-radius]
    probs, *_ = run(image, blur(radius), size, overlap)
    np.testing.assert_allclose(probs, direct, atol=1e-5)


def test_a_scene_no_larger_than_a_window_is_seen_whole():
    image = scene(30, 41)
    for size in (41, 64):
        probs, *_ = run(image, blur(3), size, size // 4)
        np.testing.assert_array_equal(probs, next(blur(3)([image])))


def test_windows_without_data_are_left_out_and_nothing_comes_from_them():
    image = scene(120, 90)
    image[:, 20:] = np.nan
    image[:, 100:, 60:] = 0.25
    seen = []

    def model(windows):
        seen.extend(windows)
        return pixelwise(windows)

    probs, valid, _ = run(image, model, 32, 8)
    assert all((~np.isnan(w)).any() for w in seen)
    assert 0 < len(seen) < 12
    np.testing.assert_array_equal(valid, ~np.isnan(image[0]))
    np.testing.assert_allclose(probs[0][valid], image[0][valid], atol=1e-6)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
    nothing, valid, _ = run(image * np.nan, model, 32, 8)
    assert not valid.any() and (nothing == 0.5).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (100, 5)])
def test_scenes_smaller_than_a_window(shape):
    image = scene(*shape)
    sizes = set()

    def model(windows):
        sizes.update(w.shape[1:] for w in windows)
        return pixelwise(windows)

    probs, *_ = run(image, model, 32, 16)
    np.testing.assert_allclose(probs[0], image[0], atol=1e-6)
    assert sizes == {(min(shape[0], 32), min(shape[1], 32))}


def test_items_are_made_ahead_in_a_thread_and_errors_come_through():
    made, here = [], threading.get_ident()

    def items():
        try:
            for k in range(4):
                if k == 3:
                    raise ValueError("no more")
                made.append((k, threading.get_ident()))
                yield k
        finally:
            made.append("closed")

    got = ahead(items())
    assert next(got) == 0
    for _ in range(500):  # the next one is made while this one is used
        if len(made) == 2:
            break
        time.sleep(0.01)
    assert [k for k, _ in made] == [0, 1] and all(thread != here for _, thread in made)
    assert [next(got), next(got)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(got)
    made.clear()
    early = ahead(items())
    next(early)
    early.close()
    assert made[-1] == "closed"
