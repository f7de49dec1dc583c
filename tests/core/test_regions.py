import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from region_maps import MAPS, noise, picture
from skimage.measure import label

from glacier_fastai.core.regions import Regions, RegionSums
from glacier_fastai.errors import DataError


def trace(values: np.ndarray, cuts: list[int] | None = None, layers: np.ndarray | None = None) -> Regions:
    layers = np.empty((0, *values.shape)) if layers is None else layers
    sums = RegionSums(values.shape[1], len(layers))
    for rows in np.split(np.arange(len(values)), cuts or []):
        sums.add(values[rows], layers[:, rows])
    return sums.finish()


def assert_same(first: Regions, second: Regions) -> None:
    for a, b in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_allclose(first.sums, second.sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("values", MAPS.values(), ids=MAPS)
def test_equals_scikit_image_on_the_whole(values):
    rng = np.random.default_rng(0)
    layers = np.stack([rng.integers(0, 1000, values.shape), rng.random(values.shape)]).astype(np.float32)
    labels = label(values, background=0, connectivity=1).ravel()
    numbers, first, pixels = np.unique(labels, return_index=True, return_counts=True)
    order = np.argsort(first)
    order = order[numbers[order] > 0]
    regions = trace(values, [7, 8, 30], layers)
    np.testing.assert_array_equal(regions.value, values.ravel()[first[order]])
    np.testing.assert_array_equal(regions.first, first[order])
    np.testing.assert_array_equal(regions.pixels, pixels[order])
    whole, real = (np.bincount(labels, layer.ravel(), numbers.max() + 1)[numbers[order]] for layer in layers)
    np.testing.assert_array_equal(regions.sums[:, 0], whole)
    np.testing.assert_allclose(regions.sums[:, 1], real, rtol=1e-12)
    assert [x.dtype for x in regions] == [np.uint8, np.int64, np.int64, np.float64]


@given(st.integers(1, 30), st.integers(1, 20), st.floats(0, 1), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_any_cutting_gives_the_same(height, width, share, classes, seed, data):
    values = noise(height, width, share, classes, seed)
    layers = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, height - 1)))) if height > 1 else []
    assert_same(trace(values, cuts, layers), trace(values, layers=layers))


@pytest.mark.parametrize("cuts", [list(range(1, 60)), [0, 40, 40]], ids=["row by row", "empty strips"])
def test_any_number_of_rows_may_come(cuts):
    values = MAPS["one class"]
    assert_same(trace(values, cuts), trace(values))


def test_regions_across_many_strips_are_one():
    values = np.zeros((400, 30), np.uint8)
    values[:, ::10] = 1  # combs whose teeth meet in the last row,
    values[-1, :21] = 1
    values[::4, 25] = 2  # beside dots
    regions = trace(values, list(range(3, 400, 3)), np.ones((1, 400, 30), np.float32))
    assert regions.value.tolist() == [1] + [2] * 100
    assert regions.pixels[0] == regions.sums[0, 0] == 3 * 400 + 18


def test_corners_do_not_touch_and_values_do_not_mix():
    assert trace(picture("1. .1"), [1]).first.tolist() == [0, 3]
    assert trace(picture("1 1 . 2 1"), [1, 2, 3, 4]).pixels.tolist() == [2, 1, 1]


@pytest.mark.parametrize("strips", [[], [(4, 3)], [(1, 3), (2, 3)]])
def test_an_empty_image(strips):
    sums = RegionSums(3, 2)
    for shape in strips:
        sums.add(np.zeros(shape, np.uint8), np.full((2, *shape), np.nan, np.float32))
    assert [x.shape for x in sums.finish()] == [(0,), (0,), (0,), (0, 2)]


def test_memory_does_not_grow_with_the_height():
    sums, strip = RegionSums(1000), np.ones((64, 1000), np.uint8)
    sums.add(strip)
    tracemalloc.start()
    for _ in range(20):
        sums.add(strip)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < strip.nbytes
    assert sums.finish().pixels.tolist() == [21 * 64_000]


@pytest.mark.parametrize(
    ("layers", "shape", "wrong"),
    [(0, (2, 6), ()), (1, (2, 5), ()), (1, (2, 5), np.zeros((2, 2, 5))), (1, (2, 5), np.zeros((1, 3, 5)))],
)
def test_wrong_shapes_are_refused(layers, shape, wrong):
    with pytest.raises(DataError, match=rf"strip \(2, {shape[1]}\) .*use \(2, 5\) and {layers} layers"):
        RegionSums(5, layers).add(np.zeros(shape, np.uint8), wrong)
