"""Random geometry of normalised images and their masks: one coordinate map, one resampling.

Images are float `(B, C, H, W)`, standardised per band; a pixel that is exactly 0 in every band has no data. It stays
so, and neither it nor what lies outside of an image reaches a pixel with data: weights are renormalised over neighbours
with data. A mask `(B, H, W)` of class codes goes where the nearest pixel of its image goes.

Random numbers come from a CPU `torch.Generator`, or with None from torch's own. On the CPU, resampling of float32 is a
compiled loop.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from ..bands import IGNORE
from .dihedral import VIEWS, view
from .jit import jit

__all__ = [
    "compiled",
    "coordinates",
    "elastic_nodes",
    "has_data",
    "kept",
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
    """Return where `x` has data, bool `(B, 1, H, W)`."""
    return x.amax(1, keepdim=True).bool() | x.amin(1, keepdim=True).bool()  # makes nothing of the size of x


def random_dihedral(
    x: Tensor,  # (B, C, H, W)
    y: Tensor,  # (B, H, W)
    generator: Generator | None = None,  # on the CPU
) -> tuple[Tensor, Tensor]:
    """Turn and flip each sample by its own draw of the 8 views, exactly; of the 4 flips where it is not square."""
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    for i, k in enumerate(_random_views(len(x), x.shape[-2:], generator).tolist()):
        out_x[i], out_y[i] = view(x[i], k), view(y[i], k)
    return out_x, out_y


def _random_views(n: int, size: tuple[int, int], generator: Generator | None) -> Tensor:
    return torch.randint(len(VIEWS) if size[0] == size[1] else 4, (n,), generator=generator)


def view_matrices(
    k: Tensor,  # (B,), numbers of views
) -> Tensor:
    """Return `(B, 2, 2)`, which take (column, row) from the centre of a view to the image that it is a view of."""
    flips = torch.diag_embed(1.0 - 2 * torch.stack([k & 1, k >> 1 & 1], 1))
    return torch.where((k & 4 > 0)[:, None, None], flips.flip(2), flips)


def elastic_nodes(
    size: tuple[int, int],  # height and width of the images
) -> tuple[int, int]:
    """Return the number of nodes of an elastic field along height and width: one every 32 pixels, wherever it ends."""
    return tuple(math.ceil((length - 1) / _ELASTIC_STEP) + 1 for length in size)


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
    rotate: float = 0.0,  # largest rotation, degrees
    scale: float = 0.0,  # largest relative change of scale
    shift: float = 0.0,  # largest shift, share of the side
    elastic: float = 0.0,  # standard deviation of the displacement of nodes 32 pixels apart, pixels
    grid: float = 0.0,  # largest relative change of a step between 5 grid lines
    generator: Generator | None = None,  # on the CPU
    device: torch.device | str | None = None,  # where the map is wanted
) -> Tensor:
    """Return one random map per sample for `warp`, `(B, 2, H, W)`; see `coordinates`."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle, zoom = draw(n) * math.radians(rotate), (1 + scale) ** draw(n)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2)
    moved = draw(n, 2) * shift * torch.tensor([size[1], size[0]])
    cells = tuple(1 + grid * draw(n, _GRID_STEPS) for _ in range(2)) if grid else None
    nodes = elastic * torch.randn(n, 2, *elastic_nodes(size), generator=generator) if elastic else None
    if flip:
        views = view_matrices(_random_views(n, size, generator))
        matrix, moved = views @ matrix, (views @ moved[..., None])[..., 0]
    return coordinates(size, matrix, moved, cells, nodes, device)


def warp(
    x: Tensor,  # (B, C, H, W), normalised
    y: Tensor,  # (B, H, W), class codes
    at: Tensor,  # (B, 2, H, W) of `coordinates`, on the device of x
) -> tuple[Tensor, Tensor]:
    """Resample image (bilinear) and mask (nearest) in one pass; outside is 0 and ignore.

    A pixel of the result has data if its nearest source pixel is inside and has data; its label is that one's. Its
    values are those of the up to 4 neighbours with data, by their bilinear weights.
    """
    if not compiled(x):
        return _warp(x, y, at)
    x, y, at = x.contiguous(), y.contiguous(), at.contiguous()
    out, label = torch.empty_like(x), torch.empty_like(y)
    arrays = (t.flatten(-2).numpy() for t in (x, y, at, out, label))
    jit(_warp_loops)(*arrays, x.shape[-1], IGNORE, torch.finfo(x.dtype).eps)
    return out, label


