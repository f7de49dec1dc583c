"""Panels: an image, class codes, or errors, drawn over hatching where there is no data; and grids of them."""

from __future__ import annotations

from math import ceil

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from ..bands import CLASS_COLOURS, CLASSES, IGNORE

__all__ = ["class_rgba", "draw", "error_rgba", "false_colour", "grid", "legend"]

HATCH = {"facecolor": "#f4f4f4", "edgecolor": "#b0b0b0", "hatch": "////", "linewidth": 0}
CORRECT, WRONG = "#e8e8e8", "#b2182b"


def false_colour(
    image: np.ndarray,  # (C, H, W), NaN where there is no data
    rgb: tuple[int, int, int],  # positions of the bands shown as red, green and blue
) -> np.ndarray:
    """Return RGBA `(H, W, 4)` in 0..1, each band stretched from its 2nd to its 98th percentile; no data is clear."""
    chosen = image[list(rgb)]
    valid = np.isfinite(chosen).all(0)
    out = np.zeros((*valid.shape, 4), np.float32)
    if valid.any():
        low, high = np.percentile(chosen[:, valid], [2, 98], axis=1)
        scale = np.maximum(high - low, 1e-6)
        out[valid, :3] = np.clip((chosen[:, valid] - low[:, None]) / scale[:, None], 0, 1).T
        out[valid, 3] = 1
    return out


def class_rgba(
    mask: np.ndarray,  # (H, W) class codes, 255 = ignore
) -> np.ndarray:
    """Return RGBA `(H, W, 4)` in 0..1 in the class colours; ignored pixels are clear."""
    table = np.zeros((256, 4), np.float32)
    for code, colour in enumerate(CLASS_COLOURS):
        table[code] = (*to_rgb(colour), 1)
    return table[np.asarray(mask).astype(np.uint8)]


def error_rgba(
    pred: np.ndarray,  # (H, W) class codes
    target: np.ndarray,  # (H, W) class codes, 255 = ignore
) -> np.ndarray:
    """Return RGBA `(H, W, 4)`: red where the prediction is wrong, pale grey where right, clear where ignored."""
    out = np.zeros((*target.shape, 4), np.float32)
    out[(pred == target) & (target != IGNORE)] = (*to_rgb(CORRECT), 1)
    out[(pred != target) & (target != IGNORE)] = (*to_rgb(WRONG), 1)
    return out


def draw(ax, rgba: np.ndarray, title: str | None = None):
    """Draw RGBA `(H, W, 4)` over hatching, which shows where it is clear."""
    height, width = rgba.shape[:2]
    ax.add_patch(Rectangle((-0.5, -0.5), width, height, zorder=0, **HATCH))
    ax.imshow(rgba, interpolation="nearest", zorder=1)
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def legend(fig, errors: bool = False) -> None:
    """Put the class colours (and with `errors` those of the error map) below a figure."""
    patches = [Patch(color=c, label=n) for n, c in zip(CLASSES, CLASS_COLOURS, strict=True)]
    if errors:
        patches += [Patch(color=CORRECT, label="right"), Patch(color=WRONG, label="wrong")]
    patches.append(Patch(label="no data or label", **HATCH))
    fig.legend(handles=patches, loc="lower center", ncol=len(patches), frameon=False, fontsize=9)


def grid(
    n: int,  # samples
    per_sample: int,  # panels of each
    samples_per_row: int,
    nrows: int | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,  # inches
    cell: float = 2.6,  # side of a panel, inches
):
    """Return a figure and its axes `(n, per_sample)`, those of a sample side by side."""
    samples_per_row = ncols or min(samples_per_row, n)
    rows = nrows or ceil(n / samples_per_row)
    width, height = samples_per_row * per_sample * cell, rows * (cell + 0.25) + 0.5
    fig, axes = plt.subplots(rows, samples_per_row * per_sample, figsize=figsize or (width, height), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    top, bottom = 1 - 0.3 / fig.get_figheight(), 0.4 / fig.get_figheight()
    fig.subplots_adjust(left=0.01, right=0.99, top=top, bottom=bottom, wspace=0.04, hspace=0.12)
    return fig, axes.reshape(-1, per_sample)
