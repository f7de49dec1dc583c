"""Panels: image | truth | prediction | errors, drawn over hatching where there is no data; and grids of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..bands import CLASS_COLOURS, CLASSES, ICE_COLOUR, ICE_OF_ANY_KIND, IGNORE, UNKNOWN_ICE
from ..core.confusion import wrong
from ..errors import DataError
from .style import plain

__all__ = ["Panels", "class_rgba", "draw", "draw_panels", "error_rgba", "false_colour", "grid", "legend", "panels"]

HATCH: dict[str, Any] = {"facecolor": "#f4f4f4", "edgecolor": "#b0b0b0", "hatch": "////", "linewidth": 0}
CORRECT, WRONG = "#e8e8e8", "#b2182b"


def false_colour(
    image: np.ndarray,  # (C, H, W), NaN where there is no data
    rgb: tuple[int, int, int],  # positions of the bands shown as red, green and blue
) -> np.ndarray:
    """Return RGBA `(H, W, 4)` in 0..1, each band stretched from its 2nd to its 98th percentile; no data is clear.

    >>> image = np.array([[[10.0, 20.0, 30.0, np.nan]]]).repeat(3, 0)
    >>> false_colour(image, (2, 1, 0))[0, :, 3].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
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
    mask: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
) -> np.ndarray:
    """Return RGBA `(H, W, 4)` in 0..1 in the class colours; ignored pixels are clear.

    >>> (255 * class_rgba(np.array([[1, 255]]))).round().astype(int).tolist()  # "#56b4e9"
    [[[86, 180, 233, 255], [0, 0, 0, 0]]]
    """
    table = np.zeros((256, 4), np.float32)
    for code, colour in [*enumerate(CLASS_COLOURS), (ICE_OF_ANY_KIND, ICE_COLOUR)]:
        table[code] = (*to_rgb(colour), 1)
    return table[np.asarray(mask).astype(np.uint8)]


def error_rgba(
    pred: np.ndarray,  # (H, W) class codes
    truth: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
) -> np.ndarray:
    """Return RGBA `(H, W, 4)` in 0..1: red where the prediction is wrong, pale grey where right, clear where ignored.

    Any ice is right where its kind is unknown.

    >>> (255 * error_rgba(np.array([[1, 2, 3]]), np.array([[1, 1, 255]]))).round().astype(int).tolist()
    [[[232, 232, 232, 255], [178, 24, 43, 255], [0, 0, 0, 0]]]
    """
    out = np.zeros((*truth.shape, 4), np.float32)
    out[truth != IGNORE] = (*to_rgb(CORRECT), 1)
    out[wrong(pred, truth)] = (*to_rgb(WRONG), 1)
    return out


