"""What a run says: a line per epoch, the class table, and a progress bar."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback

from ..bands import CLASSES
from ..core.balance import Sampling
from ..model.evaluate import class_table
from ..terminal import progress

__all__ = ["ConsoleCallback", "balance_lines"]

log = logging.getLogger(__name__)


def balance_lines(
    sampling: Sampling,  # of the crops that are drawn
) -> list[str]:
    """Return what balanced crops are expected to hold, and where they fall short, in words."""
    known = {
        "target": sampling.target,
        "reachable by crops": sampling.reachable,
        "expected, before augmentation": sampling.expected,
    }
    lines = [f"{name} " + " / ".join(f"{v:.2%}" for v in values) for name, values in known.items()]
    return [
        f"of {' / '.join(CLASSES)}",
        *lines,
        f"effective sample size {sampling.effective:.0%} of that of even drawing",
        *sampling.notes,
    ]


class ConsoleCallback(Callback):
    """One line per epoch instead of fastai's table; the class table every 10 epochs and at each best."""

    order = SaveModelCallback.order + 0.5  # after the best is known, before anything stops the run

    def __init__(
        self,
        best,  # the tracker that says whether an epoch is the best, or None
        every: int = 10,  # epochs between class tables
    ):
        self.best, self.every, self.bar = best, every, ExitStack()

    def before_fit(self):
        """Silence fastai's own table."""
        self.kept, self.learn.logger = self.learn.logger, lambda row: None

    def before_epoch(self):
        """Note the time."""
        self.began = time.monotonic()

    def before_train(self):
        """Start a bar."""
        self.tell = self.bar.enter_context(progress(f"epoch {self.epoch + 1}/{self.n_epoch}"))

    def after_batch(self):
        """Move the bar."""
        if self.training:
            self.tell(self.iter + 1, self.n_iter)

    def after_train(self):
        """Close the bar."""
        self.bar.close()

    def after_epoch(self):
        """Print the epoch's line."""
        row = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        new_best = self.best is not None and self.best.new_best

        def pair(train: str, valid: str) -> str:
            return " / ".join(f"{row[k]:.4f}" for k in (train, valid) if k in row)

        score = self.dls.watched
        scores = f"{'MCC' if score == 'mcc' else 'ice MCC'} {pair(f'train_{score}', score)}"
        log.info(
            f"epoch {self.epoch + 1}/{self.n_epoch}  loss {pair('train_loss', 'valid_loss')}"
            f"  {scores}  mean IoU {pair('train_mean_iou', 'mean_iou')}"
            f"  lr {self.opt.hypers[-1]['lr']:.1e}  {time.monotonic() - self.began:.0f} s{'  best' if new_best else ''}"
        )
        if new_best or (self.epoch + 1) % self.every == 0:
            log.info(class_table(self.learn.confusion_matrix.latest))

    def after_fit(self):
        """Give fastai its logger back."""
        self.learn.logger = self.kept
