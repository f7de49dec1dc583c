"""An ensemble on the tiles of a store, each seen whole: their maps, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch

from ..bands import IGNORE
from ..core.calibration import expected_calibration_error, reliability
from ..core.morphology import postprocess
from ..data.tiles import TileStore
from ..errors import DataError
from ..train.evaluate import score
from .ensemble import Ensemble, Predictor
from .source import compute_channels

__all__ = ["evaluate_ensemble", "map_tiles"]


def map_tiles(
    ensemble: Ensemble,
    store: TileStore,
    tiles: Sequence[int] | None = None,  # positions, default all
    device: torch.device | None = None,  # default fastai's
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield position, class codes `(H, W)` uint8 (255 without data) and calibrated probabilities `(K, H, W)` of tiles.

    Raises:
        BundleError: The store lacks a band of a model.
    """
    store = store.plain()
    ensemble.check(store.path, store.bands, store.standardised)
    predictor, cleaning = Predictor(ensemble, device), ensemble.predict.postprocess
    for i in range(len(store)) if tiles is None else map(int, tiles):
        image = store.read(i)
        (mean,) = predictor([compute_channels(image, store.bands, ensemble.channels)])
        classes, probs = ensemble.decide(mean)
        classes[np.isnan(image[0])] = IGNORE
        yield i, classes if cleaning is None else postprocess(classes, **cleaning.by_code()), probs


def evaluate_ensemble(
    ensemble: Ensemble,
    store: TileStore,  # labelled tiles
    fold: str | None = None,  # "all", "test", or None: tiles that no model was trained on, or if there are none, all
) -> tuple[dict[str, Any], str]:
    """Return the scores of `train.evaluate.evaluate` and `ece`, and in words which tiles they are of.

    Raises:
        BundleError: The store lacks a band of a model.
        DataError: No tile has a label, or another fold is asked for: the models had several.
    """
    n = len(store)
    trained = [
        key for m in ensemble.members for part in ("train", "valid") for key in m.bundle.trained_on.get(part, [])
    ]
    seen = np.isin(store.keys(), trained)
    if fold == "test":
        tiles, what = np.flatnonzero(store.table["split"] == "test"), "test tiles"
    elif fold in (None, "all"):
        tiles = np.flatnonzero(~seen) if fold is None and not seen.all() else np.arange(n)
        what = f"tiles of {n}"
    else:
        raise DataError(f"--fold {fold}: an ensemble has models of several folds; use all or test, or one bundle")
    if not len(tiles):
        raise DataError(f"{store.path}: has no {what}; use all")
    known = int(seen[tiles].sum())
    note = f"; models were trained or chosen on {known} of them, so these scores say little" if known else ""
    tables = []

    def maps() -> Iterator[tuple[int, torch.Tensor]]:
        for i, classes, probs in map_tiles(ensemble, store, tiles):
            tables.append(reliability(probs, np.array(store.masks[i]), dim=0))
            yield i, torch.from_numpy(classes)

    found = score(maps(), store, tiles)
    found["ece"] = expected_calibration_error(reduce(add, tables))
    return found, f"{len(tiles)} {what}{note}"
