import math

import numpy as np
import pytest

from glacier_fastai.core.terrain import aspect, curvature, slope


def ground(height=9, width=11, seed=0):
    return 3000 + 40 * np.random.default_rng(seed).random((height, width)).cumsum(0).cumsum(1)


def slowly(z, dx, dy):
    """Horn's gradient, and second derivatives of a cubic fitted to 5 x 5 pixels, pixel by pixel."""
    h, w = z.shape
    east, north, curved = (np.full(z.shape, np.nan) for _ in range(3))
    for r in range(1, h - 1):
        for c in range(1, w - 1):
            for k, weight in ((-1, 1), (0, 2), (1, 1)):
                east[r, c] = np.nan_to_num(east[r, c]) + weight * (z[r + k, c + 1] - z[r + k, c - 1]) / (8 * dx)
                north[r, c] = np.nan_to_num(north[r, c]) + weight * (z[r - 1, c + k] - z[r + 1, c + k]) / (8 * dy)
    powers = [(i, j) for i in range(4) for j in range(4) if i + j <= 3]
    places = [(r, c) for r in range(-2, 3) for c in range(-2, 3)]
    design = [[(c * dx) ** i * (-r * dy) ** j for i, j in powers] for r, c in places]
    for r in range(2, h - 2):
        for c in range(2, w - 2):
            fit = np.linalg.lstsq(design, [z[r + i, c + j] for i, j in places], rcond=None)[0]
            curved[r, c] = -2 * fit[powers.index((2, 0))] - 2 * fit[powers.index((0, 2))]
    return east, north, curved


@pytest.mark.parametrize(("dx", "dy"), [(30.0, 30.0), (20.0, 31.0), (0.5, 0.5)])
def test_they_are_what_the_slow_formulas_say(dx, dy):
    z = ground()
    east, north, curved = slowly(z, dx, dy)
    np.testing.assert_allclose(slope(z, dx, dy), np.degrees(np.arctan(np.hypot(east, north))), rtol=1e-9)
    sin, cos = aspect(z, dx, dy)
    np.testing.assert_allclose(np.arctan2(sin, cos), np.arctan2(-east, -north), rtol=1e-9)
    np.testing.assert_allclose(np.hypot(sin, cos)[1:-1, 1:-1], 1)
    np.testing.assert_allclose(curvature(z, dx, dy), curved, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("facing", [0, 45, 90, 200, 315])
def test_a_plane_has_its_slope_faces_where_it_falls_and_is_not_curved(facing):
    rows, cols = np.mgrid[:8, :9]
    down = math.tan(math.radians(25))
    east, north = 20.0 * cols, -30.0 * rows
    z = 1000 - down * (math.sin(math.radians(facing)) * east + math.cos(math.radians(facing)) * north)
    sin, cos = aspect(z, 20, 30)
    np.testing.assert_allclose(slope(z, 20, 30)[1:-1, 1:-1], 25)
    np.testing.assert_allclose(sin[1:-1, 1:-1], math.sin(math.radians(facing)), atol=1e-9)
    np.testing.assert_allclose(cos[1:-1, 1:-1], math.cos(math.radians(facing)), atol=1e-9)
    np.testing.assert_allclose(curvature(z, 20, 30)[2:-2, 2:-2], 0, atol=1e-12)


def test_domes_are_positive_bowls_negative_and_flat_ground_faces_nowhere():
    rows, cols = (30.0 * (v - 4) for v in np.mgrid[:9, :9])
    dome = 500 - (rows**2 + cols**2) / 2000
    assert curvature(dome, 30, 30)[4, 4] == pytest.approx(2e-3)
    assert curvature(-dome, 30, 30)[4, 4] == pytest.approx(-2e-3)
    flat = np.full((5, 5), 7.0)
    assert [v[2, 2] for v in (slope(flat, 1, 1), *aspect(flat, 1, 1), curvature(flat, 1, 1))] == [0, 0, 0, 0]
    assert not np.signbit(aspect(flat, 1, 1)).any()


def test_sides_may_change_from_row_to_row():
    z, dx = ground(), np.linspace(20, 30, 9)[:, None]
    for row in (2, 5):
        np.testing.assert_allclose(slope(z, dx, 31)[row], slope(z, float(dx[row, 0]), 31)[row])
        np.testing.assert_allclose(curvature(z, dx, 31)[row], curvature(z, float(dx[row, 0]), 31)[row])


def test_without_a_neighbour_there_is_nothing():
    z = ground()
    z[4, 5] = np.nan
    near = np.pad(np.zeros((7, 9), bool), 1, constant_values=True)
    near[3:6, 4:7] = True
    assert np.array_equal(np.isnan(slope(z, 1, 1)), near)
    assert all(np.array_equal(np.isnan(v), near) for v in aspect(z, 1, 1))
    near = np.pad(np.zeros((5, 7), bool), 2, constant_values=True)
    near[2:7, 3:8] = True
    assert np.array_equal(np.isnan(curvature(z, 1, 1)), near)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (4, 4), (9, 1)])
def test_what_is_too_small_has_nothing(shape):
    z = np.ones(shape, np.float32)
    assert curvature(z, 1, 1).shape == slope(z, 1, 1).shape == shape
    assert np.isnan(curvature(z, 1, 1)).all()
