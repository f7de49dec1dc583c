import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from glacier_fastai.core.confusion import mcc
from glacier_fastai.core.ratio import BRIGHT, best_thresholds, contrast, counts


@pytest.mark.parametrize("seed", range(4))
def test_the_thresholds_are_the_best_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    ice = rng.random(300) < 0.4
    index = rng.choice(np.linspace(-0.9, 0.9, 12), 300) + 0.2 * ice
    light = rng.choice(np.linspace(0.01, 1.5, 9), 300) + 0.1 * ice
    index_cut, light_cut, matrix = best_thresholds(counts(index, light, ice))
    said = (index >= index_cut) & (light >= light_cut)
    tried = [matthews_corrcoef(ice, (index >= a) & (light >= b)) for a in np.unique(index) for b in np.unique(light)]
    assert mcc(matrix) == pytest.approx(max(tried)) == pytest.approx(matthews_corrcoef(ice, said))


def test_a_threshold_that_tells_nothing_is_one_that_all_reach():
    index, ice = np.array([0.8, 0.6, 0.2, 0.0]), np.array([True, True, False, False])
    cut, light, _ = best_thresholds(counts(index, np.array([0.7, -0.2, 0.3, 3.0]), ice))
    assert 0.25 < cut < 0.55 and light == 0
    _, light, _ = best_thresholds(counts(index * 0, np.array([2 * BRIGHT, 9.0, 0.1, 0.2]), ice))
    assert 0.2 < light < BRIGHT


def test_what_is_as_dark_as_shade_has_a_ratio_too():
    a, b = np.float32([-0.1, 0.0, 0.5, -1e-9]), np.float32([0.0, -0.2, -0.1, 1e-9])
    assert contrast(a, b)[[0, 1, 3]].tolist() == [0, 0, 0] and 0.999 < contrast(a, b)[2] < 1
