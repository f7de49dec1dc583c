"""Texture of a band from grey-level co-occurrence matrices (GLCM) over sliding windows.

`level_edges` takes the borders of the grey levels from the training set, `quantize` turns a band into levels with
them, `glcm` gives texture per pixel; `glcm_torch` does so for a batch of tensors on any device.

For an offset (row, col), n pairs of pixels lie inside the window. ``P[i, j]`` is the share of pairs with levels i and
j, each counted in both orders (the symmetric, normalised matrix of scikit-image):

- contrast: sum of ``P (i - j)^2``; dissimilarity: of ``P |i - j|``; homogeneity: of ``P / (1 + (i - j)^2)``;
- asm, the angular second moment: sum of ``P^2``; energy: its root (MATLAB calls asm "energy").

The matrix itself is never made. The first three are sums over pairs, which slide along; with c pairs of unordered
levels {i, j} in the window, asm is the sum of ``2 c^2`` where i = j and of ``c^2`` elsewhere, over ``2 n^2``, and
``c^2`` grows by ``2 c + 1`` with a pair. All sums are integers, so they do not drift, and a strip of an image with a
halo of half a window has the very values of the whole.

A pair counts where both pixels lie inside window and image and have data. An offset without a pair is left out of the
mean over offsets; a pixel without data, or without a pair at any offset, is NaN.

Source: Haralick et al. 1973, doi 10.1109/TSMC.1973.4309314.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..bands import TEXTURES
from ..errors import DataError, did_you_mean
from .jit import jit

__all__ = ["DIRECTIONS", "NODATA", "glcm", "glcm_torch", "level_edges", "quantize"]

DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))
"""Haralick's four directions at distance 1, (row, col)."""

NODATA = 255
"""Level of a pixel without data."""

_SIGN = np.int32(-(2**31))
_LARGEST_WINDOW = 215  # 2 * (215 * 215)^2 is the largest sum of squares below 2^32
_BLOCK = 64  # rows that one thread takes at a time
_TERMS = {  # of one pair, by |i - j|; as integers once multiplied by the scale
    "contrast": (lambda d: d**2, 1),
    "dissimilarity": (lambda d: d, 1),
    "homogeneity": (lambda d: 1 / (1 + d**2), 2**36),  # 215 * 215 pairs stay below 2^53, exact in float64 too
}
_ASM, _ENERGY = -1, -2


def level_edges(
    batches: Callable[[], Iterable[np.ndarray]],  # starts a pass over the valid values, in arrays of any shape
    levels: int,  # 2 to 255
) -> np.ndarray:
    """Return the inner quantile edges of grey levels, ``(levels - 1,)`` float32, ascending and finite.

    With n values in order, edge k is the one at place ``n k // levels``: the levels hold equal shares where no values
    are equal. Exact for 8 and 16 bit integers, float16 and float32; other values are rounded to float32 first. NaN and
    infinity do not count. With few distinct values, edges repeat and the levels between them stay empty.

    `batches` is called twice: one pass counts the upper 16 bits of the values, one the lower 16 bits where an edge
    lies. So memory is at most 1 MB per level, and the order of the values does not matter.

    >>> level_edges(lambda: [np.arange(4), np.arange(4, 8)], 4)
    array([2., 4., 6.], dtype=float32)

    Raises:
        DataError: No value, another number of levels, or the second pass has other values than the first.
    """
    _check_levels(levels)
    upper = np.zeros(2**16, np.int64)
    for values in batches():
        upper += np.bincount(_order(values) >> 16, minlength=2**16)
    if not upper.any():
        raise DataError("no valid value to take grey levels from")
    up_to = upper.cumsum()
    place = int(up_to[-1]) * np.arange(1, levels) // levels
    groups, row = np.unique(np.searchsorted(up_to, place, side="right"), return_inverse=True)
    start = np.full(2**16, -1)  # of a group's counters
    start[groups] = np.arange(len(groups)) * 2**16
    lower = np.zeros(len(groups) * 2**16, np.int64)
    for values in batches():
        order = _order(values)
        at = start[order >> 16]
        np.add.at(lower, (at + (order & 0xFFFF))[at >= 0], 1)
    lower = lower.reshape(-1, 2**16).cumsum(1)
    if (lower[:, -1] != upper[groups]).any():
        raise DataError("the values changed between two passes: return a new iterator at each call")
    place -= (up_to - upper)[groups][row]
    within = [np.searchsorted(lower[r], p, side="right") for r, p in zip(row, place, strict=True)]
    order = (groups[row] << 16 | np.array(within)).astype(np.uint32).view(np.int32)
    return (order ^ (~(order >> 31) | _SIGN)).view(np.float32)


