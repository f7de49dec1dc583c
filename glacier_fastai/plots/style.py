"""The one look of all figures: colour-blind safe lines (Okabe and Ito), faint grids, no frames."""

from __future__ import annotations

from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
from cycler import cycler

__all__ = ["styled"]

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.prop_cycle": cycler(color=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def styled() -> AbstractContextManager:
    """Draw figures in this look, within ``with``."""
    return plt.rc_context(STYLE)