class Panels(NamedTuple):
    """A sample in four pictures, each RGBA `(H, W, 4)` in 0..1 and clear where there is nothing to show."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    errors: np.ndarray
    wrong: float  # share of the labelled pixels that are wrong, NaN where none is labelled


def panels(
    image: np.ndarray,  # (C, H, W), NaN where there is no data
    truth: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
    pred: np.ndarray,  # (H, W) class codes
    rgb: tuple[int, int, int],  # positions of the bands shown as red, green and blue
) -> Panels:
    """Return the pictures of a sample; where the image has no data, there is no prediction either.

    >>> image, truth = np.array([[[1.0, 2.0, np.nan]]]), np.array([[0, 3, 255]])
    >>> panels(image, truth, np.array([[0, 0, 0]]), (0, 0, 0)).wrong
    0.5
    """
    shown, labelled = false_colour(image, rgb), truth != IGNORE
    pred = np.where(shown[..., 3] > 0, pred, IGNORE)
    share = float(wrong(pred, truth)[labelled].mean()) if labelled.any() else float("nan")
    return Panels(shown, class_rgba(truth), class_rgba(pred), error_rgba(pred, truth), share)


def draw(ax: Axes, rgba: np.ndarray, title: str | None = None) -> Axes:
    """Draw RGBA `(H, W, 4)` over hatching, which shows where it is clear."""
    height, width = rgba.shape[:2]
    ax.add_patch(Rectangle((-0.5, -0.5), width, height, zorder=0, **HATCH))
    ax.imshow(rgba, interpolation="nearest", zorder=1)
    ax.set_axis_off()
    if title:
        ax.set_title(plain(title), fontsize=9)
    return ax


def draw_panels(
    axes: Sequence[Axes],  # four
    shown: Panels,
    image: str,  # title of the image
    truth: str = "truth",  # of the truth
    prediction: str = "prediction",  # of the prediction
) -> None:
    """Draw image, truth, prediction and errors, in this order."""
    errors = "errors: no label" if np.isnan(shown.wrong) else f"errors, {shown.wrong:.1%} of labelled"
    for ax, rgba, title in zip(axes, shown[:4], (image, truth, prediction, errors), strict=True):
        draw(ax, rgba, title)


def legend(
    fig: Figure,
    errors: bool = False,  # those of the error map, too
    truths: Iterable[np.ndarray] = (),  # masks that are shown; some may hold ice of unknown kind
) -> None:
    """Put the colours of what is shown below a figure."""
    patches = [Patch(color=c, label=n) for n, c in zip(CLASSES, CLASS_COLOURS, strict=True)]
    if any((mask == ICE_OF_ANY_KIND).any() for mask in truths):
        patches.append(Patch(color=ICE_COLOUR, label=UNKNOWN_ICE))
    if errors:
        patches += [Patch(color=CORRECT, label="right"), Patch(color=WRONG, label="wrong")]
    patches.append(Patch(label="no data or label", **HATCH))
    narrow: Any = {"frameon": False, "fontsize": 9, "columnspacing": 1.2, "handlelength": 1.4, "handletextpad": 0.5}
    fig.legend(handles=patches, loc="lower center", ncols=len(patches), **narrow)


def grid(
    n: int,  # samples
    panels: Sequence[str],  # what is shown of each, side by side
    samples_per_row: int = 1,
    nrows: int | None = None,
    ncols: int | None = None,  # samples in a row, instead of `samples_per_row`
    figsize: tuple[float, float] | None = None,  # inches
    ctxs: Any = None,  # axes to use instead of a new figure's, for each sample as many as it has panels
    cell: float = 2.6,  # side of a panel, inches
    title: str = "",  # of the figure
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes `(samples, panels)`; of given axes as many samples as there is room for.

    Raises:
        DataError: `ctxs` are no axes, or not as many as some samples need.
    """
    each = len(panels)
    if ctxs is not None:
        axes = np.array(ctxs, object).ravel()
        if not len(axes) or len(axes) % each or not all(isinstance(ax, Axes) for ax in axes):
            what = f"{len(axes)} axes" if all(isinstance(ax, Axes) for ax in axes) else "not only axes"
            raise DataError(f"ctxs: {what}; use {each} axes for each sample: {', '.join(panels)}")
        return axes[0].figure, axes.reshape(-1, each)
    samples_per_row = ncols or min(samples_per_row, n)
    rows = nrows or ceil(n / samples_per_row)
    above, below = (0.6 if title else 0.3), 0.4  # inches, for titles and legend
    width, height = samples_per_row * each * cell, rows * (cell + 0.25) + above + below - 0.2
    fig, axes = plt.subplots(rows, samples_per_row * each, figsize=figsize or (width, height), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    height = fig.get_figheight()
    fig.subplots_adjust(left=0.01, right=0.99, top=1 - above / height, bottom=below / height, wspace=0.04, hspace=0.12)
    if title:
        fig.suptitle(plain(title), fontsize=10, y=1 - 0.1 / height, va="top")
    return fig, axes.reshape(-1, each)
