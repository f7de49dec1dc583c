import numpy as np
import pytest

from glacier_fastai.core.fill import likely_fill


def scene(dtype, low, high, bands=3, size=64, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.uniform(low, high, (bands, size, size)).astype(dtype)
    rim = np.ones((size, size), bool)
    rim[1:-1, 1:-1] = False
    return values, rim


def found(values, rim, valid=None):
    valid = np.ones(rim.shape, bool) if valid is None else valid
    names = ["a", "b", "c"][: len(values)]
    return likely_fill(names, values.reshape(len(values), -1), valid.ravel(), rim.ravel())


@pytest.mark.parametrize(
    ("dtype", "low", "high", "fill"),
    [
        ("float32", 0.01, 0.9, -9999),
        ("float32", 0.01, 0.9, -3.4e38),
        ("float32", 0.01, 0.9, 0),
        ("float32", -20, 15, 1e20),
        ("int16", 100, 5000, -32768),
        ("int16", 100, 5000, -9999),
        ("int16", -100, 5000, 0),
        ("uint16", 100, 5000, 65535),
        ("uint8", 20, 130, 255),
    ],
)
def test_a_fill_value_at_the_edge_is_seen(dtype, low, high, fill):
    values, rim = scene(dtype, low, high)
    values[:, :, :10] = np.array(fill, dtype)
    ((names, value, share),) = found(values, rim)
    assert names == ["a", "b", "c"]
    assert value == np.array(fill, dtype)
    assert share == pytest.approx(10 / 64, abs=0.01)


def test_of_one_band_alone():
    values, rim = scene("float32", 0.1, 0.5)
    values[1, 20:30] = -999
    assert [(names, value) for names, value, _ in found(values, rim)] == [(["b"], -999.0)]


def test_saturated_snow_shade_and_what_is_known_are_no_fill():
    values, rim = scene("uint8", 60, 256)
    values[:, 10:40, 10:40] = 255  # saturated, with its shoulders
    values[:, 45:55, 10:40] = 60
    assert found(values, rim) == []
    values, rim = scene("uint16", 100, 5000)
    values[:, :8] = 65535
    valid = np.ones(rim.shape, bool)
    valid[:8] = False
    assert found(values, rim, valid) == []
    assert found(values, rim, np.zeros(rim.shape, bool)) == []
    assert found(np.full((1, 64, 64), 7.0), rim) == []
    flat = np.zeros((2, 64, 64), "int16")
    flat[:, 10:12, 10:12] = 1
    assert all(len(each) == 3 for each in found(flat, rim))
