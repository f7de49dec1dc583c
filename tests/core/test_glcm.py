from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import graycomatrix, graycoprops

from glacier_fastai.bands import TEXTURES
from glacier_fastai.core.glcm import DIRECTIONS, NODATA, glcm, glcm_torch, level_edges, quantize
from glacier_fastai.errors import DataError

OFFSETS = {
    "directions": DIRECTIONS,
    "far": ((0, 2), (2, 0)),
    "mixed": ((3, -2), (-1, 4), (0, -1)),
}


def image(height: int, width: int, n_levels: int, nodata: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return a slope with noise, so that near levels meet more often than far ones."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(height), np.arange(width)) * n_levels / (height + width)
    levels = np.clip(slope + rng.normal(0, n_levels / 8, slope.shape), 0, n_levels - 1).astype(np.uint8)
    levels[rng.random(levels.shape) < nodata] = NODATA
    return levels


def by_hand(levels: np.ndarray, kinds, window: int, offsets) -> np.ndarray:
    """Count the pairs of every window one by one."""
    half, (height, width) = window // 2, levels.shape
    out = np.full((len(kinds), height, width), np.nan)
    for y, x in np.argwhere(levels != NODATA):
        rows = range(max(0, y - half), min(height, y + half + 1))
        cols = range(max(0, x - half), min(width, x + half + 1))
        found = []
        for dr, dc in offsets:
            pairs = Counter()
            for r in rows:
                for c in cols:
                    if r + dr in rows and c + dc in cols:
                        i, j = int(levels[r, c]), int(levels[r + dr, c + dc])
                        if NODATA not in (i, j):
                            pairs.update([(i, j), (j, i)])
            if n := pairs.total():
                p = {ij: count / n for ij, count in pairs.items()}
                values = {
                    "contrast": sum(v * (i - j) ** 2 for (i, j), v in p.items()),
                    "dissimilarity": sum(v * abs(i - j) for (i, j), v in p.items()),
                    "homogeneity": sum(v / (1 + (i - j) ** 2) for (i, j), v in p.items()),
                    "asm": sum(v * v for v in p.values()),
                    "energy": math.sqrt(sum(v * v for v in p.values())),
                }
                found.append([values[kind] for kind in kinds])
        if found:
            out[:, y, x] = np.mean(found, axis=0)
    return out


# Against scikit-image and by hand


@pytest.mark.parametrize("n_levels", [16, 32])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("window", [7, 15])  # 15: counts no longer fit into 16 bits
def test_equals_scikit_image_in_every_window(n_levels, offsets, window):
    levels, half = image(13, 11, n_levels), window // 2
    ours = glcm(levels, n_levels, TEXTURES, window, offsets)
    for y, x in np.ndindex(levels.shape):
        part = levels[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        found = []
        for dr, dc in offsets:
            p = graycomatrix(part, [math.hypot(dr, dc)], [math.atan2(dr, dc)], n_levels, symmetric=True, normed=True)
            if p.any():
                found.append([graycoprops(p, "ASM" if kind == "asm" else kind).item() for kind in TEXTURES])
        np.testing.assert_allclose(ours[:, y, x], np.mean(found, axis=0), rtol=1e-6, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_counting_by_hand(data):
    n_levels = data.draw(st.sampled_from([2, 3, 8, 255]))
    size = st.integers(1, 9)
    levels = image(data.draw(size), data.draw(size), n_levels, data.draw(st.sampled_from([0, 0.2, 0.7])), seed=3)
    window = data.draw(st.sampled_from([3, 5, 7, 15]))
    step = st.integers(1 - window, window - 1)
    offsets = data.draw(st.lists(st.tuples(step, step).filter(any), min_size=1, max_size=3))
    kinds = data.draw(st.lists(st.sampled_from(TEXTURES), min_size=1))
    expected = by_hand(levels, kinds, window, offsets)
    np.testing.assert_allclose(glcm(levels, n_levels, kinds, window, offsets), expected, rtol=1e-6, atol=1e-6)
    found = glcm_torch(torch.from_numpy(levels)[None], n_levels, kinds, window, offsets)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("n_levels", [32, 255])
def test_torch_equals_numpy(n_levels, dtype):
    batch = np.stack([image(70, 40, n_levels, share, seed=s) for s, share in enumerate([0, 0.1, 0.9])])
    found = glcm_torch(torch.from_numpy(batch).to(dtype), n_levels, TEXTURES)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, [glcm(x, n_levels, TEXTURES) for x in batch], rtol=1e-6, atol=1e-6)


def test_is_right_far_along_a_row():
    levels = np.tile(image(9, 50, 32, 0.1), (1, 400))
    found = glcm(levels, 32, TEXTURES)
    np.testing.assert_array_equal(found[:, :, 50:100], found[:, :, -100:-50])
    np.testing.assert_allclose(found[:, :, :20], by_hand(levels[:, :23], TEXTURES, 7, DIRECTIONS)[:, :, :20], rtol=1e-6)


# What follows from the definition


@pytest.mark.parametrize(("size", "window"), [(9, 3), (40, 13), (40, 15), (216, 215)])
def test_a_constant_image_has_no_contrast(size, window):
    found = glcm(np.full((size, size), 3, np.uint8), 4, TEXTURES, window)
    for kind, plane in zip(TEXTURES, found, strict=True):
        assert (plane == (0 if kind in ("contrast", "dissimilarity") else 1)).all()


def test_the_result_turns_with_the_image():
    levels = image(30, 23, 16, 0.1)
    turned = glcm(np.rot90(levels), 16, TEXTURES)
    np.testing.assert_allclose(turned, np.rot90(glcm(levels, 16, TEXTURES), axes=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("window", [3, 7, 17])
def test_a_strip_with_a_halo_equals_the_whole(window):
    levels, half = image(210, 33, 32, 0.05), window // 2
    whole = glcm(levels, 32, TEXTURES, window)
    for top, bottom in [(0, 50), (50, 127), (127, 210)]:
        first = max(0, top - half)
        strip = glcm(levels[first : bottom + half], 32, TEXTURES, window)
        np.testing.assert_array_equal(strip[:, top - first : bottom - first], whole[:, top:bottom])


def test_threads_do_not_change_the_result(monkeypatch):
    levels = image(300, 40, 32, 0.05)
    one = glcm(levels, 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_array_equal(glcm(levels, 32), one)


def test_what_stands_under_nodata_does_not_matter():
    rng = np.random.default_rng(0)
    band, valid = rng.normal(size=(40, 30)).astype(np.float32), rng.random((40, 30)) < 0.8
    other = np.where(valid, band, np.nan)
    edges = level_edges(lambda: [band], 16)
    found = [glcm(quantize(x, edges, valid), 16, TEXTURES) for x in (band, other)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(np.isnan(found[0]), np.broadcast_to(~valid, found[0].shape))


def test_a_pixel_without_a_pair_has_no_texture():
    levels = np.full((9, 9), NODATA, np.uint8)
    levels[4, 4] = 1
    assert np.isnan(glcm(levels, 2, TEXTURES)).all()
    levels[4, 6] = 0  # a pair at (0, 2) only, in the windows of both
    found = glcm(levels, 2, ("contrast", "asm"), 5, ((0, 2), (2, 0)))
    np.testing.assert_array_equal(found[:, 4, [4, 6]], [[1, 1], [0.5, 0.5]])
    assert np.isfinite(found).sum() == 4
    assert glcm(levels[:0], 2).shape == (2, 0, 9)


# Levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64])
def test_a_level_is_the_number_of_edges_up_to_the_value(dtype):
    rng = np.random.default_rng(0)
    band = rng.integers(0, 255, (300, 70)).astype(dtype)
    edges = np.unique(rng.integers(5, 250, 20))
    valid = rng.random(band.shape) < 0.9
    found = quantize(band, edges, valid)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.where(valid, np.searchsorted(edges, band, side="right"), NODATA))
    np.testing.assert_array_equal(quantize(band, [10.5]), band > 10)


def test_what_is_not_finite_has_no_level():
    band = np.array([[np.nan, np.inf, -np.inf, 0.5, -1, 7]], np.float32)
    assert quantize(band, [0, 0.5, 1]).tolist() == [[NODATA, NODATA, NODATA, 2, 0, 3]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float32])
@pytest.mark.parametrize("levels", [2, 32, 255])
def test_edges_are_exact_quantiles_in_any_order(dtype, levels):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 5003) * (1 if np.dtype(dtype).kind == "f" else 1000)
    values = (values if np.dtype(dtype).kind in "fi" else np.abs(values)).astype(dtype)
    edges = level_edges(lambda: np.array_split(values, 7), levels)
    assert edges.dtype == np.float32
    np.testing.assert_array_equal(edges, np.sort(values)[5003 * np.arange(1, levels) // levels])
    shuffled = rng.permutation(values).reshape(1, -1)
    np.testing.assert_array_equal(level_edges(lambda: iter([shuffled[:, :4000], shuffled[:, 4000:]]), levels), edges)


def test_levels_hold_equal_shares():
    values = np.random.default_rng(0).permutation(3200).reshape(40, 80)
    levels = quantize(values, level_edges(lambda: [values], 32))
    assert (np.bincount(levels.ravel()) == 100).all()


def test_few_distinct_values_leave_levels_empty():
    band = np.array([[0.0, -0.0, 0.0, 5.0]])
    edges = level_edges(lambda: [band], 8)
    assert edges.tolist() == [0, 0, 0, 0, 0, 5, 5]
    assert quantize(band, edges).tolist() == [[5, 5, 5, 7]]
    assert quantize(np.array([[-1.0]]), edges).tolist() == [[0]]


def test_edges_ignore_what_is_not_finite():
    values = np.array([3.0, np.nan, 1.0, np.inf, 2.0, -np.inf, 4.0, 1e300])
    assert level_edges(lambda: [values, values[:0]], 2).tolist() == [3]


# Refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 6}, "window of 6 px: use an odd number from 3 to 215"),
        ({"window": 1}, "window of 1 px"),
        ({"window": 217}, "window of 217 px"),
        ({"n_levels": 1}, "1 grey levels: use 2 to 255"),
        ({"n_levels": 256}, "256 grey levels"),
        ({"n_levels": 7}, r"levels other than 0 to 6 and 255 \(no data\)"),
        ({"kinds": ["contrats"]}, "unknown texture 'contrats': use .*; did you mean 'contrast'"),
        ({"kinds": []}, "no texture or no offset"),
        ({"offsets": []}, "no texture or no offset"),
        ({"offsets": [(0, 1), (0, 0)]}, r"offset \(0, 0\)"),
        ({"offsets": [(1, -7)]}, r"offset \(1, -7\): use one that .* fits into 7 x 7 px"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    settings = {"n_levels": 8, **wrong}
    levels = image(9, 9, 8)
    levels[0, 0] = 7
    with pytest.raises(DataError, match=message):
        glcm(levels, **settings)
    with pytest.raises(DataError, match=message):
        glcm_torch(torch.from_numpy(levels)[None], **settings)


def test_images_of_another_type_or_shape_are_refused():
    levels = image(9, 9, 8)
    for wrong in (levels[None], levels.astype(int)):
        with pytest.raises(DataError, match=r"use uint8 \(H, W\)"):
            glcm(wrong, 8)
    for wrong in (torch.from_numpy(levels), torch.zeros(1, 9, 9)):
        with pytest.raises(DataError, match=r"use uint8 or int64 \(B, H, W\)"):
            glcm_torch(wrong, 8)
    with pytest.raises(DataError, match="levels other than 0 to 7"):
        glcm_torch(torch.full((1, 9, 9), -1), 8)


def test_impossible_edges_are_refused():
    band = np.zeros((2, 3))
    for edges in ([2, 1], [np.nan], [np.inf], [[1]]):
        with pytest.raises(DataError, match="ascending finite numbers"):
            quantize(band, edges)
    with pytest.raises(DataError, match="1 grey levels"):
        quantize(band, [])
    with pytest.raises(DataError, match="256 grey levels"):
        quantize(band, range(255))
    with pytest.raises(DataError, match="do not fit"):
        quantize(band, [1], np.ones((3, 2), bool))


def test_values_that_give_no_edges_are_refused():
    with pytest.raises(DataError, match="no valid value"):
        level_edges(lambda: [np.array([np.nan])], 8)
    with pytest.raises(DataError, match="256 grey levels"):
        level_edges(lambda: [np.arange(9)], 256)
    once = iter([np.arange(9)])
    with pytest.raises(DataError, match="changed between two passes"):
        level_edges(lambda: once, 8)