def compiled(x: Tensor) -> bool:
    """Return whether compiled loops take `x`; all else is done in torch."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _warp(x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    (_, c, h, w), at, data = x.shape, at.flatten(2), has_data(x).flatten(1)
    low = at.floor()
    (fx, fy), (left, top) = (at - low).unbind(1), low.long().unbind(1)
    image, weights, classes = x.flatten(2), data.to(x.dtype), y.flatten(1)
    out, total = 0, 0
    for i, share in enumerate([(1 - fy), fy]):
        row = (top + i).clamp(0, h - 1) * w
        for j, part in enumerate([(1 - fx), fx]):
            tap = row + (left + j).clamp(0, w - 1)
            weight = share * part * weights.gather(1, tap)
            total = total + weight
            out = out + weight[:, None] * image.gather(2, tap[:, None].expand(-1, c, -1))
    near = torch.where(fx < 0.5, left, left + 1), torch.where(fy < 0.5, top, top + 1)
    inside = (near[0] >= 0) & (near[0] < w) & (near[1] >= 0) & (near[1] < h)
    nearest = near[1].clamp(0, h - 1) * w + near[0].clamp(0, w - 1)
    label = torch.where(inside, classes.gather(1, nearest), IGNORE)
    data = (inside & data.gather(1, nearest))[:, None]
    out = torch.where(data, out / total[:, None], 0).to(x.dtype)
    return kept(out, data).view_as(x), label.view_as(y)


def _warp_loops(x, y, at, out, label, w, ignore, tiny):
    """As `_warp`, a row at a time: loops without branches or negative indices, which are compiled to vectors."""
    n, c, size = x.shape
    zero, half, one, tiny = np.float32(0), np.float32(0.5), np.float32(1), np.float32(tiny)
    right, bottom, last, below = np.float32(w) - half, np.float32(size // w) - half, np.int32(w - 1), size // w - 1
    i0, i1, i2, i3 = np.empty(w, np.uint32), np.empty(w, np.uint32), np.empty(w, np.uint32), np.empty(w, np.uint32)
    w0, w1, w2, w3 = np.empty(w, np.float32), np.empty(w, np.float32), np.empty(w, np.float32), np.empty(w, np.float32)
    near, inside, full = np.empty(w, np.uint32), np.empty(w, np.bool_), np.empty(w, np.bool_)
    valid = np.empty(size, np.float32)
    for b in range(n):
        valid[:] = 0
        for k in range(c):
            values = x[b, k]
            for j in range(size):
                valid[j] = one if values[j] != zero else valid[j]
        classes = y[b]
        for start in range(0, size, w):
            column, row = at[b, 0, start : start + w], at[b, 1, start : start + w]
            labels = label[b, start : start + w]
            for j in range(w):
                px, py = column[j], row[j]
                ok = (px >= -half) & (px < right) & (py >= -half) & (py < bottom)
                px, py = px if ok else zero, py if ok else zero
                left, top = np.int32(np.floor(px)), np.int32(np.floor(py))
                fx, fy = px - np.float32(left), py - np.float32(top)
                xa, xb = max(left, np.int32(0)), min(left + np.int32(1), last)
                ya, yb = max(top, np.int32(0)) * np.int32(w), min(top + np.int32(1), np.int32(below)) * np.int32(w)
                i0[j], i1[j], i2[j], i3[j] = ya + xa, ya + xb, yb + xa, yb + xb
                w0[j], w1[j], w2[j], w3[j] = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
                near[j] = (ya if fy < half else yb) + (xa if fx < half else xb)
                inside[j] = ok
            for j in range(w):
                labels[j] = classes[near[j]] if inside[j] else ignore
            for j in range(w):
                w0[j] *= valid[i0[j]]
                w1[j] *= valid[i1[j]]
                w2[j] *= valid[i2[j]]
                w3[j] *= valid[i3[j]]
                full[j] = inside[j] & (valid[near[j]] > zero)
                share = one / (w0[j] + w1[j] + w2[j] + w3[j]) if full[j] else zero
                w0[j] *= share
                w1[j] *= share
                w2[j] *= share
                w3[j] *= share
            for k in range(c):
                band, values = x[b, k], out[b, k, start : start + w]
                for j in range(w):
                    values[j] = w0[j] * band[i0[j]] + w1[j] * band[i1[j]] + w2[j] * band[i2[j]] + w3[j] * band[i3[j]]
                for j in range(w):
                    full[j] &= values[j] == zero
            values = out[b, 0, start : start + w]
            for j in range(w):
                values[j] += tiny * full[j]


def kept(x: Tensor, data: Tensor) -> Tensor:
    """Lift pixels with data that came out as 0 in every band off it by next to nothing, in place."""
    x[:, :1] += data.logical_xor(has_data(x)).to(x.dtype).mul_(torch.finfo(x.dtype).eps)
    return x
