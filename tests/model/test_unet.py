import pytest
import torch
import torch.nn.functional as F
from contract.models import ModelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import TINY

from glacier_fastai.errors import RecipeError
from glacier_fastai.model.registry import architecture, build_model, model_names
from glacier_fastai.model.unet import ChannelAttention, adapt_first_conv, adapt_head, glacier_unet


class TestUnet(ModelContract):
    name = "unet"
    options = {"encoder": TINY, "attention": "scse"}


class TestUnetWithoutAttention(ModelContract):
    name = "unet"
    options = {"encoder": TINY, "attention": None}


class TestUnetWithChannelAttention(ModelContract):
    name = "unet"
    options = {"encoder": TINY, "attention": "cse"}

    def test_the_gate_starts_nearly_open(self):
        x = torch.randn(2, 32, 8, 8)
        y = ChannelAttention(32)(x)
        assert 0.8 < (y / x).mean() < 0.95


class Other(ModelContract):
    options = {"encoder": TINY}


class TestUnetPlusPlus(Other):
    name = "unetplusplus"


class TestMAnet(Other):
    name = "manet"


class TestLinknet(Other):
    name = "linknet"


class TestFPN(Other):
    name = "fpn"


class TestDeepLabV3(Other):
    name = "deeplabv3"


class TestDeepLabV3Plus(Other):
    name = "deeplabv3plus"


class TestUPerNet(Other):
    name = "upernet"


class TestSegformer(Other):
    name = "segformer"


def test_every_network_that_is_built_in_has_its_contract():
    mine = {
        c.name for c in globals().values() if isinstance(c, type) and issubclass(c, ModelContract) and "name" in vars(c)
    }
    assert {"unet", "fpn"} <= mine <= set(model_names())
    assert mine == {n for n in model_names() if architecture(n)[0].build.__module__.endswith("model.unet")}


@pytest.mark.parametrize(
    "encoder", ["resnet18", "efficientnet-b0", "mobilenet_v2", "mit_b0", "tu-test_convnext.r160_in1k"]
)
def test_encoders_of_smp_and_timm(encoder):
    model = build_model("unet", ["red", "nir", "swir1"], encoder=encoder, attention=None)
    model(torch.randn(2, 3, 40, 70)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_size_that_fits_is_not_padded():
    model, x = glacier_unet(TINY, 5).eval(), torch.randn(1, 5, 64, 96)
    assert torch.equal(model(x), model.segmentation_head(model.decoder(model.encoder(x))))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), attention=st.sampled_from([None, "scse", "cse"]))
def test_any_image_size(height, width, attention):
    model = glacier_unet(TINY, 5, 4, attention).eval()
    assert model(torch.randn(1, 5, height, width)).shape == (1, 4, height, width)


def test_at_half_its_scale_it_sees_means_of_four_pixels_with_data():
    bands = ["blue", "green", "red", "swir1", "thermal"]
    half = build_model("unet", bands, encoder=TINY, attention=None, scale=0.5).eval()
    whole = build_model("unet", bands, encoder=TINY, attention=None).eval()
    whole.load_state_dict(half.state_dict())
    x = torch.randn(1, 5, 64, 96)
    x[:, :, :3, :1] = 0
    data = (x != 0).any(1, keepdim=True).float()
    share = F.avg_pool2d(data, 2)
    seen = torch.where(share >= 0.5, F.avg_pool2d(x, 2) / share.clamp(min=0.5), 0)
    want = F.interpolate(whole(seen), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(half(x), want)
    assert half(x[..., :41, :77]).shape == (1, 4, 41, 77)


def test_the_default_has_about_24_6_million_parameters():
    assert sum(p.numel() for p in glacier_unet().parameters()) == 24_556_872


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"attention": "se"}, "attention 'se': use 'scse', 'cse' or None"),
        ("unet", {"encoder": "resnet43"}, "encoder 'resnet43'.*tu-NAME.*did you mean 'resnet34'"),
        ("fpn", {"encoder": "tu-nonet"}, "encoder 'tu-nonet': use one of"),
        ("linknet", {"encoder": "mit_b0"}, "'linknet' cannot be built.*mit_b0.*not supported"),
        ("unet", {"encoder": "tu-swin_tiny_patch4_window7_224"}, "cannot take an image of 1 bands and 40 x 56 px"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, options, message):
    with pytest.raises(RecipeError, match=message) as err:
        build_model(name, ["red"], **options)
    assert "\n" not in str(err.value)


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
