"""Random geometry of normalised images and their masks: one coordinate map, one resampling.

Images are float `(B, C, H, W)`, standardised per band; a pixel that is exactly 0 in every band has no data. It stays
so, and neither it nor what lies outside of an image reaches a pixel with data: weights are renormalised over neighbours
with data. A mask `(B, H, W)` of class codes goes where the nearest pixel of its image goes.

Random numbers come from a CPU `torch.Generator`, or with None from torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from ..bands import IGNORE
from .dihedral import VIEWS, view, view_of_image

__all__ = [
    "coordinates",
    "elastic_nodes",
    "has_data",
    "mark_data",
    "random_coordinates",
    "random_dihedral",
    "view_matrices",
    "warp",
]

_GRID_STEPS = 4  # of the grid distortion, along a side
_ELASTIC_STEP = 32  # pixels between the nodes of the elastic field


def has_data(
    x: Tensor,  # (B, C, H, W), normalised
) -> Tensor:
    """Return where `x` has data, bool `(B, 1, H, W)`.

    >>> has_data(torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]]]))
    tensor([[[[False,  True]]]])
    """
    return x.amax(1, keepdim=True).bool() | x.amin(1, keepdim=True).bool()  # makes nothing of the size of x


def random_dihedral(
    x: Tensor,  # (B, C, H, W)
    y: Tensor,  # (B, H, W)
    generator: Generator | None = None,  # on the CPU
    aspect: tuple[int, int] | None = None,  # see `view_of_image`
) -> tuple[Tensor, Tensor]:
    """Turn and flip each sample by its own draw of the 8 views, exactly; of the 4 flips where it is not square.

    >>> y = torch.arange(4).view(1, 2, 2)
    >>> out_x, out_y = random_dihedral(y[:, None].float(), y, torch.Generator().manual_seed(0))
    >>> out_y, torch.equal(out_x[:, 0], out_y.float())
    (tensor([[[0, 2],
             [1, 3]]]), True)
    """
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    for i, k in enumerate(_random_views(len(x), x.shape[-2:], generator).tolist()):
        out_x[i], out_y[i] = view_of_image(x[i], k, aspect), view(y[i], k)
    return out_x, out_y


def _random_views(n: int, size: Sequence[int], generator: Generator | None) -> Tensor:
    return torch.randint(len(VIEWS) if size[0] == size[1] else 4, (n,), generator=generator)


def view_matrices(
    k: Tensor,  # (B,), numbers of views
) -> Tensor:
    """Return `(B, 2, 2)`, which take (column, row) from the centre of a view to the image that it is a view of.

    >>> view_matrices(torch.tensor([1]))
    tensor([[[-1.,  0.],
             [ 0.,  1.]]])
    """
    flips = torch.diag_embed(1.0 - 2 * torch.stack([k & 1, k >> 1 & 1], 1))
    return torch.where((k & 4 > 0)[:, None, None], flips.flip(2), flips)


def elastic_nodes(
    size: tuple[int, int],  # height and width of the images
) -> tuple[int, int]:
    """Return the number of nodes of an elastic field along height and width: one every 32 pixels, wherever it ends.

    >>> elastic_nodes((65, 80))
    (3, 4)
    """
    height, width = (math.ceil((length - 1) / _ELASTIC_STEP) + 1 for length in size)
    return height, width


def coordinates(
    size: tuple[int, int],  # height and width of the images
    matrix: Tensor,  # (B, 2, 2), takes (column, row) from the centre of the result to the source
    shift: Tensor | None = None,  # (B, 2), of the source's (column, row), pixels
    cells: tuple[Tensor, Tensor] | None = None,  # (B, G) relative widths and heights of a distorted grid's cells
    nodes: Tensor | None = None,  # (B, 2, *elastic_nodes(size)), displacement of (column, row), pixels
    device: torch.device | str | None = None,  # where the map is wanted; all else is on the CPU
) -> Tensor:
    """Return where each pixel of the result comes from, (column, row) in pixels of the source, `(B, 2, H, W)`.

    A pixel goes through grid distortion and elastic displacement, then `matrix`, then `shift`. All but the elastic
    field is a term per column plus a term per row, and that is a product of three small matrices: nothing of the size
    of an image is made but the result.

    >>> coordinates((1, 3), torch.eye(2)[None], torch.tensor([[10.0, 0.0]]))
    tensor([[[[10., 11., 12.]],
    <BLANKLINE>
             [[ 0.,  0.,  0.]]]])
    """
    h, w = size
    centre = torch.tensor([(w - 1) / 2, (h - 1) / 2])
    column, row = ((torch.arange(n) - (n - 1) / 2)[None] for n in (w, h))
    if cells is not None:
        column, row = (_distorted(c, n) for c, n in zip(cells, (w, h), strict=True))
    across = matrix[:, :, :1] * column[:, None]
    down = matrix[:, :, 1:] * row[:, None] + (centre if shift is None else centre + shift)[..., None]
    out = across.to(device)[:, :, None] + down.to(device)[..., None]
    if nodes is not None:
        moved = (matrix @ nodes.flatten(2)).view_as(nodes)
        rows = (moved @ _interpolation(w)).flatten(0, 1).to(device)
        out.flatten(0, 1).baddbmm_(_interpolation(h).mT.to(device).expand(len(rows), -1, -1), rows)
    return out


def _distorted(cells: Tensor, length: int) -> Tensor:
    lines = F.pad(cells.cumsum(1), (1, 0)) / cells.sum(1, keepdim=True) - 0.5
    return (length - 1) * F.interpolate(lines[:, None], length, mode="linear", align_corners=True)[:, 0]


@cache
def _interpolation(length: int) -> Tensor:
    """Return the weights of the nodes at each pixel along a side, (nodes, length), of bicubic interpolation."""
    n = elastic_nodes((length, length))[0]
    eye = torch.eye(n)[None, None]
    return F.interpolate(eye, (n, (n - 1) * _ELASTIC_STEP + 1), mode="bicubic", align_corners=True)[0, 0, :, :length]


def random_coordinates(
    n: int,  # number of samples; each has its own draws
    size: tuple[int, int],  # height and width of the images
    *,
    flip: bool = False,  # the 8 views, where the images are square; else the 4 flips
    sun: float | None = None,  # azimuth, degrees from north; one sample in two is mirrored about it
    rotate: float = 0.0,  # largest rotation, degrees
    scale: float = 0.0,  # largest relative change of scale
    shift: float = 0.0,  # largest shift, share of the side
    elastic: float = 0.0,  # standard deviation of the displacement of nodes 32 pixels apart, pixels
    grid: float = 0.0,  # largest relative change of a step between 5 grid lines
    generator: Generator | None = None,  # on the CPU
    device: torch.device | str | None = None,  # where the map is wanted
) -> Tensor:
    """Return one random map per sample for `warp`, `(B, 2, H, W)`; see `coordinates`.

    >>> random_coordinates(8, (64, 48), flip=True, rotate=30, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([8, 2, 64, 48])
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle, zoom = draw(n) * math.radians(rotate), (1 + scale) ** draw(n)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2)
    if sun is not None:
        matrix = torch.where((draw(n) < 0)[:, None, None], _mirror(sun) @ matrix, matrix)
    moved = draw(n, 2) * shift * torch.tensor([size[1], size[0]])
    cells = (1 + grid * draw(n, _GRID_STEPS), 1 + grid * draw(n, _GRID_STEPS)) if grid else None
    nodes = elastic * torch.randn(n, 2, *elastic_nodes(size), generator=generator) if elastic else None
    if flip:
        views = view_matrices(_random_views(n, size, generator))
        matrix, moved = views @ matrix, (views @ moved[..., None])[..., 0]
    return coordinates(size, matrix, moved, cells, nodes, device)