def _order(values: np.ndarray) -> np.ndarray:
    """Map finite values to uint32 that sort like them: the bits of float32, all flipped if negative, else the sign."""
    with np.errstate(over="ignore"):
        values = np.asarray(values).ravel().astype(np.float32)
    bits = values[np.isfinite(values)].view(np.int32)
    return (bits ^ ((bits >> 31) | _SIGN)).view(np.uint32)


def quantize(
    band: np.ndarray,  # (H, W), any integer or float type
    edges: Sequence[float] | np.ndarray,  # ascending; one less than there are levels; taken as float32
    valid: np.ndarray | None = None,  # (H, W) bool, True where there is data
) -> np.ndarray:
    """Return the level of each pixel, uint8 ``(H, W)``: the number of edges at or below its value.

    `NODATA` where `valid` is False or the value is NaN or infinite. Take `edges` from the training set
    (`level_edges`), never from the tile at hand: a level must mean the same everywhere.

    >>> quantize(np.array([[1.0, 2.0, 7.0, np.nan]]), [2.0, 4.0, 6.0])
    array([[  0,   1,   3, 255]], dtype=uint8)

    Raises:
        DataError: The edges are not 1 to 254 ascending finite numbers, or `valid` has another shape.
    """
    edges = np.asarray(edges, np.float32)
    if edges.ndim != 1 or not np.isfinite(edges).all() or (np.diff(edges) < 0).any():
        raise DataError("edges of grey levels: use ascending finite numbers")
    _check_levels(len(edges) + 1)
    if valid is not None and valid.shape != band.shape:
        raise DataError(f"band {band.shape} and valid {valid.shape} do not fit: use the same shape")
    if band.dtype in (np.uint8, np.uint16):
        levels = quantize(np.arange(np.iinfo(band.dtype).max + 1)[None], edges)[0][band]
    else:
        levels = np.zeros(band.shape, np.uint8)
        rows = max(1, 2**17 // max(1, band[:1].size))  # few enough to stay in the cache while all edges pass over them
        for y in range(0, len(band), rows):
            part = band[y : y + rows]
            part = part.astype(np.float32) if part.dtype == np.float16 else part  # NumPy compares it at a crawl
            for edge in edges:
                levels[y : y + rows] += part >= edge
    if band.dtype.kind == "f":
        levels[~np.isfinite(band)] = NODATA
    if valid is not None:
        levels[~valid] = NODATA
    return levels


def glcm(
    levels: np.ndarray,  # (H, W) uint8 from `quantize`: 0 to n_levels - 1, or NODATA
    n_levels: int,  # 2 to 255
    kinds: Sequence[str] = ("contrast", "energy"),  # of `bands.TEXTURES`
    window: int = 7,  # side in pixels, odd, centred on the pixel
    offsets: Sequence[tuple[int, int]] = DIRECTIONS,  # (row, col) from a pixel to its partner
) -> np.ndarray:
    """Return texture per pixel, float32 ``(len(kinds), H, W)``: the mean over `offsets` of each one's value.

    Runs on as many threads as torch is set to (one, in the worker of a DataLoader). The first call ever compiles for
    some seconds; the result is kept on disk where that can be written.

    >>> levels = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1]], np.uint8)
    >>> glcm(levels, 2, ["contrast"], window=3, offsets=[(0, 1), (1, 0)])
    array([[[0.  , 0.25, 0.5 ],
            [0.  , 0.25, 0.5 ],
            [0.  , 0.25, 0.5 ]]], dtype=float32)

    Raises:
        DataError: An impossible window, offset, kind or number of levels, or an image that does not fit `n_levels`.
    """
    plan = _plan(n_levels, kinds, window, offsets)
    if levels.ndim != 2 or levels.dtype != np.uint8:
        raise DataError(f"levels {levels.dtype} {levels.shape}: use uint8 (H, W), as from quantize")
    _check_codes(bool(((levels >= n_levels) & (levels != NODATA)).any()), n_levels)
    image = np.pad(levels, window // 2, constant_values=NODATA)
    out = np.empty((len(kinds), *levels.shape), np.float32)

    def fill(top: int) -> None:
        rows = slice(top, top + _BLOCK)
        total = np.zeros(out[:, rows].shape)
        used = np.zeros(total.shape[1:], np.int64)
        sums = np.empty((len(plan.tables), *used.shape), np.int64)
        squares = np.empty_like(used)
        for dr, dc in plan.offsets:
            high, wide = window - dr, window - abs(dc)  # where the pairs' upper left corners lie
            codes = np.empty((used.shape[0] + high - 1, used.shape[1] + wide - 1), np.uint16)
            jit(_pair_codes)(image, top, dr, dc, plan.code_of, codes)
            jit(_box_sums)(codes, plan.tables, high, wide, sums)
            if plan.terms.min() < 0:
                # four rows of counts in the quarters of a 64 bit word, or two in its halves
                bits = 16 if 2 * (high * wide) ** 2 < 2**16 else 32
                jit(_box_squares)(codes, n_levels, high, wide, bits, squares)
            jit(_add)(sums, squares, high * wide, plan.terms, total, used)
        offsets_used = np.where((used > 0) & (levels[rows] != NODATA), used, np.nan)
        out[:, rows] = total / (offsets_used * plan.scale[:, None, None])

    tops = range(0, len(levels), _BLOCK)
    if (threads := min(torch.get_num_threads(), len(tops))) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, tops))  # the list raises what a thread raised
    else:
        for top in tops:
            fill(top)
    return out


