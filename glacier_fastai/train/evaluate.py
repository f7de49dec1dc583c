"""Scores of a bundle on the tiles of a store: one confusion matrix, whatever the number of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fastai.torch_core import default_device

from ..bands import CLASSES, IGNORE
from ..core.confusion import confusion_matrix, mcc, scores
from ..core.morphology import postprocess
from ..data.block import folds_hash, store_folds
from ..data.texture import Texture, textured
from ..data.tiles import TileStore
from ..errors import DataError
from .bundle import ModelBundle

__all__ = ["evaluate", "mapped", "normalise", "predicted", "score", "tiles_to_score"]


def normalise(
    image: np.ndarray,  # (C, H, W) float32, NaN where there is no data
    mean: Sequence[float],  # mean per band
    std: Sequence[float],  # standard deviation per band
) -> np.ndarray:
    """Return the standardised image, float32, 0 in every band where there is no data."""
    shape = (-1, 1, 1)
    out = (image - np.float32(mean).reshape(shape)) / np.float32(std).reshape(shape)
    return np.nan_to_num(out, nan=0.0)


def tiles_to_score(
    bundle: ModelBundle,  # trained model
    store: TileStore,  # labelled tiles
    fold: str | None = None,  # number of a fold, "all", "test", or None: what it was validated, else not trained on
) -> tuple[np.ndarray, str]:
    """Return positions of the tiles to score, and in words which they are.

    Raises:
        DataError: The fold is no number or out of range, there are no test tiles, or the folds have changed.
    """
    about, n_tiles, keys = bundle.trained_on, len(store), np.array(store.keys())
    seen, valid = (np.isin(keys, about.get(part, [])) for part in ("train", "valid"))
    if fold is None and valid.any():
        return np.flatnonzero(valid), f"the {valid.sum()} tiles of fold {about['fold']}"
    if fold is None and seen.any() and not seen.all():
        return np.flatnonzero(~seen), f"the {(~seen).sum()} tiles of {n_tiles} that the bundle was not trained on"
    if fold in (None, "all"):
        note = ", also those the bundle was trained on" if seen.any() else ""
        note = ", and the bundle was trained on them: these scores say little" if seen.all() else note
        return np.arange(n_tiles), f"all {n_tiles} tiles{note}"
    if fold == "test":
        chosen, what = np.flatnonzero(store.table["split"] == "test"), "test tiles"
        if not len(chosen):
            raise DataError(f"{store.path}: has no test tiles; use --fold NUMBER, or all")
    else:
        n = about.get("folds", 5)
        try:
            k = int(fold)
        except ValueError:
            raise DataError(f"--fold {fold}: use a number from 0 to {n - 1}, all or test") from None
        fold_of = store_folds(store, n, about.get("spatial", True))
        if not 0 <= k <= fold_of.max():
            raise DataError(f"--fold {k}: there are folds 0 to {fold_of.max()}")
        same = about.get("hash") == store.fingerprint()
        if same and about.get("fold") is not None and about.get("folds_hash") != folds_hash(store, fold_of):
            raise DataError(
                f"{store.path}: the bundle was trained on other folds of these tiles, which its run's folds.csv names; "
                "leave out --fold, or train anew"
            )
        chosen, what = np.flatnonzero(fold_of == k), f"tiles of fold {k}"
    note = "; the bundle was trained on some of them" if seen[chosen].any() else ""
    return chosen, f"the {len(chosen)} {what}{note}"


def predicted(
    bundle: ModelBundle,  # trained model
    store: TileStore,  # tiles; bands that are texture are computed if it lacks them
    tiles: Sequence[int],  # positions of the tiles to look at
    batch_size: int = 8,  # tiles per batch
    device: torch.device | None = None,  # default fastai's
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each tile's position and its probabilities `(K, H, W)`, views and scales averaged as the recipe wants.

    Raises:
        BundleError: The store lacks a band of the bundle (the message names what is missing and what is there), or
            one of them is standardised and the other is not.
    """
    store = store.plain()
    bundle.check(store.path, store.bands, store.standardised)
    if bundle.texture and not set(bundle.bands) <= set(store.bands):
        store = textured(store, bundle.bands, Texture(**bundle.texture))
    probabilities, index = bundle.probabilities(device or default_device()), store.band_index(bundle.bands)
    for start in range(0, len(tiles), batch_size):
        chosen = [int(i) for i in tiles[start : start + batch_size]]
        images = np.stack([normalise(store.read(i, index), bundle.mean, bundle.std) for i in chosen])
        yield from zip(chosen, probabilities(torch.from_numpy(images)).cpu(), strict=True)


def evaluate(
    bundle: ModelBundle,  # trained model
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | None = None,  # positions of the tiles to look at, default all
    batch_size: int = 8,  # tiles per batch
    device: torch.device | None = None,  # default fastai's
) -> dict[str, Any]:
    """Return the scores of `core.confusion.scores`, with `mcc_image_mean`, the mean of the tiles' own MCC.

    Raises:
        BundleError: As `predicted`.
        DataError: No tile has a label.
    """
    tiles = np.arange(len(store)) if tiles is None else np.asarray(tiles, np.int64)
    found = predicted(bundle, store, tiles, batch_size, device)
    maps = ((i, mapped(bundle, probs, np.isfinite(store.read(i, [0])[0]))) for i, probs in found)
    return score(((i, torch.from_numpy(classes)) for i, classes in maps), store, tiles)


def mapped(
    bundle: ModelBundle,
    probs: torch.Tensor,  # (K, H, W), as from `predicted`
    valid: np.ndarray,  # bool (H, W), where there is data
) -> np.ndarray:
    """Return the class codes, uint8 `(H, W)`, 255 without data, post-processed where the recipe wants it."""
    classes = np.where(valid, probs.argmax(0).numpy(), IGNORE).astype(np.uint8)
    cleaning = bundle.predict.postprocess
    return classes if cleaning is None else postprocess(classes, **cleaning.by_code())


def score(
    maps: Iterable[tuple[int, torch.Tensor]],  # positions of tiles and their class codes (H, W)
    store: TileStore,  # labelled tiles
    tiles: Sequence[int],  # positions of the tiles that `maps` will hold
) -> dict[str, Any]:
    """Return the scores of maps of tiles, see `evaluate`; raises `DataError` where no tile has a label."""
    if not store.class_counts()[np.asarray(tiles)].any():
        raise DataError(f"{store.path}: no labelled pixel in these tiles, so nothing to score")
    n = len(CLASSES)
    total, per_image = torch.zeros(n, n, dtype=torch.int64), []
    for i, classes in maps:
        cm = confusion_matrix(classes, torch.from_numpy(store.masks[i].astype(np.int64)), n)
        if cm.sum():
            per_image.append(mcc(cm))
        total += cm
    return {**scores(total), "mcc_image_mean": float(np.mean(per_image))}
