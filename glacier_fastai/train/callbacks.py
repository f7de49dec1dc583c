"""Callbacks of training; one callback, one idea. Each order is given as a relation to fastai's own.

What a callback must remember for a run that is resumed, it gives as `state_dict` (equal in all processes) and, of
sums that begin anew with each epoch, as `epoch_state` (of each process); see `checkpoint`. Both are kept by the
callback's `name`, by which others find it, too (`learn.confusion_matrix`). As for fastai's Recorder, a batch without
labels (`learn.yb` is empty) does not count: so `steps.GradientGuard` takes a batch out of every record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import ReduceLROnPlateau, TrackerCallback
from fastai.learner import Learner, Recorder
from fastai.metrics import ValueMetric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..bands import CLASSES
from ..core.calibration import all_glacier
from ..core.confusion import confusion_matrix
from ..core.losses import CombinedLoss
from ..errors import RecipeError, TrainingError
from ..model.processes import all_reduce
from .metrics import ConfusionMetric

__all__ = [
    "AverageWeightsCallback",
    "ColumnsCallback",
    "CombinedLossCallback",
    "CompositionCallback",
    "ConfusionMatrixCallback",
    "PlateauCallback",
    "ProgressiveRampCallback",
    "WarmupDecayCallback",
    "mapped",
    "plateau",
]

log = logging.getLogger(__name__)


def mapped(
    learn: Learner,
    logits: torch.Tensor,  # (B, K, H, W), of its model
) -> torch.Tensor:
    """Return the classes `(B, H, W)` in the maps of a learner's bundle, which knows whether it tells debris."""
    if getattr(learn, "tells_debris", True):
        return logits.argmax(1)
    return all_glacier(logits.float().softmax(1), 1).argmax(1)


class ConfusionMatrixCallback(Callback):
    """Counts the confusion matrix of each epoch, once per batch and on the device, for training and validation.

    `matrix["train"]` and `matrix["valid"]` are int64 `(K + 1, K)`, rows truth, the last one ice of unknown kind;
    ignored pixels are not counted. At the end of each phase they are summed over the processes. Where a model does not
    tell debris from clean ice (`GlacierLearner.tells_debris`) all ice is glacier, as in its maps.
    """

    name, order, remove_on_fetch = "confusion_matrix", Recorder.order - 2, False

    def __init__(
        self,
        classes: int = len(CLASSES),  # number of classes
    ):
        self.classes = classes
        self.matrix: dict[str, torch.Tensor | None] = {"train": None, "valid": None}

    @property
    def latest(self) -> torch.Tensor | None:
        """The matrix of validation, or of training where nothing is validated."""
        return self.matrix["train"] if self.matrix["valid"] is None else self.matrix["valid"]

    def _counted(self, phase: str) -> torch.Tensor:
        matrix = self.matrix[phase]
        return torch.zeros(self.classes + 1, self.classes, dtype=torch.int64) if matrix is None else matrix

    def before_fit(self):
        """Forget the last fit."""
        self.matrix = {"train": None, "valid": None}

    def before_train(self):
        """Empty the training matrix."""
        self.matrix["train"] = None

    def before_validate(self):
        """Empty the validation matrix."""
        self.matrix["valid"] = None

    def after_batch(self):
        """Count a batch."""
        if not len(self.yb):
            return
        phase = "train" if self.training else "valid"
        counts = confusion_matrix(mapped(self.learn, self.pred.detach()), self.y, self.classes, unknown_ice=True)
        self.matrix[phase] = self._counted(phase).to(counts.device, non_blocking=True).add_(counts)

    def _total(self, phase: str) -> None:
        self.matrix[phase] = all_reduce(self._counted(phase))
        for metric in self.learn.metrics:
            if isinstance(metric, ConfusionMetric):
                metric.accumulate(self.learn)  # this process may have had no batch that would do it

    def after_train(self):
        """Sum the training matrix."""
        self._total("train")

    def after_validate(self):
        """Sum the validation matrix."""
        self._total("valid")

    def epoch_state(self) -> Any:
        """Return what was counted of this epoch's training."""
        return self._counted("train").cpu()

    def load_epoch_state(self, state: Any) -> None:
        """Go on counting from there; checkpoints of before have no row of ice of unknown kind."""
        self.matrix["train"] = torch.cat([state, state.new_zeros(self.classes + 1 - len(state), self.classes)])


