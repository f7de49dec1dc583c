"""Cross-validation folds: the same tiles for ever, rare classes spread evenly, and no leaks across space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree, bounds
from shapely import box as rectangle

from ..errors import DataError

__all__ = ["ALWAYS", "NEVER", "assign_folds", "counted_once", "neighbours", "touching", "train_valid"]

ALWAYS, NEVER = -1, -2
"""In place of a fold: a tile that is always trained on, and one that is kept aside for a final test."""


def neighbours(
    frame: Sequence[str] | np.ndarray,  # what each tile's box is measured in: a CRS, or a scene's pixels
    box: np.ndarray,  # (N, 4) left, top, right, bottom of each tile, in units of its frame; top < bottom
    ground: np.ndarray | None = None,  # (N,) polygons on the Earth, as from `core.ground.outlines`, to meet there, too
) -> np.ndarray:
    """Return int64 `(2, P)`: the pairs of tiles that overlap or share an edge or a corner, each tile with itself.

    Pairs that meet in their frame and on the ground come twice.

    >>> neighbours(["a", "a", "b"], np.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 0, 1, 1]])).T.tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]
    """
    name = np.unique(np.asarray(frame, object), return_inverse=True)[1]  # text of any length
    order = np.argsort(name, kind="stable")
    pairs = [np.empty((2, 0), np.int64)]
    for mine in np.split(order, np.flatnonzero(np.diff(name[order])) + 1):
        left, top, right, bottom = box[mine].T
        slack = 1e-6 * (right - left).max(initial=0)  # coordinates are rounded
        tiles = rectangle(left - slack, top - slack, right + slack, bottom + slack)
        pairs.append(mine[STRtree(tiles).query(tiles, predicate="intersects")])
    if ground is not None:
        pairs.append(STRtree(ground).query(ground, predicate="intersects"))
    return np.concatenate(pairs, 1)


def touching(
    tiles: np.ndarray,  # bool (N,), some of the tiles
    frame: Sequence[str],  # as in `neighbours`
    box: np.ndarray,  # as in `neighbours`
    ground: np.ndarray | None = None,  # as in `neighbours`
) -> np.ndarray:
    """Return bool `(N,)`: True for what overlaps one of `tiles` or shares an edge or a corner with it (or is it).

    >>> box = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [5, 0, 6, 1]])
    >>> touching(np.array([True, False, False]), np.array(["a"] * 3), box)
    array([ True,  True, False])
    """
    i, j = neighbours(frame, box, ground)
    near = np.zeros(len(box), bool)
    near[i[tiles[j]]] = True
    return near


def counted_once(
    frame: Sequence[str] | np.ndarray,  # as in `neighbours`
    box: np.ndarray,  # as in `neighbours`
) -> np.ndarray:
    """Return bool `(N,)`: tiles of which no two share a quarter of their ground or more; those that come first stay.

    What is counted tile by tile, such as glaciers, counts once with them, although tiles overlap.

    >>> counted_once(["a"] * 4, np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [1, 1, 3, 3]]))
    array([ True, False,  True, False])
    """
    i, j = neighbours(frame, box)
    (left, top), (right, bottom) = np.maximum(box[i, :2], box[j, :2]).T, np.minimum(box[i, 2:], box[j, 2:]).T
    width, height = (box[:, 2:] - box[:, :2]).T
    smaller = np.minimum((width * height)[i], (width * height)[j])
    much = (i > j) & (4.000001 * np.maximum(right - left, 0) * np.maximum(bottom - top, 0) >= smaller)
    once = np.ones(len(box), bool)
    for later, before in sorted(zip(i[much], j[much], strict=True)):
        once[later] &= not once[before]
    return once


def assign_folds(
    counts: np.ndarray,  # (N, K) labelled pixels per tile and class
    n_folds: int,  # number of folds
    *,
    spatial: bool = False,  # keep neighbours together
    unit: Sequence[str] = (),  # with `spatial`: group or scene of each tile
    frame: Sequence[str] = (),  # with `spatial`: as in `neighbours`
    box: np.ndarray | None = None,  # with `spatial`: as in `neighbours`
    ground: np.ndarray | None = None,  # with `spatial`: as in `neighbours`
) -> np.ndarray:
    """Return the fold of each tile, int64 of shape `(N,)`; no fold is empty.

    Without `spatial`, tiles are sorted by their shares of the rare classes (all after the second) and of the second
    and dealt out in turn, to and fro, so that each fold gets its share of debris and lake.

    With `spatial`, units that meet on the ground become one, and whole units are dealt out, the largest first, each to
    the fold that has least of what it brings (tiles, glacier, debris, lake). A unit that would fill two folds or more
    is divided first: into the patches of ground it consists of, and a patch that still fills two folds or more into
    compact runs along its longer side. Parts of one patch touch; `train_valid` leaves out what does.

    Nothing is drawn at random and all sums are of integers: the same tiles in the same order give the same folds on
    every platform.

    >>> assign_folds(np.array([[9, 0, 1], [9, 1, 0], [5, 0, 5], [8, 2, 0]]), 2)
    array([1, 0, 0, 1])

    Raises:
        DataError: There are fewer tiles than folds, or fewer than 2 folds.
    """
    counts = np.asarray(counts, np.int64)
    n = len(counts)
    if n_folds < 2:
        raise DataError(f"{n_folds} folds: at least 2 are needed")
    if n < 2:
        raise DataError("a single tile makes no folds; cut smaller tiles, or train on all, without validation")
    if n < n_folds:
        raise DataError(f"{n} tiles cannot make {n_folds} folds; set data.folds to at most {n}")
    if not spatial:
        return _deal_tiles(counts, n_folds)
    label = _divided(np.asarray(unit, object), np.asarray(frame, object), np.asarray(box), ground, n_folds)
    pooled = np.zeros((label.max() + 1, counts.shape[1]), np.int64)
    np.add.at(pooled, label, counts)
    return _deal_units(np.column_stack([np.bincount(label), pooled[:, 1:]]), n_folds)[label]


def _linked(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return which connected part each of n nodes belongs to, numbered by their first nodes."""
    label = connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False)[1]
    first, inverse = np.unique(label, return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(first))[inverse]


