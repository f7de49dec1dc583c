"""The learner: a network, a loss and the metrics put together for glacier tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.mixup import CutMix, MixHandler
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.data.core import L
from fastai.distributed import rank_distrib
from fastai.learner import CastToTensor, Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from torch import nn

from ..bands import CLASSES, ICE_OF_ANY_KIND, IGNORE, aspect_index
from ..core.calibration import all_glacier
from ..core.dihedral import VIEWS, one_pass
from ..core.losses import CombinedLoss, knows_ice
from ..data.block import GlacierDataLoaders
from ..errors import RecipeError, TrainingError, note
from ..model.registry import architecture, build_model, groups, of_size
from .callbacks import CombinedLossCallback, CompositionCallback, ConfusionMatrixCallback, PlateauCallback
from .distributed import GlacierTrainer
from .losses import IceAsGlacier, LabelledPixels, adapted
from .metrics import glacier_metrics
from .steps import AuxiliaryLoss, GradientReset

__all__ = ["GlacierLearner", "glacier_learner"]

adamw = partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True))


class _ViewsCallback(Callback):
    """Predicts the mean probabilities of the 8 views."""

    order = CastToTensor.order

    def after_pred(self):
        aspect = aspect_index(getattr(self.dls, "bands", ()))
        views = (one_pass(lambda x: self.model(x).float().softmax(1), self.x, k, 1.0, aspect) for k in VIEWS)
        self.learn.pred = sum(views) / len(VIEWS)


class GlacierLearner(Learner):
    """A `Learner` that can go on within a fit, train without validation tiles, and whose `tta` turns the maps back.

    `first_epoch` is the epoch in which the next fit begins: unlike fastai's `start_epoch`, those before it are not run
    through, and callbacks see nothing of them. `tells_debris` is whether its tiles, or the weights it started from,
    told debris from clean ice; if not, bundles of it map all ice as glacier.
    """

    first_epoch = 0
    tells_debris = True

    def add_cb(self, cb):
        """Add a callback.

        Raises:
            TrainingError: It mixes labels in a way that masks do not allow.
        """
        cb = cb() if isinstance(cb, type) else cb
        if isinstance(cb, CutMix):
            raise TrainingError("CutMix mixes labels by image, and masks have one for each pixel; use MixUp")
        if isinstance(cb, MixHandler) and not getattr(self.loss_func, "y_int", False):
            raise TrainingError(
                f"{cb.name}: loss_func {_name(self.loss_func)} gives no values by image that can be mixed, and class "
                "codes cannot be averaged; use CombinedLoss, or a loss of fastai"
            )
        if type(cb) is ReduceLROnPlateau:
            object.__setattr__(cb, "__class__", PlateauCallback)  # fastai warns of it
        return super().add_cb(cb)

    def to_distributed(self, sync_bn=True, **kwargs):
        """Train on several processes, see `GlacierTrainer`; `distrib_ctx` calls it."""
        self.add_cb(GlacierTrainer(sync_bn, **kwargs))
        return self.remove_cbs(ProgressCallback) if rank_distrib() else self

    def gather_args(self):
        """Return nothing more for W&B to keep: fastai 2.8.12 fails at plain values, and a run hands over its recipe."""
        return {}

    def _do_fit(self):
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)

    def all_batches(self):
        """Go through the batches of a loader, from the one at which it starts."""
        self.n_iter = len(self.dl)
        for o in enumerate(self.dl, getattr(self.dl, "start", 0)):
            self.one_batch(*o)

    def _do_one_batch(self):
        self.pred = self.model(*self.xb)
        self("after_pred")
        if len(self.yb):
            self.loss_grad = self._loss()
            self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()

    def _loss(self) -> torch.Tensor:
        try:
            loss = self.loss_func(self.pred, *self.yb)
        except IndexError as err:
            if "out of bounds" not in str(err):
                raise
            raise TrainingError(
                f"loss_func {_name(self.loss_func)}: {err}; masks hold {IGNORE} where nothing is labelled, so it must "
                f"leave these pixels out (ignore_index={IGNORE})"
            ) from err
        if not isinstance(loss, torch.Tensor) or (self.training and loss.numel() != 1):
            what = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TrainingError(
                f"loss_func {_name(self.loss_func)}: gives {what}; training needs one number for a batch, as its mean"
            )
        return loss

    def _do_epoch(self):
        self._do_epoch_train()
        if len(self.dls.valid):
            self._do_epoch_validate()

    def _do_epoch_validate(self, ds_idx=1, dl=None):
        if not len(self.dls[ds_idx] if dl is None else dl):
            raise TrainingError("there are no validation tiles (fold=None): use ds_idx=0, or give a dl")
        super()._do_epoch_validate(ds_idx, dl)

    def freeze(self):
        """Freeze all parameter groups but the last.

        Raises:
            TrainingError: There is only one.
        """
        if len(self.splitter(self.model)) < 2:
            raise TrainingError(
                f"model {type(self.model).__name__} has one parameter group, so nothing can be frozen; train it with "
                "fit_one_cycle, or pass a splitter"
            )
        super().freeze()

    def show_results(self, ds_idx=1, dl=None, max_n=9, shuffle=False, **kwargs):
        """Show whole tiles, in order; shuffled ones are crops, augmented as in training."""
        super().show_results(ds_idx, dl, max_n, shuffle, **kwargs)

    def get_preds(self, ds_idx=1, dl=None, *args, act=None, **kwargs):
        """Return predictions as fastai does, of which maps are made: without kinds, where the model tells none."""
        if not self.tells_debris:
            own = act or self.loss_func.activation

            def act(x):
                return all_glacier(own(x), 1)

        return super().get_preds(ds_idx, dl, *args, act=act, **kwargs)

    def tta(self, ds_idx=1, dl=None):
        """Return probabilities averaged over the 8 flips and quarter turns, and targets.

        fastai's own averages maps that it has not turned back.
        """
        return self.get_preds(ds_idx, dl, act=lambda x: x, cbs=_ViewsCallback())


def _name(func: Any) -> str:
    while isinstance(func, (IceAsGlacier, LabelledPixels)):
        func = func.loss
    func = func.func if isinstance(func, partial) else func
    return getattr(func, "__name__", type(func).__name__)


def _with_ice(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loss fit for ice of unknown kind."""
    extra = loss.extra.items() if isinstance(loss, CombinedLoss) else ()
    strange = [f"loss part {name}" for name, part in extra if not knows_ice(part)]
    if not knows_ice(loss):
        strange, loss = [f"loss_func {_name(loss)}"], IceAsGlacier(loss)
    for name in strange:
        note(f"{name} knows no ice of unknown kind (label {ICE_OF_ANY_KIND}): such pixels are glacier to it", [])
    return loss


