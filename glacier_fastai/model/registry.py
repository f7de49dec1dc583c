"""The networks there are, by name: how each is built, its parameter groups, and how it adapts to other bands.

Built in are those of `model.unet`, `model.glavitu`, `model.ratio` and `model.forest`. Own ones come by
`register_model`, or from an installed package by an entry point of the group ``glacier_fastai.models``: its name is the
model's, its object is a builder or an `Architecture`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from ..bands import CLASSES
from ..errors import BundleError, GlacierError, RecipeError, did_you_mean
from ..memory import out_of_memory
from ..recipe import ENCODERS, ModelRecipe

__all__ = ["Architecture", "build_model", "model_names", "register_model"]

GROUP = "glacier_fastai.models"
FROM_RECIPE = ("attention", "scale")  # whose defaults are those of recipes
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A network that recipes and bundles can name."""

    name: str
    build: Builder
    """``build(bands, classes, **options)`` -> module `(B, C, H, W)` -> logits `(B, K, H, W)`, of any H and W; `bands`
    and `classes` are names, options are its keyword parameters, of plain values, and their defaults count."""
    groups: Callable[[nn.Module], list[list[nn.Parameter]]] = lambda model: [list(model.parameters())]
    """Parameter groups for discriminative learning rates and `freeze`; the last one is never frozen."""
    first: Callable[[nn.Module], str] | None = None
    """Name of the weight `(O, C, ...)` whose second axis is the bands; None: it starts from weights of the same bands
    alone."""
    head: Callable[[nn.Module], Sequence[str]] | None = None
    """Names of the weights and biases whose first axis is the classes; None: of the same classes alone."""
    fit: Callable[..., nn.Module] | None = None
    """``fit(store, tiles, bands, stats, seed, **options)`` -> trained module, where that takes no gradient; `tiles` are
    positions of the training tiles, `stats` mean and deviation per band that images come normalised with."""
    apart: tuple[str, ...] = ()
    """Options that weights do not depend on."""
    auxiliary: str = ""
    """Name of a head of which only training knows, and of the option that is its loss's weight, 0 without it."""
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size (tiny, small, base, large) -> its options; "base" has the defaults."""
    options: Mapping[str, Any] = field(init=False)
    """Name and default of each option."""

    def __post_init__(self):
        parameters = list(inspect.signature(self.build).parameters.values())[2:]
        options = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        if without := [name for name, default in options.items() if default is inspect.Parameter.empty]:
            raise RecipeError(f"model {self.name!r}: its builder has no default for {', '.join(without)}; give it one")
        object.__setattr__(self, "options", options)


_registered: dict[str, Architecture] = {}


def register_model(
    name: str,  # by which recipes, bundles and `glacier_learner` know it
    build: Builder,  # see `Architecture`
    **about: Any,  # further fields of `Architecture`
) -> Architecture:
    """Make a network known in this process; in each process that reads its bundles it must be registered before.

    >>> from torch import nn
    >>> made = register_model("pixelwise", lambda bands, classes: nn.Conv2d(len(bands), len(classes), 1))
    >>> "pixelwise" in model_names()
    True

    Raises:
        RecipeError: The name is taken by another builder, or the builder has an option without default.
    """
    there = _registered.get(name)
    again = there is not None and _origin(there.build) == _origin(build)  # a notebook's cell, run once more
    if name in model_names() and not again:
        raise RecipeError(
            f"model {name!r}: that name is taken; choose one that is not among {', '.join(model_names())}"
        )
    _registered[name] = Architecture(name, build, **about)
    return _registered[name]


def _origin(build: Builder) -> tuple[str, str]:
    return getattr(build, "__module__", ""), getattr(build, "__qualname__", repr(build))


@cache
def _built_in() -> dict[str, Architecture]:
    from . import forest, glavitu, ratio, unet

    return {kind.name: kind for part in (unet, glavitu, ratio, forest) for kind in part.ARCHITECTURES}


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def model_names() -> list[str]:
    """Return the names of all networks, those of plug-ins included, without importing these."""
    return sorted({*_built_in(), *_registered, *_entry_points()})


def architecture(
    name: str,
    options: Mapping[str, Any] | None = None,  # those that differ from its defaults
) -> tuple[Architecture, dict[str, Any]]:
    """Return a network by name, and all its options.

    An encoder's name alone is a U-Net with it: that is how recipes and bundles named it before networks had names.

    Raises:
        RecipeError: No such network or option, or the plug-in that has it cannot be imported.
    """
    options = dict(options or {})
    if name in ENCODERS and name not in model_names():
        name, options = "unet", {"encoder": name, **options}
    found = _registered.get(name) or _built_in().get(name)
    if found is None:
        if name not in _entry_points():
            names = model_names()
            near = did_you_mean(name, names)
            raise RecipeError(f"no model {name!r}: use {', '.join(names)}, or register yours (register_model){near}")
        found = _loaded(_entry_points()[name])
    if unknown := [o for o in options if o not in found.options]:
        has = ", ".join(found.options) or "none"
        near = did_you_mean(unknown[0], found.options)
        raise RecipeError(f"model {name!r} has no option {', '.join(unknown)}; its options are {has}{near}")
    return found, {**found.options, **options}


def of_recipe(model: ModelRecipe) -> tuple[Architecture, dict[str, Any]]:
    """Return the network that a recipe asks for, and all its options; raises `RecipeError` like `architecture`.

    What stands in every recipe, such as `encoder`, is refused by networks without it only where it is no default, and
    wins over `size`.

    >>> of_recipe(ModelRecipe(arch="glavitu", size="small", width=40))[1]["width"]
    40
    """
    kind, default = architecture(model.arch)[0], ModelRecipe()
    fields = {name: getattr(model, name) for name in ("encoder", "attention", "scale", "width", "groups")}
    given = {k: v for k, v in fields.items() if v != getattr(default, k) or (k in kind.options and k in FROM_RECIPE)}
    return architecture(model.arch, {**of_size(kind, model.size), **given, **model.options})


def of_size(
    kind: Architecture,
    size: str | None,  # tiny, small, base or large; None: as its builder has it
) -> Mapping[str, Any]:
    """Return the options of a network's size; raises `RecipeError` if it has none of that name."""
    if size is not None and size not in kind.sizes:
        has = ", ".join(kind.sizes) or "none: leave size out"
        raise RecipeError(
            f"model {kind.name!r} has no size {size!r}; its sizes are {has}{did_you_mean(size, kind.sizes)}"
        )
    return {} if size is None else kind.sizes[size]


