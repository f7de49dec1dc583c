"""The record of a run while it goes: history.csv, events.jsonl, TensorBoard, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import psutil
import torch
from fastai.callback.core import Callback
from fastai.torch_core import default_device

from ..bands import CLASSES
from ..core.confusion import with_ice
from ..files import whole_file
from ..model.bundle import unwrapped
from ..model.evaluate import class_table
from ..model.processes import on_rank_zero, world_size
from .callbacks import mapped
from .console import ConsoleCallback
from .metrics import PER_CLASS
from .steps import GradientGuard

__all__ = ["EventLog", "EventsCallback", "HistoryCallback", "TensorBoardRecord", "environment", "results_figure"]

PACKAGES = ("torch", "fastai", "accelerate", "segmentation_models_pytorch", "numpy", "rasterio")


def _git_state() -> dict[str, Any] | None:
    """The commit of the source tree that this package runs from, if it is one, and whether it was changed."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    try:
        say = [
            subprocess.run(["git", "-C", source, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout that belongs to another user
        return None
    return {"commit": say[0], "changed": bool(say[1])}


def environment() -> dict[str, Any]:
    """Return what a run runs on: versions, device, processes, threads, command, and the state of the source tree."""
    device = default_device()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {p: version(p) for p in ("glacier-fastai", *PACKAGES)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "command": psutil.Process().cmdline(),
        "git": _git_state(),
    }


class EventLog:
    """A file of one JSON object a line, with the time in UTC; a line that a kill cut off is dropped."""

    def __init__(
        self,
        path: Path,  # file to append to
    ):
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        if path.exists():
            os.truncate(path, len(whole) + bool(whole))
        self.path = path

    def __call__(self, event: str, **fields: Any) -> None:
        """Append a line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "event": event, **fields}) + "\n")


def _row(learn) -> dict[str, float]:
    """The columns of the epoch that has just ended, by name."""
    values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1], strict=False))
    return {"epoch": learn.epoch + 1, **values, "lr": learn.opt.hypers[-1]["lr"]}


class HistoryCallback(Callback):
    """Writes a row per epoch; the file is whole at any moment, and holds nothing that depends on the time."""

    order = ConsoleCallback.order

    def __init__(
        self,
        path: Path,  # CSV file to write
    ):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def after_epoch(self):
        """Add the epoch's row."""
        self.rows.append(_row(self.learn))
        on_rank_zero(self._write)

    def _write(self) -> None:
        with whole_file(self.path) as file:
            pd.DataFrame(self.rows).to_csv(file, index=False)

    def state_dict(self) -> dict[str, list]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Go on after these rows."""
        self.rows = state["rows"]


class EventsCallback(Callback):
    """Notes each epoch, with what it took in time and memory, and each batch that was skipped."""

    order = ConsoleCallback.order

    def __init__(
        self,
        path: Path,  # file to append to, see `EventLog`
    ):
        self.log = EventLog(path)

    def before_epoch(self):
        """Start the clock."""
        self.began = time.monotonic()
        if self.dls.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def after_batch(self):
        """Note a skipped batch."""
        for guard in (cb for cb in self.learn.cbs if isinstance(cb, GradientGuard)):
            if self.training and guard.skipping:
                self.log("skipped", epoch=self.epoch + 1, batch=self.iter + 1, tiles=guard.tiles)

    def after_epoch(self):
        """Note the epoch."""
        memory = {}
        if self.dls.device.type == "cuda":
            memory = {"gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20)}
        row = {k: None if v != v else v for k, v in _row(self.learn).items()}  # JSON has no NaN
        self.log("epoch", **row, seconds=round(time.monotonic() - self.began, 2), **memory)


def results_figure(
    learn,  # `GlacierLearner`, its model on the device of its tiles
    n: int = 4,  # tiles
):
    """Return the figure of image, target, prediction and errors of the first validation tiles (else training tiles)."""
    dls, model = learn.dls, unwrapped(learn.model)
    tiles = (dls.valid_tiles or dls.train_tiles)[:n]
    x, y = dls.test_dl(tiles, with_labels=True, bs=len(tiles)).one_batch()
    training = model.training
    with torch.inference_mode():
        classes = mapped(learn, model.eval()(x.as_subclass(torch.Tensor)))
    model.train(training)
    dls.valid.show_results((x, y), classes, max_n=n)
    return plt.gcf()


class TensorBoardRecord(Callback):
    """Writes every column of the history, the scores of each class, and pictures of fixed tiles, by epoch."""

    order = ConsoleCallback.order

    def __init__(
        self,
        folder: Path,  # folder of the event files
        panels_every: int = 10,  # epochs between pictures; 0: none
    ):
        self.folder, self.panels_every = folder, panels_every

    def before_fit(self):
        """Open; epochs that come again replace those of before."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=self.learn.first_epoch + 1)

    @staticmethod
    def tag(column: str) -> str:
        """Return the name under which TensorBoard shows a column: validation and training of a score side by side."""
        phase, name = ("train", column.removeprefix("train_")) if column.startswith("train_") else ("valid", column)
        name = name.removeprefix("valid_")
        for group, found in (("ramp", name.startswith("ramp_")), ("share", name.startswith("share_"))):
            if found:
                return f"{group}/{name.removeprefix(f'{group}_')}"
        return name if name == "lr" else f"{name}/{phase}"

    def after_epoch(self):
        """Write the epoch."""
        step = self.epoch + 1
        for name, value in _row(self.learn).items():
            if name != "epoch":
                self.writer.add_scalar(self.tag(name), value, step)
        matrix = self.learn.confusion_matrix.latest
        for kind, score in PER_CLASS.items():
            for name, value in zip((*CLASSES, "ice"), with_ice(score, matrix), strict=True):
                self.writer.add_scalar(f"{kind}/{name}", value, step)
        self.writer.add_text("classes", "\n".join(f"    {line}" for line in class_table(matrix).splitlines()), step)
        if self.panels_every and (step % self.panels_every == 0 or step == self.n_epoch):
            self.writer.add_figure("tiles", results_figure(self.learn), step)
        self.writer.flush()

    def after_fit(self):
        """Close."""
        self.release()

    def release(self):
        """Let the thread that writes end, which no error of the training does."""
        if hasattr(self, "writer"):
            self.writer.close()
