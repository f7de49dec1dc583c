"""Exact resume: all that a run depends on, in one file that is whole or absent.

A checkpoint stands after a number of batches of an epoch; validation, which changes nothing, is done again. It is
written to a temporary name, synced, and renamed, so the one before it stays until the new one is complete. It is loaded
with `weights_only=True`: no code in it is run.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import TrackerCallback
from fastai.torch_core import rank_distrib
from pydantic import Field, JsonValue
from torch import nn

from .. import __version__
from ..errors import CheckpointError
from ..files import whole_file
from ..model.bundle import unwrapped
from ..model.processes import all_gather, all_reduce_max, on_rank_zero
from ..reading import WHOLE, read_checkpoint, refusing
from ..recipe import Section
from .stop import StopCallback

__all__ = ["CheckpointCallback", "differences", "load_checkpoint", "save_checkpoint"]

FORMAT = "glacier_fastai checkpoint"
VERSION = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "grad_avg", "sqr_avg")  # of the shape of their parameter
DAMAGED = "damaged, or not of this run"


class _Head(Section):
    """What is read of a checkpoint before the run has what the rest is put into."""

    identity: dict[str, JsonValue]
    at: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]  # epoch, and batches of the next one
    ended: bool
    torch: str


def save_checkpoint(
    path: Path,  # file to write
    state: dict[str, Any],  # tensors, numbers, strings, and lists, tuples and dicts of them
) -> None:
    """Write a checkpoint, or leave the one that is there as it was.

    Raises:
        OutputError: It cannot be written, as when the disk is full.
    """
    about = {"format": FORMAT, "version": VERSION, "code": __version__, "torch": str(torch.__version__)}
    with whole_file(path) as file:
        torch.save({**about, **state}, file)


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Raises:
        CheckpointError: No checkpoint, cut short, or of another version.
    """
    state = read_checkpoint(path, CheckpointError)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a file of torch, but no checkpoint of glacier_fastai")
    version, code = state.get("version"), state.get("code")
    if (version, code) != (VERSION, __version__):
        raise CheckpointError(
            f"{path}: made by glacier_fastai {code} (format {version}), this is {__version__} "
            f"(format {VERSION}); go on with that one, or start a new run from its weights"
        )
    with refusing(path, CheckpointError, DAMAGED):
        return {**state, **_Head.model_validate({k: state.get(k) for k in _Head.model_fields}).model_dump()}


def differences(
    there: dict[str, Any],  # of the checkpoint
    here: dict[str, Any],  # of the run that wants to go on
) -> list[str]:
    """Return what differs, as `path: A there, B here`."""
    found = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif a != b:
            found.append(f"{key}: {a} there, {b} here")
    return found


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def _number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kinds(value: Any) -> Any:
    """Return of what kind settings are, by name; those that are no numbers must not change at all."""
    if isinstance(value, dict):
        return {k: _kinds(v) for k, v in value.items() if k != "params"}
    if isinstance(value, list | tuple):
        return [_kinds(v) for v in value]
    if isinstance(value, bool | str | None):
        return repr(value)
    if isinstance(value, int | float | np.number):
        return "number" if math.isfinite(value) else "not finite"
    return type(value).__name__


def _check(state: dict[str, Any]) -> None:
    """Raise `ValueError` for numbers of another kind, which else are found where nobody knows the file any more."""
    recorder, losses = state["recorder"], state["recorder"]["losses"]
    smooth, count = recorder["smooth_loss"]
    counts = [state["train_iter"], state["loader"], *recorder["iters"], count]
    if not all(type(n) is int and 0 <= n < WHOLE for n in counts):
        raise ValueError("a count is no whole number")
    rows = [recorder["lrs"], [state["pct_train"]]]
    rows += [[tracker.get(k, 0) for k in ("best", "wait")] for tracker in state["trackers"].values()]
    metrics = [v for row in recorder["values"] for v in row]  # those of users may be a tensor, or None without a batch
    fine = [v is None or isinstance(v, torch.Tensor) or _number(v) for v in metrics]
    if not all([*fine, *(_number(v) for row in rows for v in row)]):
        raise ValueError("a value of the record is no number")
    for tensor, ndim in ((losses, 1), (smooth, 0)):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != ndim or not tensor.is_floating_point():
            raise ValueError("losses are no row of numbers")


