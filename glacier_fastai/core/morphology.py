"""Post-processing of class maps: smooth borders, no specks, no pinholes.

A map is uint8 ``(H, W)`` of class codes, 255 where there is no data. Such a pixel never changes, is never counted and
is nobody's neighbour. A component is a set of pixels of one class that touch along their sides (connectivity 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bands import CLASSES, IGNORE
from ..errors import DataError

__all__ = ["context", "majority", "postprocess", "sieve"]

_K = len(CLASSES)
_INTEGER = int, np.integer
_LARGEST_RADIUS = 127  # the largest radius whose window has fewer than 2^16 pixels


def postprocess(
    classes: np.ndarray,  # (H, W) uint8 codes, 255 where there is no data
    min_size: Sequence[int] = (0,) * _K,  # see `sieve`
    fill_holes: Sequence[int] = (0,) * _K,  # see `sieve`
    smooth: int = 0,  # see `majority`
) -> np.ndarray:
    """Return the map after `majority` and then `sieve`, as a new array.

    In this order what `sieve` promises holds of the result: a border that is smoothed later may break into specks.
    Rows of a part of a map come out as in the whole where `context` rows beside them are seen.

    >>> postprocess(np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 255]], np.uint8), (0, 2, 2, 2), (0, 9, 0, 0))
    array([[  1,   1,   1,   0,   0],
           [  1,   0,   1,   0, 255]], dtype=uint8)

    Raises:
        DataError: An impossible map, size or radius.
    """
    return sieve(majority(classes, smooth), min_size, fill_holes)


def context(
    min_size: Sequence[int] = (0,) * _K,  # as for `postprocess`
    fill_holes: Sequence[int] = (0,) * _K,  # as for `postprocess`
    smooth: int = 0,  # as for `postprocess`
) -> int:
    """Return how many rows above and below some others suffice for `postprocess` to treat these as in the whole map.

    >>> context((0, 100, 80, 30), (0, 50, 20, 0), smooth=2)
    229
    """
    # Majority looks `smooth` rows far. Whether a component of class k stays is seen min_size[k] - 1 rows from any of
    # its pixels: if it is cut off there it is large enough. What borders on one that goes is as far again, of another
    # class: so the two largest reaches add up. A hole is decided likewise, within max(fill_holes) - 1 rows.
    reach = [max(n - 1, 0) for n in _sizes("min_size", min_size)[1:]]
    holes = max(0, *(n - 1 for n in _sizes("fill_holes", fill_holes)[1:]))
    return int(_radius(smooth) + sum(sorted(reach)[-2:]) + holes)


def majority(
    classes: np.ndarray,  # (H, W) uint8 codes, 255 where there is no data
    radius: int,  # pixels, 0 to 127; 0 changes nothing
) -> np.ndarray:
    """Return the class most frequent among the pixels with data in the square of ``2 radius + 1`` pixels around each.

    If the pixel's own class is among the most frequent it stays, else the lowest of them wins.

    >>> majority(np.array([[3, 1, 0, 1, 3]], np.uint8), 1)
    array([[3, 1, 1, 1, 3]], dtype=uint8)

    Raises:
        DataError: An impossible map or radius.
    """
    _check(classes)
    if not _radius(radius) or not classes.size:
        return classes.copy()
    # the counts of the four classes in the four quarters of a word slide together
    counts = np.where(classes < _K, np.uint64(1) << 16 * classes.astype(np.uint64), np.uint64(0))
    for axis in (0, 1):
        sums = np.pad(counts, [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)]).cumsum(axis)
        n, side = classes.shape[axis], 2 * radius + 1
        counts = sums.take(range(side, side + n), axis) - sums.take(range(n), axis)
    most, out = np.full(classes.shape, -1, np.int32), classes.copy()
    for k in range(_K):
        score = 2 * (counts >> np.uint64(16 * k)).astype(np.uint16).astype(np.int32) + (classes == k)
        np.putmask(out, (score > most) & (classes < _K), k)
        np.maximum(most, score, out=most)
    return out


def sieve(
    classes: np.ndarray,  # (H, W) uint8 codes, 255 where there is no data
    min_size: Sequence[int],  # pixels, per class: components with fewer go; background always stays
    fill_holes: Sequence[int],  # pixels, per class: holes in it with fewer are filled; no hole is in the background
) -> np.ndarray:
    """Return the map without specks and pinholes, as a new array; doing it twice changes nothing more.

    A component of fewer pixels than `min_size` of its class takes the class that it borders on most (in pairs of
    adjacent pixels), components that go themselves left out; background, if it borders on none. Then a component of the
    background is a hole if it touches neither a pixel without data nor the edge of the image. It takes the class that
    it borders on most if it has fewer pixels than `fill_holes` of that class. The lower code wins ties.

    >>> sieve(np.array([[1, 1, 1, 1], [1, 0, 1, 2], [1, 1, 1, 0]], np.uint8), (0, 0, 2, 0), (0, 2, 0, 0))
    array([[1, 1, 1, 1],
           [1, 1, 1, 1],
           [1, 1, 1, 0]], dtype=uint8)

    Raises:
        DataError: An impossible map or size.
    """
    _check(classes)
    least, fill = _sizes("min_size", min_size), _sizes("fill_holes", fill_holes)
    out = np.pad(np.minimum(classes, _K), 1, constant_values=_K)  # the edge is as good as no data
    if least.any():
        parts, size, code = _components(out)
        goes = size < least[code]
        votes = _votes(parts, goes, np.where(goes, _K, code)[parts])
        out = np.where(goes, votes[:, :_K].argmax(1), code).astype(np.uint8)[parts]
    if fill.any():
        parts, size, code = _components(out)
        asked = (code == 0) & (size < fill.max())
        votes = _votes(parts, asked, out)
        into = votes[:, 1:_K].argmax(1) + 1
        filled = asked & (votes[:, _K] == 0) & (size < fill[into])
        out = np.where(filled, into, code).astype(np.uint8)[parts]
    return np.where(classes == IGNORE, classes, out[1:-1, 1:-1])


def _components(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the component of each pixel, and of each component its pixels and code.

    Pixels side by side in a row are one run. Where runs of a code touch, the root of the one points to the root of the
    other if that comes before it, until all that touch have one root. (NumPy alone: submissions have nothing else.)
    """
    starts = np.ones(codes.shape, bool)
    starts[:, 1:] = codes[:, 1:] != codes[:, :-1]
    run = starts.cumsum().reshape(codes.shape) - 1
    touch = (codes[1:] == codes[:-1]) & (starts[1:] | starts[:-1])
    a, b = run[:-1][touch], run[1:][touch]
    root = np.arange(starts.sum())
    while len(a):
        root[np.maximum(a, b)] = np.minimum(a, b)
        while ((further := root[root]) != root).any():
            root = further
        a, b = root[a], root[b]
        a, b = a[a != b], b[a != b]
    parts = (np.cumsum(root == np.arange(len(root))) - 1)[root][run]
    size = np.bincount(parts.ravel())
    code = np.empty(len(size), np.uint8)
    code[parts] = codes
    return parts, size, code


