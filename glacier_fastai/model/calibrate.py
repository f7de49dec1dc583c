"""From cross-validations to an ensemble that knows how sure it is: `ensemble.yaml`.

Everything is fitted to out-of-fold predictions. What is said of how well it does is measured fold by fold, with what
was fitted to the other folds. Where most ice is of unknown kind, decisions are made for the MCC of ice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.measure import label as components
from torch import Tensor

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE
from ..core.areas import (
    LEAST,
    area_interval,
    fit_area_interval,
    fit_glacier_interval,
    glacier_interval,
    matched_area,
    outlined_area,
)
from ..core.calibration import (
    calibrated,
    decide,
    expected_calibration_error,
    fit_offsets,
    fit_temperature,
    nll,
    reliability,
)
from ..core.confusion import WATCHED, confusion_matrix, watched
from ..core.glaciers import BUFFER_PIXELS, default_reach
from ..core.morphology import postprocess
from ..errors import BundleError, DataError, OutputError
from ..files import whole_file
from ..plots import figures
from ..recipe import PostprocessRecipe
from .ensemble import Ensemble, Member, used_as
from .fitted import NONE, Calibration
from .oof import OutOfFold

__all__ = ["calibrate", "glacier_areas", "outlined_areas"]

log = logging.getLogger(__name__)

PIXELS = 2**21  # most pixels that temperature and offsets are fitted to, evenly taken from all


SIGN = "glacier_fastai calibrate"  # in the picture, which so may be drawn anew where a kill left it alone


class Tile(NamedTuple):
    """A tile's out-of-fold prediction."""

    fold: int
    probs: Tensor  # (K, H, W) float32
    labels: np.ndarray  # (H, W) uint8, 254 = ice of unknown kind, 255 = no label
    once: bool  # its glaciers count: no other tile of these shows the same ground


def calibrate(
    crossvals: Sequence[str | os.PathLike],  # folders of `crossval`; of several, a tile's mean prediction counts
    out: str | os.PathLike,  # file to write, ensemble.yaml
    bias: bool = False,  # fit a bias per class beside the temperature
) -> dict[str, Any]:
    """Write the ensemble of all models of some cross-validations, calibrated, and a picture of its reliability (.png).

    Temperature is kept only if it lowers the loss, and decision offsets only if they raise the MCC (of ice, where most
    of it is of unknown kind), of the folds that they were not fitted to: folds may differ by more than what they have
    in common.

    Returns:
        What was measured: `tiles`, `pixels`; the `temperature` fitted; `nll` and `ece` without and with it; `mcc` and
        `ice_mcc` of the most probable class (`plain`), with `offsets`, and of both with the default post-processing; of
        intervals of connected ice (`area`) and of ice within outlines (`glacier`), the number of `glaciers`, and the
        `coverage` and median `width`, in true areas (None where they are too few).

    Raises:
        DataError: No out-of-fold predictions, or of tiles of different sizes, or of one fold alone.
        BundleError: Models that do not fit each other, or are not those that predicted.
        OutputError: The file exists already or cannot be written.
    """
    out = Path(out)
    if out.suffix not in (".yaml", ".yml"):
        raise OutputError(f"{out}: name the file NAME.yaml")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        if os.path.lexists(path) and not (path == picture and _ours(picture)):
            raise OutputError(f"{path}: exists already; choose another name, or remove it first")
    predictions = [OutOfFold(f) for f in crossvals]
    ensemble = _ensemble(predictions)

    fold, probs, labels = _sample(predictions)
    folds = np.unique(fold).tolist()
    if len(folds) < 2:
        raise DataError(f"{predictions[0].folder}: predictions of one fold alone; resume it to finish it")
    fits = {f: _temperature(probs[fold != f], labels[fold != f], bias) for f in folds}
    sure = torch.empty_like(probs)
    for f, fit in fits.items():
        sure[fold == f] = calibrated(probs[fold == f], fit.temperature, fit.bias, 1)
    tables = [reliability(p, labels) for p in (probs, sure)]
    losses = [nll(p, labels) for p in (probs, sure)]

    best, fitted = Calibration(), _temperature(probs, labels, bias)
    if losses[1] < losses[0]:
        best = fitted
    else:
        fits = dict.fromkeys(folds, best)
    fits = {f: _offsets(fits[f], probs[fold != f], labels[fold != f]) for f in folds}
    maps = _maps(predictions, fits)
    score = watched(int(np.isin(labels, ICE).sum()), int((labels == ICE_OF_ANY_KIND).sum()))
    if maps["offsets"][score] > maps["plain"][score]:
        best = _offsets(best, probs, labels)
    else:
        fits = {f: c.model_copy(update={"offsets": NONE}) for f, c in fits.items()}
    pixel = ensemble.pixel_size
    reach = default_reach(pixel) / pixel if pixel else BUFFER_PIXELS
    patches, outlined = _areas(predictions, fits, ensemble.predict.postprocess, reach)
    area, of_patches = _interval(patches, _fit_patches, _patch_ends)
    glacier, of_outlined = _interval(outlined, _fit_outlined, _outlined_ends)
    best = best.model_copy(update={"area": area, "glacier": glacier})

    measured = {
        "tiles": sum(1 for _ in _tiles(predictions)),
        "pixels": len(labels),
        "temperature": round(fitted.temperature, 3),
        "nll": [round(loss, 4) for loss in losses],
        "ece": [round(expected_calibration_error(table), 4) for table in tables],
        **maps,
        "area": of_patches,
        "glacier": of_outlined,
    }
    figure = figures.reliability(
        {"as predicted": tables[0], f"temperature {fitted.temperature:.2f}": tables[1]},
        "the most probable class",
        f"out-of-fold pixels, n = {len(labels):,};\npoints of fewer than {figures.LEAST} left out",
    )
    with whole_file(picture) as file:
        figure.savefig(file, dpi=110, metadata={"Software": SIGN})
    plt.close(figure)
    replace(ensemble, calibration=best).save(out, measured)  # last: where it is, the picture is
    log.info("%s", _told(measured))
    return measured


