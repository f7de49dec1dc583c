"""The record of a run while it goes: history.csv, events.jsonl, TensorBoard, and what it ran on."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from ..errors import OutputError
from ..files import no_link, whole_file
from ..model.bundle import unwrapped
from ..model.evaluate import class_table
from ..model.processes import on_rank_zero, world_size
from .callbacks import mapped
from .console import ConsoleCallback
from .metrics import PER_CLASS
from .steps import GradientGuard

__all__ = ["EventLog", "EventsCallback", "HistoryCallback", "TensorBoardRecord", "environment", "results_figure"]

log = logging.getLogger(__name__)

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


_given_up: set[Path] = set()  # records that cannot be written


@contextmanager
def _record(path: Path) -> Iterator[None]:
    """Say once that a record cannot be written; no training is ended by that."""
    try:
        yield
    except OSError as err:
        if path not in _given_up:
            _given_up.add(path)
            why = f"{path}: cannot be written ({err.strerror or err})"
            log.warning("%s; the training goes on without it", err if isinstance(err, OutputError) else why)


class EventLog:
    """A file of one JSON object a line, with the time in UTC; a line that a kill cut off is dropped.

    Raises:
        OutputError: A link stands in its place.
    """

    def __init__(
        self,
        path: Path,  # file to append to
    ):
        no_link(path)
        self.path = path
        with _record(path):
            before = path.read_bytes() if path.exists() else b""
            if before[-1:] not in (b"", b"\n") or before and path.stat().st_nlink > 1:  # a link to another's file
                with whole_file(path) as file:
                    file.write(before[: before.rfind(b"\n") + 1])

    def __call__(self, event: str, **fields: Any) -> None:
        """Append a line, if it can be written."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": now, "event": event, **fields}) + "\n"
        with _record(self.path), open(self.path, "a", encoding="utf-8", opener=_no_link_opener) as file:
            file.write(line)


def _no_link_opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


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
        with _record(self.path), whole_file(self.path) as file:
            pd.DataFrame(self.rows).to_csv(file, index=False)

    def state_dict(self) -> dict[str, list]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Go on after these rows."""
        values = [v for row in state["rows"] for v in row.values()]
        if not all(v is None or isinstance(v, int | float | torch.Tensor) for v in values):
            raise ValueError("a row of the history holds no numbers")
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


class _EventFile:
    """A file for TensorBoard, written at once: its own writer has a thread, and names files after the computer."""

    def __init__(
        self,
        folder: Path,  # where it is made
        step: int,  # of what comes first; the same of before is replaced
    ):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        folder.mkdir(exist_ok=True)
        path = folder / f"events.out.tfevents.{int(time.time())}.{secrets.token_hex(4)}"
        self.file, self.event = open(path, "xb"), Event  # noqa: SIM115  closed by its owner
        self.records = RecordWriter(self.file)
        self.add(step, file_version="brain.Event:2")
        self.add(step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **what: Any) -> None:
        """Write a record."""
        self.records.write(self.event(wall_time=time.time(), step=step, **what).SerializeToString())


class TensorBoardRecord(Callback):
    """Writes every column of the history, the scores of each class, and pictures of fixed tiles, by epoch."""

    order = ConsoleCallback.order

    def __init__(
        self,
        folder: Path,  # folder of the event files
        panels_every: int = 10,  # epochs between pictures; 0: none
    ):
        self.folder, self.panels_every = folder, panels_every
        self.event_file: _EventFile | None = None
        self.opened = False

    def before_fit(self):
        """Look at the folder; the file is made when there is something to write."""
        no_link(self.folder)
        self.opened = False

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
        """Write the epoch; those that come again replace those of before."""
        if not self.opened:
            self.opened = True
            with _record(self.folder):
                self.event_file = _EventFile(self.folder, self.learn.first_epoch + 1)
        if self.event_file is None:
            return
        events, self.event_file = self.event_file, None  # one that cannot be written is left
        with _record(self.folder):
            self._write(events, self.epoch + 1)
            self.event_file = events
        if self.event_file is None:
            _close(events)

    def _write(self, events: _EventFile, step: int) -> None:
        from torch.utils.tensorboard import summary
        from torch.utils.tensorboard._utils import figure_to_image

        for name, value in _row(self.learn).items():
            if name != "epoch":
                events.add(step, summary=summary.scalar(self.tag(name), value))
        matrix = self.learn.confusion_matrix.latest
        for kind, score in PER_CLASS.items():
            for name, value in zip((*CLASSES, "ice"), with_ice(score, matrix), strict=True):
                events.add(step, summary=summary.scalar(f"{kind}/{name}", value))
        table = "\n".join(f"    {line}" for line in class_table(matrix).splitlines())
        events.add(step, summary=summary.text("classes", table))
        if self.panels_every and (step % self.panels_every == 0 or step == self.n_epoch):
            picture = figure_to_image(results_figure(self.learn))
            events.add(step, summary=summary.image("tiles", picture, dataformats="CHW"))
        events.file.flush()

    def after_fit(self):
        """Close."""
        self.release()

    def release(self):
        """Close, however the training ends."""
        if self.event_file is not None:
            _close(self.event_file)
            self.event_file = None


def _close(events: _EventFile) -> None:
    with suppress(OSError):  # what a full disk has not taken
        events.file.close()
