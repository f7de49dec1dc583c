import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scenes import TINY, make_store

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral
from glacier_fastai.errors import DataError
from glacier_fastai.plots.panels import class_rgba, false_colour
from glacier_fastai.train.learner import glacier_learner

SETS = {
    4: ("blue", "green", "red", "nir"),
    5: ("blue", "green", "red", "swir1", "thermal"),
    7: ("blue", "green", "red", "swir1", "thermal", "glcm_contrast(swir1)", "glcm_energy(swir1)"),
    12: ("blue", "green", "red", "nir", "swir1", "swir2", "thermal", "pan", "ndvi", "ndsi", "ndwi", "elevation"),
}


@pytest.mark.parametrize("n", SETS)
def test_show_batch_for_any_number_of_bands(tmp_path, n):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s", SETS[n]), fold=0, bs=4, folds=3)
    dls.show_batch(max_n=3)
    fig = plt.gcf()
    shown = [ax for ax in fig.axes if ax.images]
    assert len(shown) == 6
    titles = {ax.get_title() for ax in shown}
    composite = {4: "colour infrared", 5: "snow and ice (no nir)", 7: "snow and ice (no nir)", 12: "snow and ice"}[n]
    assert titles == {composite, "truth"}
    labels = [t.get_text() for t in fig.legends[0].get_texts()]
    assert labels == ["background", "glacier", "debris", "lake", "no data or label"]


def test_what_is_shown_is_the_tile_itself(tmp_path):
    store = make_store(tmp_path / "s")
    dls = GlacierDataLoaders.from_store(store, fold=0, bs=4, folds=3)
    dls.valid.show_batch(max_n=1)
    image, mask = [ax for ax in plt.gcf().axes if ax.images]
    i = int(dls.valid_tiles[0])
    np.testing.assert_allclose(image.images[0].get_array(), false_colour(store.read(i), (3, 2, 1)), atol=1e-3)
    np.testing.assert_allclose(mask.images[0].get_array(), class_rgba(store.masks[i]))


def test_single_tensors_show_themselves():
    image = TensorMultispectral(torch.rand(5, 8, 8))
    assert image.show(title="x").get_title() == "x"
    assert TensorGlacierMask(torch.zeros(8, 8, dtype=torch.int64)).show().images


def test_batches_and_results_are_drawn_into_the_axes_given(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), fold=0, bs=4, folds=3)
    learn = glacier_learner(dls, encoder=TINY)
    fig, axes = plt.subplots(1, 4)
    learn.dls.show_batch(ctxs=axes, max_n=1)
    assert [len(ax.images) for ax in axes] == [1, 1, 0, 0]
    learn.dls.show_batch(ctxs=axes[2:])
    assert [len(ax.images) for ax in axes] == [1, 1, 1, 1]
    assert [ax.get_title() for ax in axes[1::2]] == ["truth", "truth"]
    assert not fig.legends  # the figure is the caller's
    fig, axes = plt.subplots(2, 4)
    learn.show_results(ctxs=axes)
    assert all(len(ax.images) == 1 for ax in axes.flat)
    assert [ax.get_title() for ax in axes[1, 1:3]] == ["truth", "prediction"]
    with pytest.raises(DataError, match="3 axes; use 2 axes for each sample: image, truth"):
        learn.dls.show_batch(ctxs=axes[0, :3])
    with pytest.raises(DataError, match="2 axes; use 4 axes for each sample: image, truth, prediction, errors"):
        learn.show_results(ctxs=axes[0, :2])
    assert len(plt.get_fignums()) == 2