def _told(measured: dict[str, Any]) -> str:
    """Return what was measured in words."""
    kept = "kept" if measured["nll"][1] < measured["nll"][0] else "left out, for it does not help on other folds"
    lines = [
        f"out of fold: {measured['tiles']} tiles; each fold with what was fitted to the others",
        f"temperature {measured['temperature']:.2f}: {kept}",
    ]
    for name in ("nll", "ece"):
        lines.append(f"{name.upper():<32}{measured[name][0]:.4f} -> {measured[name][1]:.4f}")
    for name in ("plain", "offsets", "plain postprocessed", "offsets postprocessed"):
        lines.append(f"MCC, {name:<27}{measured[name]['mcc']:.4f}, ice {measured[name]['ice_mcc']:.4f}")
    for name, what in (("area", "mapped glaciers"), ("glacier", "glaciers within outlines")):
        found = measured[name]
        covered = "too few for intervals"
        if found["coverage"] is not None:
            covered = f"intervals of 0.9 hold {found['coverage']:.3f}, {found['width']:.2f} areas wide (median)"
        lines.append(f"areas: {found['glaciers']} {what}, {covered}")
    return "\n".join(lines)


def _ensemble(predictions: Sequence[OutOfFold]) -> Ensemble:
    """Return the models that predicted."""
    folders = [oof.folder.resolve() for oof in predictions]
    for k, (oof, folder) in enumerate(zip(predictions, folders, strict=True)):
        oof.check()
        if folder in folders[:k]:
            raise DataError(f"{oof.folder}: is named twice; name each cross-validation once")
        if name := oof.stale():
            raise BundleError(
                f"{oof.folder / name}: is not the model that predicted {oof.path}; resume the cross-validation "
                "to repeat the predictions"
            )
    members = tuple(Member.load(oof.folder / name) for oof in predictions for name in sorted(oof.models))
    first = used_as(members)
    for member in members:
        mine = member.bundle.predict
        if member.once:
            mine = mine.model_copy(update={"views": first.views, "scales": first.scales})
        if mine != first:
            raise BundleError(
                f"{member.path}: predicted with other settings than the others (predict: "
                f"{member.bundle.predict.model_dump_json()} and {first.model_dump_json()}); calibrate each on its own"
            )
    return Ensemble(members, first)


