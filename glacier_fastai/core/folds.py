"""Cross-validation folds: the same tiles for ever, rare classes spread evenly, and no leaks across space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError

__all__ = ["assign_folds", "touching", "train_valid"]


def touching(
    tiles: np.ndarray,  # bool (N,), some of the tiles
    frame: Sequence[str],  # what each tile's box is measured in: a coordinate reference system, or a scene's pixels
    box: np.ndarray,  # (N, 4) left, top, right, bottom of each tile, in units of its frame; top < bottom
) -> np.ndarray:
    """Return bool `(N,)`: True for what overlaps one of `tiles` or shares an edge or a corner with it (or is it)."""
    name = np.unique(np.asarray(frame, dtype=str), return_inverse=True)[1]
    near = np.zeros(len(name), bool)
    for f in np.unique(name[tiles]):
        mine, theirs = np.flatnonzero(name == f), np.flatnonzero((name == f) & tiles)
        near[mine] = _meets(box[mine], box[theirs]).any(1)
    return near


def _meets(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    slack = 1e-6 * (a[:, 2] - a[:, 0]).max(initial=0)  # coordinates are rounded
    out = np.ones((len(a), len(b)), bool)
    for low, high in ((0, 2), (1, 3)):
        out &= (a[:, None, low] <= b[:, high] + slack) & (b[:, low] <= a[:, None, high] + slack)
    return out


def assign_folds(
    counts: np.ndarray,  # (N, K) labelled pixels per tile and class
    n_folds: int,  # number of folds
    *,
    spatial: bool = False,  # keep neighbours together
    unit: Sequence[str] = (),  # with `spatial`: group or scene of each tile
    frame: Sequence[str] = (),  # with `spatial`: as in `touching`
    box: np.ndarray | None = None,  # with `spatial`: as in `touching`
) -> np.ndarray:
    """Return the fold of each tile, int64 of shape `(N,)`; no fold is empty.

    Without `spatial`, tiles are sorted by their shares of the rare classes (all after the second) and of the second
    and dealt out in turn, to and fro, so that each fold gets its share of debris and lake.

    With `spatial`, units that meet on the ground become one. Whole units are dealt out in the same manner where there
    are at least `n_folds` of them. Otherwise the tiles, unit by unit and in each unit along its longer side, are cut
    into `n_folds` compact runs of equal length. `train_valid` then leaves out what still touches.

    Nothing is drawn at random: the same tiles in the same order give the same folds on every platform.

    Raises:
        DataError: There are fewer tiles than folds, or fewer than 2 folds.
    """
    counts = np.asarray(counts, np.int64)
    n = len(counts)
    if n_folds < 2:
        raise DataError(f"{n_folds} folds: at least 2 are needed")
    if n < n_folds:
        raise DataError(f"{n} tiles cannot make {n_folds} folds; set data.folds to at most {n}")
    if not spatial:
        return _deal(counts, n_folds)
    unit = _merged(np.unique(np.asarray(unit, dtype=str), return_inverse=True)[1], np.asarray(frame, dtype=str), box)
    if unit.max() + 1 >= n_folds:
        pooled = np.stack([counts[unit == u].sum(0) for u in range(unit.max() + 1)])
        return _deal(pooled, n_folds)[unit]
    order = []
    for u in range(unit.max() + 1):
        mine = np.flatnonzero(unit == u)
        left, top = box[mine, 0], box[mine, 1]
        along, across = (top, left) if np.ptp(top) >= np.ptp(left) else (left, top)
        order.extend(mine[np.lexsort((across, along))])
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) * n_folds // n
    return fold


def _merged(unit: np.ndarray, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return units, numbered from 0, of which no two meet in one frame (as two dates of one scene would)."""
    n = unit.max() + 1
    extent = np.stack([[*box[unit == u, :2].min(0), *box[unit == u, 2:].max(0)] for u in range(n)])
    home = np.array([frame[unit == u][0] for u in range(n)])
    linked = _meets(extent, extent) & (home[:, None] == home)
    label = np.arange(n)
    while not np.array_equal(label, spread := np.where(linked, label, n).min(1)):  # the least label wins
        label = spread
    return np.unique(label, return_inverse=True)[1][unit]


def _deal(counts: np.ndarray, n_folds: int) -> np.ndarray:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    keys = [np.arange(len(counts)), *(-share[:, 1:2].T), -share[:, 2:].sum(1)]  # last key sorts first
    order = np.lexsort(keys)
    cycle = np.concatenate([np.arange(n_folds), np.arange(n_folds)[::-1]])
    fold = np.empty(len(counts), np.int64)
    fold[order] = np.resize(cycle, len(counts))
    return fold


def train_valid(
    fold: np.ndarray,  # (N,) fold of each tile
    k: int,  # fold to validate on
    **place,  # `frame` and `box` as in `touching`: leave out what touches a validation tile
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the training and of the validation tiles of fold `k`.

    Raises:
        DataError: `k` is no fold, or nothing is left to train on.
    """
    n_folds = int(fold.max()) + 1
    if not 0 <= k < n_folds:
        raise DataError(f"fold {k}: there are folds 0 to {n_folds - 1}")
    valid = fold == k
    train = ~touching(valid, **place) if place else ~valid
    if not train.any():
        raise DataError(
            f"fold {k}: every other tile touches a validation tile; use smaller tiles or data.spatial=false"
        )
    return np.flatnonzero(train), np.flatnonzero(valid)
