import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.core.dihedral import VIEWS, at_scale, one_pass, undo_view, view, view_of_image
from glacier_fastai.core.terrain import aspect


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(list(VIEWS)))
def test_every_view_is_undone_exactly(height, width, k):
    x = torch.arange(2 * height * width).reshape(2, height, width)
    assert torch.equal(undo_view(view(x, k), k), x)
    assert torch.equal(view(undo_view(x, k), k), x)


def test_the_views_are_the_8_symmetries_of_the_square():
    grid = np.arange(9).reshape(3, 3)
    want = {np.rot90(g, k).tobytes() for g in (grid, grid.T) for k in range(4)}
    assert {np.ascontiguousarray(view(torch.from_numpy(grid), k).numpy()).tobytes() for k in VIEWS} == want
    assert torch.equal(view(torch.from_numpy(grid), 0), torch.from_numpy(grid))


def test_the_mean_of_all_passes_of_any_model_is_symmetric():
    torch.manual_seed(0)
    x, lopsided = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.nn.Conv2d(3, 4, 3, padding=1).double()

    def mean(x):
        return sum(one_pass(lopsided, x, k, 1.0) for k in VIEWS) / len(VIEWS)

    with torch.no_grad():
        for k in VIEWS:
            torch.testing.assert_close(mean(view(x, k)), view(mean(x), k))
            assert not torch.allclose(lopsided(view(x, k)), view(lopsided(x), k)) or k == 0


def smooth(x):
    return torch.stack([x[:, 0], 1 - x[:, 0]], 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(list(VIEWS)))
def test_a_pass_of_a_pixelwise_model_undoes_its_view_exactly(height, width, k):
    x = torch.rand(2, 3, height, width)
    assert torch.equal(one_pass(smooth, x, k, 1.0), smooth(x))


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.5, 2.0])
def test_a_model_is_shown_another_scale_and_answers_at_the_images_own(scale):
    rows, cols = torch.meshgrid(torch.linspace(0.1, 0.4, 40), torch.linspace(0.1, 0.4, 30), indexing="ij")
    x = (rows + cols)[None, None].repeat(1, 2, 1, 1)
    shown = []

    def model(v):
        shown.append(v.shape)
        return smooth(v)

    out = at_scale(model, x, scale)
    assert shown == [(1, 2, round(40 * scale), round(30 * scale))]
    assert (out - smooth(x)).abs().max() < 0.02  # a plane survives, but for the edge


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_pixels_without_data_stay_out_of_others_and_have_no_data_at_any_scale(scale):
    x = torch.full((1, 2, 24, 24), 0.7)
    x[..., 8:16] = 0
    seen = []
    at_scale(lambda v: seen.append(v) or smooth(v), x, scale)
    (v,) = seen
    assert ((v == 0) | ((v - 0.7).abs() < 1e-6)).all()
    assert (v == 0).all(1).float().mean().item() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("k", VIEWS)
def test_in_a_view_the_ground_faces_where_it_falls_in_it(k):
    z = np.random.default_rng(0).random((6, 9)).cumsum(0).cumsum(1)
    image = torch.from_numpy(np.stack([z, *aspect(z, 1, 1)]))
    seen = view_of_image(image, k, (1, 2))
    np.testing.assert_allclose(seen[1:], np.stack(aspect(seen[0].numpy(), 1, 1)), atol=1e-12)
    assert torch.equal(seen[0], view(image[0], k))
    np.testing.assert_array_equal(image[1:], np.stack(aspect(z, 1, 1)))  # is left as it was


def test_a_model_that_knows_where_the_ground_falls_sees_the_same_in_every_view():
    z = np.random.default_rng(0).random((9, 9)).cumsum(0).cumsum(1)
    x = torch.from_numpy(np.nan_to_num(np.stack([z, *aspect(z, 1, 1)])))[None]

    def descent(x):
        south, east = torch.gradient(x[:, 0], dim=(-2, -1))
        return (x[:, 1] * east - x[:, 2] * south)[:, None]

    for k in VIEWS:
        torch.testing.assert_close(one_pass(descent, x, k, 1.0, (1, 2)), descent(x))
        assert k == 0 or not torch.allclose(one_pass(descent, x, k, 1.0), descent(x))