def _divided(
    unit: np.ndarray, frame: np.ndarray, box: np.ndarray, ground: np.ndarray | None, n_folds: int
) -> np.ndarray:
    """Return the unit of each tile, numbered from 0: merged where they meet, divided where they are too large."""
    n = len(box)
    i, j = neighbours(frame, box, ground)
    name = np.unique(unit, return_inverse=True)[1]
    label = _linked(n + name.max() + 1, np.r_[i, np.arange(n)], np.r_[j, n + name])[:n]
    large = (np.bincount(label) * n_folds >= 2 * n)[label]
    patch = _linked(n, i, j)
    label = np.unique(np.column_stack([label, np.where(large, patch, -1)]), axis=0, return_inverse=True)[1]
    size = np.bincount(label)
    pieces = np.maximum(size * n_folds // n, 1)
    while pieces.sum() < n_folds:
        most = max(range(len(size)), key=lambda u: (size[u] * n_folds // pieces[u], -u))
        pieces[most] += 1
    first = np.cumsum(pieces) - pieces
    out = first[label]
    for u in np.flatnonzero(pieces > 1):
        mine = np.flatnonzero(label == u)
        left, top = box[mine, :2].T
        if ground is not None and (frame[mine] != frame[mine[0]]).any():
            left, top = bounds(ground[mine])[:, [0, 3]].round(6).T * [[1], [-1]]
        along, across = (top, left) if np.ptp(top) >= np.ptp(left) else (left, top)
        out[mine[np.lexsort((across, along))]] += np.arange(size[u]) * pieces[u] // size[u]
    return out


def _deal_units(
    brings: np.ndarray,  # int64 (U, M), what each unit brings; the first column is never 0
    n_folds: int,
) -> np.ndarray:
    share = (brings << 20) // np.maximum(brings.sum(0), 1)
    share[:, 0] += 1  # no unit weighs nothing, so an empty fold is always the lightest
    load, fold = np.zeros((n_folds, brings.shape[1]), np.int64), np.empty(len(brings), np.int64)
    for u in np.argsort(-share.sum(1), kind="stable"):
        fold[u] = np.argmin(load @ share[u])  # of all folds, this one raises the sum of squared loads least
        load[fold[u]] += share[u]
    return np.argsort(np.unique(fold, return_index=True)[1]).argsort()[fold]  # numbered by their first units


def _deal_tiles(counts: np.ndarray, n_folds: int) -> np.ndarray:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    keys = [np.arange(len(counts)), *(-share[:, 1:2].T), -share[:, 2:].sum(1)]  # last key sorts first
    order = np.lexsort(keys)
    cycle = np.concatenate([np.arange(n_folds), np.arange(n_folds)[::-1]])
    fold = np.empty(len(counts), np.int64)
    fold[order] = np.resize(cycle, len(counts))
    return fold


def train_valid(
    fold: np.ndarray,  # (N,) fold of each tile, `ALWAYS` or `NEVER`
    k: int,  # fold to validate on
    **place,  # `frame`, `box` and `ground` as in `neighbours`: leave out what touches a validation tile
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the training and of the validation tiles of fold `k`.

    >>> train_valid(np.array([0, 1, ALWAYS, NEVER]), 1)
    (array([0, 2]), array([1]))

    Raises:
        DataError: `k` is no fold, or nothing is left to train on.
    """
    n_folds = int(fold.max()) + 1
    if not 0 <= k < n_folds:
        known = f"there are folds 0 to {n_folds - 1}" if n_folds > 1 else "there is fold 0 only"
        raise DataError(f"fold {k}: {known}")
    valid = fold == k
    train = ~touching(valid, **place) if place else ~valid
    train &= fold != NEVER
    if not (fold[fold != k] != NEVER).any():
        raise DataError(f"fold {k}: there is nothing but validation and test tiles")
    if not train.any():
        raise DataError(
            f"fold {k}: every other tile touches a validation tile; use smaller tiles or data.spatial=false"
        )
    return np.flatnonzero(train), np.flatnonzero(valid)