class ColumnsCallback(Callback):
    """Adds columns to the Recorder while a fit lasts."""

    order = Recorder.order - 1
    columns: Sequence[ValueMetric] = ()

    def add_columns(
        self,
        values: Mapping[str, Callable[[], float]],  # name -> what gives the epoch's value
    ) -> None:
        """Add columns; to be called in `before_fit`."""
        self.remove_columns()  # of a fit that failed
        self.columns = [ValueMetric(value, name) for name, value in values.items()]
        self.learn.metrics = [*self.learn.metrics, *self.columns]

    def remove_columns(self) -> None:
        """Take the columns away again."""
        self.learn.metrics = [m for m in self.learn.metrics if m not in self.columns]
        self.columns = ()

    def after_fit(self):
        """Take the columns away again."""
        self.remove_columns()


class CombinedLossCallback(ColumnsCallback):
    """Records each part of a `CombinedLoss` in the Recorder.

    Columns are `focal_loss`, `dice_loss`, ... for validation and `train_focal_loss`, ... for training: means over the
    epoch's images, before weights and ramp.
    """

    def before_fit(self):
        """Add the columns to the Recorder."""
        self.combined = self.loss_func  # MixUp puts a function in its place
        self.run = isinstance(self.combined, CombinedLoss) and not hasattr(self.learn, "gather_preds")
        if not self.run:
            return
        self.sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "valid": {}}
        self.images = {"train": 0, "valid": 0}
        phases = {"valid": "", "train": "train_"} if self.recorder.valid_metrics else {"train": "train_"}
        self.add_columns(
            {
                f"{prefix}{part}_loss": partial(self.mean, phase, part)
                for phase, prefix in phases.items()
                for part in self._parts
            }
        )

    @property
    def _parts(self) -> list[str]:
        return [part for part, weight in self.combined.weights.items() if weight > 0]

    def mean(self, phase: str, part: str) -> float:
        """Return the mean of a part over the images of this epoch; NaN where there were none."""
        total = self.sums[phase].get(part)
        return float("nan") if total is None else float(total) / self.images[phase]

    def before_train(self):
        """Start the sums of both phases."""
        self.sums, self.images = {"train": {}, "valid": {}}, {"train": 0, "valid": 0}

    def after_batch(self):
        """Add a batch, without waiting for the device."""
        if not len(self.yb):
            return
        phase = "train" if self.training else "valid"
        n = len(self.y)
        self.images[phase] += n
        for part, value in self.combined.parts.items():
            self.sums[phase][part] = self.sums[phase].get(part, 0) + value * n

    def _total(self, phase: str) -> None:
        mine = [float(self.sums[phase].get(part, 0)) for part in self._parts]  # also without a batch
        total = all_reduce(torch.tensor([*mine, self.images[phase]], dtype=torch.float64))
        self.images[phase] = int(total[-1])
        self.sums[phase] = dict(zip(self._parts, total[:-1], strict=True)) if total[-1] else {}

    def after_train(self):
        """Sum over the processes."""
        self._total("train")

    def after_validate(self):
        """Sum over the processes."""
        self._total("valid")

    def epoch_state(self) -> Any:
        """Return the sums of this epoch's training."""
        return {k: v.cpu() for k, v in self.sums["train"].items()}, self.images["train"]

    def load_epoch_state(self, state: Any) -> None:
        """Go on summing from there."""
        sums, self.images["train"] = state
        self.sums["train"] = {k: v.to(self.dls.device) for k, v in sums.items()}


class CompositionCallback(ColumnsCallback):
    """Records the share of each class among the pixels that the loss saw in training, as `share_CLASS`.

    Where training tiles hold ice of unknown kind, its share is `share_ice`.
    """

    def before_fit(self):
        """Add the columns to the Recorder."""
        store = getattr(self.dls, "store", None)  # an exported learner has none
        names = [*CLASSES, "ice"] if store is not None and store.ice_pixels(self.dls.train_tiles)[1] else CLASSES
        self.add_columns({f"share_{name}": partial(self.share, k) for k, name in enumerate(names)})

    def share(self, k: int) -> float:
        """Return the share of a row of the matrix in this epoch; NaN where nothing labelled was trained on."""
        matrix = self.learn.confusion_matrix.matrix["train"]
        return float("nan") if matrix is None else float(matrix[k].sum() / matrix.sum())