def _ours(picture: Path) -> bool:
    """Return whether a picture was drawn here."""
    if not picture.is_file() or picture.is_symlink():
        return False
    with open(picture, "rb") as file:
        return SIGN.encode() in file.read(4096)


def _tiles(predictions: Sequence[OutOfFold]) -> Iterator[Tile]:
    """Yield every tile once; its fold is that of the first cross-validation that knows it."""
    places: dict[str, list[tuple[OutOfFold, int]]] = {}
    for oof in predictions:
        for i, key in enumerate(oof.table["key"]):
            places.setdefault(key, []).append((oof, i))
    for where in places.values():
        (first, i), total = where[0], torch.zeros(())
        for oof, k in where:
            if oof.labels.shape[1:] != first.labels.shape[1:]:
                raise DataError(f"{oof.path}: tiles of another size than in {first.path}; use the same tile store")
            probs, labels = oof.tile(k)
            total = total + torch.from_numpy(probs)
            if oof is first:
                truth = labels
            elif not np.array_equal(labels, truth):
                tile = f"{oof.path}: tile {oof.table['id'][k][:80]}"
                raise DataError(f"{tile} has other labels than in {first.path}; use one tile store")
        yield Tile(int(first.table["fold"][i]), total / len(where), truth, bool(first.table["once"][i]))


def _sample(predictions: Sequence[OutOfFold]) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return fold `(N,)`, probabilities `(N, K)` and labels `(N,)` of at most `PIXELS` labelled pixels."""
    labelled = sum(int((tile.labels != IGNORE).sum()) for tile in _tiles(predictions))
    if not labelled:
        raise DataError(f"{predictions[0].path}: no labelled pixel, so nothing can be fitted")
    step = -(-labelled // PIXELS)
    parts = []
    for fold, probs, labels, _ in _tiles(predictions):
        at = np.flatnonzero(labels != IGNORE)[::step]
        y = torch.from_numpy(labels.ravel()[at].astype(np.int64))
        parts.append((np.full(len(at), fold), probs.flatten(1).T[at], y))
    folds, all_probs, all_labels = zip(*parts, strict=True)
    return np.concatenate(folds), torch.cat(all_probs), torch.cat(all_labels)


def _temperature(probs: Tensor, labels: Tensor, bias: bool) -> Calibration:
    temperature, biases = fit_temperature(probs, labels, bias)
    return Calibration(temperature=temperature, bias=tuple(biases))


def _offsets(fit: Calibration, probs: Tensor, labels: Tensor) -> Calibration:
    offsets = fit_offsets(calibrated(probs, fit.temperature, fit.bias, 1), labels, 1)
    return fit.model_copy(update={"offsets": tuple(offsets)})


def _maps(predictions: Sequence[OutOfFold], fits: dict[int, Calibration]) -> dict[str, dict[str, float]]:
    """Return the scores of the tiles' maps, each decided with what was fitted to the other folds."""
    cleaning = PostprocessRecipe().by_code()
    totals: dict[str, Tensor] = {}
    for fold, probs, truth, _ in _tiles(predictions):
        c = fits[fold]
        sure = calibrated(probs, c.temperature, c.bias)
        for name, offsets in (("plain", NONE), ("offsets", c.offsets)):
            classes = decide(sure, offsets).numpy()
            for suffix, codes in (("", classes), (" postprocessed", postprocess(classes, **cleaning))):
                matrix = confusion_matrix(codes, truth, len(CLASSES), unknown_ice=True)
                totals[name + suffix] = totals.get(name + suffix, 0) + matrix
    return {k: {name: round(score(m), 4) for name, score in WATCHED.items()} for k, m in totals.items()}


def glacier_areas(
    classes: np.ndarray,  # (H, W) mapped codes, 255 where there is no data or no truth
    not_ice: np.ndarray,  # (H, W) float32, calibrated probability that there is no ice
    labels: np.ndarray,  # (H, W) true codes, 254 = ice of unknown kind, 255 = unknown
) -> np.ndarray:
    """Return mapped area, doubt and true area of each mapped glacier of `LEAST` pixels or more, pixels, `(n, 3)`."""
    regions = components(np.isin(classes, ICE), connectivity=1)
    known = labels != IGNORE
    area = np.bincount(regions.ravel())[1:]
    doubt = np.bincount(regions.ravel(), not_ice.ravel())[1:]
    truth = matched_area(regions, np.isin(labels, (*ICE, ICE_OF_ANY_KIND)), known)
    return np.stack([area, doubt, truth], 1)[area >= LEAST]


