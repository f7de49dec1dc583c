import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from glacier_fastai.bands import CLASS_COLOURS, ICE_COLOUR
from glacier_fastai.errors import DataError
from glacier_fastai.plots.panels import class_rgba, draw_panels, error_rgba, false_colour, grid, legend, panels


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


def test_ice_of_unknown_kind_has_a_colour_and_either_kind_is_right():
    truth, pred = np.array([[254, 254, 254, 254, 1]]), np.array([[0, 1, 2, 3, 2]])
    np.testing.assert_allclose(class_rgba(truth)[0, 0], (*to_rgb(ICE_COLOUR), 1), atol=1e-6)
    assert ICE_COLOUR not in CLASS_COLOURS
    wrong, right, *others = error_rgba(pred, truth)[0].tolist()
    assert others == [right, wrong, wrong] and right != wrong
    assert panels(np.ones((1, 1, 5)), truth, pred, (0, 0, 0)).wrong == pytest.approx(0.6)
    for truths, shown in (((), False), ([pred], False), ([pred, truth], True)):
        fig = plt.figure()
        legend(fig, errors=True, truths=truths)
        assert ("ice, kind unknown" in [t.get_text() for t in fig.legends[0].get_texts()]) == shown


def test_where_the_image_has_no_data_nothing_is_shown():
    rng = np.random.default_rng(0)
    image, truth, pred = rng.random((5, 6, 6)), rng.integers(0, 4, (6, 6)), rng.integers(0, 4, (6, 6))
    image[:, 0], truth[0], truth[1] = np.nan, 255, 255
    shown = panels(image, truth, pred, (3, 2, 1))
    clear = {
        name: (rgba[..., 3] == 0).all(1).nonzero()[0].tolist()
        for name, rgba in shown._asdict().items()
        if name != "wrong"
    }
    assert clear == {"image": [0], "truth": [0, 1], "prediction": [0], "errors": [0, 1]}
    assert shown.wrong == pytest.approx((pred != truth)[2:].mean())
    fig, axes = grid(1, ("image", "truth", "prediction", "errors"))
    draw_panels(axes[0], shown, "natural colour")
    titles = ["natural colour", "truth", "prediction", f"errors, {shown.wrong:.1%} of labelled"]
    assert [ax.get_title() for ax in axes[0]] == titles
    assert all(ax.patches[0].get_hatch() for ax in axes[0])  # behind what is clear


def test_errors_without_a_label_are_not_a_number_of_them():
    nothing = np.full((4, 4), 255)
    shown = panels(np.ones((3, 4, 4)), nothing, np.zeros((4, 4), int), (0, 1, 2))
    assert np.isnan(shown.wrong) and not shown.errors[..., 3].any()
    fig, axes = grid(1, ("image", "truth", "prediction", "errors"))
    draw_panels(axes[0], shown, "image")
    assert axes[0, 3].get_title() == "errors: no label"


def test_samples_stand_in_a_grid_below_their_titles_and_above_the_legend():
    fig, axes = grid(5, ("image", "truth"), 2, title="five")
    assert axes.shape == (6, 2)
    assert axes[1, 0].get_position().x0 > axes[0, 1].get_position().x1  # beside the first
    assert axes[2, 0].get_position().y1 < axes[0, 0].get_position().y0  # below it
    legend(fig, errors=True)
    fig.canvas.draw()
    box = fig.legends[0].get_window_extent()
    assert box.y1 < axes[5, 0].get_window_extent().y0 and box.x0 >= 0 and box.x1 <= fig.bbox.x1
    assert fig._suptitle.get_window_extent().y0 > axes[0, 0].get_window_extent().y1
    narrow, _ = grid(1, ("image", "truth"), 2)
    legend(narrow)
    narrow.canvas.draw()
    box = narrow.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= narrow.bbox.x1  # nothing is cut off


def test_given_axes_are_used_in_their_order_and_other_numbers_of_them_refused():
    fig, mine = plt.subplots(2, 4)
    for given in (mine, mine.ravel(), mine.tolist(), mine.ravel().tolist()):
        same, axes = grid(9, ("image", "truth"), ctxs=given)
        assert same is fig and axes.ravel().tolist() == mine.ravel().tolist() and axes.shape == (4, 2)
    for given, what in ((mine.ravel()[:3], "3 axes"), ([], "0 axes"), ([fig, fig], "not only axes")):
        with pytest.raises(DataError, match=f"ctxs: {what}; use 2 axes for each sample: image, truth"):
            grid(9, ("image", "truth"), ctxs=given)
    assert plt.get_fignums() == [fig.number]  # no other figure is made
