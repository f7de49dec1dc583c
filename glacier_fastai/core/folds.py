"""Cross-validation folds: the same tiles for ever, rare classes spread evenly, and no leaks across space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError

__all__ = ["assign_folds", "touching", "train_valid"]


def touching(
    tiles: np.ndarray,  # bool (N,), some of the tiles
    scene: Sequence[str],  # scene of each tile
    row: Sequence[int],  # first row of each tile in its scene, pixels
    col: Sequence[int],  # first column
    size: int,  # side of a tile, pixels
) -> np.ndarray:
    """Return bool `(N,)`: True for what overlaps one of `tiles` or shares an edge or a corner with it (or is it)."""
    name = np.unique(np.asarray(scene, dtype=str), return_inverse=True)[1]
    row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
    near = np.zeros(len(name), bool)
    for s in np.unique(name[tiles]):
        mine, theirs = np.flatnonzero(name == s), np.flatnonzero((name == s) & tiles)
        rows = abs(row[mine, None] - row[theirs]) <= size
        near[mine] = (rows & (abs(col[mine, None] - col[theirs]) <= size)).any(1)
    return near


def assign_folds(
    counts: np.ndarray,  # (N, K) labelled pixels per tile and class
    n_folds: int,  # number of folds
    *,
    spatial: bool = False,  # keep neighbours together
    scene: Sequence[str] = (),  # with `spatial`: scene of each tile
    row: Sequence[int] = (),  # with `spatial`: first row of each tile, pixels
    col: Sequence[int] = (),  # with `spatial`: first column of each tile, pixels
    group: Sequence[str] = (),  # with `spatial`: tiles of one group stay together, "" = none
) -> np.ndarray:
    """Return the fold of each tile, int64 of shape `(N,)`.

    Without `spatial`, tiles are sorted by their shares of the rare classes (all after the second) and of the second
    and dealt out in turn, to and fro, so that each fold gets its share of debris and lake.

    With `spatial`, whole groups (or, for tiles without a group, whole scenes) are dealt out in the same manner where
    there are at least `n_folds` of them; otherwise each scene is cut into `n_folds` compact stripes across its longer
    side, of equal numbers of tiles. `train_valid` then leaves out what still touches.

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
    names = [f"group {g}" if g else f"scene {s}" for s, g in zip(scene, group if len(group) else [""] * n, strict=True)]
    unit = np.unique(names, return_inverse=True)[1]
    if unit.max() + 1 >= n_folds:
        pooled = np.stack([counts[unit == u].sum(0) for u in range(unit.max() + 1)])
        return _deal(pooled, n_folds)[unit]
    fold = np.empty(n, np.int64)
    row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
    for u in range(unit.max() + 1):
        mine = np.flatnonzero(unit == u)
        long_side = row[mine] if np.ptp(row[mine]) >= np.ptp(col[mine]) else col[mine]
        short_side = col[mine] if long_side is not col[mine] else row[mine]
        order = mine[np.lexsort((short_side, long_side))]
        fold[order] = np.arange(len(order)) * n_folds // max(len(order), 1)
    return fold


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
    **place,  # `scene`, `row`, `col` and `size` as in `touching`: leave out what touches a validation tile
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
