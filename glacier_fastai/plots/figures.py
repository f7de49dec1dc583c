"""Charts of scores, each once: for notebooks, reports and calibration; small enough to be read on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from ..bands import CLASS_COLOURS, CLASSES, ICE_COLOUR, UNKNOWN_ICE
from ..core.calibration import Reliability, expected_calibration_error
from .style import line_colours, plain, styled

__all__ = ["LEAST", "confusion", "curves", "errors_by", "importance", "reliability", "shares"]

SIZE = (4.4, 3.0)  # inches; as wide as a phone, so that letters stay as large as those of a page
LEAST = 100
"""Pixels; a share of fewer is not drawn."""


def confusion(
    matrix: np.ndarray,  # (K, K) pixels, rows truth, or with a row of ice of unknown kind (K + 1, K)
    title: str = "",
) -> Figure:
    """Draw a confusion matrix in shares of the truth, with the pixels behind them."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with styled():
        fig, ax = plt.subplots(figsize=(4.4, 4.1 + 0.8 * (len(matrix) - len(CLASSES))))
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(share):
            text = f"{value:.1%}\n{matrix[i, j]:,}" if matrix[i].sum() else "none"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 0.5 else "black")
        ax.set(xlabel="class in the map", ylabel="class in the truth", title=title)
        ax.set_xticks(range(len(CLASSES)), CLASSES)
        ax.set_yticks(
            range(len(matrix)), (*CLASSES, UNKNOWN_ICE.replace(" ", "\n", 1))[: len(matrix)], rotation=90, va="center"
        )
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return fig


def reliability(
    tables: Mapping[str, Reliability | None],  # by name, in the order of the colours
    of: str = "the class",  # whose probability
    title: str = "",
    colours: Sequence[str] | None = None,  # of the lines, default `line_colours`
    key: bool = True,  # name the lines, with their calibration error
) -> Figure:
    """Draw how often something is there, by how probable it was said to be, and how many pixels said so."""
    with styled():
        fig, (top, bottom) = plt.subplots(2, 1, figsize=(4.4, 4.4), height_ratios=(3, 1), sharex=True)
        top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
        for (name, table), colour in zip(tables.items(), colours or line_colours(len(tables)), strict=True):
            if table is None or not table.pixels.any():
                continue
            label = f"{name}, ECE {expected_calibration_error(table):.3f}"
            accuracy = np.where(table.pixels >= LEAST, table.accuracy, np.nan)
            top.plot(table.confidence, accuracy, ".-", color=colour, linewidth=1.3, clip_on=False, label=label)
            bottom.stairs(table.pixels / table.pixels.sum(), table.edges, color=colour, baseline=None)
        top.set(ylabel="share of pixels where it is true", xlim=(0, 1), ylim=(0, 1), title=title)
        bottom.set(xlabel=f"probability of {of}", ylabel="share of px", yscale="log")
        bottom.yaxis.set_major_formatter(lambda v, _: f"{v:.4g}")
        if key:
            fig.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return fig


def errors_by(
    table: pd.DataFrame,  # a stratum of `GlacierInterpretation`
    label: str,  # what it is by
    title: str = "",
) -> Figure:
    """Draw the share of errors in each bin, of all pixels and of those of each class."""
    table = table.query("pixels > 0")
    at = np.arange(len(table))
    with styled():
        fig, ax = plt.subplots(figsize=(6.6, 4.0))
        drawn: list[Any] = [ax.bar(at, table["share"], color="0.88", label="all classes")]
        for name, colour in zip((*CLASSES, UNKNOWN_ICE), (*CLASS_COLOURS, ICE_COLOUR), strict=True):
            if f"share_{name}" not in table:
                continue
            share = table[f"share_{name}"].where(table[f"pixels_{name}"] >= LEAST)
            drawn += ax.plot(at, share, "o-", color=colour, mec="0.3", mew=0.5, label=name)
        bins = zip(table["low"], table["high"], table["pixels"], strict=True)
        ax.set_xticks(at, [f"{_bin(low, high)}\n{pixels:,}" for low, high, pixels in bins], fontsize=8)
        ax.set(xlabel=f"{label}\nbelow the bins, n of pixels", ylabel="errors, share of pixels", title=title)
        ax.set_ylim(0)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(False, axis="x")
        fig.legend(handles=drawn, loc="outside lower center", ncols=len(drawn), fontsize=8)
    return fig


