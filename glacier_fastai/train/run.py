"""Runs: a recipe in, a run folder out.

RUN/recipe.yaml       the resolved recipe
RUN/environment.json  versions, device, command
RUN/folds.csv         fold (-1: always trained on, -2: never) and part (train, valid, left out, test) of each tile
RUN/history.csv       a row per epoch: losses, their parts, metrics, lr, seconds
RUN/best.safetensors  the bundle: best by validation MCC, or without validation the last
RUN/metrics.json      scores of that bundle on the validation tiles
RUN/figures/          a training batch and results
"""

from __future__ import annotations

import json
import os
import platform
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
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Recorder
from fastai.torch_core import default_device, set_seed

from ..core.balance import PixelBalance
from ..core.confusion import scores
from ..core.folds import NEVER
from ..core.losses import CombinedLoss
from ..data.augment import AugmentTiles
from ..data.block import GlacierDataLoaders, folds_hash, store_folds
from ..data.raw import open_tiles
from ..data.tiles import TileStore
from ..errors import DataError, OutputError, RecipeError, TrainingError
from ..recipe import Recipe
from .bundle import ModelBundle
from .callbacks import AverageWeightsCallback, CpuMixedPrecision, MaxMinutesCallback, ProgressiveRampCallback, plateau
from .console import ConsoleCallback, balance_lines, class_table, say
from .evaluate import evaluate
from .learner import AdamW, GlacierLearner, glacier_learner

__all__ = ["crossval", "finetune", "make_dls", "make_learner", "pretrain", "train"]


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
            matrix = self.learn.confusion_matrix.matrix["valid"]
            metrics = {} if matrix is None else {"epoch": self.epoch + 1, **scores(matrix)}
            ModelBundle.from_learner(self.learn, metrics=metrics, **self.about).save(self.path)


class FiniteLossCallback(Callback):
    """Ends a run that has diverged."""

    order = Recorder.order + 1

    def after_epoch(self):
        """Look at the training loss."""
        if not np.isfinite(self.recorder.values[-1][0]):
            raise TrainingError(f"the loss is not finite after epoch {self.epoch + 1}; lower train.lr")


class HistoryCallback(Callback):
    """Writes a row per epoch; the file is whole at any moment."""

    order = ConsoleCallback.order

    def __init__(
        self,
        path: Path,  # CSV file to write
    ):
        self.path, self.rows = path, []

    def before_epoch(self):
        """Note the time."""
        self.began = time.monotonic()

    def after_epoch(self):
        """Add the epoch's row."""
        values = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        lr, seconds = self.opt.hypers[-1]["lr"], round(time.monotonic() - self.began, 2)
        self.rows.append({"epoch": self.epoch + 1, **values, "lr": lr, "seconds": seconds})
        _write(self.path, pd.DataFrame(self.rows).to_csv(index=False))


def make_dls(
    recipe: Recipe,  # what to train on and how
    store: TileStore,  # the tiles
    fold: int | None,  # fold to validate on; None: train on every tile
) -> GlacierDataLoaders:
    """Return the loaders a recipe asks for.

    Raises:
        RecipeError: A batch is so small that the deepest layer would see one value per channel.
    """
    dls = GlacierDataLoaders.from_store(
        store,
        fold,
        recipe.train.batch_size,
        recipe.data.crop,
        bands=recipe.bands,
        folds=recipe.data.folds,
        spatial=recipe.data.spatial,
        min_valid=recipe.data.min_valid,
        crops_per_tile=recipe.data.crops_per_tile,
        balance=None if recipe.balance is None else PixelBalance(**recipe.balance.model_dump()),
        augment=AugmentTiles(**recipe.augment.model_dump()),
        glcm_window=recipe.texture.window,
        glcm_levels=recipe.texture.levels,
        num_workers=recipe.train.workers,
        seed=recipe.seed,
        device=default_device(),
    )
    if dls.train.bs == 1 and recipe.data.crop <= 32:
        raise RecipeError("train.batch_size: a single crop of 32 px cannot be normalised; use larger batches or crops")
    return dls


def make_learner(
    recipe: Recipe,  # what to train and how
    dls: GlacierDataLoaders,  # tiles, see `make_dls`
) -> GlacierLearner:
    """Return the learner a recipe asks for, seeded."""
    learn = glacier_learner(
        dls,
        recipe.model.arch,
        recipe.model.attention,
        loss=CombinedLoss(**recipe.loss.model_dump()),
        opt_func=AdamW,
        lr=recipe.train.lr,
        wd=recipe.train.weight_decay,
        seed=recipe.seed,
    )
    precision = effective_precision(recipe)
    if precision == "fp16":
        learn.to_fp16()
    elif precision == "bf16":
        learn.add_cb(CpuMixedPrecision()) if dls.device.type == "cpu" else learn.to_bf16()
    return learn


