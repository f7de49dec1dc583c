"""Tensor types of images and masks, and how they show themselves.

`TensorMultispectral` is float `(C, H, W)` or `(B, C, H, W)`: values as delivered with NaN where there is no data, or
after `NormalizeBands` standardised values with exactly 0 in every band where there is no data.
`TensorGlacierMask` is int64 `(H, W)` or `(B, H, W)` of class codes, 254 = ice of unknown kind, 255 = ignore.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from fastai.vision.all import TensorImage, TensorMask, dispatch

from ..bands import composite
from ..plots.panels import class_rgba, draw, draw_panels, false_colour, grid, legend, panels

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
        return draw(ax, false_colour(_array(self.float()), self.composite()[1]), title)


class TensorGlacierMask(TensorMask):
    """A mask of class codes, 254 = ice of unknown kind, 255 = ignore."""

    def show(self, ctx=None, title=None, figsize=None, **kwargs):
        """Show in the class colours; ignored pixels are hatched."""
        ax = ctx or plt.subplots(figsize=figsize)[1]
        return draw(ax, class_rgba(_array(self)), title)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.as_subclass(torch.Tensor).cpu().numpy()


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
    """Show image and truth of each sample, side by side; into `ctxs`, axes in this order, if given."""
    shown = list(samples)[:max_n]
    fig, axes = grid(len(shown), ("image", "truth"), 2, nrows, ncols, figsize, ctxs)
    for (image, mask), (left, right) in zip(shown, axes, strict=False):
        image.show(ctx=left, title=image.composite()[0])
        mask.show(ctx=right, title="truth")
    if ctxs is None:
        legend(fig, truths=[_array(mask) for _, mask in shown])
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
    """Show image, truth, prediction and errors of each sample in a row; into `ctxs`, axes in this order, if given."""
    shown = list(zip(samples, outs, strict=False))[:max_n]
    fig, axes = grid(len(shown), ("image", "truth", "prediction", "errors"), 1, nrows, ncols, figsize, ctxs)
    for ((image, mask, *_), out), row in zip(shown, axes, strict=False):
        name, rgb = image.composite()
        draw_panels(row, panels(_array(image.float()), _array(mask), _array(out[0]), rgb), name)
    if ctxs is None:
        legend(fig, errors=True, truths=[_array(mask) for (_, mask, *_), _ in shown])
    return axes