def _bin(low: float, high: float) -> str:
    between = " to " if low < 0 else "–"
    name = f"≤ {high:,g}" if low == -np.inf else f"> {low:,g}" if high == np.inf else f"{low:,g}{between}{high:,g}"
    return name.replace("-", "−")


def importance(
    tables: Sequence[pd.DataFrame | None],  # of each run, as from `GlacierInterpretation.band_importance`
) -> Figure:
    """Draw by how much the MCC falls without what each band says, the largest fall on top."""
    known = pd.concat([t for t in tables if t is not None])
    bands = known.groupby("band", sort=False)["drop"].mean().sort_values(ascending=False, kind="stable").index.tolist()
    how, over = {
        "permutation": ("shuffled within each tile", "standard deviation over the shuffles"),
        "occlusion": ("set to its mean", "standard error over the tiles"),
    }[known["method"].iloc[0]]
    mccs, tiles = ([t[name].iloc[0] for t in tables if t is not None] for name in ("mcc", "tiles"))
    mean = f", mean of {len(mccs)} runs" if len(mccs) > 1 else ""
    with styled():
        fig, ax = plt.subplots(figsize=(4.4, 1.4 + (0.24 + 0.1 * len(tables)) * len(bands)))
        middle = (len(tables) - 1) / 2
        ax.axvline(0, color="0.6", linewidth=1)
        for k, (table, colour) in enumerate(zip(tables, line_colours(len(tables)), strict=True)):
            if table is not None:
                y = [bands.index(b) + (k - middle) * 0.6 / len(tables) for b in table["band"]]
                ax.errorbar(table["drop"], y, xerr=table["spread"], fmt="o", color=colour, markersize=4, linewidth=1)
        ax.set_yticks(range(len(bands)), [plain(b) for b in bands])
        ax.set(xlabel=f"fall of the MCC with the band {how}\nbars: {over}", ylim=(len(bands) - 0.5, -0.5))
        ax.set_title(f"MCC {np.mean(mccs):.3f} with all bands{mean}, n = {sum(tiles)} tiles")
    return fig


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
        fig, ax = plt.subplots(figsize=SIZE)
        for k, (history, colour) in enumerate(zip(histories, line_colours(len(histories)), strict=True)):
            for column, style in ((train, "-"), (valid, "--")):
                if column in history:
                    dots = "." if len(history) == 1 else ""
                    ax.plot(history["epoch"], history[column], style, marker=dots, color=colour, linewidth=1.3)
            if best and valid in history:
                at = history[history["epoch"] == best[k]]
                ax.plot(at["epoch"], at[valid], "o", color=colour, markersize=5)
        ax.set(xlabel="epoch", ylabel=label, yscale="log" if log else "linear")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def shares(
    data: Sequence[np.ndarray | None],  # share of each class in the training tiles of each run
    batches: Sequence[np.ndarray | None],  # in its batches
    names: Sequence[str] = CLASSES,  # of those that are drawn, the first of the shares
) -> Figure:
    """Draw what share of the pixels each class has in data and in batches."""
    with styled():
        fig, ax = plt.subplots(figsize=SIZE)
        middle = (len(batches) - 1) / 2
        for k, colour in enumerate(line_colours(len(batches))):
            x = np.arange(len(names)) + (k - middle) * 0.6 / len(batches)
            for values, marker, fill in ((data[k], "s", "none"), (batches[k], "o", colour)):
                if values is not None:
                    shown = np.where(values > 0, values, np.nan)[: len(names)]
                    ax.plot(x, shown, marker, color=colour, markerfacecolor=fill, markersize=6)
        ax.set(yscale="log", ylabel="share of the labelled pixels")
        ax.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.4g}" if v >= 1e-4 else f"{v:.0e}")
    return fig
