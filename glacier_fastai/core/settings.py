"""What a user may set of the combined loss, the augmentation and the balance of pixels, each name described once.

`CombinedLoss`, `AugmentTiles` and `PixelBalance` take these fields as keywords; recipes hold them as sections.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..bands import CLASSES
from ..errors import DataError, RecipeError, did_you_mean

__all__ = [
    "LEVELS",
    "PARTS",
    "PHASE_A",
    "PRESETS",
    "TARGET",
    "Augmentation",
    "Fraction",
    "LossSettings",
    "Part",
    "PixelBalance",
    "Positive",
    "Section",
    "Weight",
    "explain",
    "spelled_out",
    "takes",
]

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

T = TypeVar("T", bound=type)


class Section(BaseModel):
    """Base of every part of a recipe: no unknown keys, no silent change of types, no change after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class _Settings(Section):
    """A section that is made in notebooks, too."""

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as err:
            raise RecipeError(explain(err, type(self))) from err

    # so pydantic does not call it for a section of a recipe, whose errors name the whole path
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # functions have attributes


def takes(
    settings: type[Section],  # what `**settings` of the class's `__init__` are fields of
) -> Callable[[T], T]:
    """Decorate a class so that its signature and help name the fields of `settings` that it takes by keyword."""

    def decorate(cls: T) -> T:
        own, kinds = dict(inspect.signature(cls).parameters), get_type_hints(settings)
        named = [p for p in own.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        more = [p for p in inspect.signature(settings).parameters.values() if p.name not in own]
        more = [p.replace(annotation=kinds[p.name]) for p in more]
        cls.__signature__ = inspect.Signature([*named, *more])  # type: ignore[attr-defined]  # `inspect` looks there
        lines = [f"    {p.name}: {settings.model_fields[p.name].description} (default {p.default})" for p in more]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Settings:", *lines])
        return cls

    return decorate


Part = Literal["focal", "dice", "mcc", "boundary", "bf1"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of the combined loss."""

PHASE_A = {"focal": 0.60, "dice": 0.40, "mcc": 0.0, "boundary": 0.0, "bf1": 0.0}
"""Weights of pretraining; the defaults of `LossSettings` are those of fine-tuning, "phase B"."""


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


class LossSettings(_Settings):
    """The combined loss: a weighted sum of parts that share one softmax."""

    focal: Weight = Field(0.25, description="weight of the focal part")
    dice: Weight = Field(0.25, description="weight of the Dice part")
    mcc: Weight = Field(0.35, description="weight of the soft MCC part")
    boundary: Weight = Field(0.15, description="weight of the boundary-weighted cross-entropy")
    bf1: Weight = Field(0.0, description="weight of the boundary F1 part (Bokhovkin and Burnaev 2019)")
    alpha: Annotated[tuple[Weight, ...], BeforeValidator(_plain)] = Field(
        (1.0, 2.0, 3.0, 4.0), strict=False, description="focal weight per class"
    )
    gamma: Weight = Field(2.0, description="focal exponent")
    smooth: Positive = Field(1.0, description="Dice smoothing, pixels")
    mcc_exponent: Positive = Field(0.7, description="Focal-Phi exponent of the MCC part")
    edge_weight: Positive = Field(3.0, description="boundary part: weight on class edges")
    interface_weight: Positive = Field(5.0, description="boundary part: weight on the debris-glacier interface")
    learned: bool = Field(False, description="learn the weights of the parts (Kendall et al. 2018)")


PRESETS: dict[str, dict[str, Any]] = {
    "light": {"flip": True, "rotate": 45, "scale": 0.2, "shift": 0.1, "brightness": 0.2, "contrast": 0.2},
    "heavy": {
        **{"flip": True, "rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 4, "grid": 0.3},
        **{"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "noise": 0.1, "blur": 1.0, "dropout": 0.1},
    },
}
"""Augmentation by name; heavy has every transform, and the values of those that a list names without one."""


def spelled_out(
    value: str | list,  # name of a preset, or a list such as ["flip", {"rotate": 45}]
) -> dict[str, Any]:
    """Return the fields of `Augmentation` that a name or a list stands for: just what it says, nothing by default.

    >>> spelled_out(["blur", {"rotate": 45}])
    {'flip': False, 'blur': 1.0, 'rotate': 45}

    Raises:
        RecipeError: An unknown name or transform, one named twice, or something else.
    """
    if isinstance(value, str) and value in PRESETS:
        return dict(PRESETS[value])  # which an override may change
    known = {**PRESETS["heavy"], "sun": 150.0}
    forms = f"use {', '.join(PRESETS)}, a list such as [flip, rotate: 45], or [] for none"
    if isinstance(value, str):
        raise RecipeError(f"unknown name {value!r}: {forms}{did_you_mean(value, PRESETS)}")
    if not isinstance(value, list):
        raise RecipeError(f"{forms}, not {json.dumps(value, default=str)}")
    fields: dict[str, Any] = {}
    for item in value:
        for name, size in (item if isinstance(item, dict) and item else {str(item): known.get(str(item))}).items():
            if name not in known:
                near = did_you_mean(name, known)
                raise RecipeError(f"unknown transform {name!r}: use {', '.join(known)}, with or without a value{near}")
            if name in fields:
                raise RecipeError(f"{name!r} is named twice: name each transform once")
            fields[name] = size
    return {"flip": False} | fields


class Augmentation(_Settings):
    """Random changes of training batches; each sample draws its own. Also a preset's name, or a list of transforms."""

    flip: bool = Field(True, description="the 8 flips and quarter turns, exact without other geometry")
    sun: float | None = Field(
        None,
        ge=0,
        lt=360,
        description="in place of flip: half of the samples mirrored about the sun's azimuth, degrees, so that light "
        "falls on slopes as it does; about 150 for Landsat and Sentinel-2 north of the tropics, 30 south of them",
    )
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of scale")
    shift: float = Field(0.0, ge=0, lt=1, description="largest shift, share of the crop's side")
    elastic: float = Field(0.0, ge=0, description="standard deviation of elastic warping, pixels")
    grid: float = Field(0.0, ge=0, lt=1, description="grid distortion, largest relative step change")
    brightness: float = Field(0.0, ge=0, description="largest offset per band, standard deviations")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of gain per band")
    gamma: float = Field(0.0, ge=0, le=2, description="largest relative change of exponent per band")
    noise: float = Field(0.0, ge=0, description="largest noise per pixel, standard deviations")
    blur: float = Field(0.0, ge=0, le=10, description="largest deviation of Gaussian blur, pixels")
    dropout: Fraction = Field(0.0, description="probability that one band of a sample becomes 0, its mean")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, (dict, cls)) else spelled_out(value)

    @model_validator(mode="after")
    def _lit(self) -> Augmentation:
        if self.flip and self.sun is not None:
            raise ValueError("flip turns the light on slopes and sun keeps it: use one of them")
        return self


Level = Literal["tile", "crop", "pixel"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""What is chosen by its pixels: whole tiles (a crop lies anywhere in them), crops, or crops and then pixels in them."""

TARGET = {"background": 0.10, "glacier": 0.35, "debris": 0.40, "lake": 0.15}


class PixelBalance(_Settings):
    """From where crops are drawn, so that their pixels come near a composition of classes (`core.balance`).

    >>> PixelBalance(target={"glacier": 0.5, "debris": 0.5}).level
    'crop'
    """

    target: dict[str, Weight] = Field(TARGET, description="class -> wanted share of the labelled pixels; they sum to 1")
    level: Level = Field(
        "crop", description="choose whole tiles, crops, or crops and then pixels: what is too many is ignored"
    )
    min_effective: Fraction = Field(
        0.6, gt=0, description="least effective sample size, as a share of that of even drawing"
    )

    @field_validator("target")
    @classmethod
    def _composition(cls, target: dict[str, float]) -> dict[str, float]:
        for name in target:
            if name not in CLASSES:
                near = did_you_mean(name, CLASSES)
                raise ValueError(f"no class {name!r}; use {', '.join(CLASSES)}{near}")
        if not abs(sum(target.values()) - 1) < 1e-6:
            raise ValueError(f"the shares of all classes wanted must sum to 1, not to {sum(target.values()):g}")
        return target


def explain(
    err: ValidationError,
    model: type[BaseModel],  # what was validated
) -> str:
    """Return what is wrong in one line: each field's path, what is allowed and the nearest right name."""
    return "; ".join(_explain(e, model) for e in err.errors())


def _explain(error: Any, model: type[BaseModel]) -> str:
    path = ".".join(str(p) for p in error["loc"] if p != "[key]")
    where = f"{path}: " if path else ""
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1], model)
        return f"{where}unknown key; allowed are {', '.join(known)}{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{where}missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error.get("ctx", {}).get("error"), DataError):
        return f"{where}{error['ctx']['error']}"
    if error["type"] == "value_error":
        return f"{where}{message}"
    near = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = did_you_mean(error["input"], re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    return f"{where}{message}, not {json.dumps(error['input'], default=str)}{near}"


def _fields(loc: Sequence[str | int], model: Any) -> list[str]:
    for part in loc:
        if isinstance(part, str):  # a number counts the items of a list
            annotation = model.model_fields[part].annotation
            options = [annotation, *getattr(annotation, "__args__", ())]
            model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
