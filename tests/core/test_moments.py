import numpy as np
import pytest
import torch

from glacier_fastai.core.moments import moments, standardise


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_sums_over_what_has_data(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (3, 40, 50)).astype(dtype)
    valid = rng.random((40, 50)) < 0.7
    sums, squares = moments(values, valid)
    chosen = values[:, valid].astype(np.float64)
    np.testing.assert_array_equal(sums, chosen.sum(1))
    np.testing.assert_array_equal(squares, (chosen**2).sum(1))
    assert moments(values, np.zeros_like(valid))[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_stands_where_there_is_no_data_is_not_counted(dtype):
    values = np.ones((2, 4, 5), dtype)
    valid = np.ones((4, 5), bool)
    valid[1:3] = False
    values[0, 1], values[1, 2] = np.nan, np.inf
    assert [v.tolist() for v in moments(values, valid)] == [[10, 10], [10, 10]]


def test_large_integers_are_exact():
    values = np.full((1, 512, 512), 65_535, np.uint16)
    assert moments(values, np.ones((512, 512), bool))[1][0] == 65_535**2 * 512**2


def test_standardising_leaves_0_where_there_is_no_data():
    x = torch.tensor([[[3.0, torch.nan]], [[torch.nan, 8.0]]])
    mean, std = torch.tensor([1.0, 2.0]).view(2, 1, 1), torch.tensor([4.0, 3.0]).view(2, 1, 1)
    assert standardise(x, mean, std).tolist() == [[[0.5, 0.0]], [[0.0, 2.0]]]
    assert x[0, 0, 0] == 3  # the input is left alone
