"""GlaViTU, the network of Maslov et al. 2025 (doi 10.1038/s41467-024-54956-x), for any bands and image size.

A transformer corrects features with what is around them, then a U-Net corrects the result with detail; each has a
residual around it. Bands are seen by modality first, and the modalities summed. Missing data are 0, as everywhere here.
Latitude and longitude, if they are among the bands, are no modality: one vector tells the place of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bands import INDICES, LOCATION, TERRAIN, natural_unit, texture_of
from ..errors import RecipeError
from .registry import Architecture

__all__ = ["GlaViTU", "Location", "band_groups", "location_vector"]

PATCH, HEADS = 16, 4  # side of a patch, pixels; heads of attention
NEARLY = 1e-6  # radians, 6 m: what is nearer to latitude and longitude 0 has no place
norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def band_groups(
    bands: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,  # name -> its bands; default: by what they measure
) -> dict[str, list[int]]:
    """Return the positions of the bands of each modality; latitude and longitude are of none.

    >>> band_groups(["green", "swir1", "thermal", "elevation", "ndsi"])
    {'optical': [0, 1], 'thermal': [2], 'dem': [3], 'indices': [4]}

    Raises:
        RecipeError: `groups` names a band twice, not at all, or one that is not there.
    """
    bands, seen = list(bands), [band for band in bands if band not in LOCATION]
    if groups is None:
        found: dict[str, list[int]] = {}
        for band in seen:
            found.setdefault(_modality(band), []).append(bands.index(band))
        return found
    named = [band for members in groups.values() for band in members]
    if sorted(named) != sorted(seen) or not all(groups.values()):
        odd = next((b for b in named if b not in seen or named.count(b) > 1), None)
        odd = odd or next((b for b in seen if b not in named), "none")
        raise RecipeError(f"groups: name each band once ({', '.join(seen)}), in groups that are not empty; not {odd!r}")
    return {name: [bands.index(band) for band in members] for name, members in groups.items()}


def _modality(band: str) -> str:
    if band in INDICES or texture_of(band):
        return "indices"
    if band in TERRAIN:
        return "dem"
    return "thermal" if natural_unit(band) == "kelvin" else "optical"


def _double(i: int, o: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in (i, o):
        layers += [nn.Conv2d(k, o, 3, padding=1), norm(o), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


class Gate(nn.Module):
    """Squeeze and excitation without reduction."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with each channel scaled."""
        return x * self.layers(x.mean((2, 3)))[:, :, None, None]


class Fusion(nn.Module):
    """Features of each group of bands, summed."""

    def __init__(self, groups: Mapping[str, Sequence[int]], width: int, dropout: float):
        super().__init__()
        self.positions = list(groups.values())
        self.groups = nn.ModuleDict(
            {
                name: nn.Sequential(_double(len(index), width), nn.Dropout2d(dropout), Gate(width))
                for name, index in groups.items()
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(B, width, H, W)` of bands."""
        return torch.stack([g(x[:, at]) for g, at in zip(self.groups.values(), self.positions, strict=True)]).sum(0)


class Location(nn.Module):
    """Features `(B, width)` of a vector `(B, n)` that tells the place of images."""

    def __init__(self, n: int, width: int, dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        for k in (n, width):
            layers += [nn.Linear(k, width), nn.BatchNorm1d(width, eps=1e-3, momentum=0.01), nn.LeakyReLU(0.3)]
        self.layers = nn.Sequential(*layers, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of vectors."""
        return self.layers(x)


def location_vector(
    place: Tensor,  # (B, 2, H, W), latitude and longitude of each pixel, radians; both are 0 where it is not known
) -> Tensor:
    """Return sine and cosine of an image's mean latitude, then of its longitude, `(B, 4)`; all 0 where it is not known.

    >>> location_vector(torch.tensor([[0.0, 0.5236], [0.0, 3.1416]]).view(1, 2, 1, 2)).round(decimals=3)
    tensor([[ 0.5000,  0.8660, -0.0000, -1.0000]])
    """
    known = (place.abs() > NEARLY).any(1, keepdim=True)
    parts = torch.stack([place.sin(), place.cos()], 2) * known[:, :, None]
    return F.normalize(parts.mean((3, 4)), dim=2).flatten(1)


class Block(nn.Module):
    """A block of the transformer, norm first; the second layer of its MLP is activated, too, as published."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-3), nn.LayerNorm(width, eps=1e-3)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(4 * width, width), nn.GELU(), nn.Dropout(dropout)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `(B, n, width)`."""
        seen = self.norm1(x)
        split = [layer(seen).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """SETR (Zheng et al. 2021, doi 10.1109/CVPR46437.2021.00681): tokens of patches, and step-wise upsampling."""

    def __init__(self, width: int, blocks: int, size: int, dropout: float):
        super().__init__()
        self.embed = nn.Conv2d(width, width, PATCH, stride=PATCH)
        side = size // PATCH
        self.positions = nn.Parameter(torch.empty(1, width, side, side).normal_(0, 0.05))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, dropout) for _ in range(blocks)))
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm(width)) for _ in range(4))
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(B, width, H, W)`, of sides that are multiples of a patch."""
        tokens = self.embed(x)
        size = tokens.shape[-2:]
        # of the size that they were learned at, this changes nothing
        positions = F.interpolate(self.positions, size, mode="bicubic", align_corners=False)
        tokens = self.dropout(tokens + positions)
        x = self.blocks(tokens.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
        for k, up in enumerate(self.up):
            x = up(x)
            x = self.last(x) if k == len(self.up) - 1 else x
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


class Residual(nn.Module):
    """Two convolutions beside one of 1 x 1."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.body, self.short = _double(i, o), nn.Conv2d(i, o, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return their sum."""
        return self.body(x) + self.short(x)


class ResUnet(nn.Module):
    """Residual U-Net of three steps (Zhang et al. 2018, doi 10.1109/LGRS.2018.2802944)."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width * 2**k for k in range(4)]
        self.down = nn.ModuleList(Residual(i, o) for i, o in zip([width, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * w, w, 2, bias=False), norm(w)) for w in reversed(widths[:-1])
        )
        self.joined = nn.ModuleList(Residual(2 * w, w) for w in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(B, width, H, W)`, of sides that are multiples of 8."""
        skips = []
        for k, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if k else x)
            skips.append(x)
        for up, joined, skip in zip(self.up, self.joined, reversed(skips[:-1]), strict=True):
            x = up(F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (0, 1, 0, 1)))
            x = joined(torch.cat([x, skip], 1))
        return self.last(x)


