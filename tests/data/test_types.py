import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from scenes import make_store

from glacier_fastai.bands import CLASS_COLOURS
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral, class_rgba, error_rgba, false_colour

SETS = {
    4: ("blue", "green", "red", "nir"),
    5: ("blue", "green", "red", "swir1", "thermal"),
    7: ("blue", "green", "red", "swir1", "thermal", "glcm_contrast(swir1)", "glcm_energy(swir1)"),
    12: ("blue", "green", "red", "nir", "swir1", "swir2", "thermal", "pan", "ndvi", "ndsi", "ndwi", "elevation"),
}


def test_the_stretch_ignores_nodata_and_outliers():
    image = np.random.default_rng(0).uniform(100, 200, (3, 50, 50)).astype(np.float32)
    image[:, 0] = np.nan
    image[0, 1, 1] = 1e9
    rgba = false_colour(image, (0, 1, 2))
    assert (rgba[0, :, 3] == 0).all()
    assert (rgba[1:, :, 3] == 1).all()
    assert rgba[1, 1, 0] == 1
    for band in range(3):
        inside = rgba[1:, :, band]
        assert 0.45 < inside.mean() < 0.55
        assert 0.01 < (inside == 0).mean() < 0.03
        assert 0.01 < (inside == 1).mean() < 0.03


def test_an_image_without_any_data_is_clear():
    assert (false_colour(np.full((3, 4, 4), np.nan), (0, 1, 2)) == 0).all()


def test_classes_and_errors_have_their_colours():
    mask = np.array([[0, 1, 2, 3, 255]])
    rgba = class_rgba(mask)
    np.testing.assert_allclose(rgba[0, :4, :3], [to_rgb(c) for c in CLASS_COLOURS], atol=1e-6)
    assert rgba[0, :, 3].tolist() == [1, 1, 1, 1, 0]
    assert error_rgba(mask, mask)[0, 4, 3] == 0  # neither right nor wrong
    errors = error_rgba(np.array([[0, 2, 2, 3, 1]]), mask)
    right, wrong = errors[0, 0], errors[0, 1]
    assert not np.allclose(right, wrong)
    np.testing.assert_array_equal(errors[0, 2:4], [right, right])
    assert errors[0, 4, 3] == 0


@pytest.mark.parametrize("n", SETS)
def test_show_batch_for_any_number_of_bands(tmp_path, n):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s", SETS[n]), fold=0, bs=4, folds=3)
    dls.show_batch(max_n=3)
    fig = plt.gcf()
    shown = [ax for ax in fig.axes if ax.images]
    assert len(shown) == 6
    titles = {ax.get_title() for ax in shown}
    composite = {4: "colour infrared", 5: "snow and ice (no nir)", 7: "snow and ice (no nir)", 12: "snow and ice"}[n]
    assert titles == {composite, "target"}
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
