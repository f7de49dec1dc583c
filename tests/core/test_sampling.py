import numpy as np
from scipy.ndimage import map_coordinates

from glacier_fastai.core.sampling import sample

RNG = np.random.default_rng(0)


def test_bilinear_is_that_of_scipy():
    values, col, row = RNG.random((2, 7, 9)), RNG.uniform(0, 8, (5, 6)), RNG.uniform(0, 6, (5, 6))
    for band, found in zip(values, sample(values, col, row), strict=True):
        np.testing.assert_allclose(found, map_coordinates(band, [row, col], order=1), atol=1e-12)


def test_pixels_are_themselves_and_a_parabola_is_itself_by_cubic():
    rows, cols = np.mgrid[:7, :9].astype(float)
    for cubic in (False, True):
        z = np.stack([3 * rows - cols, RNG.random((7, 9))])
        np.testing.assert_allclose(sample(z, cols, rows, cubic), z, atol=1e-12)
    col, row = RNG.uniform(1, 7, (1, 20)), RNG.uniform(1, 5, (1, 20))
    z = rows**2 + rows * cols - 2 * cols**2
    np.testing.assert_allclose(sample(z[None], col, row, cubic=True)[0], row**2 + row * col - 2 * col**2, atol=1e-9)


def test_what_has_no_value_has_no_weight_up_to_a_half():
    z = np.array([[[1.0, 3.0, np.nan, 5.0]]])
    at = np.array([[-0.6, -0.4, 0.5, 1.4, 1.6, 2.6, 3.5, 4.0, np.nan, np.inf, -1e30, 1e30]])
    want = [np.nan, 1, 2, 3, np.nan, 5, 5] + [np.nan] * 5
    for cubic in (False, True):  # with one row alone it falls back
        np.testing.assert_array_equal(sample(z, at, np.zeros(at.shape), cubic)[0, 0], want)
