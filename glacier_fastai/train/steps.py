"""Callbacks around the optimiser's step: precision, accumulation, clipping and its guard, a frozen encoder."""

from __future__ import annotations

import logging

import numpy as np
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelStepException, TrainEvalCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import L
from fastai.learner import Recorder
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..data.balanced import PixelBalancedDL
from ..errors import TrainingError
from ..model.bundle import unwrapped
from ..model.processes import all_gather, all_reduce_max

__all__ = [
    "AccumulateBatches",
    "AuxiliaryLoss",
    "CpuMixedPrecision",
    "FiniteLossCallback",
    "FreezeEncoder",
    "GradientGuard",
    "GradientReset",
]

log = logging.getLogger(__name__)

LOSSES = ("train_loss", "valid_loss")


class CpuMixedPrecision(MixedPrecision):
    """bfloat16 autocast on the CPU, where fastai's own callback silently trains in float32."""

    def __init__(self):
        super().__init__("bf16")

    def before_fit(self):
        """Make ready; bfloat16 needs no scaling of gradients."""
        self.autocast, self.scales = torch.autocast("cpu", torch.bfloat16), L()
        self.learn.scaler = torch.amp.GradScaler("cpu", enabled=False)


class AccumulateBatches(Callback):
    """Makes one optimiser step of several batches, with the mean of their gradients.

    Counts batches, where fastai's `GradientAccumulation` counts samples; the last step of an epoch takes what is left,
    and nothing is carried into the next.
    """

    order, run_valid = GradientAccumulation.order, False

    def __init__(
        self,
        batches: int,  # batches per step
    ):
        self.batches = batches

    def after_loss(self):
        """Weigh the batch by the number of those that share its step."""
        first = self.iter - self.iter % self.batches
        self.learn.loss_grad = self.loss_grad / min(self.batches, self.n_iter - first)

    def before_step(self):
        """Wait for the rest, and keep the gradients."""
        if (self.iter + 1) % self.batches and self.iter + 1 < self.n_iter:
            raise CancelBatchException


class AuxiliaryLoss(Callback):
    """Adds the loss of a network's auxiliary head (`Architecture.auxiliary`) in training; what is shown leaves it out.

    Lee et al. 2015, Deeply-supervised nets, PMLR 38.
    """

    order, run_valid = GradientAccumulation.order - 1, False

    def after_pred(self):
        """Take the loss before that of the output, whose parts are then the last ones on record."""
        model = unwrapped(self.model)
        self.extra = model.auxiliary_weight * self.loss_func(model.auxiliary_logits.float(), *self.yb)

    def after_loss(self):
        """Add it."""
        self.learn.loss_grad = self.loss_grad + self.extra


def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


class GradientGuard(Callback):
    """Clips the gradients, and skips batches whose loss or gradients are not finite.

    A skipped batch changes neither weights nor norm statistics nor the record, and its tiles are named; gradients that
    wait for it in an accumulated step are dropped with it. Too many in a row end the run, with the weights as they were
    before them. Steps that float16 skips while it looks for the scale of its gradients do not count.
    """

    name, order, run_valid = "gradient_guard", GradientClip.order, False  # after MixedPrecision has undone its scaling

    def __init__(
        self,
        max_norm: float = 0.0,  # largest norm of all gradients together, 0 = no clipping
        limit: int = 10,  # bad batches in a row that end the run; fewer, but 2, where an epoch has fewer
    ):
        self.max_norm, self.limit = max_norm, limit

    def before_fit(self):
        """Count from 0."""
        self.skipped, self.in_a_row, self.skipping = 0, 0, False
        self.statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        self.kept = [b.clone() for b in self.statistics]

    def before_train(self):
        """Take the norm statistics as good."""
        _copy(self.statistics, self.kept)

    def before_batch(self):
        """Look at a new batch."""
        self.skipping = False

    def after_loss(self):
        """Skip the batch before its gradients are made, if the loss is not finite."""
        if all_reduce_max(int(not torch.isfinite(self.loss).all())):
            self._skip()
            raise CancelBatchException

    def before_step(self):
        """Clip, or skip the step."""
        parameters = [p for group in self.opt.param_lists for p in group if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            self._skip()
            raise CancelStepException
        if self.max_norm:
            clip_grads_with_norm_(parameters, self.max_norm, norm)
        _copy(self.statistics, self.kept)
        self.in_a_row = 0

    def after_cancel_step(self):
        """Count a step that float16 skipped only where no smaller scale can help."""
        if not self.skipping and self.learn.scaler.get_scale() < 1:
            self._skip()

    def _skip(self) -> None:
        self.skipping = True
        self.skipped += 1
        self.in_a_row += 1
        _copy(self.kept, self.statistics)
        self.opt.zero_grad()
        self.learn.yb = ()  # so that no record counts it
        mine = self.dl.tile_names(self.iter) if isinstance(self.dl, PixelBalancedDL) else []
        self.tiles = sorted({name for names in all_gather(mine) for name in names})
        where = f"epoch {self.epoch + 1}, batch {self.iter + 1} of {self.n_iter}"
        more = f" and {len(self.tiles) - 20} more" if len(self.tiles) > 20 else ""
        tiles = f"tiles {', '.join(self.tiles[:20]) or 'unknown'}{more}"
        log.warning(f"{where}: loss or gradients are not finite, so it is skipped ({self.skipped} so far); {tiles}")
        if self.in_a_row >= max(2, min(self.limit, self.n_iter)):
            raise TrainingError(
                f"{where}: {self.in_a_row} batches in a row gave no finite loss or gradients ({tiles}); look at these "
                "tiles, lower train.lr, or set train.precision=fp32; what was saved before them is kept"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting from there."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


class FiniteLossCallback(Callback):
    """Ends a run whose epoch gave no finite loss, before anything of it is saved: its weights have diverged."""

    order = Recorder.order + 1

    def after_epoch(self):
        """Look at the losses of training and validation."""
        row = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        if not np.isfinite([row[name] for name in LOSSES if name in row]).all():
            raise TrainingError(f"the loss is not finite after epoch {self.epoch + 1}; lower train.lr")


class FreezeEncoder(Callback):
    """Leaves the encoder as it came for the first epochs: its weights, and the statistics of its norm layers.

    Without this fastai's `freeze` lets norm layers learn and their statistics move. The decoder trains from the start.
    """

    order = TrainEvalCallback.order + 1

    def __init__(
        self,
        epochs: int,  # epochs for which the encoder is frozen
    ):
        self.epochs = epochs

    def before_fit(self):
        """Raise `TrainingError` where there is no encoder."""
        if not isinstance(getattr(self.model, "encoder", None), nn.Module):
            raise TrainingError(
                f"train.freeze_epochs: model {type(self.model).__name__} has no `encoder` to freeze; set it to 0"
            )

    def before_train(self):
        """Freeze or thaw."""
        frozen = self.epoch < self.epochs
        self.model.encoder.train(not frozen)
        self.model.encoder.requires_grad_(not frozen)

    def after_fit(self):
        """Leave it thawed."""
        self.model.encoder.requires_grad_(True)


class GradientReset(Callback):
    """Drops what accumulation left in the gradients, which fastai would carry into the next fit."""

    order = MixedPrecision.order

    def after_fit(self):
        """Zero the gradients."""
        if self.opt is not None:
            self.opt.zero_grad()
