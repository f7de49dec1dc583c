"""Runs: a recipe in, a run folder out.

RUN/recipe.yaml       the resolved recipe
RUN/environment.json  versions, device, command, state of the source tree
RUN/folds.csv         fold (-1: always trained on, -2: never) and part (train, valid, left out, test) of each tile
RUN/history.csv       a row per epoch: losses, their parts, metrics, lr
RUN/events.jsonl      what happened when: start, epochs with their seconds, skipped batches, stops, resumptions
RUN/tensorboard/      the same and more for TensorBoard
RUN/last.ckpt         all that a resumed run needs
RUN/best.safetensors  the bundle: best by validation MCC (of ice, where most of it is of unknown kind), or without
                      validation the last
RUN/best.stac.json    the bundle for catalogues
RUN/MODEL_CARD.md     the bundle for people
RUN/metrics.json      scores of that bundle on the validation tiles
RUN/figures/          a training batch and results
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.torch_core import default_device, rank_distrib, set_seed

from ..data.block import GlacierDataLoaders
from ..data.folds import store_folds
from ..data.raw import open_tiles
from ..data.tiles import TileStore
from ..errors import CheckpointError, DataError, OutputError, RecipeError, RunStopped, TrainingError, note, printable
from ..files import no_link, whole_file, write_text
from ..memory import out_of_memory
from ..model.bundle import ModelBundle, described
from ..model.calibrate import calibrate
from ..model.encoder import load_encoder, takes_encoder
from ..model.evaluate import class_table, score_tiles, seen_tiles
from ..model.oof import OutOfFold
from ..model.processes import init_processes, on_rank_zero, world_size
from ..model.registry import of_recipe
from ..reading import read_json
from ..recipe import Recipe
from .build import about_run, compile_model, effective_precision, make_callbacks, make_dls, make_learner
from .card import write_card
from .console import balance_lines
from .folder import BEST, RunFolder, run_identity
from .learner import GlacierLearner
from .record import TensorBoardRecord, results_figure
from .stop import StopCallback

__all__ = ["crossval", "finetune", "pretrain", "train"]

log = logging.getLogger(__name__)

FEW = 5  # optimiser steps of an epoch; of fewer it is said


def train(
    recipe: Recipe,  # what to train and how
    data: str | os.PathLike | TileStore | None = None,  # tile store or raw folder (`data.raw`), default the recipe's
    out: str | os.PathLike | None = None,  # run folder, default runs/NAME-FOLD
    *,
    fold: int | None = 0,  # fold to validate on; None: train on every tile and keep the last weights
    weights: str | os.PathLike | None = None,  # bundle to start from
    name: str = "run",  # name of the run folder, if `out` is not given
    started: float | None = None,  # `time.monotonic()` from which max_minutes counts, default now
    resume: bool = False,  # go on with the run in `out`, if there is one
    cbs: Sequence[Callback] = (),  # further callbacks
) -> Path:
    """Train and return the run folder.

    Under a launch every process calls it alike; files are written by the first.

    Raises:
        DataError: No or unfit data.
        RecipeError: A network, an option or a setting that is impossible here.
        BundleError: Weights that cannot be used.
        OutputError: The run folder exists already, is in use, or cannot be written.
        CheckpointError: The run to go on with was of another recipe or data, or its checkpoint cannot be used.
        RunStopped: Stopped by a signal or by max_minutes, with all saved.
        TrainingError: It diverged, or ran out of memory.
    """
    started = time.monotonic() if started is None else started
    path = Path(out or Path("runs") / f"{name}-{'all' if fold is None else f'fold{fold}'}")
    folder = RunFolder(path)
    init_processes()
    on_rank_zero(lambda: folder.check(resume))
    kind, _ = of_recipe(recipe.model)  # refused before anything is made
    if kind.fit is not None and weights is not None:
        raise RecipeError(f"model.arch={kind.name}: starts from no weights; leave out {weights}")
    if (trained := recipe.model.weights) is not None:
        takes_encoder(kind.name)
        if weights is not None:
            raise RecipeError(f"model.weights={trained}: training starts from {weights}; leave one out")
    store = _store(recipe, data)
    bundle = None if weights is None else ModelBundle.load(weights)
    set_seed(recipe.seed)
    dls = make_dls(recipe, store, fold, bundle)
    if bundle is not None:
        _say_what_is_known(bundle, weights, store, dls)
    learn = make_learner(recipe, dls)
    adapted = [] if bundle is None else bundle.load_into(learn.model, recipe.bands)
    encoder = None
    if trained is not None:
        encoder, adapted = load_encoder(learn.model, trained, recipe.bands)
    learn.tells_debris = dls.tells_debris(None if bundle is None else bundle.tells_debris)
    on_rank_zero(folder.claim)
    try:
        identity = run_identity(recipe, dls, fold, None if weights is None else Path(weights), encoder)
        checkpoint = on_rank_zero(lambda: folder.checkpoint(identity))
        if checkpoint is not None and (checkpoint["ended"] or checkpoint["at"][0] == recipe.train.n_epoch):
            log.info("%s: its training has ended already", path)
        elif kind.fit is not None:
            on_rank_zero(lambda: folder.record(recipe, dls, None))
            _greet(recipe, learn, store, weights, adapted, checkpoint)
            about = about_run(recipe, dls, store, fold)
            on_rank_zero(lambda: ModelBundle.from_learner(learn, **about).save(folder.best))
            on_rank_zero(lambda: write_text(path / "history.csv", "epoch\n"))
        else:
            _count_steps(recipe, dls)
            on_rank_zero(lambda: folder.record(recipe, dls, checkpoint, encoder))
            _greet(recipe, learn, store, weights, adapted, checkpoint)
            built = make_callbacks(recipe, learn, folder, identity, checkpoint, started, store, fold, bundle)
            _fit(recipe, learn, folder, [*built, *cbs])
        on_rank_zero(lambda: _finish(learn, folder))
    except BaseException:
        if not rank_distrib():
            folder.discard()
        raise
    finally:
        folder.release()
    return path


def _store(recipe: Recipe, data: str | os.PathLike | TileStore | None) -> TileStore:
    if isinstance(data, TileStore):
        return data
    if (path := data or recipe.data.path) is None:
        raise DataError("no data: name a tile store or a raw folder, or set data.path in the recipe")
    return open_tiles(path, recipe.bands)


def _say_what_is_known(bundle: ModelBundle, weights: Any, store: TileStore, dls: GlacierDataLoaders) -> None:
    """Say where weights have seen the tiles that are to judge them."""
    known, covered = seen_tiles(bundle, store)
    if n := (known | covered)[dls.valid_tiles].sum():
        seen = f"{n} of {len(dls.valid_tiles)} validation tiles are among those that {weights} was trained on"
        note(f"{store.path}: {seen}, or lie on their ground, so their scores flatter", dls.notes)


def _count_steps(recipe: Recipe, dls: GlacierDataLoaders) -> None:
    """Say where epochs are of few optimiser steps."""
    t, made = recipe.train, -(-len(dls.train) // recipe.train.accumulate)
    if t.steps is None and made < FEW:
        steps = f"{made} optimiser step{'s' * (made > 1)}, {t.n_epoch * made} in all"
        text = f"an epoch makes {steps}; train.steps in place of train.epochs says how many"
        note(f"{dls.store.base().path}: {text}", dls.notes)


def _greet(recipe: Recipe, learn: GlacierLearner, store: TileStore, weights, adapted: list[str], checkpoint) -> None:
    dls, n = learn.dls, world_size()
    parameters = sum(p.numel() for p in learn.model.parameters())
    precision = effective_precision(recipe) + (" (auto)" if recipe.train.precision == "auto" else "")
    together = f", {n} processes" if n > 1 else ""
    kind, options = of_recipe(recipe.model)
    t = recipe.train
    lines = [
        f"recipe   {printable(recipe.about) or '-'}",
        f"data     {store.path}: {len(dls.train_tiles)} tiles to train on, {len(dls.valid_tiles)} to validate on",
        f"bands    {', '.join(recipe.bands)}",
        f"seed     {recipe.seed}",
        f"device   {default_device()}, {precision}, {torch.get_num_threads()} threads{together}",
        f"model    {described(kind.name, options)}, {parameters:,} parameters",
    ]
    if kind.fit is not None:
        log.info("%s", "\n".join([*lines, f"found    {learn.model}; loss, balance, augment and train play no part"]))
        return
    lines.append(f"batches  {len(dls.train)} per epoch of {dls.train.bs * n} crops of {recipe.data.crop} px")
    if t.epoch_steps is not None:
        made = f"{t.n_epoch * t.epoch_steps} in {t.n_epoch} epochs of {t.epoch_steps}"
        lines.append(f"steps    {made}{f', {t.steps} rounded up' if t.steps != t.n_epoch * t.epoch_steps else ''}")
    if dls.train.crops is not None:
        lines += [f"balance  {line}" for line in balance_lines(dls.train.crops.sampling)]
    if checkpoint is None:
        encoder = recipe.model.weights and f"of the encoder {recipe.model.weights}"
        lines += [f"weights  {weights or encoder or 'from scratch'}", *(f"         {line}" for line in adapted)]
    else:
        epoch, batch = checkpoint["at"]
        lines.append(f"resumed  after {f'batch {batch} of epoch {epoch + 1}' if batch else f'epoch {epoch}'}")
        if checkpoint["torch"] != str(torch.__version__):
            began = checkpoint["torch"]
            lines.append(f"         begun with torch {began}, this is {torch.__version__}: last digits may differ")
    log.info("%s", "\n".join(lines))


def _fit(recipe: Recipe, learn: GlacierLearner, folder: RunFolder, cbs: list[Callback]) -> None:
    t, dls = recipe.train, learn.dls
    stop = next(cb for cb in cbs if isinstance(cb, StopCallback))
    held = [cb for cb in cbs if isinstance(cb, (StopCallback, TensorBoardRecord))]
    if world_size() > 1:
        learn.to_distributed(sync_bn=t.sync_bn)
    learn.remove_cbs(ProgressCallback)
    if t.compile:
        compile_model(learn.model.to(dls.device), dls.one_batch()[0].as_subclass(torch.Tensor))
    quiet = open(os.devnull, "w") if rank_distrib() else sys.stderr  # noqa: SIM115  stays open with the process
    try:
        with redirect_stdout(quiet):  # fastai's trackers print what they do, and stdout is for results
            lr = slice(t.lr * t.encoder_lr_factor, t.lr) if t.encoder_lr_factor != 1 else t.lr
            learn.fit(t.n_epoch, lr, cbs=cbs)
    except (MemoryError, RuntimeError) as err:
        if isinstance(err, torch.distributed.DistBackendError) or "/gloo/" in str(err):
            raise TrainingError("another process of the launch has ended, so this one cannot go on") from err
        if not out_of_memory(err):
            raise
        raise TrainingError(
            f"out of memory on {default_device()} with train.batch_size={t.batch_size}, data.crop={recipe.data.crop}, "
            f"train.accumulate={t.accumulate}: lower one of the first two, and raise train.accumulate to keep as many "
            "crops in a step; what was saved is kept"
        ) from err
    finally:
        for cb in held:
            cb.release()
    if stop.reason:
        folder.log("stop", reason=stop.reason)
        raise RunStopped(f"stopped by {stop.reason}; all is saved in {folder.last}; resume it to go on")


def _finish(learn: GlacierLearner, folder: RunFolder) -> None:
    import matplotlib.pyplot as plt

    bundle, valid = ModelBundle.load(folder.best), learn.dls.valid_tiles
    keys = learn.dls.store.keys()
    if bundle.trained_on.valid and {*bundle.trained_on.valid} != {keys[i] for i in valid}:
        raise CheckpointError(
            f"{folder.best}: is of another run, for it was validated on other tiles; put back the one that was there"
        )
    if len(valid):
        result = score_tiles(bundle, learn.dls.store, valid)
        epoch = bundle.metrics.get("epoch")
        if "ece" not in bundle.metrics:  # so far at most the scores of training, whose weights were not rounded yet
            found = {k: v for k, v in result.items() if k != "notes"}
            bundle = replace(bundle, metrics={**bundle.metrics, **found})
            bundle.save(folder.best)
        write_text(folder.path / "metrics.json", json.dumps({"epoch": epoch, **result}, indent=1))
        log.info(
            "best     %sMCC %.4f, ice MCC %.4f%s, mean IoU %.4f on %d validation tiles\n%s",
            f"epoch {epoch}: " if epoch else "",
            result["mcc"],
            result["ice_mcc"],
            f" (band ratio {result['ratio_ice_mcc']:.4f})" if "ratio_ice_mcc" in result else "",
            result["mean_iou"],
            len(valid),
            class_table(torch.tensor(result["confusion"])),
        )
    elif learn.confusion_matrix.latest is not None:
        log.info("last epoch, on the training tiles:\n%s", class_table(learn.confusion_matrix.latest))
    write_card(folder.path, bundle, folder.best, learn.dls.store)
    learn.dls.show_batch(max_n=6)
    _figure(plt.gcf(), folder.figures / "batch.png")
    if len(valid):
        bundle.load_into(learn.model.to(learn.dls.device), learn.dls.bands)
        _figure(results_figure(learn), folder.figures / "results.png")


def _figure(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def pretrain(
    recipe: Recipe,
    data: str | os.PathLike | TileStore | None = None,
    out: str | os.PathLike | None = None,
    **kwargs: Any,  # further ones of `train`
) -> Path:
    """Train from scratch, validating on fold 0; see `train`."""
    return train(recipe, data, out, **{"fold": 0, "name": "pretrain", **kwargs})


def finetune(
    recipe: Recipe,
    data: str | os.PathLike | TileStore | None = None,
    out: str | os.PathLike | None = None,
    **kwargs: Any,  # further ones of `train`: `fold`, `weights`, ...
) -> Path:
    """Train one fold, or with `fold` None every tile, from a bundle's `weights` if given; see `train`."""
    return train(recipe, data, out, **{"name": "finetune", **kwargs})


