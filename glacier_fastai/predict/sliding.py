"""Probabilities of a whole scene from overlapping windows, a strip at a time. Knows neither files nor rasterio."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..core.tiling import blend_window, starts

__all__ = ["sliding_probabilities"]


def sliding_probabilities(
    read: Callable[[int, int, int, int], np.ndarray],  # row, col, height, width -> (C, h, w) float32, normalised
    model: Callable[[np.ndarray], np.ndarray],  # (B, C, h, w) -> probabilities (B, K, h, w)
    height: int,  # rows of the scene
    width: int,  # columns of the scene
    size: int,  # side of a window, pixels; a scene smaller than that is one window in that direction
    overlap: int,  # least overlap of windows, pixels
    batch_size: int = 4,  # windows per call of the model
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(first row, probabilities (K, rows, width))`, strips that together cover the scene, top to bottom.

    Windows are blended by a Hann window. Only one row of windows is held, so memory depends on the scene's width and
    not on its height.
    """
    h, w = min(size, height), min(size, width)
    weight = blend_window(h, w)
    rows, cols = (starts(n, side, min(overlap, side - 1)) for n, side in ((height, h), (width, w)))
    total = None
    for k, row in enumerate(rows):
        for first in range(0, len(cols), batch_size):
            chunk = cols[first : first + batch_size]
            probs = model(np.stack([read(row, col, h, w) for col in chunk]))
            if total is None:
                total, weights = np.zeros((probs.shape[1], h, width), np.float32), np.zeros((h, width), np.float32)
            for col, p in zip(chunk, probs, strict=True):
                total[:, :, col : col + w] += p * weight
                weights[:, col : col + w] += weight
        done = (rows[k + 1] if k + 1 < len(rows) else height) - row
        yield row, total[:, :done] / weights[:done]
        total[:, : h - done], weights[: h - done] = total[:, done:], weights[done:]
        total[:, h - done :], weights[h - done :] = 0, 0