class GlaViTU(nn.Module):
    """The network; in training it keeps the logits of its auxiliary head in `auxiliary_logits`."""

    auxiliary_logits: Tensor | None = None

    def __init__(
        self,
        groups: Mapping[str, Sequence[int]],  # positions of the bands of each modality
        classes: int,
        width: int = 64,
        blocks: int = 12,  # of the transformer
        image_size: int = 384,  # side of an image whose positions are learned; those of others are interpolated
        dropout: float = 0.0,
        auxiliary: float = 0.5,  # weight of the auxiliary head's loss, in training
        place: Sequence[int] = (),  # positions of latitude and longitude among the bands, in radians, if they are there
    ):
        super().__init__()
        self.fusion, self.place = Fusion(groups, width, dropout), list(place)
        self.location = Location(2 * len(place), width, dropout) if place else None
        self.transformer = Transformer(width, blocks, image_size, dropout)
        self.unet = ResUnet(width)
        self.head = nn.Conv2d(width, classes, 1)
        self.auxiliary = nn.Conv2d(width, classes, 1) if auxiliary else None
        self.auxiliary_weight = auxiliary
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, H, W)` of images `(B, C, H, W)`."""
        height, width = x.shape[-2:]
        where = None if self.location is None else self.location(location_vector(x[:, self.place]))
        down, right = -height % PATCH, -width % PATCH
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="reflect" if down < height and right < width else "replicate")
        fused = self.fusion(x)
        x = fused if where is None else fused + where[:, :, None, None]
        x = x + self.transformer(x)
        if self.auxiliary is not None and self.training:
            self.auxiliary_logits = self.auxiliary(x)[..., :height, :width]
        x = x + self.unet(x)
        return self.head(x)[..., :height, :width]


def _build(
    bands: Sequence[str],
    classes: Sequence[str],
    width: int = 64,
    blocks: int = 12,
    groups: Mapping[str, Sequence[str]] | None = None,
    image_size: int = 384,
    dropout: float = 0.0,
    auxiliary: float = 0.5,
) -> nn.Module:
    if width % HEADS or not HEADS <= width <= 1024:
        raise RecipeError(f"width {width}: use a multiple of {HEADS}, the heads of attention, up to 1024")
    if image_size % PATCH or not PATCH <= image_size <= 4096:
        raise RecipeError(f"image_size {image_size}: use a multiple of {PATCH}, the side of a patch, up to 4096")
    for name, value, most in (("blocks", blocks, 48), ("dropout", dropout, 0.9), ("auxiliary", auxiliary, 10)):
        if not math.isfinite(value) or not 0 <= value <= most:
            raise RecipeError(f"{name} {value}: use 0 to {most}")
    place = [[*bands].index(band) for band in LOCATION if band in bands]
    if len(place) == 1:
        raise RecipeError(f"bands: {' and '.join(LOCATION)} tell a place together; name both, or neither")
    if len(place) == len(bands):
        raise RecipeError(f"bands: {' and '.join(LOCATION)} alone show no image; name bands that do, too")
    return GlaViTU(band_groups(bands, groups), len(classes), width, blocks, image_size, dropout, auxiliary, place)


def _groups(model: Any) -> list[list[nn.Parameter]]:
    """Return the parameter groups body, and fusion with heads."""
    body = [*model.transformer.parameters(), *model.unet.parameters()]
    held = {id(p) for p in body}
    return [body, [p for p in model.parameters() if id(p) not in held]]


def _head(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if name.startswith("head.")]


SIZES = {"tiny": (16, 2), "small": (32, 6), "base": (64, 12), "large": (96, 12)}  # width, blocks
ARCHITECTURES = [
    Architecture(
        "glavitu",
        _build,
        groups=_groups,
        head=_head,
        apart=("dropout", "auxiliary"),
        auxiliary="auxiliary",
        sizes={size: {"width": width, "blocks": blocks} for size, (width, blocks) in SIZES.items()},
    )
]
