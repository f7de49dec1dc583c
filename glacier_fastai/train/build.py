"""From a recipe to what fastai trains: loaders and a learner."""

from __future__ import annotations

import logging
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TrackerCallback
from fastai.torch_core import default_device, rank_distrib
from torch import nn

from ..bands import LOCATION
from ..core.confusion import scores
from ..core.losses import CombinedLoss
from ..data.augment import AugmentTiles
from ..data.block import GlacierDataLoaders
from ..data.folds import folds_hash
from ..data.tiles import TileStore
from ..errors import RecipeError, note
from ..files import digest
from ..model.bundle import ModelBundle, TrainedOn, trained_ground
from ..model.fit import check_units
from ..model.processes import on_rank_zero, world_size
from ..model.ratio import baseline
from ..model.registry import of_recipe
from ..recipe import Recipe
from .callbacks import AverageWeightsCallback, ProgressiveRampCallback, WarmupDecayCallback, plateau
from .checkpoint import CheckpointCallback
from .console import ConsoleCallback
from .folder import RunFolder
from .learner import GlacierLearner, glacier_learner
from .record import EventsCallback, HistoryCallback, TensorBoardRecord
from .steps import AccumulateBatches, CpuMixedPrecision, FiniteLossCallback, FreezeEncoder, GradientGuard
from .stop import StopCallback

__all__ = ["about_run", "make_callbacks", "make_dls", "make_learner"]

log = logging.getLogger(__name__)


def make_dls(
    recipe: Recipe,  # what to train on and how
    store: TileStore,  # the tiles
    fold: int | None,  # fold to validate on; None: train on every tile
    weights: ModelBundle | None = None,  # bundle that training starts from
) -> GlacierDataLoaders:
    """Return the loaders a recipe asks for; the processes of a launch share its batches.

    Raises:
        RecipeError: A batch cannot be shared evenly, or is so small that the deepest layer would see one value per
            channel; or statistics of weights are asked for, and there are none.
        BundleError: The weights know nothing of a band.
    """
    t = recipe.train
    size, n = t.batch_size, world_size()
    if size % n:
        near = size // n * n
        raise RecipeError(
            f"train.batch_size={size}: {n} processes cannot share it evenly; use {near or n} or {near + n}"
        )
    stats = None
    if recipe.data.statistics == "weights":
        if weights is None:
            raise RecipeError("data.statistics=weights: there are no weights; name a bundle, or set it to data")
        stats = weights.statistics(recipe.bands)
        check_units(weights, store.path, store.base().units)
    gradient = of_recipe(recipe.model)[0].fit is None
    dls = GlacierDataLoaders.from_store(
        store,
        fold,
        size // n,
        recipe.data.crop,
        bands=recipe.bands,
        folds=recipe.data.folds,
        spatial=recipe.data.spatial,
        min_valid=recipe.data.min_valid,
        crops_per_tile=recipe.data.crops_per_tile,
        epoch_crops=t.epoch_steps and t.epoch_steps * t.accumulate * size,
        balance=recipe.balance if gradient else None,
        augment=AugmentTiles(**recipe.augment.model_dump()),
        stats=stats,
        glcm_window=recipe.texture.window,
        glcm_levels=recipe.texture.levels,
        num_workers=recipe.train.workers,
        seed=recipe.seed,
        device=default_device(),
    )
    if dls.train.bs == 1 and recipe.data.crop <= 32:
        raise RecipeError("train.batch_size: a single crop of 32 px cannot be normalised; use larger batches or crops")
    if dls.train.bs == 1 and recipe.model.arch == "glavitu" and {*LOCATION} & {*recipe.bands}:
        raise RecipeError("train.batch_size: a single place cannot be normalised; use larger batches")
    if dls.watched == "ice_mcc":
        known, unknown = store.ice_pixels([*dls.train_tiles, *dls.valid_tiles])
        share = f"{unknown / (known + unknown):.0%} of its ice is of unknown kind"
        note(f"{store.path}: {share}, so the MCC of ice tells which model is best, not that of the classes", dls.notes)
    if not dls.tells_debris(None if weights is None else weights.tells_debris):
        note(f"{store.path}: no label tells debris from clean ice, so the model will map all ice as glacier", dls.notes)
    return dls


