"""Tensor types of images and masks, and how they show themselves.

`TensorMultispectral` is float `(C, H, W)` or `(B, C, H, W)`: values as delivered with NaN where there is no data, or
after `NormalizeBands` standardised values with exactly 0 in every band where there is no data.
`TensorGlacierMask` is int64 `(H, W)` or `(B, H, W)` of class codes, 255 = ignore.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastai.vision.all import TensorImage, TensorMask, dispatch

from ..bands import IGNORE, composite
from ..plots.panels import class_rgba, draw, error_rgba, false_colour, grid, legend

__all__ = ["TensorGlacierMask", "TensorMultispectral"]


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
    fig, axes = grid(n, 2, 2, nrows, ncols, figsize)
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
    fig, axes = grid(n, 4, 1, nrows, ncols, figsize)
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
