"""The networks of segmentation-models-pytorch, from scratch, for any number of bands and any image size.

Encoders are those of segmentation-models-pytorch ("resnet34", "efficientnet-b0", "mit_b0", ...) and, as "tu-NAME",
those of timm. PSPNet and PAN are left out: the one leaves half of its encoder unused, the other takes no image below
128 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ..core.dihedral import at_scale
from ..errors import RecipeError, did_you_mean
from .registry import Architecture

__all__ = ["ChannelAttention", "adapt_first_conv", "adapt_head", "glacier_unet"]


class ChannelAttention(nn.Module):
    """Channel squeeze and excitation, x * sigmoid(W2 relu(W1 mean(x))) (Hu et al. 2018, doi 10.1109/CVPR.2018.00745).

    The gate starts nearly open (bias 2), so that an untrained network passes its features on.
    """

    def __init__(
        self,
        channels: int,  # channels in and out
        reduction: int = 16,  # channels per hidden unit, at least 4 units
    ):
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        nn.init.constant_(self.gate.get_parameter("3.bias"), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` of shape `(B, C, H, W)` with each channel scaled."""
        return x * self.gate(x)


class AnySize:
    """A network of segmentation-models-pytorch that pads inside to what its encoder needs, and crops back."""

    encoder: Any
    scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, H, W)` of images `(B, C, H, W)`."""
        return at_scale(self._padded, x, self.scale)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        stride = max(self.encoder.output_stride, 32)  # some decoders halve more often than their encoder
        down, right = -height % stride, -width % stride
        if down or right:
            mode = "reflect" if down < height and right < width else "replicate"
            x = F.pad(x, (0, right, 0, down), mode=mode)
        return super().forward(x)[..., :height, :width]  # type: ignore[misc]  # of the class it is mixed into


class Unet(AnySize, smp.Unet):
    """A U-Net, its decoder with attention."""

    def __init__(self, attention: str | None, **kwargs: Any):
        if attention not in ("scse", "cse", None):
            raise RecipeError(f"attention {attention!r}: use 'scse', 'cse' or None")
        super().__init__(decoder_attention_type="scse" if attention == "scse" else None, **kwargs)
        if attention == "cse":
            for block in self.decoder.blocks:
                block.attention1 = ChannelAttention(block.conv1[0].in_channels)
                block.attention2 = ChannelAttention(block.conv2[0].out_channels)
        # the last block has no skip connection, so smp never calls its first attention: parameters without a
        # gradient stop distributed training
        self.decoder.blocks[-1].attention1 = nn.Identity()


class UnetPlusPlus(AnySize, smp.UnetPlusPlus):
    """Zhou et al. 2018, doi 10.1007/978-3-030-00889-5_1."""


class MAnet(AnySize, smp.MAnet):
    """Fan et al. 2020, doi 10.1109/ACCESS.2020.3025372."""


class Linknet(AnySize, smp.Linknet):
    """Chaurasia and Culurciello 2017, doi 10.1109/VCIP.2017.8305148."""


class FPN(AnySize, smp.FPN):
    """Kirillov et al. 2019, doi 10.1109/CVPR.2019.00656."""


class DeepLabV3(AnySize, smp.DeepLabV3):
    """Chen et al. 2017, arXiv 1706.05587."""


class DeepLabV3Plus(AnySize, smp.DeepLabV3Plus):
    """Chen et al. 2018, doi 10.1007/978-3-030-01234-2_49."""


class UPerNet(AnySize, smp.UPerNet):
    """Xiao et al. 2018, doi 10.1007/978-3-030-01228-1_26."""


class Segformer(AnySize, smp.Segformer):
    """Xie et al. 2021, arXiv 2105.15203."""


def _build(
    network: type[nn.Module], bands: Sequence[str], classes: Sequence[str], encoder: str, scale: float, **options: Any
) -> nn.Module:
    if not 0.25 <= scale <= 1:
        raise RecipeError(f"scale {scale}: use 0.25 to 1, which is the image as it is")
    known = smp.encoders.get_encoder_names()
    # a name that timm does not hold it would look for on a hub, or on the disk
    if encoder not in known and not (encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-"))):
        some = f"{', '.join(known[:3])}, ..., {known[-1]}"
        raise RecipeError(
            f"encoder {encoder!r}: use one of segmentation-models-pytorch ({some}), or tu-NAME of timm"
            f"{did_you_mean(encoder, known)}"
        )
    model: Any = network(
        encoder_name=encoder, encoder_weights=None, in_channels=len(bands), classes=len(classes), **options
    )
    model.scale = float(scale)
    for unused in ("_conv_head", "_bn1"):  # of EfficientNet's classifier: without a gradient they stop DDP
        if hasattr(model.encoder, unused):
            setattr(model.encoder, unused, nn.Identity())
    return model


def _unet(
    bands: Sequence[str],
    classes: Sequence[str],
    encoder: str = "resnet34",
    attention: str | None = "scse",
    scale: float = 1.0,
) -> nn.Module:
    return _build(Unet, bands, classes, encoder, scale, attention=attention)


def _plain(network: type[nn.Module]):
    def build(bands: Sequence[str], classes: Sequence[str], encoder: str = "resnet34", scale: float = 1.0) -> nn.Module:
        return _build(network, bands, classes, encoder, scale)

    return build


def _groups(model: Any) -> list[list[nn.Parameter]]:
    """Return the parameter groups encoder, and decoder with head."""
    return [list(model.encoder.parameters()), [*model.decoder.parameters(), *model.segmentation_head.parameters()]]


def _first(model: Any) -> str:
    names = (name for name, module in model.encoder.named_modules() if isinstance(module, nn.Conv2d))
    return f"encoder.{next(names)}.weight"


def _head(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if name.startswith("segmentation_head.0.")]


ENCODER_OF = {"tiny": "tu-test_resnet.r160_in1k", "small": "resnet18", "base": "resnet34", "large": "resnet50"}
_sizes = {size: {"encoder": encoder} for size, encoder in ENCODER_OF.items()}
_smp = partial(Architecture, groups=_groups, first=_first, head=_head, apart=("scale",), sizes=_sizes)
ARCHITECTURES = [
    _smp("unet", _unet),
    *(
        _smp(network.__name__.lower(), _plain(network))
        for network in (UnetPlusPlus, MAnet, Linknet, FPN, DeepLabV3, DeepLabV3Plus, UPerNet, Segformer)
    ),
]


def glacier_unet(
    encoder: str = "resnet34",  # as named by segmentation-models-pytorch, or "tu-" and a name of timm
    in_channels: int = 5,  # bands
    classes: int = 4,  # classes
    attention: str | None = "scse",  # "scse", "cse" or None
) -> nn.Module:
    """Return an untrained U-Net; with the defaults about 24.6 million parameters.

    ``scse`` is spatial and channel squeeze and excitation by addition (Roy et al. 2018,
    doi 10.1007/978-3-030-00928-1_48).

    >>> model = glacier_unet("resnet18", 4)
    >>> model(torch.zeros(2, 4, 33, 70)).shape
    torch.Size([2, 4, 33, 70])
    """
    from .registry import build_model

    bands, names = [str(k) for k in range(in_channels)], [str(k) for k in range(classes)]
    return build_model("unet", bands, names, encoder=encoder, attention=attention)


def adapt_first_conv(
    weight: torch.Tensor,  # (O, C, k, k) of the trained first convolution
    have: Sequence[str],  # its C bands
    want: Sequence[str],  # bands of the new model
) -> torch.Tensor:
    """Return the first convolution for other bands, `(O, len(want), k, k)`.

    Shared bands keep their weights; new ones start from the mean of those that are kept (of all, if none is).

    >>> adapt_first_conv(torch.tensor([[1.0, 3.0]]).view(1, 2, 1, 1), ["red", "nir"], ["nir", "swir1"]).flatten()
    tensor([3., 3.])
    """
    kept = [have.index(b) for b in want if b in have]
    mean = weight[:, kept or slice(None)].mean(1)
    return torch.stack([weight[:, have.index(b)] if b in have else mean for b in want], 1)


def adapted_bands(
    have: Sequence[str],  # bands of the trained first convolution
    want: Sequence[str],  # bands of the new model
) -> str:
    """Return in words what `adapt_first_conv` does.

    >>> adapted_bands(["red", "nir"], ["nir", "swir1"])
    'first convolution: nir kept; swir1 start from the mean of these; red dropped'
    """
    kept, new = [b for b in want if b in have], [b for b in want if b not in have]
    dropped = [b for b in have if b not in want]
    return (
        f"first convolution: {', '.join(kept) or 'no band'} kept"
        + (f"; {', '.join(new)} start from the mean of {'these' if kept else 'all'}" if new else "")
        + (f"; {', '.join(dropped)} dropped" if dropped else "")
    )


def adapt_head(
    weight: torch.Tensor,  # (K, ...) of the trained last convolution, or its bias
    fresh: torch.Tensor,  # (len(want), ...) of the new model
    have: Sequence[str],  # its K classes
    want: Sequence[str],  # classes of the new model
) -> torch.Tensor:
    """Return the last convolution for other classes: shared classes keep their weights, new ones stay as made.

    >>> adapt_head(torch.tensor([1.0, 2.0]), torch.zeros(2), ["ice", "lake"], ["lake", "rock"])
    tensor([2., 0.])
    """
    return torch.stack([weight[have.index(c)] if c in have else fresh[k] for k, c in enumerate(want)])