def make_learner(
    recipe: Recipe,  # what to train and how
    dls: GlacierDataLoaders,  # tiles, see `make_dls`
) -> GlacierLearner:
    """Return the learner a recipe asks for, seeded; its model is trained already where that takes no gradient."""
    kind, options = of_recipe(recipe.model)
    if kind.fit is not None:
        model = kind.fit(dls.store, dls.train_tiles, dls.bands, dls.stats, recipe.seed, **options)
        return glacier_learner(dls, model, seed=recipe.seed)
    learn = glacier_learner(
        dls,
        kind.name,
        loss_func=CombinedLoss(**recipe.loss.model_dump()),
        lr=recipe.train.lr,
        wd=recipe.train.weight_decay,
        seed=recipe.seed,
        **options,
    )
    precision = effective_precision(recipe)
    if precision == "fp16":
        learn.to_fp16()
    elif precision == "bf16":
        learn.add_cb(CpuMixedPrecision()) if dls.device.type == "cpu" else learn.to_bf16()
    if dls.device.type == "cuda":
        # crops are all of one size; what is fastest may be another algorithm the next time, with other last digits
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    return learn


def about_run(
    recipe: Recipe,
    dls: GlacierDataLoaders,
    store: TileStore,  # tiles as they were given, without texture
    fold: int | None,  # that is validated on
    weights: ModelBundle | None = None,  # bundle that training starts from
) -> dict[str, Any]:
    """Return the fields of the run's bundle that do not depend on how training goes."""
    keys = dls.store.keys()
    trained_on = TrainedOn(
        path=store.path.name,  # bundles travel: what is in them tells of no folder
        hash=dls.store.fingerprint(),
        folds_hash=folds_hash(dls.store, dls.fold_of),
        train=tuple(keys[i] for i in dls.train_tiles),
        valid=tuple(keys[i] for i in dls.valid_tiles),
        tile_size=dls.store.size,
        fold=fold,
        folds=recipe.data.folds,
        spatial=recipe.data.spatial,
        ground=trained_ground(dls.store.ground()[dls.train_tiles], weights.trained_on.ground if weights else ""),
    )
    ratio = None
    if of_recipe(recipe.model)[0].name != "ratio":
        ratio = on_rank_zero(lambda: baseline(dls.store, dls.train_tiles))
    about: dict[str, Any] = recipe.model_dump(mode="json")
    for section, field in (("data", "path"), ("model", "weights")):
        about[section][field] = about[section][field] and PurePath(about[section][field]).name
    return {"recipe": about, "trained_on": trained_on, "baseline": ratio}


class BestBundleCallback(TrackerCallback):
    """Saves the bundle at each best value of a metric, or without one after every epoch."""

    order = SaveModelCallback.order

    def __init__(
        self,
        path: Path,  # file to write
        monitor: str | None,  # column of the Recorder, larger is better; None: keep the last
        **about: Any,  # fields of the bundle
    ):
        super().__init__(monitor or "train_loss", comp=np.greater)
        self.path, self.keep_last, self.about = path, monitor is None, about

    def after_epoch(self):
        """Save if this epoch is the best."""
        super().after_epoch()
        if self.keep_last or self.new_best:
            on_rank_zero(self._save)

    def _save(self) -> None:
        matrix = self.learn.confusion_matrix.matrix["valid"]
        metrics = {} if matrix is None else {"epoch": self.epoch + 1, **scores(matrix)}
        ModelBundle.from_learner(self.learn, metrics=metrics, **self.about).save(self.path)


