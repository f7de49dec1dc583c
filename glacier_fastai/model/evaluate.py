"""Models on the tiles of a store, each seen whole: their probabilities, their maps, and the scores of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..bands import CLASSES, IGNORE
from ..core.calibration import expected_calibration_error, reliability
from ..core.confusion import confusion_matrix, f1, iou, mcc, precision, recall, scores, with_ice
from ..core.moments import scene_statistics
from ..core.morphology import postprocess
from ..data.channels import Channel, note_unknown_places, tile_channels
from ..data.folds import folds_hash, store_folds
from ..data.tiles import TileStore
from ..errors import DataError, note
from ..memory import fits
from .bundle import ModelBundle
from .ensemble import Ensemble
from .fit import check_fit, check_units
from .predictor import Predictor
from .ratio import score

__all__ = [
    "TilePrediction",
    "class_table",
    "evaluate",
    "predict_tiles",
    "score_table",
    "score_tiles",
    "seen_tiles",
    "tiles_to_score",
]

SHORT = {"background": "BG"}


class TilePrediction(NamedTuple):
    """What models say of a tile."""

    tile: int  # position in the store
    classes: np.ndarray  # (H, W) uint8 class codes, 255 without data, post-processed where the ensemble wants it
    probs: np.ndarray  # (K, H, W) float32, calibrated where the ensemble is


def predict_tiles(
    model: ModelBundle | Ensemble,
    store: TileStore,  # the tiles, of bands that the models take or that theirs are computed of
    tiles: Sequence[int] | None = None,  # positions, default all
    device: torch.device | None = None,  # default `predictor.default_device`
    statistics: Literal["bundle", "scene"] = "bundle",  # what is normalised with: as in training, or by each scene
) -> Iterator[TilePrediction]:
    """Yield the prediction of each tile, views and scales averaged as the recipe or the ensemble wants.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from glacier_fastai.data.sources.synthetic import synthetic_store
    >>> from glacier_fastai.model.registry import build_model
    >>> weights = build_model("fpn", ["green", "ndsi"], encoder="resnet18").state_dict()
    >>> bundle = ModelBundle(weights, "fpn", {"encoder": "resnet18"}, ("green", "ndsi"), (2e4, 0.3), (1e4, 0.4))
    >>> with TemporaryDirectory() as folder:
    ...     store = synthetic_store(Path(folder) / "tiles", n_scenes=1, scene_size=64, tile_size=32)
    ...     found = next(predict_tiles(bundle, store))
    ...     scores, (chosen, which) = evaluate(bundle, store), tiles_to_score(bundle, store)
    >>> found.classes.shape, found.probs.shape, sorted(scores)[:3], which
    ((32, 32), (4, 32, 32), ['classes', 'confusion', 'ece'], 'all 4 tiles')

    Raises:
        BundleError: The store lacks a band of a model (the message names what is missing and what is there), or one of
            them is standardised and the other is not, or they are of other units.
    """
    ensemble, store = Ensemble.of(model), store.base()
    ensemble.check(store.path, store.bands, store.standardised)
    check_units(ensemble, store.path, store.units, statistics)
    held = store.size**2 * 4 * (3 * (len(store.bands) + len(ensemble.channels)) + 4 * len(CLASSES))
    fits(held, f"{store.path}: its tiles of {store.size:,} px", "make smaller ones")
    predictor = Predictor(ensemble, device)
    positions = list(range(len(store)) if tiles is None else map(int, tiles))
    scenes = store.table["scene"].to_numpy() if statistics == "scene" else np.full(len(store), "")
    for scene in dict.fromkeys(scenes[positions]):
        mine = [i for i in positions if scenes[i] == scene]
        if statistics == "scene":
            predictor.normalise_by(_statistics(store, np.flatnonzero(scenes == scene), ensemble.channels))
        for start in range(0, len(mine), predictor.batch_size):
            chosen = mine[start : start + predictor.batch_size]
            images = [tile_channels(store, i, ensemble.channels) for i in chosen]
            for i, image, mean in zip(chosen, images, predictor(images), strict=True):
                yield TilePrediction(i, *to_map(ensemble, mean, np.isfinite(image[0])))


def _statistics(store: TileStore, tiles: np.ndarray, channels: Sequence[Channel]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each channel over the pixels with data of some tiles."""
    images = (tile_channels(store, int(i), channels) for i in tiles)
    return scene_statistics(store.path, images, [band for band, _ in channels])


def to_map(
    ensemble: Ensemble,
    mean: Tensor,  # (K, H, W), mean probabilities as the predictor gives them
    valid: np.ndarray,  # bool (H, W), where there is data
) -> tuple[np.ndarray, np.ndarray]:
    """Return class codes `(H, W)` uint8, 255 without data, post-processed; and calibrated probabilities `(K, H, W)`."""
    classes, probs = ensemble.decide(mean)
    classes[~valid] = IGNORE
    cleaning = ensemble.predict.postprocess
    return classes if cleaning is None else postprocess(classes, **cleaning.by_code()), probs


