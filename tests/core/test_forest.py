import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import generic_filter
from sklearn.ensemble import RandomForestClassifier

from glacier_fastai.core.forest import WINDOWS, packed, tree_mean, window_statistics


def test_statistics_are_those_of_the_pixels_with_data_in_each_window():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (2, 2, 18, 23)).astype(np.float32)
    values[:, :, rng.random((18, 23)) < 0.3] = np.nan
    values[:, :, :7, :7] = np.nan  # a window without data
    known = ~np.isnan(values)
    found = window_statistics(torch.from_numpy(values).nan_to_num(0)).numpy()
    wanted = [values]
    for side in WINDOWS:
        for statistic in (np.nanmean, np.nanstd):
            with warnings.catch_warnings(action="ignore"):  # of windows without data
                done = [[generic_filter(b, statistic, side, mode="constant", cval=np.nan) for b in v] for v in values]
            wanted.append(np.array(done))
    wanted = np.concatenate(wanted, 1)
    assert np.isfinite(found).all() and found.dtype == np.float32
    np.testing.assert_allclose(found[np.tile(known, (1, 5, 1, 1))], wanted[np.tile(known, (1, 5, 1, 1))], atol=2e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_trees_say_what_scikit_learn_says(classes):
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(5000, 6)).astype(np.float32).round(2)
    y = rng.integers(classes, size=5000)
    forest = RandomForestClassifier(20, min_samples_leaf=3, random_state=0, n_jobs=1).fit(x, y)
    trees = [e.tree_ for e in forest.estimators_]
    arrays = packed(trees)
    assert len(arrays["threshold"]) == sum((t.children_left >= 0).sum() for t in trees)
    # as near to a threshold as can be
    near = np.concatenate([t.threshold[t.children_left >= 0] for t in trees]).astype(np.float32)
    odd = rng.choice([near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))], (6,)).T
    for pixels in (x, np.ascontiguousarray(odd), x[:1], x[:0]):
        got = tree_mean(pixels, **arrays)
        assert got.shape == (len(pixels), classes)
        if len(pixels):
            np.testing.assert_allclose(got, forest.predict_proba(pixels), atol=1e-6)


def test_a_tree_that_found_no_split_is_one_leaf():
    forest = RandomForestClassifier(3, min_samples_leaf=9, random_state=0, n_jobs=1)
    forest.fit(np.zeros((8, 2)), np.arange(8) % 2)
    arrays = packed([e.tree_ for e in forest.estimators_])
    x = np.ones((5, 2), np.float32)
    assert len(arrays["threshold"]) == 0 and (arrays["roots"] < 0).all()
    np.testing.assert_allclose(tree_mean(x, **arrays), forest.predict_proba(x), atol=1e-6)
