"""The figures of a report: each small enough to be read on a phone; which colour is which run, the page's key says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ..bands import CLASSES
from ..core.calibration import Reliability
from .style import LINES, styled

__all__ = ["colours", "confusion", "curves", "importance", "reliability", "shares"]

SIZE = (4.4, 3.0)  # inches; as wide as a phone, so that letters stay as large as those of the page


def colours(
    n: int,  # runs
) -> list[str]:
    """Return a hex colour per run."""
    return list(LINES[:n]) if n <= len(LINES) else [to_hex(c) for c in colormaps["viridis"](np.linspace(0, 0.9, n))]


def curves(
    histories: Sequence[pd.DataFrame],  # history.csv of each run
    train: str | None,  # column drawn solid
    valid: str | None,  # column drawn dashed
    label: str,  # of the y axis
    best: Sequence[int | None] = (),  # epoch of each run to mark on the dashed curve
    log: bool = False,  # y axis
) -> Figure:
    """Draw a column of the histories by epoch."""
    with styled():
        fig = Figure(SIZE)
        ax = fig.subplots()
        for k, (history, colour) in enumerate(zip(histories, colours(len(histories)), strict=True)):
            for column, style in ((train, "-"), (valid, "--")):
                if column in history:
                    dots = "." if len(history) == 1 else ""
                    ax.plot(history["epoch"], history[column], style, marker=dots, color=colour, linewidth=1.3)
            at = history[history["epoch"] == best[k]] if best and valid in history else history[:0]
            ax.plot(at["epoch"], at.get(valid, []), "o", color=colour, markersize=5)
        ax.set(xlabel="epoch", ylabel=label, yscale="log" if log else "linear")
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def confusion(
    matrix: np.ndarray,  # (K, K) pixels, rows truth
) -> Figure:
    """Draw a confusion matrix in shares of the truth, with the pixels behind them."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with styled():
        fig = Figure((4.4, 3.9))
        ax = fig.subplots()
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(share):
            text = f"{value:.1%}\n{matrix[i, j]:,}" if matrix[i].sum() else "none"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 0.5 else "black")
        ticks = range(len(CLASSES))
        ax.set(xlabel="prediction", ylabel="truth")
        ax.set_xticks(ticks, CLASSES)
        ax.set_yticks(ticks, CLASSES, rotation=90, va="center")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return fig


def reliability(
    tables: Sequence[Reliability | None],  # of each run
    label: str,  # of the x axis
) -> Figure:
    """Draw how often what was said with some confidence is true."""
    with styled():
        fig = Figure(SIZE)
        ax = fig.subplots()
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
        for table, colour in zip(tables, colours(len(tables)), strict=True):
            if table is not None:
                ax.plot(table.confidence, table.accuracy, ".-", color=colour, linewidth=1.3, clip_on=False)
        ax.set(xlabel=label, ylabel="share of pixels where it is true", xlim=(0, 1), ylim=(0, 1))
    return fig


def shares(
    data: Sequence[np.ndarray | None],  # share of each class in the training tiles of each run
    batches: Sequence[np.ndarray | None],  # in its batches
) -> Figure:
    """Draw what share of the pixels each class has in data and in batches."""
    with styled():
        fig = Figure(SIZE)
        ax = fig.subplots()
        middle = (len(batches) - 1) / 2
        for k, colour in enumerate(colours(len(batches))):
            x = np.arange(len(CLASSES)) + (k - middle) * 0.6 / len(batches)
            for values, marker, fill in ((data[k], "s", "none"), (batches[k], "o", colour)):
                if values is not None:
                    shown = np.where(values > 0, values, np.nan)
                    ax.plot(x, shown, marker, color=colour, markerfacecolor=fill, markersize=6)
        ax.set(yscale="log", ylabel="share of the labelled pixels")
        ax.set_xticks(range(len(CLASSES)), CLASSES)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.4g}" if v >= 1e-4 else f"{v:.0e}")
    return fig


def importance(
    tables: Sequence[pd.DataFrame | None],  # of each run, columns band, drop, spread
) -> Figure:
    """Draw how much the MCC loses without each band."""
    bands = list(dict.fromkeys(b for t in tables if t is not None for b in t["band"]))
    with styled():
        fig = Figure((SIZE[0], 1.0 + 0.4 * len(bands)))
        ax = fig.subplots()
        middle = (len(tables) - 1) / 2
        ax.axvline(0, color="0.6", linewidth=1)
        for k, (table, colour) in enumerate(zip(tables, colours(len(tables)), strict=True)):
            if table is not None:
                y = [bands.index(b) + (k - middle) * 0.6 / len(tables) for b in table["band"]]
                ax.errorbar(table["drop"], y, xerr=table["spread"], fmt="o", color=colour, markersize=4, linewidth=1)
        ax.set_yticks(range(len(bands)), bands)
        ax.set(xlabel="MCC lost", ylim=(len(bands) - 0.5, -0.5))
    return fig
