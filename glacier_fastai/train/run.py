"""Runs: a recipe in, a run folder out.

RUN/recipe.yaml       the resolved recipe
RUN/environment.json  versions, device, command, state of the source tree
RUN/folds.csv         fold (-1: always trained on, -2: never) and part (train, valid, left out, test) of each tile
RUN/history.csv       a row per epoch: losses, their parts, metrics, lr
RUN/events.jsonl      what happened when: start, epochs with their seconds, skipped batches, stops, resumptions
RUN/tensorboard/      the same and more for TensorBoard
RUN/last.ckpt         all that --resume needs
RUN/best.safetensors  the bundle: best by validation MCC, or without validation the last
RUN/metrics.json      scores of that bundle on the validation tiles
RUN/figures/          a training batch and results
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TrackerCallback
from fastai.torch_core import default_device, rank_distrib, set_seed
from filelock import FileLock, Timeout

from ..core.confusion import scores
from ..core.folds import NEVER
from ..data.block import GlacierDataLoaders, folds_hash, store_folds
from ..data.raw import open_tiles
from ..data.tiles import TileStore
from ..errors import CheckpointError, DataError, OutputError, RecipeError, RunStopped, TrainingError
from ..files import whole_file
from ..recipe import Recipe
from .build import compile_model, effective_precision, make_dls, make_learner
from .bundle import ModelBundle
from .callbacks import AverageWeightsCallback, ProgressiveRampCallback, plateau
from .card import write_card
from .checkpoint import CheckpointCallback, differences, load_checkpoint
from .console import ConsoleCallback, balance_lines, class_table, say
from .distributed import first, join, processes
from .evaluate import evaluate
from .learner import GlacierLearner
from .oof import OutOfFold
from .record import EventLog, EventsCallback, HistoryCallback, TensorBoardRecord, environment, results_figure
from .steps import AccumulateBatches, FiniteLossCallback, FreezeEncoder, GradientGuard
from .stop import StopCallback

__all__ = ["crossval", "finetune", "pretrain", "train"]

LAST, BEST = "last.ckpt", "best.safetensors"


class BestBundleCallback(TrackerCallback):
    """Saves the bundle at each best value of a metric, or without one after every epoch."""

    order = SaveModelCallback.order

    def __init__(
        self,
        path: Path,  # file to write
        monitor: str | None,  # column of the Recorder, larger is better; None: keep the last
        **about,  # fields of the bundle
    ):
        super().__init__(monitor or "train_loss", comp=np.greater)
        self.path, self.keep_last, self.about = path, monitor is None, about

    def after_epoch(self):
        """Save if this epoch is the best."""
        super().after_epoch()
        if self.keep_last or self.new_best:
            first(self._save)

    def _save(self) -> None:
        matrix = self.learn.confusion_matrix.matrix["valid"]
        metrics = {} if matrix is None else {"epoch": self.epoch + 1, **scores(matrix)}
        ModelBundle.from_learner(self.learn, metrics=metrics, **self.about).save(self.path)


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
) -> Path:
    """Train and return the run folder.

    Under a launch every process calls it alike; files are written by the first.

    Raises:
        DataError: No or unfit data.
        BundleError: Weights that cannot be used.
        OutputError: The run folder exists already, is in use, or cannot be written.
        CheckpointError: The run to go on with was of another recipe or data, or its checkpoint cannot be used.
        RunStopped: Stopped by a signal or by max_minutes, with all saved.
        TrainingError: It diverged, or ran out of memory.
    """
    started = time.monotonic() if started is None else started
    out = Path(out or Path("runs") / f"{name}-{'all' if fold is None else f'fold{fold}'}")
    join()
    first(lambda: _check_folder(out, resume))
    store = _store(recipe, data)
    bundle = None if weights is None else ModelBundle.load(weights)
    set_seed(recipe.seed)
    dls = make_dls(recipe, store, fold, bundle)
    learn = make_learner(recipe, dls)
    adapted = [] if bundle is None else bundle.load_into(learn.model, recipe.bands)
    lock = FileLock(out / ".lock")
    new = first(lambda: _claim(out, lock))
    try:
        identity = _identity(recipe, dls, fold, weights)
        checkpoint = first(lambda: _checkpoint(out / LAST, identity))
        ended = checkpoint is not None and (checkpoint["ended"] or checkpoint["at"][0] == recipe.train.epochs)
        if ended:
            say(f"{out}: its training has ended already")
        else:
            first(lambda: _record(out, recipe, dls, checkpoint))
            _greet(recipe, learn, store, weights, adapted, checkpoint)
            _fit(recipe, learn, out, store, fold, started, identity, checkpoint)
        first(lambda: _finish(learn, out))
    except BaseException:
        if new and not rank_distrib() and not any((out / file).exists() for file in (BEST, LAST)):
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        lock.release()
    return out


def _check_folder(out: Path, resume: bool) -> None:
    if not out.exists():
        return
    if not resume:
        raise OutputError(f"{out}: exists already; choose another --out, remove it, or go on with it by --resume")
    if not out.is_dir() or (any(out.iterdir()) and not (out / "figures").exists()):
        raise OutputError(f"{out}: no run folder, so there is nothing to go on with; choose another --out")


def _claim(out: Path, lock: FileLock) -> bool:
    """Make the run folder if need be, and return whether it is new."""
    new = not out.exists()
    (out / "figures").mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise OutputError(f"{out}: in use by another process; wait until it ends, or choose another --out") from err
    return new


def _store(recipe: Recipe, data: str | os.PathLike | TileStore | None) -> TileStore:
    if isinstance(data, TileStore):
        return data
    if (path := data or recipe.data.path) is None:
        raise DataError("no data: give a tile store or a raw folder with --data, or set data.path in the recipe")
    return open_tiles(path, recipe.bands, say)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _identity(recipe: Recipe, dls: GlacierDataLoaders, fold: int | None, weights) -> dict[str, Any]:
    """What decides the result of a run: it can only go on where all of this is the same."""
    without = {"about": True, "record": True, "data": {"path"}, "train": {"max_minutes", "workers"}}
    return {
        "recipe": recipe.model_dump(mode="json", exclude=without),
        "fold": fold,
        "tiles": _hash(dls.store.table.to_csv(index=False).encode()),
        "folds": folds_hash(dls.store, dls.fold_of),
        "weights": None if weights is None else _hash(Path(weights).read_bytes()),
        "processes": processes(),
    }


def _checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    if found := differences(checkpoint["identity"], identity):
        raise CheckpointError(
            f"{path}: of another run ({'; '.join(found)}); repeat its command with --resume, or choose another --out"
        )
    return checkpoint


def _greet(recipe: Recipe, learn: GlacierLearner, store: TileStore, weights, adapted: list[str], checkpoint) -> None:
    dls, n = learn.dls, processes()
    parameters = sum(p.numel() for p in learn.model.parameters())
    precision = effective_precision(recipe) + (" (auto)" if recipe.train.precision == "auto" else "")
    together = f", {n} processes" if n > 1 else ""
    say(f"recipe   {recipe.about or '-'}")
    say(f"data     {store.path}: {len(dls.train_tiles)} tiles to train on, {len(dls.valid_tiles)} to validate on")
    say(f"bands    {', '.join(recipe.bands)}")
    say(f"seed     {recipe.seed}")
    say(f"device   {default_device()}, {precision}, {torch.get_num_threads()} threads{together}")
    say(f"model    {recipe.model.arch} U-Net, attention {recipe.model.attention}, {parameters:,} parameters")
    say(f"batches  {len(dls.train)} per epoch of {dls.train.bs * n} crops of {recipe.data.crop} px")
    if dls.train.crops is not None:
        for line in balance_lines(dls.train.crops.sampling):
            say(f"balance  {line}")
    if checkpoint is not None:
        epoch, batch = checkpoint["at"]
        say(f"resumed  after {f'batch {batch} of epoch {epoch + 1}' if batch else f'epoch {epoch}'}")
        if checkpoint["torch"] != str(torch.__version__):
            say(f"         begun with torch {checkpoint['torch']}, this is {torch.__version__}: last digits may differ")
        return
    say(f"weights  {weights or 'from scratch'}")
    for line in adapted:
        say(f"         {line}")


def _record(out: Path, recipe: Recipe, dls: GlacierDataLoaders, checkpoint: dict[str, Any] | None) -> None:
    about = {**environment(), "folds_hash": folds_hash(dls.store, dls.fold_of)}
    log = EventLog(out / "events.jsonl")
    if checkpoint is not None:
        log("resume", epoch=checkpoint["at"][0] + 1, batch=checkpoint["at"][1], environment=about)
        return
    recipe.save(out / "recipe.yaml")
    _write(out / "environment.json", json.dumps(about, indent=1))
    part = np.where(dls.fold_of == NEVER, "test", "left out").astype(object)
    part[dls.train_tiles], part[dls.valid_tiles] = "train", "valid"
    table = pd.DataFrame({"id": dls.store.table["id"], "fold": dls.fold_of, "part": part})
    _write(out / "folds.csv", table.to_csv(index=False))
    log("start", environment=about)


def _fit(
    recipe: Recipe,
    learn: GlacierLearner,
    out: Path,
    store: TileStore,
    fold: int | None,
    started: float,
    identity: dict[str, Any],
    checkpoint: dict[str, Any] | None,
) -> None:
    t, dls = recipe.train, learn.dls
    validates = len(dls.valid_tiles) > 0
    keys = dls.store.keys()
    trained_on = {
        "path": str(store.path),
        "hash": dls.store.fingerprint(),
        "folds_hash": folds_hash(dls.store, dls.fold_of),
        "train": [keys[i] for i in dls.train_tiles],
        "valid": [keys[i] for i in dls.valid_tiles],
        "tile_size": dls.store.size,
        "fold": fold,
        "folds": recipe.data.folds,
        "spatial": recipe.data.spatial,
    }
    best = BestBundleCallback(
        out / BEST,
        "mcc" if validates else None,
        recipe=recipe.model_dump(mode="json"),
        trained_on=trained_on,
    )
    stop = StopCallback(t.max_minutes, started)
    r = recipe.record
    cbs: list[Any] = [
        best,
        GradientGuard(t.clip, t.bad_batches),
        FiniteLossCallback(),
        HistoryCallback(out / "history.csv"),
        CheckpointCallback(out / LAST, identity, checkpoint, r.save_every, r.keep, r.save_minutes),
        stop,
    ]
    log = EventLog(out / "events.jsonl")
    if not rank_distrib():
        cbs += [
            ConsoleCallback(best if validates else None),
            EventsCallback(log),
            TensorBoardRecord(out / "tensorboard", r.panels_every),
            *_wandb(recipe, out, identity),
        ]
    if recipe.ramp:
        cbs.append(ProgressiveRampCallback(**recipe.ramp.model_dump()))
    if t.ema:
        cbs.append(AverageWeightsCallback(t.ema))
    if t.accumulate > 1:
        cbs.append(AccumulateBatches(t.accumulate))
    if t.freeze_epochs:
        cbs.append(FreezeEncoder(t.freeze_epochs))
    if validates:
        cbs.append(plateau("mcc", t.plateau_factor, t.plateau_patience))
    if validates and t.early_stop:
        cbs.append(EarlyStoppingCallback("mcc", patience=t.early_stop))
    if processes() > 1:
        learn.to_distributed(sync_bn=t.sync_bn)
    learn.remove_cbs(ProgressCallback)
    if t.compile:
        compile_model(learn.model.to(dls.device), dls.one_batch()[0].as_subclass(torch.Tensor))
    quiet = open(os.devnull, "w") if rank_distrib() else sys.stderr  # noqa: SIM115  stays open with the process
    try:
        with redirect_stdout(quiet):  # fastai's trackers print what they do, and stdout is for results
            learn.fit(t.epochs, slice(t.lr * t.encoder_lr_factor, t.lr) if t.encoder_lr_factor != 1 else t.lr, cbs=cbs)
    except (MemoryError, RuntimeError) as err:
        if isinstance(err, torch.distributed.DistBackendError) or "/gloo/" in str(err):
            raise TrainingError("another process of the launch has ended, so this one cannot go on") from err
        if not _out_of_memory(err):
            raise
        raise TrainingError(
            f"out of memory on {default_device()} with train.batch_size={t.batch_size}, data.crop={recipe.data.crop}, "
            f"train.accumulate={t.accumulate}: lower one of the first two, and raise train.accumulate to keep as many "
            "crops in a step; what was saved is kept"
        ) from err
    finally:
        stop.release()
    if stop.reason:
        log("stop", reason=stop.reason)
        raise RunStopped(f"stopped by {stop.reason}; all is saved in {out / LAST}; go on with {_again()}")


def _out_of_memory(err: Exception) -> bool:
    return isinstance(err, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(err)


def _again() -> str:
    """What goes on with this: the command, if it is one."""
    command, *words = sys.argv
    if Path(command).name != "glacier-fastai" and Path(command).parent.name != "glacier_fastai":
        return "train(..., resume=True)"
    if processes() > 1:
        return "the same launch, and --resume"
    return shlex.join(["glacier-fastai", *(w for w in words if w != "--resume"), "--resume"])


def _wandb(recipe: Recipe, out: Path, identity: dict[str, Any]) -> list[Callback]:
    """The callback of fastai for Weights & Biases, if the recipe names a project."""
    if recipe.record.wandb is None:
        return []
    try:
        import wandb
        from fastai.callback.wandb import WandbCallback
    except ImportError as err:
        install = "pip install 'glacier-fastai[wandb]'"
        raise RecipeError(f"record.wandb: install it with {install}, or set it to null") from err
    run = _hash(json.dumps([out.name, identity]).encode())  # the same when it is resumed, also on another machine
    about = {"name": out.name, "dir": out, "config": recipe.model_dump(mode="json")}
    wandb.init(project=recipe.record.wandb, id=run, resume="allow", **about)
    return [WandbCallback(log_preds=False)]


def _finish(learn: GlacierLearner, out: Path) -> None:
    import matplotlib.pyplot as plt

    bundle = ModelBundle.load(out / BEST)
    if len(learn.dls.valid_tiles):
        result = evaluate(bundle, learn.dls.store, learn.dls.valid_tiles)
        _write(out / "metrics.json", json.dumps({"epoch": bundle.metrics["epoch"], **result}, indent=1))
        say(
            f"best     epoch {bundle.metrics['epoch']}: MCC {result['mcc']:.4f}, ice MCC {result['ice_mcc']:.4f}, "
            f"mean IoU {result['mean_iou']:.4f} on {len(learn.dls.valid_tiles)} validation tiles"
        )
        say(class_table(torch.tensor(result["confusion"])))
    elif learn.confusion_matrix.latest is not None:
        say("last epoch, on the training tiles:")
        say(class_table(learn.confusion_matrix.latest))
    write_card(out, bundle, out / BEST, learn.dls.store)
    learn.dls.show_batch(max_n=6)
    _figure(plt.gcf(), out / "figures" / "batch.png")
    if len(learn.dls.valid_tiles):
        learn.model.to(learn.dls.device).load_state_dict(bundle.weights)
        _figure(results_figure(learn.dls, learn.model), out / "figures" / "results.png")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def _figure(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with whole_file(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def pretrain(recipe: Recipe, data=None, out=None, **kwargs) -> Path:
    """Train from scratch, validating on fold 0; see `train`."""
    return train(recipe, data, out, **{"fold": 0, "name": "pretrain", **kwargs})


def finetune(recipe: Recipe, fold: int | None, weights=None, data=None, out=None, **kwargs) -> Path:
    """Train one fold, or with `fold` None every tile, from a bundle's weights if given; see `train`."""
    return train(recipe, data, out, fold=fold, weights=weights, **{"name": "finetune", **kwargs})


