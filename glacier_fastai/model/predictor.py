"""The one forward pass: windows in, the mean of the models' class probabilities out.

Tiles, scenes, out-of-fold predictions, interpretation and reports all come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bands import aspect_index
from ..core.dihedral import one_pass
from ..core.moments import standardise
from ..errors import PredictionError
from ..memory import available, out_of_memory
from .ensemble import Ensemble

__all__ = ["Predictor", "default_device"]


Values = Sequence[float] | np.ndarray


def default_device() -> torch.device:
    """Return the GPU that this process uses, or without one the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Predictor:
    """An ensemble on a device: windows in, the mean of their probabilities out."""

    def __init__(
        self,
        ensemble: Ensemble,
        device: torch.device | None = None,  # default `default_device`
        batch_size: int | None = None,  # windows at once; default as many as fit on a GPU, one on a CPU
    ):
        self.ensemble, self.device = ensemble, device or default_device()
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 1)
        self.normalise_by(None)
        turned = any(k for k, _ in ensemble.predict.passes)
        self.aspects = [aspect_index(m.bundle.bands) if turned else None for m in ensemble.members]
        size = sum(2 * m.path.stat().st_size for m in ensemble.members if m.path)  # half precision on disk
        together = len(ensemble.members) == 1 or size < _free(self.device) / 2
        self.models: list[Callable[[Tensor], Tensor]] | None = None
        if together:
            self.models = [m.softmax(self.device) for m in ensemble.members]

    def normalise_by(
        self,
        statistics: tuple[Values, Values] | None,  # mean and deviation of each channel; None: those of the bundles
    ) -> None:
        """Set what windows are normalised with from now on."""
        self.inputs: list[tuple[list[int], Tensor, Tensor]] = []
        for member in self.ensemble.members:
            index = [self.ensemble.channels.index(c) for c in member.bundle.channels]
            mean, std = member.bundle.mean, member.bundle.std
            if statistics is not None:
                mean, std = (tuple(s[i] for i in index) for s in statistics)
            scale = [torch.tensor(s, dtype=torch.float32, device=self.device)[:, None, None] for s in (mean, std)]
            self.inputs.append((index, scale[0], scale[1]))

    def __call__(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        """Return probabilities `(K, h, w)` of each window `(C, h, w)`, all of one size, NaN where there is no data.

        Members whose weights do not fit into memory together are read one after the other.

        Raises:
            PredictionError: Not even one window fits into the device's memory.
        """
        while True:
            try:
                return self._mean(windows)
            except (MemoryError, RuntimeError) as err:
                if not out_of_memory(err):
                    raise
                self._use_less(err, windows[0].shape)

    def _use_less(self, err: Exception, shape: tuple[int, ...]) -> None:
        if self.batch_size > 1:
            self.batch_size //= 2
        elif self.models and len(self.models) > 1:
            self.models = None
        else:
            raise PredictionError(
                f"out of memory on {self.device} with one window of {shape[1]} x {shape[2]} px; use a smaller window"
            ) from err
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _mean(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        members = range(len(self.inputs)) if windows else []  # or models would be read for nothing
        totals: list[Tensor] = []
        for group in [members] if self.models else [[m] for m in members]:
            models = self.models or [self.ensemble.members[m].softmax(self.device) for m in group]
            for at in range(0, len(windows), self.batch_size):
                found = self._sum(windows[at : at + self.batch_size], group, models)
                if len(totals) < len(windows):
                    totals.extend(found)
                else:
                    for k, probs in enumerate(found, at):
                        totals[k] += probs
        whole = sum(m.weight for m in self.ensemble.members) * len(self.ensemble.predict.passes)
        for window, probs in zip(windows, totals, strict=True):
            valid = torch.from_numpy(np.isfinite(window).all(0)).to(probs.device)
            if not (torch.isfinite(probs).all(0) | ~valid).all():
                names = ", ".join(str(m.path or "the model") for m in self.ensemble.members)
                raise PredictionError(
                    f"{names}: gives what is no probability; its weights are damaged, or values absurd"
                )
        return [t / whole for t in totals]

    def _sum(self, windows: Sequence[np.ndarray], group: Sequence[int], models: Sequence[Callable]) -> Tensor:
        """Return the weighted sum of probabilities over views, scales and members, in this order."""
        raw = torch.from_numpy(np.stack(windows)).to(self.device)
        inputs = []
        for m in group:
            index, mean, std = self.inputs[m]
            inputs.append(standardise(raw[:, index], mean, std))
        total: Any = 0
        passes = self.ensemble.predict.passes
        for n, (k, scale) in enumerate(passes):
            for m, model, x in zip(group, models, inputs, strict=True):
                member = self.ensemble.members[m]
                if not member.once:
                    total = total + member.weight * one_pass(model, x, k, scale, self.aspects[m])
                elif n == 0:
                    total = total + len(passes) * member.weight * model(x)
        return total


def _free(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