def make_callbacks(
    recipe: Recipe,
    learn: GlacierLearner,  # that will be trained
    folder: RunFolder,  # where the run is recorded
    identity: dict[str, Any],  # see `folder.run_identity`
    checkpoint: dict[str, Any] | None,  # that it goes on from
    started: float,  # `time.monotonic()` from which max_minutes counts
    store: TileStore,  # tiles as they were given, without texture
    fold: int | None,  # that is validated on
    weights: ModelBundle | None = None,  # bundle that training starts from
) -> list[Callback]:
    """Return the callbacks a recipe asks for."""
    t, r, dls = recipe.train, recipe.record, learn.dls
    validates = len(dls.valid_tiles) > 0
    about = about_run(recipe, dls, store, fold, weights)
    best = BestBundleCallback(folder.best, dls.watched if validates else None, **about)
    cbs: list[Callback] = [
        best,
        GradientGuard(t.clip, t.bad_batches),
        FiniteLossCallback(),
        HistoryCallback(folder.path / "history.csv"),
        CheckpointCallback(folder.last, identity, checkpoint, r.save_every, r.keep, r.save_minutes),
        StopCallback(t.max_minutes, started),
    ]
    if not rank_distrib():
        cbs += [
            ConsoleCallback(best if validates else None),
            EventsCallback(folder.path / "events.jsonl"),
            TensorBoardRecord(folder.path / "tensorboard", r.panels_every),
            *_wandb(recipe, folder.path, identity),
        ]
    if recipe.ramp:
        cbs.append(ProgressiveRampCallback(**recipe.ramp.model_dump()))
    if t.ema:
        cbs.append(AverageWeightsCallback(t.ema))
    if t.accumulate > 1:
        cbs.append(AccumulateBatches(t.accumulate))
    if t.warmup or t.decay:
        cbs.append(WarmupDecayCallback(t.warmup, t.decay))
    if t.freeze_epochs:
        cbs.append(FreezeEncoder(t.freeze_epochs))
    if validates:
        cbs.append(plateau(dls.watched, t.plateau_factor, t.plateau_patience))
    if validates and t.early_stop:
        cbs.append(EarlyStoppingCallback(dls.watched, patience=t.early_stop))
    return cbs


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
    run = digest([out.name, identity])  # the same when it is resumed, also on another machine
    try:
        wandb.init(
            project=recipe.record.wandb,
            id=run,
            resume="allow",
            name=out.name,
            dir=out,
            config=recipe.model_dump(mode="json"),
        )
    except (OSError, getattr(wandb, "Error", OSError)) as err:
        log.warning("record.wandb: cannot be started (%s); the training goes on without it", " ".join(str(err).split()))
        return []
    return [WandbCallback(log_preds=False)]


def effective_precision(recipe: Recipe) -> str:
    """Return "fp32", "fp16" or "bf16": what the recipe asks for, or with "auto" what makes the device fast.

    That is fp16 on CUDA, bf16 on a CPU with instructions for it, else fp32.

    Raises:
        RecipeError: fp16 is asked for on a CPU, or bf16 on a GPU that has none.
    """
    asked, cuda = recipe.train.precision, default_device().type == "cuda"
    if asked == "fp16" and not cuda:
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none; use auto, bf16 or fp32")
    if asked == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("train.precision: this GPU has no bf16; use auto, fp16 or fp32")
    if asked != "auto":
        return asked
    if cuda:
        return "fp16"
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def compile_model(
    model: nn.Module,  # compiled in place: its weights keep their names
    x: torch.Tensor,  # a batch to try it with
) -> None:
    """Compile a model, or leave it as it is and say why."""
    from torch._dynamo.exc import TorchDynamoException

    kept = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.compile()
        model(x).sum().backward()
    except (TorchDynamoException, RuntimeError) as err:  # no compiler here, or a Python it does not know
        model._compiled_call_impl = None
        reason = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        log.warning("train.compile: cannot be done here, so the model is trained as it is (%s)", reason[:200])
    model.zero_grad()
    model.load_state_dict(kept)
