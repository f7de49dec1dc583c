"""Tensor types of images and masks, and how they show themselves.

`TensorMultispectral` is float `(C, H, W)` or `(B, C, H, W)`: values as delivered with NaN where there is no data, or
after `NormalizeBands` standardised values with exactly 0 in every band where there is no data.
`TensorGlacierMask` is int64 `(H, W)` or `(B, H, W)` of class codes, 255 = ignore.
"""

from __future__ import annotations

from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastai.vision.all import TensorImage, TensorMask, dispatch
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from ..bands import CLASS_COLOURS, CLASSES, IGNORE, composite

__all__ = ["TensorGlacierMask", "TensorMultispectral", "class_rgba", "error_rgba", "false_colour"]

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


class TensorMultispectral(TensorImage):
    """A multispectral image; its `bands` (names, set when a batch is decoded) choose the composite it is shown in."""

    bands: tuple[str, ...] = ()

    def composite(self) -> tuple[str, tuple[int, int, int]]:
        """Return the name and the band positions of the false-colour composite it is shown in."""
        return composite(self.bands or tuple(f"band {i + 1}" for i in range(self.shape[-3])))

    def show(self, ctx=None, title=None, figsize=None, **kwargs):
        """Show as a false-colour composite, 2-98 % stretch; pixels without data are hatched."""
        ax = ctx or plt.subplots(figsize=figsize)[1]
        return draw(ax, false_colour(self.as_subclass(torch.Tensor).float().cpu().numpy(), self.composite()[1]), title)


class TensorGlacierMask(TensorMask):
    """A mask of class codes, 255 = ignore."""

    def show(self, ctx=None, title=None, figsize=None, **kwargs):
        """Show in the class colours; ignored pixels are hatched."""
        ax = ctx or plt.subplots(figsize=figsize)[1]
        return draw(ax, class_rgba(self.as_subclass(torch.Tensor).cpu().numpy()), title)


def _grid(n: int, per_sample: int, samples_per_row: int, nrows, ncols, figsize, cell: float = 2.6):
    samples_per_row = ncols or min(samples_per_row, n)
    rows = nrows or ceil(n / samples_per_row)
    width, height = samples_per_row * per_sample * cell, rows * (cell + 0.25) + 0.5
    fig, axes = plt.subplots(rows, samples_per_row * per_sample, figsize=figsize or (width, height), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    top, bottom = 1 - 0.3 / fig.get_figheight(), 0.4 / fig.get_figheight()
    fig.subplots_adjust(left=0.01, right=0.99, top=top, bottom=bottom, wspace=0.04, hspace=0.12)
    return fig, axes.reshape(-1, per_sample)


@dispatch
def show_batch(
    x: TensorMultispectral,
    y: TensorGlacierMask,
    samples,
    ctxs=None,
    max_n=6,
    nrows=None,
    ncols=None,
    figsize=None,
    **kwargs,
):
    """Show each image beside its mask."""
    n = min(len(samples), max_n)
    fig, axes = _grid(n, 2, 2, nrows, ncols, figsize)
    for (image, mask), (left, right) in zip(list(samples)[:n], axes, strict=False):
        image.show(ctx=left, title=image.composite()[0])
        mask.show(ctx=right, title="target")
    legend(fig)
    return axes


@dispatch
def show_results(
    x: TensorMultispectral,
    y: TensorGlacierMask,
    samples,
    outs,
    ctxs=None,
    max_n=6,
    nrows=None,
    ncols=None,
    figsize=None,
    **kwargs,
):
    """Show image, target, prediction and errors of each sample in a row."""
    n = min(len(samples), max_n)
    fig, axes = _grid(n, 4, 1, nrows, ncols, figsize)
    for (image, mask, *_), out, row in zip(list(samples)[:n], list(outs)[:n], axes, strict=False):
        target, pred = (np.asarray(t.cpu()) for t in (mask, out[0]))
        labelled = target != IGNORE
        wrong = (pred != target)[labelled].mean() if labelled.any() else float("nan")
        image.show(ctx=row[0], title=image.composite()[0])
        mask.show(ctx=row[1], title="target")
        TensorGlacierMask(np.where(labelled, pred, IGNORE)).show(ctx=row[2], title="prediction")
        draw(row[3], error_rgba(pred, target), f"errors, {wrong:.1%} of labelled")
    legend(fig, errors=True)
    return axes
