"""The U-Net of segmentation-models-pytorch, with channel attention, for any number of bands and any image size."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ChannelAttention", "GlacierUnet", "adapt_first_conv", "adapt_head", "glacier_splitter", "glacier_unet"]


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
        nn.init.constant_(self.gate[3].bias, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` of shape `(B, C, H, W)` with each channel scaled."""
        return x * self.gate(x)


class GlacierUnet(smp.Unet):
    """A U-Net that takes images of any size: pads inside to what the encoder needs, and crops back."""

    def __init__(
        self,
        arch: str,  # encoder, as named by segmentation-models-pytorch
        in_channels: int,  # bands
        classes: int,  # classes
        attention: str | None,  # "scse", "cse" or None
    ):
        if attention not in ("scse", "cse", None):
            raise ValueError(f"attention {attention!r}: use 'scse', 'cse' or None")
        super().__init__(
            arch,
            encoder_weights=None,
            in_channels=in_channels,
            classes=classes,
            decoder_attention_type="scse" if attention == "scse" else None,
        )
        self.arch, self.attention = arch, attention
        if attention == "cse":
            for block in self.decoder.blocks:
                block.attention1 = ChannelAttention(block.conv1[0].in_channels)
                block.attention2 = ChannelAttention(block.conv2[0].out_channels)
        # the last block has no skip connection, so smp never calls its first attention: parameters without a
        # gradient stop distributed training
        self.decoder.blocks[-1].attention1 = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, H, W)` of images `(B, C, H, W)`."""
        height, width = x.shape[-2:]
        stride = self.encoder.output_stride
        down, right = -height % stride, -width % stride
        if down or right:
            mode = "reflect" if down < height and right < width else "replicate"
            x = F.pad(x, (0, right, 0, down), mode=mode)
        return super().forward(x)[..., :height, :width]


def glacier_unet(
    arch: str = "resnet34",  # encoder, as named by segmentation-models-pytorch
    in_channels: int = 5,  # bands
    classes: int = 4,  # classes
    attention: str | None = "scse",  # "scse", "cse" or None
) -> GlacierUnet:
    """Return an untrained U-Net; with the defaults about 24.6 million parameters.

    ``scse`` is spatial and channel squeeze and excitation by addition (Roy et al. 2018,
    doi 10.1007/978-3-030-00928-1_48).
    """
    return GlacierUnet(arch, in_channels, classes, attention)


def glacier_splitter(model: GlacierUnet) -> list[list[nn.Parameter]]:
    """Return the parameter groups encoder, and decoder with head, for discriminative rates and `freeze`."""
    head = [*model.decoder.parameters(), *model.segmentation_head.parameters()]
    return [list(model.encoder.parameters()), head]


def adapt_first_conv(
    weight: torch.Tensor,  # (O, C, k, k) of the trained first convolution
    have: Sequence[str],  # its C bands
    want: Sequence[str],  # bands of the new model
) -> torch.Tensor:
    """Return the first convolution for other bands, `(O, len(want), k, k)`.

    Shared bands keep their weights; new ones start from the mean of those that are kept (of all, if none is).
    """
    kept = [have.index(b) for b in want if b in have]
    mean = weight[:, kept or slice(None)].mean(1)
    return torch.stack([weight[:, have.index(b)] if b in have else mean for b in want], 1)


def adapt_head(
    weight: torch.Tensor,  # (K, ...) of the trained last convolution, or its bias
    fresh: torch.Tensor,  # (len(want), ...) of the new model
    have: Sequence[str],  # its K classes
    want: Sequence[str],  # classes of the new model
) -> torch.Tensor:
    """Return the last convolution for other classes: shared classes keep their weights, new ones stay as made."""
    return torch.stack([weight[have.index(c)] if c in have else fresh[k] for k, c in enumerate(want)])
