"""Probabilities of a whole scene from overlapping windows, a strip at a time. Knows neither files nor rasterio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.tiling import blend_weights, starts

__all__ = ["ahead", "sliding_probabilities"]

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, each made in a thread while the one before it is used."""
    iterator = iter(items)

    def take() -> list[T]:
        return list(islice(iterator, 1))

    try:
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(take)
            while found := following.result():
                following = pool.submit(take)
                yield found[0]
    finally:
        if close := getattr(iterator, "close", None):
            close()


def sliding_probabilities(
    read: Callable[[int, int], np.ndarray],  # row, height -> (C, height, W) float32, NaN where there is no data
    model: Callable[[Sequence[np.ndarray]], Iterable[Tensor]],  # windows (C, h, w) -> of each, probabilities (K, h, w)
    height: int,  # rows of the scene
    width: int,  # columns of the scene
    size: int,  # side of a window, pixels
    overlap: int,  # least overlap of windows, pixels
    classes: int,  # K
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield `(first row, probabilities (K, rows, W), bool (rows, W): True where there is data)`, top to bottom.

    Where a scene is longer than a window, windows are blended by `core.tiling.blend_weights`, and reach over its edges
    by a quarter of the overlap, into its reflection. Where it is not, it is seen whole. A window without data is left
    out. Only one row of windows is held and one is read ahead, so memory depends on the scene's width, not its height.
    """
    top, rows, over_rows = _windows(height, size, overlap)
    left, cols, over_cols = _windows(width, size, overlap)
    h, w = min(size, height), min(size, width)
    weight = torch.from_numpy(np.outer(blend_weights(h, over_rows), blend_weights(w, over_cols)))
    total = None
    for k, strip in enumerate(ahead(_strips(read, [r - top for r in rows], h, height, left))):
        known = ~np.isnan(strip).all(0)
        chosen = [c for c in cols if known[:, c : c + w].any()]
        for c, probs in zip(chosen, model([strip[:, :, c : c + w] for c in chosen]), strict=True):
            if total is None:
                total = probs.new_zeros(len(probs), h, strip.shape[2])
                weights, weight = probs.new_zeros(h, strip.shape[2]), weight.to(probs)
            total[:, :, c : c + w] += probs * weight
            weights[:, c : c + w] += weight
        first = rows[k] - top
        last = rows[k + 1] - top if k + 1 < len(rows) else height
        here, inner = slice(max(first, 0) - first, last - first), slice(left, left + width)
        valid = known[here, inner]
        if total is None:
            yield max(first, 0), torch.full((classes, *valid.shape), 1 / classes), valid
            continue
        unseen = weights[here, inner] == 0
        yield max(first, 0), torch.where(unseen, 1 / classes, total[:, here, inner] / weights[here, inner]), valid
        total, weights = _moved_up(total, last - first), _moved_up(weights, last - first)


def _moved_up(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x[..., rows:, :], torch.zeros_like(x[..., :rows, :])], -2)


def _windows(length: int, size: int, overlap: int) -> tuple[int, list[int], int]:
    """Return by how much windows reach over the ends of an axis, where they begin counted from there, their overlap."""
    if length <= size:
        return 0, [0], 0
    beyond = overlap // 4
    return beyond, starts(length + 2 * beyond, size, overlap), overlap


def _strips(
    read: Callable[[int, int], np.ndarray], rows: Sequence[int], h: int, height: int, beyond: int
) -> Iterator[np.ndarray]:
    """Yield `h` rows from each of `rows` on, every row of the scene read once, reflected beyond its edges."""
    held, at = None, 0  # rows of the scene and which is the first
    for first in rows:
        low, high = max(first, 0), min(first + h, height)
        if held is not None:
            held, at = held[:, low - at :], low
        end = at + (0 if held is None else held.shape[1])
        new = np.pad(read(end, high - end), ((0, 0), (0, 0), (beyond, beyond)), mode="reflect")
        held = new if held is None else np.concatenate([held, new], 1)
        if low == first and high == first + h:
            yield held
        else:
            index = np.abs(np.arange(first, first + h))
            yield held[:, np.where(index < height, index, 2 * (height - 1) - index) - at]