def crossval(
    recipe: Recipe,
    data: str | os.PathLike | TileStore | None = None,
    out: str | os.PathLike | None = None,  # default runs/crossval
    *,
    weights: str | os.PathLike | None = None,  # bundle to start from
    started: float | None = None,  # as in `train`; max_minutes counts for all folds together
    resume: bool = False,  # go on with the cross-validation in `out`; folds that have ended are skipped
    cbs: Sequence[Callback] = (),  # further callbacks of each fold
) -> Path:
    """Train every fold in turn, and calibrate the ensemble of all of them; return OUT.

    Writes `OUT/foldK/`, `OUT/crossval.csv`, `OUT/oof/` (see `model.oof`) and, of more than one fold,
    `OUT/ensemble.yaml` (see `model.calibrate`), which is left as it is if it is there.
    """
    started = time.monotonic() if started is None else started
    path = Path(out or "runs/crossval")
    init_processes()
    if not resume and on_rank_zero(path.exists):
        raise OutputError(f"{path}: exists already; choose another folder, remove it, or resume it")
    store, rows = _store(recipe, data), []
    folds = int(store_folds(store, recipe.data.folds, recipe.data.spatial).max()) + 1
    for fold in range(folds):
        log.info("fold %d of %d", fold, folds)
        on_rank_zero(partial(no_link, path / f"fold{fold}"))
        run = train(
            recipe, store, path / f"fold{fold}", fold=fold, weights=weights, started=started, resume=resume, cbs=cbs
        )
        result = on_rank_zero(partial(_scores, run))
        keys = ("mcc", "ice_mcc", "mean_iou", "ice_iou", "mcc_image_mean")
        rows.append({"fold": fold, **{k: result[k] for k in keys}})
        on_rank_zero(lambda: write_text(path / "crossval.csv", pd.DataFrame(rows).to_csv(index=False)))
    table = pd.DataFrame(rows).set_index("fold")
    for name in table:
        log.info("%-16s%.4f +- %.4f over %d folds", name, table[name].mean(), table[name].std(), len(table))
    on_rank_zero(lambda: _combine(path, store, folds))
    return path


def _scores(run: Path) -> dict[str, Any]:
    return read_json(run / "metrics.json", DataError)


def _combine(out: Path, store: TileStore, folds: int) -> None:
    """Write the out-of-fold predictions and the ensemble."""
    models = {fold: f"fold{fold}/{BEST}" for fold in range(folds)}
    try:
        fresh = OutOfFold(out).stale() is None
    except DataError:  # none yet, or of a version that did not name its models
        fresh = False
    if not fresh:
        OutOfFold.write(out, models, store)
    if folds > 1 and not (out / "ensemble.yaml").exists():  # one of the run that is resumed may have been edited
        calibrate([out], out / "ensemble.yaml")