def effective_precision(recipe: Recipe) -> str:
    """Return "fp32", "fp16" or "bf16": what the recipe asks for, or with "auto" what makes the device fast.

    That is fp16 on CUDA, bf16 on a CPU with instructions for it, else fp32.

    Raises:
        RecipeError: fp16 is asked for on a CPU.
    """
    asked, cuda = recipe.train.precision, default_device().type == "cuda"
    if asked == "fp16" and not cuda:
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none; use auto, bf16 or fp32")
    if asked != "auto":
        return asked
    if cuda:
        return "fp16"
    able = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def train(
    recipe: Recipe,  # what to train and how
    data: str | os.PathLike | TileStore | None = None,  # tile store or raw folder (`data.raw`), default the recipe's
    out: str | os.PathLike | None = None,  # run folder, default runs/NAME-FOLD
    *,
    fold: int | None = 0,  # fold to validate on; None: train on every tile and keep the last weights
    weights: str | os.PathLike | None = None,  # bundle to start from
    name: str = "run",  # name of the run folder, if `out` is not given
    started: float | None = None,  # `time.monotonic()` from which max_minutes counts, default now
) -> Path:
    """Train and return the run folder.

    Raises:
        DataError: No or unfit data.
        BundleError: Weights that cannot be used.
        OutputError: The run folder exists already.
    """
    started = time.monotonic() if started is None else started
    out = Path(out or Path("runs") / f"{name}-{'all' if fold is None else f'fold{fold}'}")
    if out.exists():
        raise OutputError(f"{out}: exists already; choose another --out or remove it first")
    store = _store(recipe, data)
    bundle = None if weights is None else ModelBundle.load(weights)
    set_seed(recipe.seed)
    dls = make_dls(recipe, store, fold)
    learn = make_learner(recipe, dls)
    adapted = [] if bundle is None else bundle.load_into(learn.model, recipe.bands)
    try:
        (out / "figures").mkdir(parents=True)
        _greet(recipe, learn, store, weights, adapted)
        _record(out, recipe, dls)
        _fit(recipe, learn, out, store, fold, started)
    except BaseException:
        if not (out / "best.safetensors").exists():
            shutil.rmtree(out, ignore_errors=True)
        raise
    _finish(learn, out)
    return out


def _store(recipe: Recipe, data: str | os.PathLike | TileStore | None) -> TileStore:
    if isinstance(data, TileStore):
        return data
    if (path := data or recipe.data.path) is None:
        raise DataError("no data: give a tile store or a raw folder with --data, or set data.path in the recipe")
    return open_tiles(path, recipe.bands, say)


def _greet(recipe: Recipe, learn: GlacierLearner, store: TileStore, weights, adapted: list[str]) -> None:
    dls = learn.dls
    parameters = sum(p.numel() for p in learn.model.parameters())
    say(f"recipe   {recipe.about or '-'}")
    say(f"data     {store.path}: {len(dls.train_tiles)} tiles to train on, {len(dls.valid_tiles)} to validate on")
    say(f"bands    {', '.join(recipe.bands)}")
    say(f"seed     {recipe.seed}")
    say(f"device   {default_device()}, {effective_precision(recipe)}, {torch.get_num_threads()} threads")
    say(f"model    {recipe.model.arch} U-Net, attention {recipe.model.attention}, {parameters:,} parameters")
    say(f"batches  {len(dls.train)} per epoch of {dls.train.bs} crops of {recipe.data.crop} px")
    if dls.train.crops is not None:
        for line in balance_lines(dls.train.crops.sampling):
            say(f"balance  {line}")
    say(f"weights  {weights or 'from scratch'}")
    for line in adapted:
        say(f"         {line}")


def _record(out: Path, recipe: Recipe, dls: GlacierDataLoaders) -> None:
    recipe.save(out / "recipe.yaml")
    packages = ("torch", "fastai", "segmentation_models_pytorch", "numpy", "rasterio")
    from importlib.metadata import version

    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {p: version(p) for p in ("glacier-fastai", *packages)},
        "device": str(default_device()),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "folds_hash": folds_hash(dls.store, dls.fold_of),
    }
    _write(out / "environment.json", json.dumps(environment, indent=1))
    part = np.where(dls.fold_of == NEVER, "test", "left out").astype(object)
    part[dls.train_tiles], part[dls.valid_tiles] = "train", "valid"
    table = pd.DataFrame({"id": dls.store.table["id"], "fold": dls.fold_of, "part": part})
    _write(out / "folds.csv", table.to_csv(index=False))