def glacier_learner(
    dls: GlacierDataLoaders,  # tiles to train and validate on
    model: str | nn.Module = "unet",  # a name of `model.registry`, or any module `(B, C, H, W)` -> `(B, K, H, W)`
    *,
    size: str | None = None,  # of the named model: "tiny", "small", "base", "large"; further options win over it
    loss_func: Callable | None = None,  # of fastai, PyTorch or yours, see `losses.adapted`; default phase B
    splitter: Callable | None = None,  # model -> parameter groups, default those of the model
    opt_func: Callable = adamw,  # optimiser, default PyTorch's fused AdamW
    lr: float | slice = 1e-4,  # default learning rate
    wd: float = 1e-4,  # weight decay
    metrics: Any = None,  # metrics, or functions `(logits, targets)`; default `glacier_metrics()`
    cbs: Any = None,  # further callback or callbacks
    seed: int | None = None,  # seed of the weights and of what follows, default none
    path: str | Path | None = None,  # where `learn.save` writes, default the working directory
    loss: Callable | None = None,  # former name of `loss_func`
    **options: Any,  # of the named model, such as encoder="resnet18"
) -> GlacierLearner:
    """Return a learner that records loss parts and metrics for training and validation.

    Without validation tiles only what is known of training is recorded. Where the tiles hold ice of unknown kind (254),
    a loss that does not know it (`core.losses.knows_ice`) takes it for glacier, which is said.

    >>> from tempfile import mkdtemp
    >>> from glacier_fastai.data.sources.synthetic import synthetic_store
    >>> store = synthetic_store(f"{mkdtemp()}/tiles", "landsat7", n_scenes=2, tile_size=32, scene_size=64)
    >>> dls = GlacierDataLoaders.from_store(store, fold=0, bs=4, folds=2)
    >>> learn = glacier_learner(dls, size="tiny", lr=1e-3)
    >>> [m.name for m in learn.metrics]
    ['mcc', 'mean_iou', 'ice_mcc', 'ice_iou', 'train_mcc', 'train_mean_iou']

    Raises:
        RecipeError: No such network, one without gradients, or an option or value that it refuses.
        TrainingError: A loss or a callback that cannot work with masks.
    """
    if seed is not None:
        set_seed(seed)
    if isinstance(model, str):
        kind = architecture(model)[0]
        if kind.fit is not None:
            raise RecipeError(f"model {model!r}: is not trained by gradients; use finetune with model.arch={model}")
        model = build_model(model, dls.bands, CLASSES, **{**of_size(kind, size), **options})
    model = model.to(memory_format=torch.channels_last)  # faster convolutions, on CPU and GPU
    loss_func = loss if loss_func is None else loss_func
    loss_func = CombinedLoss.phase_b() if loss_func is None else adapted(loss_func)
    if hasattr(loss_func, "to"):
        loss_func.to(dls.device)  # in place; fastai's return nothing
    learned = list(loss_func.parameters()) if isinstance(loss_func, nn.Module) else []
    if dls.store.ice_counts().any():
        loss_func = _with_ice(loss_func)

    def split(model: nn.Module) -> list:
        """Add weights that the loss learns to the last group, which is never frozen."""
        *first, last = (splitter or groups)(model)
        return [*first, [*last, *learned]]

    validates = len(dls.valid) > 0
    if metrics is None:
        train = glacier_metrics(phase="train")
        metrics = [*glacier_metrics(), *train[:2]] if validates else train
    extra = [AuxiliaryLoss()] if getattr(model, "auxiliary_weight", 0) else []
    learn = GlacierLearner(
        dls,
        model,
        loss_func=loss_func,
        opt_func=opt_func,
        lr=lr,
        wd=wd,
        splitter=split,
        metrics=metrics,
        cbs=[
            ConfusionMatrixCallback(),
            CombinedLossCallback(),
            CompositionCallback(),
            GradientReset(),
            *extra,
            *L(cbs),
        ],
        path=path or Path(),
    )
    learn.tells_debris = dls.tells_debris()
    if not validates:
        learn.recorder.train_metrics, learn.recorder.valid_metrics = True, False
    return learn