class ProgressiveRampCallback(ColumnsCallback):
    """Raises the weight of loss parts linearly from a fraction to all of it, and records the factor as `ramp_PART`."""

    def __init__(
        self,
        start: dict[str, float] | None = None,  # part -> fraction of its weight at the start; default boundary 0.05
        epochs: int = 30,  # epochs until the weight is full
        by: str = "epoch",  # move once an "epoch", or with every "batch"
    ):
        self.start, self.epochs, self.by = start or {"boundary": 0.05}, epochs, by
        if epochs < 1 or by not in ("epoch", "batch") or not all(0 <= f <= 1 for f in self.start.values()):
            raise RecipeError("ramp: epochs must be at least 1, by 'epoch' or 'batch', and each start within 0..1")

    def factor(self, start: float, done: float) -> float:
        """Return the factor after `done` epochs."""
        return min(1.0, start + (1 - start) * done / self.epochs)

    def before_fit(self):
        """Check the parts and add the columns to the Recorder."""
        if unknown := set(self.start) - set(getattr(self.loss_func, "weights", {})):
            raise RecipeError(f"ramp: the loss has no part {', '.join(sorted(unknown))}")
        self.ramp = self.loss_func.ramp  # MixUp puts a function in the place of the loss
        self.add_columns({f"ramp_{part}": partial(self.ramp.get, part) for part in self.start})

    def _set(self, done: float) -> None:
        for part, start in self.start.items():
            self.ramp[part] = self.factor(start, done)

    def before_train(self):
        """Move to this epoch's factor."""
        self._set(self.epoch)

    def before_batch(self):
        """Move with the batch."""
        if self.by == "batch" and self.training:
            self._set(self.epoch + self.iter / self.n_iter)

    def epoch_state(self) -> Any:
        """Return the factors as they are."""
        return {part: self.ramp[part] for part in self.start}

    def load_epoch_state(self, state: Any) -> None:
        """Set them again; there may be no further batch that would do it."""
        self.ramp.update(state)

    def after_fit(self):
        """Take the columns away again; a fit without a ramp has every part at full weight."""
        super().after_fit()
        self._set(self.epochs)


class AverageWeightsCallback(Callback):
    """Keeps an exponential moving average of the weights and norm statistics, validates it, and leaves it at the end.

    While it validates, and until the next epoch begins, `learn.model` holds the average: what watches the metrics and
    saves the best model sees one and the same weights.
    """

    order = MixedPrecision.order + 2

    def __init__(
        self,
        decay: float = 0.99,  # share of the average that stays with an optimiser step; smaller in the first steps
    ):
        self.decay, self.swapped, self.steps = decay, False, 0

    def before_fit(self):
        """Start the average from the present weights."""
        self.average, self.steps = AveragedModel(self.model, multi_avg_fn=self._move, use_buffers=True), 0

    def _move(self, average: Any, weights: Any, _: torch.Tensor | int) -> None:
        # young averages forget faster, or the untrained weights would be seen for long
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(average, weights, _)

    def after_step(self):
        """Move the average."""
        self.average.update_parameters(self.model)
        self.steps += 1

    def _swap(self) -> None:
        with torch.no_grad():
            mine, other = self.model.state_dict(), self.average.module.state_dict()
            for name, tensor in mine.items():
                kept = tensor.clone()
                tensor.copy_(other[name])
                other[name].copy_(kept)
        self.swapped = not self.swapped

    def before_validate(self):
        """Put the average in place."""
        if not self.swapped:
            self._swap()

    def after_train(self):
        """Put the average in place, also where nothing is validated."""
        self.before_validate()

    def before_epoch(self):
        """Go on from the weights themselves."""
        if self.swapped:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the average, or while that is in place the weights themselves."""
        return {"other": self.average.module.state_dict(), "swapped": self.swapped, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on averaging from there."""
        if type(state["swapped"]) is not bool or type(state["steps"]) is not int:
            raise ValueError("the average of the weights is damaged")
        self.average.module.load_state_dict(state["other"])
        self.swapped, self.steps = state["swapped"], state["steps"]
        self.average.n_averaged.fill_(self.steps)


