"""Charts of glaciers and how they change."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import LINES, plain, styled

__all__ = ["area_change"]


def area_change(
    table: pd.DataFrame,  # glaciers: `area_a_km2`, `change_percent`, `low_percent`, `high_percent`, `beyond_noise`
    classes: pd.DataFrame,  # by size: `size`, `rate_percent`, `rate_low_percent`, `rate_high_percent`, `glaciers`
    title: str = "",
) -> Figure:
    """Draw the change of each glacier against its size, with its interval, and the yearly change by size class."""
    with styled():
        fig, (top, bottom) = plt.subplots(2, 1, figsize=(4.4, 5.4), height_ratios=(3, 2))
        known = table[table["change_percent"].notna() & (table["area_a_km2"] > 0)]
        for beyond, colour, name in ((False, "0.6", "within its noise"), (True, LINES[1], "beyond its noise")):
            part = known[known["beyond_noise"] == beyond]
            x, y = part["area_a_km2"], part["change_percent"]
            reach = np.abs(part[["low_percent", "high_percent"]].to_numpy().T - y.to_numpy())
            top.errorbar(x, y, reach, fmt=".", color=colour, linewidth=0.8, label=f"{name} ({len(part)})")
        top.axhline(0, color="black", linewidth=0.8)
        top.set(
            xscale="log" if len(known) else "linear",
            xlabel="area at the first date, km²",
            ylabel="change of area, %",
            title=plain(title),
        )
        top.legend(fontsize=8)
        at, rate = np.arange(len(classes)), classes["rate_percent"].to_numpy()
        reach = np.abs(classes[["rate_low_percent", "rate_high_percent"]].to_numpy().T - rate)
        bottom.bar(at, rate, yerr=reach, color=LINES[0], ecolor="0.3", width=0.7)
        bottom.axhline(0, color="black", linewidth=0.8)
        names = [f"{size}\n{n}" for size, n in zip(classes["size"], classes["glaciers"], strict=True)]
        bottom.set_xticks(at, names, fontsize=7)
        bottom.set(xlabel="size class, km², and number of glaciers", ylabel="% per year")
    return fig
