"""The learner: the U-Net, the combined loss and the metrics put together for glacier tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.progress import ProgressCallback
from fastai.data.core import L
from fastai.distributed import rank_distrib
from fastai.learner import CastToTensor, Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from torch import nn

from ..bands import CLASSES
from ..core.dihedral import VIEWS, one_pass
from ..core.losses import CombinedLoss
from ..data.block import GlacierDataLoaders
from ..errors import TrainingError
from ..model.registry import build_model, groups
from .callbacks import CombinedLossCallback, CompositionCallback, ConfusionMatrixCallback
from .distributed import GlacierTrainer
from .metrics import glacier_metrics
from .steps import GradientReset

__all__ = ["AdamW", "GlacierLearner", "glacier_learner"]


class _Hypers(MutableMapping):
    """fastai's view of one parameter group of a PyTorch optimiser, through which values can be set."""

    def __init__(self, group: dict, names: dict[str, str]):
        self.group, self.names = group, names

    def __getitem__(self, key):
        return self.group[self.names[key]]

    def __setitem__(self, key, value):
        self.group[self.names[key]] = value

    def __delitem__(self, key):
        raise TypeError("hyperparameters cannot be deleted")

    def __iter__(self):
        return (k for k, v in self.names.items() if v in self.group)

    def __len__(self):
        return sum(1 for _ in self)


class AdamW(OptimWrapper):
    """PyTorch's fused AdamW for fastai.

    `OptimWrapper.hypers` hands out copies, into which fastai's `ReduceLROnPlateau` writes without effect; these are
    the real ones. The betas show as one hyperparameter, `betas`.
    """

    def __init__(self, params, **kwargs):
        super().__init__(params, opt=partial(torch.optim.AdamW, fused=True), **kwargs)

    @property
    def hypers(self):
        """Hyperparameters of each parameter group; setting one takes effect."""
        names = {"lr": "lr", "wd": "weight_decay", "eps": "eps"}
        return [_Hypers(group, names) for group in self.opt.param_groups]


class _ViewsCallback(Callback):
    """Predicts the mean probabilities of the 8 views."""

    order = CastToTensor.order

    def after_pred(self):
        views = (one_pass(lambda x: self.model(x).float().softmax(1), self.x, k, 1.0) for k in VIEWS)
        self.learn.pred = sum(views) / len(VIEWS)


class GlacierLearner(Learner):
    """A `Learner` that can go on within a fit, train without validation tiles, and whose `tta` turns the maps back.

    `first_epoch` is the epoch in which the next fit begins: unlike fastai's `start_epoch`, those before it are not run
    through, and callbacks see nothing of them.
    """

    first_epoch = 0

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

    def _do_epoch(self):
        self._do_epoch_train()
        if len(self.dls.valid):
            self._do_epoch_validate()

    def _do_epoch_validate(self, ds_idx=1, dl=None):
        if not len(self.dls[ds_idx] if dl is None else dl):
            raise TrainingError("there are no validation tiles (fold=None): use ds_idx=0, or give a dl")
        super()._do_epoch_validate(ds_idx, dl)

    def show_results(self, ds_idx=1, dl=None, max_n=9, shuffle=False, **kwargs):
        """Show whole tiles, in order; shuffled ones are crops, augmented as in training."""
        super().show_results(ds_idx, dl, max_n, shuffle, **kwargs)

    def tta(self, ds_idx=1, dl=None):
        """Return probabilities averaged over the 8 flips and quarter turns, and targets.

        fastai's own averages maps that it has not turned back.
        """
        return self.get_preds(ds_idx, dl, act=lambda x: x, cbs=_ViewsCallback())


def _with(groups: list[list[nn.Parameter]], more: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return parameter groups with the weights that a loss learns in the last one, which is never frozen."""
    return [*groups[:-1], [*groups[-1], *more]]


def glacier_learner(
    dls: GlacierDataLoaders,  # tiles to train and validate on
    model: str | nn.Module = "unet",  # a name of `model.registry`, or any module `(B, C, H, W)` -> `(B, K, H, W)`
    *,
    loss_func: nn.Module | Callable | None = None,  # any of fastai, PyTorch or yours; default `CombinedLoss.phase_b()`
    splitter: Callable | None = None,  # parameter groups, default those of the model
    opt_func: Callable = AdamW,  # optimiser
    lr: float = 1e-4,  # default learning rate
    wd: float = 1e-4,  # weight decay
    metrics=None,  # default `glacier_metrics()`
    cbs=None,  # further callback or callbacks
    seed: int | None = None,  # seed of the weights and of what follows, default none
    path: str | Path | None = None,  # where `learn.save` writes, default the working directory
    **options: Any,  # of the named model, such as encoder="resnet18"
) -> GlacierLearner:
    """Return a learner that records loss parts and metrics for training and validation.

    Without validation tiles only what is known of training is recorded.
    """
    if seed is not None:
        set_seed(seed)
    if isinstance(model, str):
        model = build_model(model, dls.bands, CLASSES, **options)
    model = model.to(memory_format=torch.channels_last)  # faster convolutions, on CPU and GPU
    loss = loss_func or CombinedLoss.phase_b()
    validates = len(dls.valid) > 0
    train = glacier_metrics(phase="train")
    split = splitter or groups
    learn = GlacierLearner(
        dls,
        model,
        loss_func=loss.to(dls.device),
        opt_func=opt_func,
        lr=lr,
        wd=wd,
        splitter=lambda m: _with(split(m), loss.parameters()),
        metrics=metrics or ([*glacier_metrics(), *train[:2]] if validates else train),
        cbs=[ConfusionMatrixCallback(), CombinedLossCallback(), CompositionCallback(), GradientReset(), *L(cbs)],
        path=path or Path(),
    )
    if not validates:
        learn.recorder.train_metrics, learn.recorder.valid_metrics = True, False
    return learn