def _loaded(point: EntryPoint) -> Architecture:
    try:
        made = point.load()
        found = made if isinstance(made, Architecture) else Architecture(point.name, made)
    except Exception as err:  # whatever a stranger's module raises at import
        where = f"{point.value}{f' of {point.dist.name}' if point.dist else ''}"
        raise RecipeError(
            f"model {point.name!r}: its plug-in {where} cannot be loaded ({type(err).__name__}: {err}); mend or "
            "uninstall it"
        ) from err
    _registered[point.name] = found
    return found


def build_model(
    name: str,  # of the network
    bands: Sequence[str],  # names of the bands
    classes: Sequence[str] = CLASSES,  # names of the classes
    **options: Any,  # of the network
) -> nn.Module:
    """Return an untrained network, which remembers its name and options (`model.built_as`).

    >>> model = build_model("unet", ["green", "swir1"], encoder="resnet18", attention=None)
    >>> model.built_as[0], model(torch.zeros(1, 2, 40, 50)).shape
    ('unet', torch.Size([1, 4, 40, 50]))

    Raises:
        RecipeError: No such network or option, a value that it refuses, or a builder that gives other shapes.
    """
    found, options = architecture(name, options)
    model = _build(found, bands, classes, options)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model {found.name!r}: its builder returned {type(model).__name__}, not a torch.nn.Module")
    if options.get("encoder") not in ENCODERS:  # of strangers, and of encoders that only take images of one size
        _try(found.name, model, len(bands), len(classes))
    model.__dict__["built_as"] = (found.name, options)
    return model


def _build(found: Architecture, bands: Sequence[str], classes: Sequence[str], options: dict[str, Any]) -> nn.Module:
    try:
        return found.build(bands, classes, **options)
    except GlacierError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError) as err:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        why = " ".join(str(err).split())[:300]
        raise RecipeError(f"model {found.name!r} cannot be built for {len(bands)} bands with {given} ({why})") from err


def weight_shapes(
    name: str,  # of the network
    bands: Sequence[str],  # names of the bands
    classes: Sequence[str] = CLASSES,  # names of the classes
    **options: Any,  # of the network
) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of each weight of a network of ours without taking memory for it; None for other networks.

    Raises:
        RecipeError: As `build_model`.
    """
    found, options = architecture(name, options)
    if found is not _built_in().get(found.name) or found.fit is not None:
        return None
    with init_empty_weights():
        model = _build(found, bands, classes, options)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _try(name: str, model: nn.Module, bands: int, classes: int) -> None:
    """Show a network one image."""
    training, wanted = model.training, (1, classes, 40, 56)
    try:
        with torch.no_grad():
            got = model.eval()(torch.zeros(1, bands, 40, 56))
    except Exception as err:  # whatever a stranger's module raises
        why = " ".join(str(err).split())[:200]
        if out_of_memory(err):
            raise RecipeError(f"model {name!r}: not enough memory for an image of 40 x 56 px ({why})") from err
        raise RecipeError(f"model {name!r}: cannot take an image of {bands} bands and 40 x 56 px ({why})") from err
    shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
    if shape != wanted:
        raise RecipeError(f"model {name!r}: gives {shape} of an image of 40 x 56 px; logits {wanted} are wanted")
    model.train(training)


def built_as(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return name and options of a network; raises `BundleError` if it was not built by the registry."""
    try:
        return model.__dict__["built_as"]
    except KeyError:
        raise BundleError(
            f"model {type(model).__name__}: no bundle can hold it, as nothing says how to build it again; "
            "register_model(NAME, build), and pass model=NAME"
        ) from None


def groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameter groups of a network that `build_model` made; of another one, all in one group."""
    if not hasattr(model, "built_as"):
        return [list(model.parameters())]
    return architecture(built_as(model)[0])[0].groups(model)
