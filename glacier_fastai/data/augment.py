"""Augmentation of training batches on their device, see `core.warp` and `core.radiometry`."""

from __future__ import annotations

import torch
from fastai.vision.all import ItemTransform

from ..core.radiometry import radiometry_
from ..core.warp import random_coordinates, random_dihedral, warp
from ..recipe import augment_fields
from .types import TensorGlacierMask, TensorMultispectral

__all__ = ["AugmentTiles"]


class AugmentTiles(ItemTransform):
    """Random geometry and radiometry of a batch of normalised tiles, each sample by its own draw; training only."""

    split_idx, order = 0, 100  # after NormalizeBands
    generator: torch.Generator | None = None
    """On the CPU; decides every random number. A loader may set it for each batch; None is torch's own."""

    def __init__(
        self,
        flip: bool = True,  # the 8 flips and quarter turns; exact where no other geometry is asked for
        rotate: float = 0.0,  # largest rotation, degrees
        scale: float = 0.0,  # largest relative change of scale
        shift: float = 0.0,  # largest shift, share of the side
        elastic: float = 0.0,  # standard deviation of elastic warping, at nodes 32 pixels apart, pixels
        grid: float = 0.0,  # grid distortion: largest relative change of a step between 5 grid lines
        brightness: float = 0.0,  # largest offset per band, standard deviations of the band
        contrast: float = 0.0,  # largest relative change of gain per band
        gamma: float = 0.0,  # largest relative change of the exponent per band, over the range of the sample
        noise: float = 0.0,  # largest noise per pixel, standard deviations of the band
        blur: float = 0.0,  # largest standard deviation of Gaussian blur, pixels
        dropout: float = 0.0,  # probability that one band of a sample becomes 0, its mean
    ):
        self.flip = flip
        self.geometry = {"rotate": rotate, "scale": scale, "shift": shift, "elastic": elastic, "grid": grid}
        self.radiometry = {"brightness": brightness, "contrast": contrast, "gamma": gamma, "noise": noise}
        self.radiometry |= {"blur": blur, "dropout": dropout}

    @classmethod
    def preset(
        cls,
        name: str,  # "light" or "heavy", as in recipes
    ) -> AugmentTiles:
        """Return the augmentation that a recipe has under this name; raises `RecipeError` if there is none."""
        return cls(**augment_fields(name))

    def encodes(self, batch):  # fastai skips an annotated ItemTransform.encodes
        """Change a batch of images and masks."""
        x, y = (t.as_subclass(torch.Tensor) for t in batch)
        if any(self.geometry.values()):
            size = x.shape[-2:]
            at = random_coordinates(
                len(x), size, flip=self.flip, **self.geometry, generator=self.generator, device=x.device
            )
            x, y = warp(x, y, at)
        elif self.flip:
            x, y = random_dihedral(x, y, self.generator)
        else:
            x = x.clone()
        if any(self.radiometry.values()):
            x = radiometry_(x, **self.radiometry, generator=self.generator)
        return TensorMultispectral(x), TensorGlacierMask(y)