def _mirror(azimuth: float) -> Tensor:
    """Return the reflection of (column, row) about the line to an azimuth."""
    toward = torch.tensor([math.sin(math.radians(azimuth)), -math.cos(math.radians(azimuth))])
    return 2 * toward.outer(toward) - torch.eye(2)


def warp(
    x: Tensor,  # (B, C, H, W), normalised
    y: Tensor,  # (B, H, W), class codes
    at: Tensor,  # (B, 2, H, W) of `coordinates`, on the device of x
    aspect: tuple[int, int] | None = None,  # positions of sine and cosine of aspect, of mean 0 and one deviation
) -> tuple[Tensor, Tensor]:
    """Resample image (bilinear) and mask (nearest) in one pass; outside is 0 and ignore.

    A pixel of the result has data if its nearest source pixel is inside and has data; its label is that one's. Its
    values are those of the up to 4 neighbours with data, by their bilinear weights. Directions turn as the ground does.

    >>> x, y = torch.tensor([[[[1.0, 3.0, 0.0]]]]), torch.tensor([[[1, 2, 255]]])
    >>> half_right = coordinates((1, 3), torch.eye(2)[None], torch.tensor([[0.5, 0.0]]))
    >>> warp(x, y, half_right)
    (tensor([[[[2., 0., 0.]]]]), tensor([[[  2, 255, 255]]]))
    """
    (n, c, h, w), at, data = x.shape, at.flatten(2), has_data(x).flatten()
    low = at.floor()
    (fx, fy), (left, top) = (at - low).unbind(1), low.long().unbind(1)
    first = torch.arange(n, device=x.device)[:, None] * (h * w)  # pixel of each sample, all in one row
    columns = [(left + k).clamp(0, w - 1) for k in (0, 1)]
    rows = [(top + k).clamp(0, h - 1) * w + first for k in (0, 1)]
    taps = torch.stack([row + column for row in rows for column in columns], 2)
    shares = torch.stack([row * column for row in (1 - fy, fy) for column in (1 - fx, fx)], 2).to(x.dtype)
    shares *= data.to(x.dtype)[taps]
    near_x, near_y = torch.where(fx < 0.5, left, left + 1), torch.where(fy < 0.5, top, top + 1)
    inside = (near_x >= 0) & (near_x < w) & (near_y >= 0) & (near_y < h)
    nearest = near_y.clamp(0, h - 1) * w + near_x.clamp(0, w - 1) + first
    label = torch.where(inside, y.flatten()[nearest], IGNORE).view_as(y)
    known = inside & data[nearest]
    shares = (shares / shares.sum(2, keepdim=True)).masked_fill(~known[..., None], 0)
    # a bag is the weighted sum of 4 pixels: two thirds of the time of as many gathers
    bags = F.embedding_bag(
        taps.flatten(0, 1), x.flatten(2).mT.reshape(-1, c), mode="sum", per_sample_weights=shares.flatten(0, 1)
    )
    out = bags.view(n, h * w, c).mT.reshape(x.shape)
    if aspect is not None:
        _turn(out, at.view(n, 2, h, w), aspect)
    return mark_data(out, known.view(n, 1, h, w)), label


def _turn(x: Tensor, at: Tensor, aspect: tuple[int, int]) -> None:
    """Turn directions of descent: a gradient becomes the product of the map's transposed Jacobian with it."""
    east, south = x[:, aspect[0]], -x[:, aspect[1]]
    length = torch.hypot(east, south)
    turned = []
    for dim in (-1, -2):
        along = torch.gradient(at, dim=dim)[0] if at.shape[dim] > 1 else at * 0
        turned.append(along[:, 0] * east + along[:, 1] * south)
    length /= torch.hypot(*turned).clamp(min=torch.finfo(x.dtype).tiny)
    x[:, aspect[0]], x[:, aspect[1]] = turned[0] * length, -turned[1] * length


def mark_data(
    x: Tensor,  # (B, C, H, W), changed in place
    data: Tensor,  # bool (B, 1, H, W)
) -> Tensor:
    """Lift pixels with data that came out as 0 in every band off it by next to nothing.

    >>> mark_data(torch.zeros(1, 1, 1, 2), torch.tensor([[[[True, False]]]])) > 0
    tensor([[[[ True, False]]]])
    """
    x[:, :1] += data.logical_xor(has_data(x)).to(x.dtype).mul_(torch.finfo(x.dtype).eps)
    return x