class PlateauCallback(ReduceLROnPlateau):
    """fastai's `ReduceLROnPlateau`, for optimisers of PyTorch, too.

    fastai 2.8.12's own writes into copies where the optimiser is an `OptimWrapper`, without effect. `GlacierLearner`
    makes one of these of it.
    """

    name = "reduce_lr_on_plateau"  # as fastai's
    wait: int

    def after_epoch(self):
        """Lower the learning rates, each by the factor, where there was no improvement for too long."""
        TrackerCallback.after_epoch(self)
        self.wait = 0 if self.new_best else self.wait + 1
        if self.new_best or self.wait < self.patience:
            return
        self.wait = 0
        rates = [h["lr"] for h in self.opt.hypers]
        lower = [max(lr / self.factor, self.min_lr) for lr in rates]
        self.opt.set_hyper("lr", lower)
        if lower != rates:
            log.info("epoch %d: learning rate lowered to %.2e", self.epoch + 1, lower[-1])


class WarmupDecayCallback(Callback):
    """Raises the learning rates linearly from 0 and lets them fall linearly to 0 again, moving with every batch.

    The factor multiplies what `ReduceLROnPlateau` lowers and what each group began with. Of n batches of the run, the
    k-th has the factor ``min(1, k / (warmup n), (n + 1 - k) / (decay n))`` (Goyal et al. 2017,
    doi:10.48550/arXiv.1706.02677; Defazio et al. 2023, doi:10.48550/arXiv.2310.07831).

    >>> callback = WarmupDecayCallback(warmup=0.2, decay=0.5)
    >>> [round(callback.factor(k, 10), 1) for k in range(1, 11)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """

    order = ReduceLROnPlateau.order - 0.25  # after the record of the epoch

    def __init__(
        self,
        warmup: float = 0.0,  # share of the run over which the rates rise
        decay: float = 0.0,  # share of the run, at its end, over which they fall
    ):
        self.warmup, self.decay = warmup, decay

    def factor(self, k: int, n: int) -> float:
        """Return the factor of batch `k`, from 1, of `n`."""
        rise = k / (self.warmup * n) if self.warmup else 1.0
        fall = (n + 1 - k) / (self.decay * n) if self.decay else 1.0
        return min(1.0, rise, fall)

    def before_train(self):
        """Take up the rates as they are without the factor."""
        self.rates = [h["lr"] for h in self.opt.hypers]

    def before_batch(self):
        """Move with the batch."""
        if self.training:
            factor = self.factor(self.epoch * self.n_iter + self.iter + 1, self.n_epoch * self.n_iter)
            self.opt.set_hyper("lr", [rate * factor for rate in self.rates])

    def after_epoch(self):
        """Put the rates in place, which a plateau lowers."""
        self.opt.set_hyper("lr", self.rates)

    def epoch_state(self) -> list[float]:
        """Return the rates without the factor."""
        return self.rates

    def load_epoch_state(self, state: list[float]) -> None:
        """Take these, where the optimiser's are those of a batch."""
        self.rates = state


def plateau(
    monitor: str,  # column of the Recorder
    factor: float,  # the learning rate is multiplied by it, as in PyTorch
    patience: int,  # epochs without improvement that are borne, as in PyTorch
) -> PlateauCallback:
    """Return a `ReduceLROnPlateau` with PyTorch's meaning of `factor` and `patience`.

    fastai divides by its factor and cuts one epoch earlier.

    >>> callback = plateau("mcc", factor=0.5, patience=8)
    >>> callback.factor, callback.patience
    (2.0, 9)

    Raises:
        TrainingError: The factor does not lower the rate.
    """
    if not 0 < factor < 1:
        raise TrainingError(f"plateau factor {factor}: the learning rate is multiplied by it, so it must be below 1")
    return PlateauCallback(monitor, factor=1 / factor, patience=patience + 1)
