"""fastai metrics over the one confusion matrix that `ConfusionMatrixCallback` keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from fastai.learner import Metric

from ..bands import CLASSES
from ..core import confusion

__all__ = ["ConfusionMetric", "glacier_metrics"]

POOLED: dict[str, Callable[[torch.Tensor], float]] = {
    "mcc": confusion.WATCHED["mcc"],
    "mean_iou": confusion.mean_iou,
    "ice_mcc": confusion.WATCHED["ice_mcc"],
    "ice_iou": lambda cm: float(confusion.iou(confusion.ice(cm))[1]),
}
PER_CLASS: dict[str, Callable[[confusion.Matrix], torch.Tensor]] = {
    "iou": confusion.iou,
    "precision": confusion.precision,
    "recall": confusion.recall,
    "f1": confusion.f1,
}


class ConfusionMetric(Metric):
    """A score of the confusion matrix; costs nothing per batch."""

    def __init__(
        self,
        score: Callable[[torch.Tensor], float],  # int64 (K + 1, K), rows truth, see `core.confusion` -> score
        name: str,  # name in the Recorder
        phase: str = "valid",  # "train" or "valid"
    ):
        self.score, self._name, self.phase, self.source = score, name, phase, None

    def reset(self):
        """Do nothing: the callback empties its matrices."""

    def accumulate(self, learn):
        """Take hold of the callback, which has already counted the batch."""
        self.source = learn.confusion_matrix

    @property
    def value(self):
        """The score, a float; NaN before the first batch."""
        matrix = None if self.source is None else self.source.matrix[self.phase]
        return float("nan") if matrix is None else float(self.score(matrix))

    @property
    def name(self):
        """The name in the Recorder."""
        return self._name


def _of_class(score: Callable[[confusion.Matrix], torch.Tensor], k: int, matrix: torch.Tensor) -> float:
    return confusion.with_ice(score, matrix)[k]


def glacier_metrics(
    per_class: bool = False,  # also iou_glacier, recall_debris, ...
    phase: str = "valid",  # "valid", or "train": names then start with train_
) -> list[ConfusionMetric]:
    """Return `mcc`, `mean_iou`, `ice_mcc`, `ice_iou`, and with `per_class` IoU, precision, recall, F1 by class and ice.

    A learner that has them needs a `ConfusionMatrixCallback`.

    >>> [m.name for m in glacier_metrics(phase="train")]
    ['train_mcc', 'train_mean_iou', 'train_ice_mcc', 'train_ice_iou']
    """
    scores = dict(POOLED)
    if per_class:
        for kind, fn in PER_CLASS.items():
            scores |= {f"{kind}_{name}": partial(_of_class, fn, k) for k, name in enumerate((*CLASSES, "ice"))}
    prefix = "train_" if phase == "train" else ""
    return [ConfusionMetric(fn, prefix + name, phase) for name, fn in scores.items()]