def _rehearse(opt: Any) -> None:
    """Raise `ValueError` unless the optimizer can make a step from its state; a copy makes it, without gradients."""
    trial = copy.deepcopy(opt)
    for p, *_ in trial.all_params():
        p.grad = torch.zeros_like(p)
    trial.step()
    if not all(p.isfinite().all() for p, *_ in trial.all_params()):
        raise ValueError("a step of the optimizer from its state gives weights that are not finite")


class CheckpointCallback(Callback):
    """Saves a run after its epochs and every so many minutes, and goes on from what was saved.

    A run that goes on is the run that was never stopped, on the CPU bit for bit. Callbacks take part with `state_dict`
    and `epoch_state`, see `callbacks`; of fastai's own the Recorder and the trackers are known.
    """

    order = 100  # after all that an epoch changes

    def __init__(
        self,
        path: Path,  # file to write
        identity: dict[str, Any],  # what must not differ when the run goes on
        resume: dict[str, Any] | None = None,  # checkpoint to go on from
        every: int = 1,  # epochs between checkpoints
        keep: int = 1,  # checkpoints kept after epochs: `path`, and those before it as epochNNNN.ckpt
        minutes: float | None = None,  # save within an epoch, too, after so many minutes
    ):
        self.path, self.identity, self.resume = path, identity, resume
        self.every, self.keep, self.minutes = every, keep, minutes

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What has weights: the model, and the loss where it is a module."""
        loss = {"loss": self.criterion} if isinstance(self.criterion, nn.Module) else {}
        return {"model": unwrapped(self.model), **loss}

    def _stateful(self, method: str) -> list[Callback]:
        return [cb for cb in self.learn.cbs if hasattr(type(cb), method)]  # fastai hands on what an object lacks

    def before_fit(self):
        """Take up the state of the checkpoint; its epoch's part follows in `before_train`."""
        self.at, self.saved_at, self.ended, self.saved = (0, 0), None, False, time.monotonic()
        self.pending, self.criterion = self.resume, self.loss_func  # MixUp puts a function in the place of the loss
        if self.resume is None:
            return
        with refusing(self.path, CheckpointError, DAMAGED):
            self._take_up(self.resume)

    def _take_up(self, state: dict[str, Any]) -> None:
        recorder, before = self.recorder, [_kinds(h) for h in self.opt.hypers]
        _check(state)
        self.at = self.saved_at = state["at"]
        self.learn.first_epoch, self.learn.train_iter = state["at"][0], state["train_iter"]
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        self.opt.load_state_dict(state["optimizer"])
        if [_kinds(h) for h in self.opt.hypers] != before or not all(0 <= h["lr"] < math.inf for h in self.opt.hypers):
            raise ValueError("settings of the optimizer are of another kind")
        inner: Any = getattr(self.opt, "opt", self.opt)
        for p, kept in inner.state.items():  # PyTorch's, or fastai's
            if any(k in MOMENTS and v is not None and v.shape != p.shape for k, v in kept.items()) or not _number(
                kept.get("step", 0)
            ):
                raise ValueError("state of the optimizer is of another network")
        _rehearse(self.opt)
        if state["scaler"]:
            self.learn.scaler.load_state_dict(state["scaler"])
        for cb in self._stateful("state_dict"):
            cb.load_state_dict(state["callbacks"][cb.name])
        for cb in self._trackers():
            vars(cb).update({k: v for k, v in state["trackers"][cb.name].items() if k in ("best", "wait")})
        recorder.values = [list(row) for row in state["recorder"]["values"]]
        recorder.lrs, recorder.losses = state["recorder"]["lrs"], list(state["recorder"]["losses"])
        recorder.iters = state["recorder"]["iters"]
        recorder.smooth_loss.val, recorder.smooth_loss.count = state["recorder"]["smooth_loss"]

    def _trackers(self) -> list[Callback]:
        return [cb for cb in self.learn.cbs if isinstance(cb, TrackerCallback)]

    def before_train(self):
        """Go on in the middle of the epoch, where the checkpoint stands there."""
        if self.pending is not None:
            state, self.pending = self.pending, None
            with refusing(self.path, CheckpointError, DAMAGED):
                mine = state["ranks"][rank_distrib()]
                self.dls.train.epoch, self.dls.train.start = state["loader"], state["at"][1]
                self.learn.pct_train = state["pct_train"] if state["at"][1] else self.learn.pct_train
                for cb in self._stateful("epoch_state") if state["at"][1] else []:
                    cb.load_epoch_state(mine["epoch"][cb.name])
                pairs = zip(self._parameters(), state["gradients"], strict=True) if state["gradients"] else ()
                for p, gradient in pairs:
                    p.grad = None if gradient is None else gradient.to(p.device)
                self.trained = mine
                _set_random_state(mine["random"])
        self.at, self.loader = (self.epoch, self.dls.train.start), self.dls.train.epoch

    def _parameters(self) -> list[nn.Parameter]:
        return [p for network in self.networks.values() for p in network.parameters()]

    def after_batch(self):
        """Note how far it has come, and save if it is time."""
        if not self.training:
            return
        self.at = (self.epoch, self.iter + 1)
        if self.iter + 1 == self.n_iter:
            self.trained = self._epoch_state()  # what follows sums it over processes, and may draw random numbers
        if self.minutes and all_reduce_max(int(time.monotonic() - self.saved > 60 * self.minutes)):
            self.save()

    def after_epoch(self):
        """Save."""
        self.at = (self.epoch + 1, 0)
        if self.at[0] % self.every == 0 or self.at[0] == self.n_epoch:
            self.save()

    def after_cancel_fit(self):
        """Save where a stop was asked for; what else ends a fit has ended training."""
        self.ended = not any(cb.reason for cb in self.learn.cbs if isinstance(cb, StopCallback))
        if self.ended:
            self.at = (self.epoch + 1, 0)
        if self.ended or self.saved_at != self.at:
            self.save()

    def after_fit(self):
        """Leave the learner as it was."""
        self.learn.first_epoch = 0

    def _epoch_state(self) -> dict[str, Any]:
        inside = self._stateful("epoch_state") if self.at[1] else []
        return {"random": _random_state(), "epoch": {cb.name: cb.epoch_state() for cb in inside}}

    def state(self) -> dict[str, Any]:
        """Return all that the run depends on; every process must call it."""
        inside, recorder, scaler = self.at[1] > 0, self.recorder, getattr(self.learn, "scaler", None)
        mine = self.trained if inside and not self.training else self._epoch_state()
        gradients = [p.grad for p in self._parameters()]
        return {
            "identity": self.identity,
            "at": self.at,
            "ended": self.ended,
            "loader": self.loader if inside else self.dls.train.epoch,
            "train_iter": self.learn.train_iter,
            "pct_train": self.learn.pct_train,
            **{name: network.state_dict() for name, network in self.networks.items()},
            "optimizer": self.opt.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "gradients": gradients if any(g is not None for g in gradients) else [],
            "callbacks": {cb.name: cb.state_dict() for cb in self._stateful("state_dict")},
            "trackers": {
                cb.name: {k: v for k, v in vars(cb).items() if k in ("best", "wait")} for cb in self._trackers()
            },
            "recorder": {
                "values": [list(row) for row in recorder.values],
                "lrs": list(recorder.lrs),
                "losses": torch.stack(list(recorder.losses)) if len(recorder.losses) else torch.zeros(0),
                "iters": list(recorder.iters),
                "smooth_loss": (recorder.smooth_loss.val, recorder.smooth_loss.count),
            },
            "ranks": all_gather(mine),
        }

    def save(self) -> None:
        """Write the checkpoint; every process must call it."""
        state = self.state()
        on_rank_zero(lambda: self._write(state))
        self.saved, self.saved_at = time.monotonic(), self.at

    def _write(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.path, state)
        if self.keep > 1 and self.at[1] == 0:
            kept = self.path.with_name(f"epoch{self.at[0]:04d}.ckpt")
            kept.unlink(missing_ok=True)
            os.link(self.path, kept)
            for old in sorted(self.path.parent.glob("epoch[0-9]*.ckpt"))[: -self.keep]:
                old.unlink()
