import numpy as np
import pytest

from glacier_fastai.core.ranges import QUANTILES, outside, spread


def q(values):
    return np.quantile(values, QUANTILES)


@pytest.mark.parametrize(("shift", "factor"), [(0, 1), (1.0, 1), (-2.5, 1), (0, 3), (9, 1), (0.3, 0.1)])
def test_the_share_beyond_is_that_of_the_values_themselves(shift, factor):
    rng = np.random.default_rng(0)
    known, other = rng.normal(size=200_000), rng.normal(size=200_000) * factor + shift
    low, high = np.quantile(known, (0.05, 0.95))
    want = ((other < low) | (other > high)).mean()
    assert outside(q(known), q(other)) == pytest.approx(want, abs=0.05)
    assert spread(q(known), q(other)) == pytest.approx(factor, rel=0.02)


def test_constant_values():
    assert outside([5.0] * 7, [5.0] * 7) in (0.0, 1.0)
    assert spread([5.0] * 7, q(np.arange(9))) == np.inf