def evaluate(
    model: ModelBundle | Ensemble,
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | np.ndarray | None = None,  # positions of the tiles to look at, default all
    device: torch.device | None = None,  # default `predictor.default_device`
    statistics: Literal["bundle", "scene"] = "bundle",  # as in `predict_tiles`
    force: bool = False,  # score values far from those the models were trained on
) -> dict[str, Any]:
    """Return the scores of the maps of tiles.

    Returns:
        What `core.confusion.scores` returns; `mcc_image_mean`, the mean of the tiles' own MCC, None where no class has
        a label; `ece`, the expected calibration error of the most probable class; `ratio_ice_mcc`, the MCC of ice of
        the band ratio found on the training tiles, where bands and units allow one; and `notes` of what is odd.

    Raises:
        BundleError: As `predict_tiles`, other units, or values far from what the models know.
        DataError: No tile has a label.
    """
    positions, notes = np.arange(len(store)) if tiles is None else np.asarray(tiles, np.int64), list[str]()
    check_fit(model, store.path, store.base().profile(positions), notes, statistics, force)
    note_unknown_places(store, [band for band, _ in Ensemble.of(model).channels], positions, notes)
    if n := np.logical_or(*seen_tiles(model, store))[positions].sum():
        seen = f"{n} of {len(positions)} tiles, or the ground they lie on, were trained on"
        note(f"{store.path}: {seen}, so these scores say little of other ground", notes)
    found = score_tiles(model, store, positions, device, statistics)
    return {**found, "notes": [*notes, *found["notes"]]}


def score_tiles(
    model: ModelBundle | Ensemble,
    store: TileStore,  # labelled tiles, of the data that the models were trained on
    tiles: Sequence[int] | np.ndarray,  # positions of the tiles to look at
    device: torch.device | None = None,  # default `predictor.default_device`
    statistics: Literal["bundle", "scene"] = "bundle",  # as in `predict_tiles`
) -> dict[str, Any]:
    """Return what `evaluate` does, of tiles whose values are not asked whether the models know such."""
    positions, notes = np.asarray(tiles, np.int64), list[str]()
    known, ice_alone = store.class_counts()[positions].sum(0), int(store.ice_counts()[positions].sum())
    if not known.any() and not ice_alone:
        raise DataError(f"{store.path}: no labelled pixel in these tiles, so nothing to score")
    if ice_alone:
        little = "" if np.count_nonzero(known) > 1 else ", which say nothing here: fewer than two classes have labels"
        note(f"{store.path}: ice of unknown kind counts in the scores of ice, not in those of classes{little}", notes)
    k, per_image, tables = len(CLASSES), [], []
    total = torch.zeros(k + 1, k, dtype=torch.int64)
    for i, classes, probs in predict_tiles(model, store, positions.tolist(), device, statistics):
        truth = store.labels(i)
        matrix = confusion_matrix(classes, truth, k, unknown_ice=True)
        if matrix[:k].any():
            per_image.append(mcc(matrix))
        total += matrix
        tables.append(reliability(probs, truth, dim=0))
    mean = float(np.mean(per_image)) if per_image else None
    found, ece = scores(total), expected_calibration_error(reduce(add, tables))
    beside = _beside(model, store, positions, found, notes)
    return {**found, "mcc_image_mean": mean, "ece": ece, **beside, "notes": notes}


def _beside(
    model: ModelBundle | Ensemble, store: TileStore, tiles: np.ndarray, found: dict[str, Any], notes: list[str]
) -> dict[str, float]:
    """Return the score of the band ratio, nothing where there is none, and say where scores `found` do not beat it."""
    known = (m.bundle.baseline for m in Ensemble.of(model).members)
    scored = (s for baseline in known if baseline and (s := score(baseline, store, tiles)) is not None)
    if (ratio := next(scored, None)) is None:
        return {}
    if found["ice_mcc"] <= ratio and (ratio or found["ice_mcc"]):
        both = f"MCC of ice {found['ice_mcc']:.4f} against {ratio:.4f}"
        note(f"{store.path}: the model does not beat the band ratio: {both}", notes)
    return {"ratio_ice_mcc": ratio}


