"""The folds of a tile store."""

from __future__ import annotations

import numpy as np

from ..core.folds import ALWAYS, NEVER, assign_folds
from ..errors import DataError
from ..files import digest
from .tiles import TileStore

__all__ = ["folds_hash", "store_folds"]


def store_folds(
    store: TileStore,  # the tiles
    n_folds: int = 5,  # number of folds
    spatial: bool = True,  # neighbours stay together
) -> np.ndarray:
    """Return the fold of each tile, `ALWAYS` or `NEVER` (see `core.folds`); the order of tiles does not matter.

    Tiles of the split "test" are in no fold. Where the source names validation tiles, those are fold 0, the only one.
    """
    split = store.table["split"].to_numpy()
    if store.has_split:
        return np.select([split == "valid", split == "test"], [0, NEVER], ALWAYS)
    fold, used = np.full(len(store), NEVER), np.flatnonzero(split != "test")
    used = used[np.argsort(store.table["id"].to_numpy()[used], kind="stable")]
    place = {k: v[used] for k, v in store.footprints().items()}
    groups = store.groups()
    unit = [groups[i] for i in used]
    try:
        fold[used] = assign_folds(
            store.class_counts(unknown_ice=True)[used], n_folds, spatial=spatial, unit=unit, **place
        )
    except DataError as err:
        raise DataError(f"{store.path}: {err}") from err
    return fold


def folds_hash(
    store: TileStore,  # the tiles
    fold: np.ndarray,  # fold of each
) -> str:
    """Return a hash of the table of tile ids and folds, whatever the order of the tiles."""
    return digest("\n".join(sorted(f"{name},{k}" for name, k in zip(store.table["id"], fold, strict=True))))
