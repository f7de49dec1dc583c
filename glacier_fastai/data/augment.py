"""Augmentation of training batches on their device: one resampling for all geometry, then changes per band."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fastai.vision.all import ItemTransform

from ..bands import IGNORE
from ..core.dihedral import VIEWS, view
from .types import TensorGlacierMask, TensorMultispectral

__all__ = ["AugmentTiles", "random_dihedral", "warp"]


def random_dihedral(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn and flip each sample of `x (B, C, H, H)` and `y (B, H, H)` by its own draw of the 8 views, exactly."""
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    for i, k in enumerate(torch.randint(len(VIEWS), (len(x),)).tolist()):
        out_x[i], out_y[i] = view(x[i], k), view(y[i], k)
    return out_x, out_y


def warp(x: torch.Tensor, y: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample `x (B, C, H, W)` bilinearly and `y (B, H, W)` to the nearest label; outside is 0 and ignore.

    Args:
        x: Normalised images.
        y: Class codes.
        grid: Where each output pixel comes from, `(B, H, W, 2)` in the coordinates of `F.grid_sample`
            (x before y, -1 and 1 = outer edges).
    """
    shifted = (y - IGNORE)[:, None].to(x.dtype)  # ignore becomes 0, the value of padding
    label = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    image = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return image, label[:, 0].round().to(y.dtype) + IGNORE


class AugmentTiles(ItemTransform):
    """Random geometry and radiometry of a batch of normalised tiles, each sample by its own draw; training only."""

    split_idx, order = 0, 100  # after NormalizeBands

    def __init__(
        self,
        flip: bool = True,  # the 8 flips and quarter turns, exact
        rotate: float = 0.0,  # largest rotation, degrees
        scale: float = 0.0,  # largest relative change of scale
        shift: float = 0.0,  # largest shift, share of the side
        elastic: float = 0.0,  # standard deviation of elastic warping, pixels
        grid: float = 0.0,  # grid distortion: largest relative change of a step between 5 grid lines
        brightness: float = 0.0,  # largest offset per band, standard deviations of the band
        contrast: float = 0.0,  # largest relative change of gain per band
        noise: float = 0.0,  # largest noise per pixel, standard deviations of the band
    ):
        self.flip, self.rotate, self.scale, self.shift = flip, rotate, scale, shift
        self.elastic, self.grid = elastic, grid
        self.brightness, self.contrast, self.noise = brightness, contrast, noise

    def encodes(self, batch):  # fastai skips an annotated ItemTransform.encodes
        """Change a batch of images and masks."""
        x, y = (t.as_subclass(torch.Tensor) for t in batch)
        if self.flip and x.shape[-1] == x.shape[-2]:
            x, y = random_dihedral(x, y)
        if self.rotate or self.scale or self.shift or self.elastic or self.grid:
            x, y = warp(x, y, self._coordinates(x))
        if self.brightness or self.contrast or self.noise:
            x = self._radiometry(x)
        return TensorMultispectral(x), TensorGlacierMask(y)

    def _coordinates(self, x: torch.Tensor) -> torch.Tensor:
        (n, _, h, w), new = x.shape, {"device": x.device, "dtype": x.dtype}
        draw = torch.rand(4, n, **new) * 2 - 1
        angle = draw[0] * math.radians(self.rotate)
        zoom = (1 + self.scale) ** draw[1]
        cos, sin, dx, dy = zoom * angle.cos(), zoom * angle.sin(), 2 * self.shift * draw[2], 2 * self.shift * draw[3]
        theta = torch.stack([torch.stack([cos, -sin * h / w, dx], 1), torch.stack([sin * w / h, cos, dy], 1)], 1)
        out = F.affine_grid(theta, [n, 1, h, w], align_corners=False)
        if self.grid:
            out = out + torch.stack(
                [
                    self._distorted(n, w, new)[:, None].expand(n, h, w),
                    self._distorted(n, h, new)[:, :, None].expand(n, h, w),
                ],
                -1,
            )
        if self.elastic:
            coarse = torch.randn(n, 2, max(h // 32, 3), max(w // 32, 3), **new)
            smooth = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=True).movedim(1, -1)
            out = out + smooth * self.elastic * torch.tensor([2 / w, 2 / h], **new)
        return out

    def _distorted(self, n: int, length: int, new: dict) -> torch.Tensor:
        steps = 1 + self.grid * (torch.rand(n, 4, **new) * 2 - 1)
        line = F.pad(steps.cumsum(1), (1, 0)) / steps.sum(1, keepdim=True) * 2 - 1
        even = torch.linspace(-1, 1, 5, **new)
        return F.interpolate((line - even)[:, None], length, mode="linear", align_corners=True)[:, 0]

    def _radiometry(self, x: torch.Tensor) -> torch.Tensor:
        n, c = x.shape[:2]
        draw = torch.rand(2, n, c, 1, 1, device=x.device, dtype=x.dtype) * 2 - 1
        data = (x != 0).any(1, keepdim=True)
        x = x * (1 + self.contrast * draw[0]) + self.brightness * draw[1]
        if self.noise:
            x = x + self.noise * torch.rand(n, 1, 1, 1, device=x.device) * torch.randn_like(x)
        return x * data  # no data stays exactly 0
