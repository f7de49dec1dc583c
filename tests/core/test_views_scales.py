import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.core.dihedral import VIEWS, at_scale, one_pass


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
