import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.model.unet import (
    ChannelAttention,
    GlacierUnet,
    adapt_first_conv,
    adapt_head,
    glacier_splitter,
    glacier_unet,
)


class ModelContract:
    """What every model of ours does."""

    attention: str | None = None

    def model(self, bands=5, classes=4):
        torch.manual_seed(0)
        return glacier_unet("resnet18", bands, classes, self.attention)

    @pytest.mark.parametrize(("bands", "classes"), [(4, 4), (5, 4), (7, 2), (12, 4)])
    def test_any_number_of_bands_and_classes(self, bands, classes):
        assert self.model(bands, classes).eval()(torch.randn(2, bands, 64, 64)).shape == (2, classes, 64, 64)

    def test_a_size_that_fits_is_not_padded(self):
        model, x = self.model().eval(), torch.randn(1, 5, 64, 96)
        features = model.encoder(x)
        assert torch.equal(model(x), model.segmentation_head(model.decoder(features)))

    def test_every_parameter_gets_a_gradient(self):
        model = self.model()
        model(torch.randn(2, 5, 64, 64)).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []

    def test_the_groups_hold_every_parameter_once(self):
        model = self.model()
        encoder, rest = glacier_splitter(model)
        assert {id(p) for p in encoder} == {id(p) for p in model.encoder.parameters()}
        everything = [id(p) for p in encoder + rest]
        assert sorted(everything) == sorted(id(p) for p in model.parameters())

    def test_weights_survive_a_round_trip(self):
        a, b, x = self.model().eval(), glacier_unet("resnet18", 5, 4, self.attention).eval(), torch.randn(1, 5, 40, 50)
        b.load_state_dict(a.state_dict())
        assert torch.equal(a(x), b(x))


class TestPlain(ModelContract):
    attention = None


class TestScse(ModelContract):
    attention = "scse"


class TestCse(ModelContract):
    attention = "cse"

    def test_the_gate_starts_nearly_open(self):
        x = torch.randn(2, 32, 8, 8)
        y = ChannelAttention(32)(x)
        assert 0.8 < (y / x).mean() < 0.95


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), attention=st.sampled_from([None, "scse", "cse"]))
def test_any_image_size(height, width, attention):
    model = glacier_unet("resnet18", 5, 4, attention).eval()
    assert model(torch.randn(1, 5, height, width)).shape == (1, 4, height, width)


def test_the_default_has_about_24_6_million_parameters():
    model = glacier_unet()
    assert isinstance(model, GlacierUnet)
    assert sum(p.numel() for p in model.parameters()) == 24_556_872


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention 'se': use 'scse', 'cse' or None"):
        glacier_unet(attention="se")


def test_the_first_convolution_is_adapted_by_band_name():
    w = torch.randn(8, 3, 7, 7)
    new = adapt_first_conv(w, ("blue", "green", "red"), ("red", "nir", "blue"))
    assert torch.equal(new[:, 0], w[:, 2])
    assert torch.equal(new[:, 2], w[:, 0])
    torch.testing.assert_close(new[:, 1], (w[:, 0] + w[:, 2]) / 2)
    nothing_shared = adapt_first_conv(w, ("blue", "green", "red"), ("nir", "pan"))
    torch.testing.assert_close(nothing_shared, w.mean(1, keepdim=True).expand(-1, 2, -1, -1))


def test_the_head_is_adapted_by_class_name():
    w, fresh = torch.randn(3, 16, 3, 3), torch.randn(4, 16, 3, 3)
    new = adapt_head(w, fresh, ("background", "debris", "glacier"), ("background", "glacier", "debris", "lake"))
    assert torch.equal(new, torch.stack([w[0], w[2], w[1], fresh[3]]))
