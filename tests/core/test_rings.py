from __future__ import annotations

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from glacier_fastai.core import rings
from glacier_fastai.core.rings import Regions, RegionTracer
from glacier_fastai.errors import DataError


def noise(height: int, width: int, share: float = 0.6, classes: int = 3, seed: int = 0) -> np.ndarray:
    """Return single pixels of 1 to `classes` on `share` of the map."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, classes + 1, (height, width)) * (rng.random((height, width)) < share)).astype(np.uint8)


def hills(size: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Return heights in four steps."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return np.digitize(field / field.std(), [-0.5, 0.3, 1]).astype(np.uint8)


MAPS = {
    "a few pixels": noise(60, 70, 0.1),
    "one class": noise(60, 70, 0.6, 1),  # near percolation: long outlines, many diagonal touches
    "three classes": noise(60, 70, 0.8),
    "no background": noise(60, 70, 1),
    "hills": hills(90, 2),
    "high hills": hills(90, 8),
}
every_map = pytest.mark.parametrize("values", MAPS.values(), ids=MAPS)


def picture(text: str) -> np.ndarray:
    """Return the map that rows of digits draw; a dot is 0."""
    return np.array([[int(c) for c in row] for row in text.replace(".", "0").split()], np.uint8)


def trace(values: np.ndarray, cuts: list[int] | None = None, sums: np.ndarray | None = None) -> Regions:
    tracer = RegionTracer(values.shape[1], 0 if sums is None else len(sums))
    for rows in np.split(np.arange(len(values)), cuts or []):
        tracer.add(values[rows], None if sums is None else sums[:, rows])
    return tracer.finish()


def polygons(regions: Regions) -> np.ndarray:
    return shapely.polygons(shapely.linearrings(regions.corners, indices=regions.ring), indices=regions.region)


def coordinates(regions: Regions) -> list[list[tuple[int, int]]]:
    return [[tuple(xy) for xy in regions.corners[regions.ring == k].tolist()] for k in range(len(regions.region))]


def assert_same(first: Regions, second: Regions) -> None:
    for field in fields(Regions):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, strict=True)


# Against GDAL and scikit-image


@every_map
def test_equals_rasterio_corner_by_corner(values):
    regions = trace(values)
    ours = [(int(v), p.normalize()) for v, p in zip(regions.value, polygons(regions), strict=True)]
    found = rasterio.features.shapes(values, mask=values > 0, connectivity=4)
    theirs = [(int(v), shapely.geometry.shape(geometry).normalize()) for geometry, v in found]
    assert len(ours) == len(theirs)
    by_place = dict.fromkeys(ours)
    for value, polygon in theirs:
        assert (value, polygon) in by_place  # the very coordinates, wherever their rings start
    assert len(by_place) == len(theirs)


@every_map
def test_equals_scikit_image_region_by_region(values):
    rng = np.random.default_rng(0)
    sums = np.stack([rng.integers(0, 1000, values.shape), rng.random(values.shape)]).astype(np.float32)
    labels = label(values, background=0, connectivity=1).ravel()
    numbers, first, pixels = np.unique(labels, return_index=True, return_counts=True)
    order = np.argsort(first)
    order = order[numbers[order] > 0]
    regions = trace(values, [7, 8, 30], sums)
    np.testing.assert_array_equal(regions.value, values.ravel()[first[order]])
    np.testing.assert_array_equal(regions.pixels, pixels[order])
    whole, real = (np.bincount(labels, layer.ravel(), numbers.max() + 1)[numbers[order]] for layer in sums)
    np.testing.assert_array_equal(regions.sums[:, 0], whole)
    np.testing.assert_allclose(regions.sums[:, 1], real, rtol=1e-12)


@every_map
def test_polygons_are_valid_and_as_large_as_their_pixels(values):
    regions = trace(values)
    shapes = polygons(regions)
    assert shapely.is_valid(shapes).all()
    np.testing.assert_array_equal(shapely.area(shapes), regions.pixels)
    assert regions.pixels.sum() == np.count_nonzero(values)


@every_map
def test_rings_start_and_turn_as_documented(values):
    regions = trace(values, [20])
    assert (np.diff(regions.ring) >= 0).all()
    assert (np.diff(regions.region) >= 0).all()
    outer = np.diff(regions.region, prepend=-1) == 1
    assert outer.sum() == len(regions.value)
    on_a_map = shapely.linearrings(regions.corners * [1, -1], indices=regions.ring)  # with y to the north
    np.testing.assert_array_equal(shapely.is_ccw(on_a_map), outer)
    starts = []
    for ring, region in zip(coordinates(regions), regions.region, strict=True):
        rows_first = [(row, col) for col, row in ring]
        assert rows_first[0] == min(rows_first)
        assert len(set(ring)) == len(ring)  # no ring touches itself
        starts.append((region, rows_first[0]))
    assert starts == sorted(starts)


# Strips


@given(st.integers(1, 30), st.integers(1, 20), st.floats(0, 1), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_any_cutting_gives_the_same(height, width, share, classes, seed, data):
    values = noise(height, width, share, classes, seed)
    sums = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, height - 1)))) if height > 1 else []
    regions = trace(values, cuts, sums)
    assert_same(regions, trace(values, sums=sums))
    assert shapely.is_valid(polygons(regions)).all()


@every_map
def test_row_by_row(values):
    assert_same(trace(values, list(range(1, len(values)))), trace(values))


def test_regions_across_many_strips_are_one():
    values = np.zeros((400, 30), np.uint8)
    values[:, ::10] = 1  # combs whose teeth meet in the last row,
    values[-1, :21] = 1
    values[::4, 25] = 2  # beside dots
    regions = trace(values, list(range(3, 400, 3)), np.ones((1, 400, 30), np.float32))
    assert regions.value.tolist() == [1] + [2] * 100
    assert regions.pixels[0] == regions.sums[0, 0] == 3 * 400 + 18
    assert len(coordinates(regions)[0]) == 12
    assert polygons(regions)[0].bounds == (0, 0, 21, 400)


def test_an_empty_strip_changes_nothing():
    values = MAPS["hills"]
    assert_same(trace(values, [0, 40, 40]), trace(values))


def test_memory_does_not_grow_with_the_image():
    tracer, strip = RegionTracer(1000), np.ones((64, 1000), np.uint8)
    tracer.add(strip)
    tracemalloc.start()
    for _ in range(100):
        tracer.add(strip)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < strip.nbytes
    assert tracer.finish().pixels.tolist() == [101 * 64_000]


# Small pictures


def test_a_single_pixel():
    regions = trace(picture("... .3. ..."), sums=np.full((1, 3, 3), 0.5, np.float32))
    assert regions.value.tolist() == [3]
    assert regions.pixels.tolist() == [1]
    assert regions.sums.tolist() == [[0.5]]
    assert coordinates(regions) == [[(1, 1), (1, 2), (2, 2), (2, 1)]]
    assert regions.corners.dtype == regions.ring.dtype == regions.region.dtype == np.int32
    assert (regions.value.dtype, regions.pixels.dtype, regions.sums.dtype) == (np.uint8, np.int64, np.float64)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (1, 1)])
def test_a_full_image(shape):
    regions = trace(np.full(shape, 255, np.uint8))
    assert regions.value.tolist() == [255]
    assert coordinates(regions) == [[(0, 0), (0, shape[0]), shape[::-1], (shape[1], 0)]]


def test_a_column_and_a_row():
    values = picture("1 1 . 2 1")
    column, row = trace(values, [1, 2, 3, 4]), trace(values.T)
    for regions in (column, row):
        assert regions.value.tolist() == [1, 2, 1]
        assert regions.pixels.tolist() == [2, 1, 1]
    assert coordinates(column)[0] == [(0, 0), (0, 2), (1, 2), (1, 0)]
    assert coordinates(row)[0] == [(0, 0), (0, 1), (2, 1), (2, 0)]


@pytest.mark.parametrize("strips", [[], [(4, 3)], [(1, 3), (2, 3)]])
def test_an_empty_image(strips):
    tracer = RegionTracer(3, 2)
    for shape in strips:
        tracer.add(np.zeros(shape, np.uint8), np.full((2, *shape), np.nan, np.float32))
    regions = tracer.finish()
    assert [getattr(regions, f.name).shape for f in fields(Regions)] == [(0,), (0,), (0, 2), (0, 2), (0,), (0,)]
    assert len(polygons(regions)) == 0


def test_islands_in_holes():
    regions = trace(picture("1111111 1.....1 1.222.1 1.2.2.1 1.222.1 1.....1 1111111"))
    assert regions.value.tolist() == [1, 2]
    assert regions.region.tolist() == [0, 0, 1, 1]
    assert [len(ring) for ring in coordinates(regions)] == [4, 4, 4, 4]
    assert [ring[0] for ring in coordinates(regions)] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert coordinates(regions)[1] == [(1, 1), (6, 1), (6, 6), (1, 6)]


def test_regions_that_touch_diagonally_are_two():
    regions = trace(picture("1. .1"))
    assert regions.pixels.tolist() == [1, 1]
    assert coordinates(regions) == [[(0, 0), (0, 1), (1, 1), (1, 0)], [(1, 1), (1, 2), (2, 2), (2, 1)]]


@pytest.mark.parametrize("turns", range(4))
def test_a_hole_that_touches_the_outside_at_a_corner(turns):
    values = np.rot90(picture("111 1.1 11."), turns)
    regions = trace(values, [1, 2])
    assert regions.region.tolist() == [0, 0]
    assert [len(ring) for ring in coordinates(regions)] == [6, 4]
    assert set(coordinates(regions)[1]) == {(1, 1), (1, 2), (2, 2), (2, 1)}
    assert polygons(regions)[0].is_valid


def test_holes_that_touch_each_other():
    regions = trace(picture("1111 1.11 11.1 1111"))
    assert coordinates(regions)[1:] == [[(1, 1), (2, 1), (2, 2), (1, 2)], [(2, 2), (3, 2), (3, 3), (2, 3)]]
    # of two values, each fills the hole of the other's
    both = trace(picture("1111 1211 1121 1111"))
    assert both.value.tolist() == [1, 2, 2]
    assert shapely.is_valid(polygons(both)).all()


def test_arrays_of_any_layout_are_left_alone(tmp_path):
    values, sums = MAPS["hills"], np.random.default_rng(0).random((1, 90, 90)).astype(np.float32)
    expected = trace(values, [40], sums)
    np.save(tmp_path / "values.npy", values)
    stored = np.load(tmp_path / "values.npy", mmap_mode="r")
    tracer = RegionTracer(90, 1)
    for rows in (slice(40), slice(40, 90)):
        tracer.add(stored[rows], sums[:, rows])
    assert_same(tracer.finish(), expected)
    before = values.copy(), sums.copy()
    assert_same(trace(np.asfortranarray(values), sums=np.asfortranarray(sums)), expected)
    np.testing.assert_array_equal(values, before[0])
    np.testing.assert_array_equal(sums, before[1])


# Refusals


def test_wrong_strips_are_refused():
    with pytest.raises(DataError, match="image of 0 columns: use at least 1"):
        RegionTracer(0)
    tracer = RegionTracer(5)
    for strip in (np.zeros((2, 6), np.uint8), np.zeros((2, 5), np.int16), np.zeros(5, np.uint8)):
        with pytest.raises(DataError, match=rf"strip {strip.dtype} \({strip.shape[0]}, ?.*\): use uint8 \(rows, 5\)"):
            tracer.add(strip)


@pytest.mark.parametrize(
    ("n_sums", "sums", "message"),
    [
        (1, None, r"layers to sum: got none, use float32 \(1, 2, 5\) for this strip"),
        (1, np.zeros((2, 5), np.float32), r"got float32 \(2, 5\), use float32 \(1, 2, 5\)"),
        (1, np.zeros((1, 3, 5), np.float32), r"got float32 \(1, 3, 5\)"),
        (1, np.zeros((1, 2, 5)), r"got float64 \(1, 2, 5\)"),
        (0, np.zeros((1, 2, 5), np.float32), r"use float32 \(0, 2, 5\)"),
    ],
)
def test_wrong_sums_are_refused(n_sums, sums, message):
    with pytest.raises(DataError, match=message):
        RegionTracer(5, n_sums).add(np.zeros((2, 5), np.uint8), sums)


def test_a_finished_image_takes_no_more():
    tracer = RegionTracer(5)
    tracer.finish()
    for more in (tracer.finish, lambda: tracer.add(np.zeros((2, 5), np.uint8))):
        with pytest.raises(DataError, match="finished: use another RegionTracer"):
            more()


def test_too_many_corners_are_refused(monkeypatch):
    monkeypatch.setattr(rings, "_MOST", 3000)
    with pytest.raises(DataError, match="outlines of more than 3,000 corners: trace the image in parts"):
        trace(MAPS["three classes"])
