"""Several models as one: their mean, how sure it is, and what it decides. A single bundle is an ensemble of one.

`ensemble.yaml` names the bundles, how they are used, and what was fitted to their out-of-fold predictions:

    version: 1
    members: [{bundle: fold0/best.safetensors, weight: 1.0}, ...]   paths as seen from the file
    predict: {views: true, scales: [1.0], postprocess: null}        as in a recipe
    calibration: {temperature: 1.3, bias: [0, 0, 0, 0], offsets: [0, 0, 0, 0], area: [-1.2, 1.4]}
    measured: {...}                                                 how well, by `calibrate`; nothing reads it
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import torch
import yaml
from fastai.torch_core import default_device
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from ..bands import CLASSES
from ..core.calibration import calibrated, decide
from ..core.scales import one_pass
from ..data.texture import Texture
from ..errors import BundleError, PredictionError
from ..files import file_hash, whole_file
from ..recipe import PredictRecipe, Section, explain, predict_with
from ..train.bundle import ModelBundle
from .source import Channel, SceneSource

__all__ = ["Calibration", "Ensemble", "Member"]

PerClass = Annotated[tuple[float, ...], Field(strict=False, min_length=len(CLASSES), max_length=len(CLASSES))]
NONE = (0.0,) * len(CLASSES)


class Calibration(Section):
    """What was fitted to out-of-fold predictions (`core.calibration`). By default it changes nothing."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    bias: PerClass = NONE
    offsets: PerClass = Field(NONE, description="added to the log probabilities before the class is chosen")
    area: Annotated[tuple[float, ...], Field(strict=False, min_length=2, max_length=2)] | None = None

    @field_validator("area")
    @classmethod
    def _ascending(cls, area: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if area and not area[0] <= area[1]:
            raise ValueError("use two numbers in ascending order")
        return area


class _Listed(Section):
    bundle: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class _File(Section):
    version: Literal[1] = 1
    members: tuple[_Listed, ...] = Field(strict=False, min_length=1)
    predict: PredictRecipe = PredictRecipe()
    calibration: Calibration = Calibration()
    measured: dict[str, Any] = {}


@dataclass(frozen=True)
class Member:
    """A model of an ensemble."""

    bundle: ModelBundle  # without its weights where `path` says where to get them
    weight: float = 1.0
    path: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the bundle, weights included."""
        if self.path is not None:
            return file_hash(self.path)
        found = hashlib.sha256(repr(replace(self.bundle, weights={})).encode())
        for name, weight in self.bundle.weights.items():
            found.update(name.encode() + weight.contiguous().numpy().tobytes())
        return found.hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike, weight: float = 1.0) -> Member:
        """Read a bundle, all but its weights; raises `BundleError`."""
        return cls(replace(ModelBundle.load(path), weights={}), weight, Path(path))

    def loaded(self) -> ModelBundle:
        """Return the bundle with its weights."""
        return self.bundle if self.path is None else ModelBundle.load(self.path)

    def softmax(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return `ModelBundle.softmax`."""
        return self.loaded().softmax(device)

    @property
    def channels(self) -> list[Channel]:
        """What the model takes."""
        texture = Texture(**self.bundle.texture) if self.bundle.texture else None
        return [(band, texture if band.startswith("glcm_") else None) for band in self.bundle.bands]


@dataclass(frozen=True)
class Ensemble:
    """Models of the same classes, how they are used, and what was fitted to their predictions."""

    members: tuple[Member, ...]
    predict: PredictRecipe = PredictRecipe()
    calibration: Calibration = Calibration()
    channels: tuple[Channel, ...] = field(init=False)  # what all of them take together

    def __post_init__(self):
        channels: list[Channel] = []
        for member in self.members:
            if member.bundle.classes != CLASSES:
                raise BundleError(
                    f"{member.path or 'bundle'}: has classes {', '.join(member.bundle.classes)}; maps are of "
                    f"{', '.join(CLASSES)}"
                )
            if member.bundle.standardised != self.members[0].bundle.standardised:
                raise BundleError(
                    f"{member.path}: of {self.members[0].path} and this, one was trained on standardised values"
                )
            channels += [c for c in member.channels if c not in channels]
        object.__setattr__(self, "channels", tuple(channels))

    @classmethod
    def of(cls, model: ModelBundle | Ensemble) -> Ensemble:
        """Return a bundle as an ensemble of one, used as its recipe wants."""
        return model if isinstance(model, Ensemble) else cls((Member(model),), model.predict)

    @classmethod
    def load(
        cls,
        paths: Sequence[str | os.PathLike],  # bundles, or one ensemble.yaml
        overrides: Sequence[str] = (),  # of the recipe's section `predict`, for instance "predict.views=true"
    ) -> Ensemble:
        """Read an ensemble. Bundles alone are used as the recipe of the first one wants, with equal weights.

        Overrides that change the maps leave area intervals out: these were fitted to other maps.

        Raises:
            BundleError: A bundle that cannot be used, or bundles that do not fit each other.
            RecipeError: An override, or an ensemble.yaml, with an unknown key or an impossible value.
        """
        first = Path(paths[0])
        if first.suffix in (".yaml", ".yml"):
            if len(paths) > 1:
                raise BundleError(f"{first}: names its own bundles; leave out {paths[1]}, or add it there")
            file = _read(first)
            home = first.resolve().parent  # also of a link
            members = tuple(Member.load(home / m.bundle, m.weight) for m in file.members)
            ensemble = cls(members, file.predict, file.calibration)
        else:
            members = tuple(Member.load(p) for p in paths)
            ensemble = cls(members, members[0].bundle.predict)
        predict = predict_with(ensemble.predict, overrides)
        if predict != ensemble.predict:  # area intervals hold for the maps that they were fitted to
            unfit = ensemble.calibration.model_copy(update={"area": None})
            ensemble = replace(ensemble, predict=predict, calibration=unfit)
        return ensemble

    def save(self, path: str | os.PathLike, measured: dict[str, Any]) -> None:
        """Write `ensemble.yaml`; its bundles must be files."""
        path = Path(path)
        listed = [
            {"bundle": os.path.relpath(m.path.resolve(), path.parent.resolve()), "weight": m.weight}
            for m in self.members
        ]
        tree = {
            "version": 1,
            "members": listed,
            "predict": self.predict.model_dump(mode="json"),
            "calibration": self.calibration.model_dump(mode="json"),
            "measured": measured,
        }
        with whole_file(path) as file:
            file.write(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())

    def check(
        self,
        where: str | os.PathLike,  # file or folder named in errors
        bands: tuple[str, ...],  # bands it has
        standardised: bool = False,  # whether its values came standardised
    ) -> None:
        """Make sure that data fit every member; raises `BundleError`."""
        for member in self.members:
            member.bundle.check(where, SceneSource.derivable(bands), standardised)

    def decide(self, probs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return class codes `(h, W)` uint8 and calibrated probabilities `(K, h, W)` float32 of mean ones."""
        c = self.calibration
        if c.temperature != 1 or any(c.bias):
            probs = calibrated(probs, c.temperature, c.bias)
        return decide(probs, c.offsets).cpu().numpy(), probs.cpu().numpy()


def _read(path: Path) -> _File:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise BundleError(f"{path}: no ensemble; `glacier-fastai crossval` and `calibrate` write such files")
        return _File.model_validate(tree)
    except OSError as err:
        raise BundleError(f"{path}: cannot be read ({err.strerror})") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise BundleError(f"{path}: not YAML ({' '.join(str(err).split())})") from err
    except ValidationError as err:
        raise BundleError(f"{path}: {explain(err, _File)}") from err


class Predictor:
    """An ensemble on a device: windows in, the mean of their probabilities out."""

    def __init__(
        self,
        ensemble: Ensemble,
        device: torch.device | None = None,  # default fastai's
        batch_size: int | None = None,  # windows at once; default as many as fit on a GPU, one on a CPU
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,  # of the channels, default the bundles'
    ):
        self.ensemble, self.device = ensemble, device or default_device()
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 1)
        self.inputs = []
        for member in ensemble.members:
            index = [ensemble.channels.index(c) for c in member.channels]
            mean, std = (member.bundle.mean, member.bundle.std)
            if statistics is not None:
                mean, std = ([s[i] for i in index] for s in statistics)
            scale = [torch.tensor(s, dtype=torch.float32, device=self.device)[:, None, None] for s in (mean, std)]
            self.inputs.append((index, *scale))
        size = sum(2 * m.path.stat().st_size for m in ensemble.members if m.path)  # half precision on disk
        together = len(ensemble.members) == 1 or size < _free(self.device) / 2
        self.models = [m.softmax(self.device) for m in ensemble.members] if together else None

    def __call__(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        """Return probabilities `(K, h, w)` of each window `(C, h, w)`, all of one size, NaN where there is no data.

        Members whose weights do not fit into memory together are read one after the other.

        Raises:
            PredictionError: Not even one window fits into the device's memory.
        """
        while True:
            try:
                return self._mean(windows)
            except torch.OutOfMemoryError as err:
                self._use_less(err, windows[0].shape)

    def _use_less(self, err: Exception, shape: tuple[int, ...]) -> None:
        if self.batch_size > 1:
            self.batch_size //= 2
        elif self.models and len(self.models) > 1:
            self.models = None
        else:
            raise PredictionError(
                f"out of memory on {self.device} with one window of {shape[1]} x {shape[2]} px; use a smaller --window"
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
        return [t / whole for t in totals]

    def _sum(self, windows: Sequence[np.ndarray], group: Sequence[int], models: Sequence[Callable]) -> Tensor:
        """Return the weighted sum of probabilities over views, scales and members, in this order."""
        raw = torch.from_numpy(np.stack(windows)).to(self.device)
        inputs = []
        for m in group:
            index, mean, std = self.inputs[m]
            inputs.append(raw[:, index].sub_(mean).div_(std).nan_to_num_(nan=0.0))
        total: Any = 0
        for k, scale in self.ensemble.predict.passes:
            for m, model, x in zip(group, models, inputs, strict=True):
                total = total + self.ensemble.members[m].weight * one_pass(model, x, k, scale)
        return total


def _free(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
