"""Probabilities of a whole scene from overlapping windows, a strip at a time. Knows neither files nor rasterio."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..core.tiling import blend_window, starts

__all__ = ["sliding_probabilities"]


def sliding_probabilities(
    read: Callable[[int, int, int, int], np.ndarray],  # row, col, height, width -> (C, h, w) float32, normalised
    model: Callable[[np.ndarray], np.ndarray],  # (B, C, size, size) -> probabilities (B, K, size, size)
    height: int,  # rows of the scene
    width: int,  # columns of the scene
    size: int,  # side of a window, pixels
    overlap: int,  # least overlap of windows, pixels
    batch_size: int = 8,  # windows per call of the model
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(first row, probabilities (K, rows, width))`, strips that together cover the scene, top to bottom.

    Windows are blended by a Hann window. Only one row of windows is held, so memory depends on the scene's width and
    not on its height. A scene smaller than a window is continued by reflection.
    """
    weight = blend_window(size)
    rows, cols = starts(max(height, size), size, overlap), starts(max(width, size), size, overlap)
    span = max(width, size)
    total = None
    for k, row in enumerate(rows):
        windows = [_reflected(read, row, col, min(height, size), min(width, size), size) for col in cols]
        for first in range(0, len(cols), batch_size):
            chunk = slice(first, first + batch_size)
            for col, probs in zip(cols[chunk], model(np.stack(windows[chunk])), strict=True):
                if total is None:
                    total = np.zeros((len(probs), size, span), np.float32)
                    weights = np.zeros((size, span), np.float32)
                total[:, :, col : col + size] += probs * weight
                weights[:, col : col + size] += weight
        done = (rows[k + 1] if k + 1 < len(rows) else max(height, size)) - row
        keep = min(row + done, height) - row
        yield row, total[:, :keep, :width] / weights[:keep, :width]
        total[:, : size - done], weights[: size - done] = total[:, done:], weights[done:]
        total[:, size - done :], weights[size - done :] = 0, 0


def _reflected(read: Callable, row: int, col: int, height: int, width: int, size: int) -> np.ndarray:
    image = read(row, col, height, width)
    if (height, width) == (size, size):
        return image
    return np.pad(image, ((0, 0), (0, size - height), (0, size - width)), mode="symmetric")
