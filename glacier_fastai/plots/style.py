"""The one look of all figures: colour-blind safe lines (Okabe and Ito), faint grids, no frames."""

from __future__ import annotations

from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..errors import printable

__all__ = ["line_colours", "plain", "styled"]

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


def plain(text: str) -> str:
    r"""Return a text that figures show as it is: `$` begins no formula.

    >>> plain("band $x^$")
    'band \\$x^\\$'
    """
    return printable(text, 200).replace("$", r"\$")


def styled() -> AbstractContextManager[None]:
    """Draw figures in this look, within ``with``."""
    return plt.rc_context(STYLE)  # type: ignore[arg-type]  # its keys are names of settings


def line_colours(
    n: int,  # lines
) -> list[str]:
    """Return a hex colour per line, which can be told apart.

    >>> line_colours(2), len(set(line_colours(12)))
    (['#0072b2', '#d55e00'], 12)
    """
    return list(LINES[:n]) if n <= len(LINES) else [to_hex(c) for c in colormaps["viridis"](np.linspace(0, 0.9, n))]
