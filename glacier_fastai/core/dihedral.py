"""The 8 views of a square: its flips and quarter turns, exact and exactly undone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["VIEWS", "average_views", "undo_view", "view"]

VIEWS = range(8)
"""Numbers of the views; 0 changes nothing. Bit 0 flips columns, bit 1 flips rows, bit 2 then transposes."""


def view(
    x: Tensor,  # (..., H, W); from view 4 on, height and width change places
    k: int,  # number of the view
) -> Tensor:
    """Return view `k` of `x`."""
    x = x.flip([d for bit, d in ((1, -1), (2, -2)) if k & bit])
    return x.mT if k & 4 else x


def undo_view(
    x: Tensor,  # (..., H, W), view k of something
    k: int,  # number of the view
) -> Tensor:
    """Return that of which `x` is view `k`."""
    x = x.mT if k & 4 else x
    return x.flip([d for bit, d in ((1, -1), (2, -2)) if k & bit])


def average_views(
    model: Callable[[Tensor], Tensor],  # (B, C, H, W) -> (B, K, H, W)
    x: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Return the mean of what the model says of the 8 views, each turned back, (B, K, H, W)."""
    total = model(x)
    for k in VIEWS[1:]:
        total = total + undo_view(model(view(x, k)), k)
    return total / len(VIEWS)