def outlined_areas(
    classes: np.ndarray,  # (H, W) mapped codes, 255 where there is no data or no truth
    ice: np.ndarray,  # (H, W) float32, calibrated probability of ice
    labels: np.ndarray,  # (H, W) true codes, 254 = ice of unknown kind, 255 = unknown
    reach: float,  # pixels around an outline whose ice belongs to it
) -> np.ndarray:
    """Return true, mapped and expected areas of each true glacier with `LEAST` pixels mapped, pixels, `(n, 5)`.

    The outline is that of connected true ice; and for a second mapped and expected area it is too large by `reach`,
    as those of older inventories are, for glaciers shrink.
    """
    outlines = components(np.isin(labels, (*ICE, ICE_OF_ANY_KIND)), connectivity=1).astype(np.int32)
    found = [np.bincount(outlines.ravel())[1:]]
    mapped, seen = np.isin(classes, ICE), classes != IGNORE
    for far in (reach, 2 * reach):
        found += outlined_area(outlines, mapped, ice, seen, far)
    rows = np.stack(found, 1)
    return rows[rows[:, 1] >= LEAST]


def _areas(
    predictions: Sequence[OutOfFold], fits: dict[int, Calibration], cleaning: PostprocessRecipe | None, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return fold and `glacier_areas` of every mapped glacier, and fold and `outlined_areas` of every true one."""
    patches, outlined = [np.empty((0, 4))], [np.empty((0, 6))]
    for fold, probs, labels, once in _tiles(predictions):
        if not once:
            continue
        c = fits[fold]
        sure = calibrated(probs, c.temperature, c.bias)
        classes = decide(sure, c.offsets).numpy()
        classes[labels == IGNORE] = IGNORE
        if cleaning is not None:
            classes = postprocess(classes, **cleaning.by_code())
        ice = sure[list(ICE)].sum(0).numpy()
        patches.append(np.insert(glacier_areas(classes, 1 - ice, labels), 0, fold, 1))
        outlined.append(np.insert(outlined_areas(classes, ice, labels, reach), 0, fold, 1))
    return np.concatenate(patches), np.concatenate(outlined)


def _fit_patches(rows: np.ndarray) -> tuple[float, ...]:
    return fit_area_interval(*rows[:, 1:].T)


def _patch_ends(rows: np.ndarray, fit: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    return rows[:, 3], *area_interval(*rows[:, 1:3].T, *fit)


def _fit_outlined(rows: np.ndarray) -> tuple[float, ...]:
    return fit_glacier_interval(rows[:, 2::2], rows[:, 3::2], rows[:, 1])


def _outlined_ends(rows: np.ndarray, fit: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    return rows[:, 1], *glacier_interval(*rows[:, 2:4].T, *fit)


def _interval(
    rows: np.ndarray,  # (n, ...) of `_areas`
    fit: Callable[[np.ndarray], tuple[float, ...]],
    ends: Callable[[np.ndarray, tuple[float, ...]], tuple[np.ndarray, ...]],  # true areas, and both ends
) -> tuple[Any, dict[str, Any]]:
    """Return what was fitted to all glaciers, and how it does on those of each fold, fitted to the others."""
    found: dict[str, Any] = {"glaciers": len(rows), "coverage": None, "width": None}
    try:
        fitted = fit(rows)
        each = [ends(rows[here], fit(rows[~here])) for here in (rows[:, 0] == k for k in np.unique(rows[:, 0]))]
    except DataError:  # too few of them
        return None, found
    truth, low, high = (np.concatenate(part) for part in zip(*each, strict=True))
    found["coverage"] = round(float(((low <= truth) & (truth <= high)).mean()), 3)
    width = (high - low) / np.maximum(truth, 1)  # in pixels where there is no ice
    found["width"] = round(float(np.median(width)), 3)
    return fitted, found