def glcm_torch(
    levels: Tensor,  # (B, H, W), uint8 or int64: 0 to n_levels - 1, or NODATA
    n_levels: int,  # 2 to 255
    kinds: Sequence[str] = ("contrast", "energy"),  # of `bands.TEXTURES`
    window: int = 7,  # side in pixels, odd, centred on the pixel
    offsets: Sequence[tuple[int, int]] = DIRECTIONS,  # (row, col) from a pixel to its partner
) -> Tensor:
    """Return texture per pixel, float32 ``(B, len(kinds), H, W)``, on the device of `levels`: as `glcm` of each image.

    Takes about 100 bytes per pixel, whatever `n_levels`. For asm and energy, time grows with the window's area.
    Submissions carry it: it needs torch and NumPy alone.

    >>> glcm_torch(torch.tensor([[[0, 0, 1]]]), 2, ["contrast"], window=3, offsets=[(0, 1)])
    tensor([[[[0.0000, 0.5000, 1.0000]]]])

    Raises:
        DataError: As `glcm`.
    """
    plan = _plan(n_levels, kinds, window, offsets)
    levels = levels.as_subclass(Tensor)
    if levels.ndim != 3 or levels.dtype not in (torch.uint8, torch.int64):
        raise DataError(f"levels {levels.dtype} {tuple(levels.shape)}: use uint8 or int64 (B, H, W)")
    _check_codes(bool((((levels < 0) | (levels >= n_levels)) & (levels != NODATA)).any()), n_levels)
    code_of, tables, scale = (
        torch.from_numpy(x).to(levels.device) for x in (plan.code_of.astype(np.int32), plan.tables, plan.scale)
    )
    image = F.pad(levels.int(), (window // 2,) * 4, value=NODATA)
    total = torch.zeros(len(levels), len(kinds), *levels.shape[1:], dtype=torch.float64, device=levels.device)
    used = torch.zeros_like(levels, dtype=torch.float64)
    for dr, dc in plan.offsets:
        high, wide = window - dr, window - abs(dc)
        first = image[:, : image.shape[1] - dr, max(0, -dc) : image.shape[2] - max(0, dc)]
        second = image[:, dr:, max(0, dc) : image.shape[2] - max(0, -dc)]
        codes = code_of[first, second]
        sums = [_slide(_slide(table[codes], high, 1), wide, 2) for table in tables]
        n = sums[0].double()
        asm = _squares(codes, n_levels, high, wide) / (2 * n**2) if plan.terms.min() < 0 else n
        for j, term in enumerate(plan.terms):
            value = sums[term] / n if term > 0 else asm.sqrt() if term == _ENERGY else asm
            total[:, j] += torch.where(n > 0, value, torch.zeros_like(n))
        used += n > 0
    used.masked_fill_((used == 0) | (levels == NODATA), torch.nan)
    return (total / (used[:, None] * scale[:, None, None])).float()


def _slide(x: Tensor, size: int, dim: int) -> Tensor:
    """Sum every `size` neighbours along `dim`. In integers: CUDA's cumsum of floats is not deterministic."""
    up_to = F.pad(x, (1, 0) if dim == 2 else (0, 0, 1, 0)).cumsum(dim, dtype=x.dtype)
    places = x.shape[dim] - size + 1
    return up_to.narrow(dim, size, places) - up_to.narrow(dim, 0, places)


def _squares(codes: Tensor, n_levels: int, high: int, wide: int) -> Tensor:
    """Sum of squared counts of each code in every box, doubled where i = j: the pairs of pairs with the same code."""
    weight = 1 + (codes < n_levels).int() - (codes == n_levels * (n_levels + 1) // 2).int()
    height, width = codes.shape[1:]
    total = torch.zeros(1, dtype=torch.int64, device=codes.device)
    for dx in range(wide):
        column = torch.zeros(1, dtype=torch.int32, device=codes.device)
        for dy in range(high):
            near, far = slice(width - dx), slice(dx, width)
            for a, b in [(near, far), (far, near)] if dx and dy else [(near, far)]:
                same = codes[:, : height - dy, a] == codes[:, dy:, b]
                # the shift back gives the same once more
                column = column + _slide(same * weight[:, : height - dy, a], high - dy, 1) * (2 if dx or dy else 1)
        total = total + _slide(column.long(), wide - dx, 2)
    return total


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= NODATA:
        raise DataError(f"{levels} grey levels: use 2 to {NODATA}")


def _check_codes(foreign: bool, n_levels: int) -> None:
    if foreign:
        raise DataError(f"levels other than 0 to {n_levels - 1} and {NODATA} (no data): quantize with the same edges")


class _Plan(NamedTuple):
    """What both ways to compute textures start from. A code stands for two levels in any order."""

    offsets: list[tuple[int, int]]  # from a pixel to its partner, all pointing down
    code_of: np.ndarray  # (256, 256) uint16, of two levels: first come those with i = j, last all pairs without data
    tables: np.ndarray  # (1 + terms, codes) int64: the pairs that count, and terms that are sums over them
    scale: np.ndarray  # (kinds,) float64, of each kind's integers
    terms: np.ndarray  # (kinds,), each one's row of `tables`, `_ASM` or `_ENERGY`


def _plan(n_levels: int, kinds: Sequence[str], window: int, offsets: Sequence[tuple[int, int]]) -> _Plan:
    _check_levels(n_levels)
    for kind in kinds:
        if kind not in TEXTURES:
            raise DataError(f"unknown texture {kind!r}: use {', '.join(TEXTURES)}{did_you_mean(kind, TEXTURES)}")
    if not 3 <= window <= _LARGEST_WINDOW or window % 2 == 0:
        raise DataError(f"window of {window} px: use an odd number from 3 to {_LARGEST_WINDOW}")
    if not kinds or not len(offsets):
        raise DataError("no texture or no offset: name at least one of each")
    for dr, dc in offsets:
        if (dr, dc) == (0, 0) or max(abs(dr), abs(dc)) >= window:
            raise DataError(f"offset ({dr}, {dc}): use one that is not (0, 0) and fits into {window} x {window} px")
    low, up = np.triu_indices(n_levels, 1)
    same, apart = np.arange(n_levels), np.concatenate([np.zeros(n_levels, np.int64), up - low])
    code_of = np.full((256, 256), len(apart), np.uint16)
    code_of[same, same] = same
    code_of[low, up] = code_of[up, low] = n_levels + np.arange(len(low))
    linear = [kind for kind in _TERMS if kind in kinds]
    tables = np.zeros((1 + len(linear), len(apart) + 1), np.int64)  # 0 for a pair without data, the last code
    tables[0, :-1] = 1
    for row, kind in enumerate(linear, 1):
        term, scale = _TERMS[kind]
        tables[row, :-1] = np.rint(term(apart) * scale)
    place = {"asm": _ASM, "energy": _ENERGY} | {kind: row for row, kind in enumerate(linear, 1)}
    scales = np.array([_TERMS[kind][1] if kind in _TERMS else 1 for kind in kinds], np.float64)
    downwards = [(dr, dc) if dr >= 0 else (-dr, -dc) for dr, dc in offsets]
    return _Plan(downwards, code_of, tables, scales, np.array([place[kind] for kind in kinds]))


def _pair_codes(image, top, dr, dc, code_of, out):
    left, right = max(0, -dc), max(0, dc)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = code_of[image[top + y, left + x], image[top + y + dr, right + x]]


def _box_sums(codes, tables, high, wide, out):
    """Sum each table over the codes in every box of high x wide."""
    column = np.empty(codes.shape[1], np.int64)
    for k in range(len(tables)):
        column[:] = 0
        for y in range(codes.shape[0]):
            for x in range(codes.shape[1]):
                column[x] += tables[k, codes[y, x]]
            top = y - high + 1
            if top >= 0:
                run = 0
                for x in range(wide - 1):
                    run += column[x]
                for x in range(out.shape[2]):
                    run += column[x + wide - 1]
                    out[k, top, x] = run
                    run -= column[x]
                for x in range(codes.shape[1]):
                    column[x] -= tables[k, codes[top, x]]


def _box_squares(codes, n_levels, high, wide, bits, out):
    """Sum the squared counts of codes in every box, doubled where i = j; pairs without data count as one more code.

    The boxes of 64 / bits rows share most of their pairs, so they slide together, each in its own bits of a word.
    """
    lanes = 64 // bits
    one_lane = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    lane_of = np.zeros(high + lanes - 1, np.uint64)  # the boxes that each row of codes belongs to
    ones = np.uint64(0)
    for i in range(lanes):
        ones |= np.uint64(1) << np.uint64(i * bits)
        for y in range(high):
            lane_of[i + y] |= one_lane << np.uint64(i * bits)
    # per code: what its next pair adds to the sum, 2 c + 1 or twice that; and how this grows with the pair
    table = np.empty((n_levels * (n_levels + 1) // 2 + 1, 2), np.uint64)
    for code in range(len(table)):
        table[code, 0] = ones << np.uint64(code < n_levels)
        table[code, 1] = table[code, 0] << np.uint64(1)
    width = codes.shape[1]
    total = np.uint64(0)
    for top in range(0, out.shape[0], lanes):
        strip = codes[top : top + high + lanes - 1]
        for x in range(width + wide):  # past the end, the last box is taken out again
            if x >= wide:
                for y in range(strip.shape[0]):
                    code, lane = strip[y, x - wide], lane_of[y]
                    grow = table[code, 0] - (table[code, 1] & lane)
                    table[code, 0] = grow
                    total -= grow & lane
            if x < width:
                for y in range(strip.shape[0]):
                    code, lane = strip[y, x], lane_of[y]
                    grow = table[code, 0]
                    total += grow & lane
                    table[code, 0] = grow + (table[code, 1] & lane)
                if x >= wide - 1:
                    for i in range(min(lanes, out.shape[0] - top)):
                        out[top + i, x - wide + 1] = (total >> np.uint64(i * bits)) & one_lane


def _add(sums, squares, pairs, terms, total, used):
    """Add an offset's values to the total where it has a pair."""
    for y in range(used.shape[0]):
        for j in range(len(terms)):
            term = terms[j]
            for x in range(used.shape[1]):
                n = float(sums[0, y, x])
                if term > 0:
                    value = sums[term, y, x] / n
                else:
                    value = (squares[y, x] - (pairs - n) ** 2) / (2 * n * n)
                    if term == _ENERGY:
                        value = np.sqrt(value)
                total[j, y, x] += value if n > 0 else 0.0
        for x in range(used.shape[1]):
            used[y, x] += sums[0, y, x] > 0