def _fit(recipe: Recipe, learn: GlacierLearner, out: Path, store: TileStore, fold: int | None, started: float) -> None:
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
        out / "best.safetensors",
        "mcc" if validates else None,
        recipe=recipe.model_dump(mode="json"),
        trained_on=trained_on,
    )
    cbs: list[Any] = [
        best,
        FiniteLossCallback(),
        ConsoleCallback(best if validates else None),
        HistoryCallback(out / "history.csv"),
    ]
    if recipe.ramp:
        cbs.append(ProgressiveRampCallback(**recipe.ramp.model_dump()))
    if t.ema:
        cbs.append(AverageWeightsCallback(t.ema))
    if t.accumulate > 1:
        cbs.append(GradientAccumulation(dls.train.bs * t.accumulate))
    if t.clip:
        cbs.append(GradientClip(t.clip))
    if validates:
        cbs.append(plateau("mcc", t.plateau_factor, t.plateau_patience))
    if validates and t.early_stop:
        cbs.append(EarlyStoppingCallback("mcc", patience=t.early_stop))
    if t.max_minutes:
        cbs.append(MaxMinutesCallback(t.max_minutes, started, say))
    learn.remove_cbs(ProgressCallback)
    with redirect_stdout(sys.stderr):  # fastai's trackers print what they do, and stdout is for results
        learn.fit(t.epochs, t.lr, cbs=cbs)


def _finish(learn: GlacierLearner, out: Path) -> None:
    import matplotlib.pyplot as plt

    bundle = ModelBundle.load(out / "best.safetensors")
    if len(learn.dls.valid_tiles):
        result = evaluate(bundle, learn.dls.store, learn.dls.valid_tiles)
        _write(out / "metrics.json", json.dumps({"epoch": bundle.metrics["epoch"], **result}, indent=1))
        say(
            f"best     epoch {bundle.metrics['epoch']}: MCC {result['mcc']:.4f}, ice MCC {result['ice_mcc']:.4f}, "
            f"mean IoU {result['mean_iou']:.4f} on {len(learn.dls.valid_tiles)} validation tiles"
        )
        say(class_table(torch.tensor(result["confusion"])))
    else:
        say("last epoch, on the training tiles:")
        say(class_table(learn.confusion_matrix.latest))
    with learn.no_bar(), learn.no_logging():
        learn.dls.show_batch(max_n=6)
        _figure(out / "figures" / "batch.png")
        if len(learn.dls.valid_tiles):
            learn.model.load_state_dict(bundle.weights)
            learn.show_results(max_n=4, shuffle=False)
            _figure(out / "figures" / "results.png")
    plt.close("all")


def _figure(path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.gcf().savefig(path, dpi=110)
    plt.close("all")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def pretrain(recipe: Recipe, data=None, out=None, **kwargs) -> Path:
    """Train from scratch, validating on fold 0; see `train`."""
    return train(recipe, data, out, **{"fold": 0, "name": "pretrain", **kwargs})


def finetune(recipe: Recipe, fold: int | None, weights=None, data=None, out=None, **kwargs) -> Path:
    """Train one fold, or with `fold` None every tile, from a bundle's weights if given; see `train`."""
    return train(recipe, data, out, fold=fold, weights=weights, **{"name": "finetune", **kwargs})


def crossval(recipe: Recipe, weights=None, data=None, out=None) -> Path:
    """Train every fold in turn; write `OUT/foldK/` and the table `OUT/crossval.csv`; return OUT.

    `train.max_minutes` counts for each fold.
    """
    out = Path(out or "runs/crossval")
    if out.exists():
        raise OutputError(f"{out}: exists already; choose another --out or remove it first")
    store, rows = _store(recipe, data), []
    folds = int(store_folds(store, recipe.data.folds, recipe.data.spatial).max()) + 1
    for fold in range(folds):
        say(f"fold {fold} of {folds}")
        run = train(recipe, store, out / f"fold{fold}", fold=fold, weights=weights)
        result = json.loads((run / "metrics.json").read_text())
        keys = ("mcc", "ice_mcc", "mean_iou", "ice_iou", "mcc_image_mean")
        rows.append({"fold": fold, **{k: result[k] for k in keys}})
        _write(out / "crossval.csv", pd.DataFrame(rows).to_csv(index=False))
    table = pd.DataFrame(rows).set_index("fold")
    for name in table:
        say(f"{name:<16}{table[name].mean():.4f} +- {table[name].std():.4f} over {len(table)} folds")
    return out
