"""Augmentation of training batches on their device, see `core.warp` and `core.radiometry`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from fastai.vision.all import ItemTransform, Transform

from ..bands import LOCATION, aspect_index
from ..core.radiometry import radiometry_
from ..core.settings import Augmentation, spelled_out, takes
from ..core.warp import random_coordinates, random_dihedral, warp
from .types import TensorGlacierMask, TensorMultispectral

__all__ = ["AugmentTiles", "UnknownPlace"]


@takes(Augmentation)
class AugmentTiles(ItemTransform):
    """Random geometry and radiometry of a batch of normalised tiles, each sample by its own draw; training only.

    >>> AugmentTiles(flip=True, rotate=45).geometry["rotate"]
    45.0

    Raises:
        RecipeError: A setting that is unknown or out of bounds.
    """

    split_idx, order = 0, 100  # after NormalizeBands
    generator: torch.Generator | None = None
    """On the CPU; decides every random number. A loader may set it for each batch; None is torch's own."""
    aspect: tuple[int, int] | None = None
    """Positions of sine and cosine of aspect, which turn with the image; see `for_bands`."""
    location: tuple[int, ...] = ()
    """Positions of latitude and longitude, which have no radiometry."""

    def __init__(
        self,
        **settings: Any,  # fields of `Augmentation`
    ):
        self.settings = Augmentation(**settings)
        amounts = self.settings.model_dump()
        self.flip = amounts.pop("flip")
        self.geometry = {name: amounts.pop(name) for name in ("sun", "rotate", "scale", "shift", "elastic", "grid")}
        self.radiometry = amounts

    @classmethod
    def preset(
        cls,
        name: str,  # "light" or "heavy", as in recipes
    ) -> AugmentTiles:
        """Return the augmentation that a recipe has under this name.

        >>> AugmentTiles.preset("light").settings.rotate
        45.0

        Raises:
            RecipeError: There is none.
        """
        return cls(**spelled_out(name))

    def for_bands(
        self,
        bands: Sequence[str],  # of the images, in their order
    ) -> Self:
        """Return a copy that turns aspect with the image and leaves location alone, if they are among these bands.

        >>> AugmentTiles().for_bands(["red", "aspect_sin", "aspect_cos"]).aspect
        (1, 2)

        Raises:
            DataError: Sine or cosine of aspect is there alone.
        """
        out = copy(self)
        out.aspect, out.location = aspect_index(bands), _located(bands)
        return out

    def encodes(self, batch):  # fastai skips an annotated ItemTransform.encodes
        """Change a batch of images and masks."""
        x, y = (t.as_subclass(torch.Tensor) for t in batch)
        if any(self.geometry.values()) or self.settings.sun is not None:  # which may be 0, in the north
            size = x.shape[-2:]
            at = random_coordinates(
                len(x), size, flip=self.flip, **self.geometry, generator=self.generator, device=x.device
            )
            x, y = warp(x, y, at, self.aspect)
        elif self.flip:
            x, y = random_dihedral(x, y, self.generator, self.aspect)
        else:
            x = x.clone()
        if any(self.radiometry.values()):
            places = [(k, x[:, k].clone()) for k in self.location]
            x = radiometry_(x, **self.radiometry, generator=self.generator)
            for k, place in places:
                x[:, k] = place
        return TensorMultispectral(x), TensorGlacierMask(y)


class UnknownPlace(Transform):
    """Makes latitude and longitude of some images unknown, 0, so that a network learns to do without; training only."""

    split_idx, order, SHARE = 0, 105, 0.1  # after augmentation
    generator: torch.Generator | None = None
    """As that of `AugmentTiles`."""

    def __init__(
        self,
        bands: Sequence[str],  # of the images, in their order
    ):
        self.location = _located(bands)

    def encodes(self, x: TensorMultispectral):
        """Change a batch of images."""
        plain = x.as_subclass(torch.Tensor)
        known = (torch.rand(len(plain), 1, 1, generator=self.generator) >= self.SHARE).to(plain)
        for k in self.location:
            plain[:, k] *= known
        return TensorMultispectral(plain)


def _located(bands: Sequence[str]) -> tuple[int, ...]:
    return tuple(k for k, band in enumerate(bands) if band in LOCATION)
