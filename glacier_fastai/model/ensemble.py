"""Several models as one: what they take, how they are used, what they decide. A single bundle is an ensemble of one.

`ensemble.yaml` names the bundles, how they are used, and what was fitted to their out-of-fold predictions:

    version: 1
    members: [{bundle: fold0/best.safetensors, weight: 1.0}, ...]   paths as seen from the file
    predict: {views: true, scales: [1.0], postprocess: null}        as in a recipe
    calibration: {temperature: 1.3, bias: [0, 0, 0, 0], offsets: [0, 0, 0, 0], area: [-1.2, 1.4],
                  glacier: [1.5, 0.2, 0.1, -1.2, 1.3]}
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
import torch
import yaml
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from ..bands import CLASSES
from ..core.calibration import all_glacier, calibrated, decide
from ..data.channels import Channel
from ..errors import BundleError
from ..files import file_hash, identity, whole_file
from ..reading import opened, read_yaml
from ..recipe import PredictRecipe, Section, explain, predict_with
from .bundle import ModelBundle
from .fitted import Calibration
from .registry import architecture

__all__ = ["Calibration", "Ensemble", "Member"]


class _Listed(Section):
    bundle: str
    weight: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0


class _File(Section):
    version: Literal[1] = 1
    members: tuple[_Listed, ...] = Field(strict=False, min_length=1, max_length=1000)
    predict: PredictRecipe = PredictRecipe()
    calibration: Calibration = Calibration()
    measured: dict[str, Any] = {}

    @field_validator("members")
    @classmethod
    def _once(cls, members: tuple[_Listed, ...]) -> tuple[_Listed, ...]:
        if len({os.path.normpath(m.bundle) for m in members}) < len(members):
            raise ValueError("a bundle is named twice: name each once, and give it a weight")
        return members


@dataclass(frozen=True)
class Member:
    """A model of an ensemble."""

    bundle: ModelBundle  # without its weights where `path` says where to get them
    weight: float = 1.0
    path: Path | None = None
    sha256: str = ""  # of the file at `path`, as it was read

    @property
    def once(self) -> bool:
        """Whether it sees an image once, as it is: views and scales are for networks, not for what is fitted."""
        return architecture(self.bundle.arch)[0].fit is not None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the bundle, weights included."""
        if self.path is not None:
            return self.sha256 or file_hash(self.path)
        found = hashlib.sha256(repr(replace(self.bundle, weights={})).encode())
        for name, weight in self.bundle.weights.items():
            found.update(name.encode() + weight.contiguous().numpy().tobytes())
        return found.hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike, weight: float = 1.0) -> Member:
        """Read a bundle, all but its weights; raises `BundleError`."""
        bundle, sha256 = _bundle(Path(path))
        return cls(replace(bundle, weights={}), weight, Path(path), sha256)

    def loaded(self) -> ModelBundle:
        """Return the bundle with its weights; raises `BundleError` if its file is not the one that was read first."""
        if self.path is None:
            return self.bundle
        bundle, sha256 = _bundle(self.path)
        if sha256 != self.fingerprint:
            raise BundleError(f"{self.path}: was replaced while it was in use; start again, with a copy if it goes on")
        return bundle

    def softmax(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return `ModelBundle.softmax`."""
        return self.loaded().softmax(device)


def used_as(members: Sequence[Member]) -> PredictRecipe:
    """Return how models are used that no ensemble.yaml speaks of: as the recipe of the first network wants."""
    return next((m for m in members if not m.once), members[0]).bundle.predict


@dataclass(frozen=True)
class Ensemble:
    """Models of the same classes, how they are used, and what was fitted to their predictions.

    If one of them does not tell debris from clean ice, neither does the ensemble: all ice is glacier.
    """

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
            channels += [c for c in member.bundle.channels if c not in channels]
        object.__setattr__(self, "channels", tuple(channels))

    @property
    def tells_debris(self) -> bool:
        """Whether every model tells debris from clean ice."""
        return all(m.bundle.tells_debris for m in self.members)

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel that the first model knows, metres; None where it does not say."""
        return self.members[0].bundle.profile.pixel_size

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
        """Read an ensemble. Bundles alone are used as the recipe of the first network wants, with equal weights.

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
            ensemble = cls(members, used_as(members))
        predict = predict_with(ensemble.predict, overrides)
        if predict != ensemble.predict:  # area intervals hold for the maps that they were fitted to
            unfit = ensemble.calibration.model_copy(update={"area": None, "glacier": None})
            ensemble = replace(ensemble, predict=predict, calibration=unfit)
        return ensemble

    def save(self, path: str | os.PathLike, measured: dict[str, Any]) -> None:
        """Write `ensemble.yaml`; its bundles must be files."""
        path = Path(path)
        listed = []
        for member in self.members:
            if member.path is None:
                raise BundleError(f"{path}: its models must be files, to be named there; save them first")
            where = os.path.relpath(member.path.resolve(), path.parent.resolve())
            listed.append({"bundle": where, "weight": member.weight})
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
            member.bundle.check(where, bands, standardised)

    def decide(self, probs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return class codes `(h, W)` uint8 and calibrated probabilities `(K, h, W)` float32 of mean ones."""
        c = self.calibration
        if not self.tells_debris:
            probs = all_glacier(probs)
        if c.temperature != 1 or any(c.bias):
            probs = calibrated(probs, c.temperature, c.bias)
            if not self.tells_debris:
                probs = all_glacier(probs)  # calibration knows no probability of 0
        return decide(probs, c.offsets).cpu().numpy(), probs.cpu().numpy()


def _bundle(path: Path) -> tuple[ModelBundle, str]:
    """Return a bundle and the SHA-256 of its file."""
    for _ in range(3):
        with opened(path, BundleError, link=True):
            pass
        before = identity(path)
        bundle, sha256 = ModelBundle.load(path), file_hash(path)  # in this order: what is no bundle may be long
        if identity(path) == before:
            return bundle, sha256
    raise BundleError(f"{path}: is being replaced again and again; use a copy of it")


def _read(path: Path) -> _File:
    tree = read_yaml(path, BundleError, link=True)
    if not isinstance(tree, dict):
        raise BundleError(f"{path}: no ensemble; `glacier-fastai crossval` and `calibrate` write such files")
    try:
        return _File.model_validate(tree)
    except ValidationError as err:
        raise BundleError(f"{path}: {explain(err, _File)}") from err
