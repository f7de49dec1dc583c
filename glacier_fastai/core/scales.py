"""One look of a model at an image, flipped, turned or resized, for test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .dihedral import undo_view, view

__all__ = ["at_scale", "one_pass"]


def at_scale(
    model: Callable[[Tensor], Tensor],  # (B, C, h, w) -> probabilities (B, K, h, w)
    x: Tensor,  # (B, C, H, W), normalised, 0 in every band where there is no data
    scale: float,  # the model sees sides of `round(scale * side)` pixels
) -> Tensor:
    """Return what the model says of the image at a scale, at the image's own size `(B, K, H, W)`.

    Resizing is bilinear, of the pixels with data alone: where less than half of a pixel has data, it has none.
    """
    if scale == 1:
        return model(x)
    height, width = x.shape[-2:]
    size = [max(round(side * scale), 1) for side in (height, width)]
    data = (x != 0).any(1, keepdim=True).to(x.dtype)
    share = F.interpolate(data, size, mode="bilinear", align_corners=False)
    values = F.interpolate(x * data, size, mode="bilinear", align_corners=False)
    small = values / share.clamp(min=0.5) * (share >= 0.5)
    return F.interpolate(model(small), (height, width), mode="bilinear", align_corners=False)


def one_pass(
    model: Callable[[Tensor], Tensor],  # (B, C, h, w) -> probabilities (B, K, h, w)
    x: Tensor,  # (B, C, H, W), normalised, 0 in every band where there is no data
    k: int,  # number of the view
    scale: float,  # see `at_scale`
) -> Tensor:
    """Return what the model says of one view at one scale, turned and resized back, `(B, K, H, W)`."""
    return undo_view(at_scale(model, view(x, k), scale), k)