def _votes(parts: np.ndarray, asked: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Count the codes (0 to K) of the pixels that border each component that is `asked`, ``(components, K + 1)``."""
    votes = np.zeros(len(asked) * (_K + 1), np.int64)
    wanted = asked[parts]
    before, after = slice(None, -1), slice(1, None)
    for near, far in (((before,), (after,)), ((slice(None), before), (slice(None), after))):
        border = parts[near] != parts[far]
        for a, b in ((near, far), (far, near)):
            at = border & wanted[a]
            votes += np.bincount(parts[a][at] * (_K + 1) + codes[b][at], minlength=len(votes))
    return votes.reshape(-1, _K + 1)


def _check(classes: np.ndarray) -> None:
    if classes.ndim != 2 or classes.dtype != np.uint8:
        raise DataError(f"class map {classes.dtype} {classes.shape}: use uint8 (H, W)")
    foreign = (classes >= _K) & (classes != IGNORE)
    if foreign.any():
        raise DataError(f"class map has code {classes[foreign][0]}: use 0 to {_K - 1}, {IGNORE} where there is no data")


def _sizes(name: str, sizes: Sequence[int]) -> np.ndarray:
    """Return sizes by code, 0 for background and for no data."""
    if len(sizes) != _K or not all(isinstance(n, _INTEGER) and n >= 0 for n in sizes):
        raise DataError(f"{name} {list(sizes)}: use a number of pixels, 0 or more, for each of {', '.join(CLASSES)}")
    return np.array([0, *sizes[1:], 0], np.int64)


def _radius(radius: int) -> int:
    if not isinstance(radius, _INTEGER) or not 0 <= radius <= _LARGEST_RADIUS:
        raise DataError(f"radius of {radius} px: use 0 to {_LARGEST_RADIUS}")
    return int(radius)