def tiles_to_score(
    model: ModelBundle | Ensemble,
    store: TileStore,  # labelled tiles
    fold: int | str | None = None,  # a fold, "all", "test", or None: what was validated on, else not trained on
) -> tuple[np.ndarray, str]:
    """Return positions of the tiles to score, and in words which they are.

    A tile was trained on if it is one of those very tiles, or lies on their ground, whatever it is called and however
    it was cut. Of an ensemble, None are the tiles that none of its models has seen; they may not all be of one fold.

    Raises:
        DataError: The fold is out of range or of an ensemble, there are no test tiles, or the folds have changed.
    """
    bundles = [m.bundle for m in Ensemble.of(model).members]
    n_tiles, alone = len(store), len(bundles) == 1
    valid = bundles[0].trained_on.knows(store, "valid") if alone else np.zeros(n_tiles, bool)
    known, covered = seen_tiles(model, store)
    seen, what = known | covered, "the bundle was" if alone else "models were"
    if fold is None and valid.any():
        note = f"; {n} of them lie on ground that was trained on" if (n := (covered & valid).sum()) else ""
        return np.flatnonzero(valid), f"the {valid.sum()} tiles of fold {bundles[0].trained_on.fold}{note}"
    if fold is None and seen.any() and not seen.all():
        note = f"; {n} of the others lie on ground that was" if (n := (covered & ~known).sum()) else ""
        return np.flatnonzero(~seen), f"the {(~seen).sum()} tiles of {n_tiles} that {what} not trained on{note}"
    if fold in (None, "all"):
        note = f", and {what} trained on {'them' if seen.all() else f'{seen.sum()} of them'}" if seen.any() else ""
        return np.arange(n_tiles), f"all {n_tiles} tiles{note}{': these scores say little' if seen.all() else ''}"
    if fold == "test":
        chosen, name = np.flatnonzero(store.table["split"] == "test"), "test tiles"
        if not len(chosen):
            raise DataError(f"{store.path}: has no test tiles; use the number of a fold, or all")
    elif len(bundles) > 1:
        raise DataError(f"fold {fold}: an ensemble has models of several folds; use all or test, or one bundle")
    else:
        chosen, name = np.flatnonzero(_fold_tiles(bundles[0], store, fold)), f"tiles of fold {fold}"
    note = f"; {what} trained on {seen[chosen].sum()} of them" if seen[chosen].any() else ""
    return chosen, f"the {len(chosen)} {name}{note}"


def seen_tiles(
    model: ModelBundle | Ensemble,
    store: TileStore,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which tiles were trained on (of an ensemble: or validated on), which lie on such ground; bool `(N,)`."""
    about, ground = [m.bundle.trained_on for m in Ensemble.of(model).members], store.ground()
    parts = ("train",) if len(about) == 1 else ("train", "valid")
    return np.any([a.knows(store, *parts) for a in about], 0), np.any([a.covers(ground) for a in about], 0)


def _fold_tiles(bundle: ModelBundle, store: TileStore, fold: int | str | None) -> np.ndarray:
    about = bundle.trained_on
    if not isinstance(fold, int):
        raise DataError(f"fold {fold}: use a number from 0 to {about.folds - 1}, all or test")
    fold_of = store_folds(store, about.folds, about.spatial)
    if not 0 <= fold <= fold_of.max():
        raise DataError(f"fold {fold}: there are folds 0 to {fold_of.max()}")
    same = about.hash == store.fingerprint() and about.tile_size in (None, store.size)
    if same and about.fold is not None and about.folds_hash != folds_hash(store, fold_of):
        raise DataError(
            f"{store.path}: the bundle was trained on other folds of these tiles, which its run's folds.csv names; "
            "leave out the fold, or train anew"
        )
    return fold_of == fold


def class_table(
    matrix: Tensor,  # int64 (K, K) or (K + 1, K), rows truth, see `core.confusion`
) -> str:
    """Return IoU, precision, recall and F1 of each class, their means, and of any ice, as text; a dash where undefined.

    >>> print(class_table(torch.diag(torch.tensor([8, 2, 0, 0]))))
    Class          IoU    Prec  Recall      F1
    BG          1.0000  1.0000  1.0000  1.0000
    Glacier     1.0000  1.0000  1.0000  1.0000
    Debris           -       -       -       -
    Lake             -       -       -       -
    Mean        1.0000  1.0000  1.0000  1.0000
    Ice         1.0000  1.0000  1.0000  1.0000
    """
    columns = [with_ice(fn, matrix) for fn in (iou, precision, recall, f1)]
    for column in columns:
        known = [v for v in column[:-1] if not math.isnan(v)]
        column.insert(-1, sum(known) / len(known) if known else math.nan)
    lines = [f"{'Class':<10}{'IoU':>8}{'Prec':>8}{'Recall':>8}{'F1':>8}"]
    for k, name in enumerate((*(SHORT.get(c, c.capitalize()) for c in CLASSES), "Mean", "Ice")):
        values = ("-" if math.isnan(column[k]) else f"{column[k]:.4f}" for column in columns)
        lines.append(f"{name:<10}" + "".join(f"{v:>8}" for v in values))
    return "\n".join(lines)


def score_table(
    result: dict[str, Any],  # as from `evaluate`
) -> str:
    """Return scores as text: one a line, and the table of the classes."""
    names = {"mcc": "MCC", "ice_mcc": "ice MCC", "mean_iou": "mean IoU", "ice_iou": "ice IoU"}
    names |= {"mcc_image_mean": "MCC, mean of tiles", "ece": "ECE"}
    names |= {"ratio_ice_mcc": "ice MCC, band ratio"} if "ratio_ice_mcc" in result else {}
    lines = [f"{name:<20}{'-' if result[key] is None else format(result[key], '.4f')}" for key, name in names.items()]
    return "\n".join([*lines, class_table(torch.tensor(result["confusion"]))])