def crossval(recipe: Recipe, weights=None, data=None, out=None, *, started=None, resume=False) -> Path:
    """Train every fold in turn; write `OUT/foldK/`, `OUT/crossval.csv` and `OUT/oof/` (see `oof`); return OUT.

    `train.max_minutes` counts for all folds together, from `started`; `resume` passes by what has ended.
    """
    started = time.monotonic() if started is None else started
    out = Path(out or "runs/crossval")
    join()
    if not resume and first(out.exists):
        raise OutputError(f"{out}: exists already; choose another --out, remove it, or go on with it by --resume")
    store, rows = _store(recipe, data), []
    folds = int(store_folds(store, recipe.data.folds, recipe.data.spatial).max()) + 1
    for fold in range(folds):
        say(f"fold {fold} of {folds}")
        run = train(recipe, store, out / f"fold{fold}", fold=fold, weights=weights, started=started, resume=resume)
        result = first(lambda run=run: json.loads((run / "metrics.json").read_text()))
        keys = ("mcc", "ice_mcc", "mean_iou", "ice_iou", "mcc_image_mean")
        rows.append({"fold": fold, **{k: result[k] for k in keys}})
        first(lambda: _write(out / "crossval.csv", pd.DataFrame(rows).to_csv(index=False)))
    table = pd.DataFrame(rows).set_index("fold")
    for name in table:
        say(f"{name:<16}{table[name].mean():.4f} +- {table[name].std():.4f} over {len(table)} folds")
    first(lambda: _out_of_fold(out, store, folds))
    return out


def _out_of_fold(out: Path, store: TileStore, folds: int) -> None:
    models = {fold: f"fold{fold}/{BEST}" for fold in range(folds)}
    try:
        fresh = OutOfFold(out).stale() is None
    except DataError:  # none yet, or of a version that did not name its models
        fresh = False
    if not fresh:
        OutOfFold.write(out, models, store)
