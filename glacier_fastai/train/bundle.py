"""The model bundle: one safetensors file that holds a trained model and all that is needed to use it. No pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from ..bands import CLASSES, check_bands, texture_of
from ..core.scales import one_pass
from ..data.texture import Texture
from ..errors import BundleError
from ..files import whole_file
from ..recipe import PredictRecipe
from .distributed import unwrapped
from .models import GlacierUnet, adapt_first_conv, adapt_head, glacier_unet

__all__ = ["ModelBundle"]

FORMAT = "glacier_fastai model bundle"
VERSION = 1
FIRST, HEAD = "encoder.conv1.weight", "segmentation_head.0"


@dataclass(frozen=True)
class ModelBundle:
    """Weights, and what they mean."""

    weights: dict[str, torch.Tensor]  # state dict of a `GlacierUnet`
    arch: str  # its encoder
    attention: str | None  # its attention
    bands: tuple[str, ...]  # bands it takes, in this order
    mean: tuple[float, ...]  # mean per band it is normalised with
    std: tuple[float, ...]  # standard deviation per band
    classes: tuple[str, ...] = CLASSES  # classes by code
    recipe: dict[str, Any] | None = None  # resolved recipe of the run
    texture: dict[str, Any] | None = None  # fields of `data.texture.Texture`, where bands are computed as texture
    standardised: bool = False  # trained on values that came standardised: mean and std are then 0 and 1
    metrics: dict[str, Any] = field(default_factory=dict)  # scores on the validation tiles, as `confusion.scores`
    trained_on: dict[str, Any] = field(default_factory=dict)  # data, folds and their hashes, keys of tiles (see run.py)

    @classmethod
    def from_learner(cls, learn, **kwargs) -> ModelBundle:
        """Return the bundle of a learner's present weights; `kwargs` are fields such as `recipe` and `metrics`."""
        model = unwrapped(learn.model)
        return cls(
            weights={k: v.detach().cpu().clone() for k, v in model.state_dict().items()},
            arch=model.arch,
            attention=model.attention,
            bands=tuple(learn.dls.bands),
            mean=tuple(float(v) for v in learn.dls.stats[0]),
            std=tuple(float(v) for v in learn.dls.stats[1]),
            texture=learn.dls.store.info.get("texture"),
            standardised=learn.dls.store.standardised,
            **kwargs,
        )

    def check(
        self,
        where: str | os.PathLike,  # file or folder named in errors
        bands: tuple[str, ...],  # bands it has
        standardised: bool = False,  # whether its values came standardised
    ) -> None:
        """Make sure that data fit the bundle.

        Raises:
            BundleError: A band is missing and no texture of one that is there; or one side only is standardised.
        """
        known = {*bands, *(b for b in self.bands if self.texture and (t := texture_of(b)) and t[1] in bands)}
        if missing := [b for b in self.bands if b not in known]:
            raise BundleError(f"{where}: the bundle needs band {', '.join(missing)}; here are {', '.join(bands)}")
        if standardised != self.standardised:
            ours, theirs = ("already standardised", "as delivered")[:: 1 if self.standardised else -1]
            raise BundleError(
                f"{where}: the bundle was trained on values {ours}, these are {theirs}; fine-tune it on such data first"
            )

    def statistics(
        self,
        bands: tuple[str, ...],  # bands wanted, in this order
    ) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of bands, as the bundle was trained with; raises `BundleError`."""
        if missing := [b for b in bands if b not in self.bands]:
            raise BundleError(f"the bundle has no statistics of band {', '.join(missing)}; set data.statistics=data")
        at = [self.bands.index(b) for b in bands]
        return [self.mean[i] for i in at], [self.std[i] for i in at]

    def model(self) -> GlacierUnet:
        """Return the model in float32, in evaluation mode."""
        model = glacier_unet(self.arch, len(self.bands), len(self.classes), self.attention)
        model.load_state_dict(self.weights)
        return model.eval()

    @property
    def predict(self) -> PredictRecipe:
        """How its recipe wants it to be used."""
        return PredictRecipe(**(self.recipe or {}).get("predict", {}))

    def softmax(
        self,
        device: torch.device,  # where the model is put
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from normalised images `(B, C, H, W)` to class probabilities `(B, K, H, W)`, on `device`.

        Raises:
            BundleError: Its classes are not ours, so that its codes would be taken for other classes.
        """
        if self.classes != CLASSES:
            raise BundleError(f"the bundle has classes {', '.join(self.classes)}; maps are of {', '.join(CLASSES)}")
        model = self.model().to(device, memory_format=torch.channels_last)

        @torch.inference_mode()
        def probs(x: torch.Tensor) -> torch.Tensor:
            return model(x.to(device).contiguous(memory_format=torch.channels_last)).float().softmax(1)

        return probs

    def probabilities(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the same as `softmax`, averaged over the views and scales that the recipe wants."""
        softmax, passes = self.softmax(device), self.predict.passes
        return lambda x: sum(one_pass(softmax, x, *p) for p in passes) / len(passes)

    def halved(self) -> dict[str, torch.Tensor]:
        """Return the weights with convolutions in float16; norm statistics and biases stay float32."""
        return {k: _halved(v) for k, v in self.weights.items()}

    def save(
        self,
        path: str | os.PathLike,  # file to write, usually NAME.safetensors
        half: bool = True,  # convolutions in float16, which halves the file
    ) -> None:
        """Write the bundle (temporary name, then rename)."""
        tensors = self.halved() if half else self.weights
        about = {
            "arch": self.arch,
            "attention": self.attention,
            "bands": self.bands,
            "mean": self.mean,
            "std": self.std,
            "texture": self.texture,
            "standardised": self.standardised,
            "classes": self.classes,
            "recipe": self.recipe,
            "metrics": self.metrics,
            "trained_on": self.trained_on,
        }
        metadata = {"format": FORMAT, "version": str(VERSION), **{k: json.dumps(v) for k, v in about.items()}}
        with whole_file(path) as file:
            file.write(serialize({k: v.contiguous() for k, v in tensors.items()}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> ModelBundle:
        """Read a bundle; nothing else is needed, and no code in it is run.

        Raises:
            BundleError: No such file, not a safetensors file, cut short, not a bundle, of another version, or weights
                that do not fit the architecture it names.
        """
        path = Path(path)
        if not path.is_file():
            raise BundleError(f"{path}: no such file")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                weights = {k: _restored(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError) as err:
            raise BundleError(f"{path}: not a model bundle, or cut short ({' '.join(str(err).split())})") from err
        if metadata.get("format") != FORMAT:
            raise BundleError(f"{path}: a safetensors file, but no model bundle of glacier_fastai")
        if metadata.get("version") != str(VERSION):
            raise BundleError(f"{path}: bundle version {metadata.get('version')}; this glacier_fastai reads {VERSION}")
        try:
            about = {k: json.loads(v) for k, v in metadata.items() if k not in ("format", "version")}
            lists = {k: tuple(about.pop(k)) for k in ("bands", "mean", "std", "classes")}
            bundle = cls(weights=weights, **lists, **about)
            if not len(check_bands(bundle.bands)) == len(bundle.mean) == len(bundle.std):
                raise ValueError("bands and statistics differ in number")
            if not all(math.isfinite(m) and 0 < s < math.inf for m, s in zip(bundle.mean, bundle.std, strict=True)):
                raise ValueError("statistics are not finite, or a deviation is not positive")
            mappings = (bundle.recipe or {}, bundle.texture or {}, bundle.metrics, bundle.trained_on)
            if not all(isinstance(d, dict) for d in mappings):
                raise ValueError("recipe, texture, metrics or trained_on is no mapping")
            bases = {t[1] for b in bundle.bands if (t := texture_of(b))}
            if bundle.texture is not None and not bases <= Texture(**bundle.texture).edges.keys():
                raise ValueError("no grey levels of a band whose texture it takes")
            bundle.model()
            _ = bundle.predict
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as err:
            raise BundleError(f"{path}: damaged or made by other code ({' '.join(str(err).split())[:200]})") from err
        return bundle

    def load_into(self, model: GlacierUnet, bands: tuple[str, ...], classes: tuple[str, ...] = CLASSES) -> list[str]:
        """Load the weights into a model for `bands` and `classes`, by name; return what had to be adapted, in words.

        Raises:
            BundleError: The model is of another architecture.
        """
        if (self.arch, self.attention) != (model.arch, model.attention):
            raise BundleError(
                f"the bundle is a {self.arch} with attention {self.attention}, the recipe wants {model.arch} with "
                f"{model.attention}; set model.arch={self.arch} and model.attention={json.dumps(self.attention)}"
            )
        weights, said = dict(self.weights), []
        if tuple(bands) != self.bands:
            kept = [b for b in bands if b in self.bands]
            new = [b for b in bands if b not in self.bands]
            dropped = [b for b in self.bands if b not in bands]
            weights[FIRST] = adapt_first_conv(weights[FIRST], self.bands, bands)
            said.append(
                f"first convolution: {', '.join(kept) or 'no band'} kept"
                + (f"; {', '.join(new)} start from the mean of {'these' if kept else 'all'}" if new else "")
                + (f"; {', '.join(dropped)} dropped" if dropped else "")
            )
        if tuple(classes) != self.classes:
            fresh = model.state_dict()
            for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
                weights[name] = adapt_head(weights[name], fresh[name].cpu(), self.classes, classes)
            kept = [c for c in classes if c in self.classes]
            said.append(f"last convolution: {', '.join(kept) or 'no class'} kept, the rest starts anew")
        model.load_state_dict(weights)
        return said


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point() or tensor.abs().max() > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def _restored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
