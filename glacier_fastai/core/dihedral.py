"""The 8 views of a square, its flips and quarter turns, exact and exactly undone; and one look of a model at an image.

Test-time augmentation is the mean of such looks (`one_pass`).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor

__all__ = ["VIEWS", "at_scale", "fraction", "one_pass", "undo_view", "view", "view_of_image"]

VIEWS = range(8)
"""Numbers of the views; 0 changes nothing. Bit 0 flips columns, bit 1 flips rows, bit 2 then transposes."""


def view(
    x: Tensor,  # (..., H, W); from view 4 on, height and width change places
    k: int,  # number of the view
) -> Tensor:
    """Return view `k` of `x`.

    >>> import torch
    >>> view(torch.tensor([[1, 2], [3, 4]]), 5)
    tensor([[2, 4],
            [1, 3]])
    """
    x = x.flip([d for bit, d in ((1, -1), (2, -2)) if k & bit])
    return x.mT if k & 4 else x


def view_of_image(
    x: Tensor,  # (..., C, H, W)
    k: int,  # number of the view
    aspect: tuple[int, int] | None = None,  # positions of sine and cosine of aspect, of mean 0 and one deviation
) -> Tensor:
    """Return view `k` of an image, in which directions turn as its pixels do.

    >>> import torch
    >>> east = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    >>> [view_of_image(east, k, (0, 1)).flatten().tolist() for k in (1, 4)]  # flipped, transposed
    [[-1.0, 0.0], [0.0, -1.0]]
    """
    x = view(x, k)
    if aspect is None or not k:
        return x
    sin, cos = (x[..., i, :, :] for i in aspect)
    sin, cos = (0 - sin if k & 1 else sin), (0 - cos if k & 2 else cos)
    if k & 4:
        sin, cos = 0 - cos, 0 - sin  # rows run south
    x = x.clone()
    x[..., aspect[0], :, :], x[..., aspect[1], :, :] = sin, cos
    return x


def undo_view(
    x: Tensor,  # (..., H, W), view k of something
    k: int,  # number of the view
) -> Tensor:
    """Return that of which `x` is view `k`.

    >>> import torch
    >>> x = torch.arange(6).view(2, 3)
    >>> all(torch.equal(undo_view(view(x, k), k), x) for k in VIEWS)
    True
    """
    x = x.mT if k & 4 else x
    return x.flip([d for bit, d in ((1, -1), (2, -2)) if k & bit])


def at_scale(
    model: Callable[[Tensor], Tensor],  # (B, C, h, w) -> probabilities (B, K, h, w)
    x: Tensor,  # (B, C, H, W), normalised, 0 in every band where there is no data
    scale: float,  # the model sees sides of `round(scale * side)` pixels
) -> Tensor:
    """Return what the model says of the image at a scale, at the image's own size `(B, K, H, W)`.

    Resizing is bilinear, of the pixels with data alone: where less than half of a pixel has data, it has none.

    >>> import torch
    >>> at_scale(lambda x: x[:, :1] * 0 + x.shape[-1], torch.ones(1, 2, 8, 8), 0.5).unique()
    tensor([4.])
    """
    if scale == 1:
        return model(x)
    height, width = x.shape[-2:]
    size = [_scaled(side, scale) for side in (height, width)]
    data = (x != 0).any(1, keepdim=True).to(x.dtype)
    share = F.interpolate(data, size, mode="bilinear", align_corners=False)
    values = F.interpolate(x * data, size, mode="bilinear", align_corners=False)
    small = values / share.clamp(min=0.5) * (share >= 0.5)
    return F.interpolate(model(small), (height, width), mode="bilinear", align_corners=False)


def _scaled(side: int, scale: float) -> int:
    """Return a side at a scale; of an exported model, whose sides are symbols, it must be whole already."""
    if isinstance(side, int):
        return max(round(side * scale), 1)
    exact = fraction(scale)
    return side * exact.numerator // exact.denominator


def fraction(
    scale: float,
) -> Fraction:
    """Return a scale as a fraction of small numbers.

    >>> fraction(0.3)
    Fraction(3, 10)
    """
    return Fraction(scale).limit_denominator(100)


def one_pass(
    model: Callable[[Tensor], Tensor],  # (B, C, h, w) -> probabilities (B, K, h, w)
    x: Tensor,  # (B, C, H, W), normalised, 0 in every band where there is no data
    k: int,  # number of the view
    scale: float,  # see `at_scale`
    aspect: tuple[int, int] | None = None,  # see `view_of_image`
) -> Tensor:
    """Return what the model says of one view at one scale, turned and resized back, `(B, K, H, W)`.

    >>> import torch
    >>> x = torch.rand(1, 2, 4, 6)
    >>> torch.equal(one_pass(lambda x: x, x, 6, 1.0), x)
    True
    """
    return undo_view(at_scale(model, view_of_image(x, k, aspect), scale), k)
