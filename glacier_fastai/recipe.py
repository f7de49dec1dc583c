"""The recipe: everything a training run depends on, in one validated, frozen object that is saved with the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from .bands import CLASSES, LOCATION, Bands
from .core.settings import (
    PARTS,
    PRESETS,
    Augmentation,
    Fraction,
    LossSettings,
    Part,
    PixelBalance,
    Positive,
    Section,
    Weight,
    explain,
    spelled_out,
)
from .errors import RecipeError, did_you_mean
from .files import whole_file
from .reading import parse_yaml, read_yaml

__all__ = ["PredictRecipe", "Recipe", "Section", "explain", "load_recipe", "recipe_dir", "recipe_names"]

ENCODERS = ("resnet18", "resnet34", "resnet50")
"""What `model.arch` was while every network was a U-Net."""


class DataRecipe(Section):
    """What to train on."""

    path: str | None = Field(None, description="tile store, or raw folder of the competition or of HKH")
    tile_size: int = Field(512, ge=32, le=65_536, description="side of the tiles it is made for, pixels")
    crop: int = Field(256, ge=16, le=65_536, description="side of a training crop, pixels; at most the tile's side")
    crops_per_tile: int = Field(
        1, ge=1, le=10_000, description="crops per epoch for each training tile; not with train.steps"
    )
    folds: int = Field(5, ge=2, le=1_000, description="number of folds")
    spatial: bool = Field(True, description="no training tile touches a validation tile")
    min_valid: Fraction = Field(0.1, description="least share of pixels with data for a tile to be used")
    statistics: Literal["data", "weights"] = Field(
        "data", description="mean and deviation to normalise with: of the training tiles, or of the starting weights"
    )

    @model_validator(mode="after")
    def _fits(self) -> DataRecipe:
        if self.crop > self.tile_size:
            raise ValueError(f"crop {self.crop} is larger than tile_size {self.tile_size}: lower data.crop")
        return self


class TextureRecipe(Section):
    """How texture bands such as ``glcm_contrast(swir1)`` are computed, where `bands` names any (`core.glcm`)."""

    window: int = Field(7, ge=3, le=31, description="side of the window, pixels, odd")
    levels: int = Field(32, ge=2, le=64, description="grey levels; their edges are quantiles of the training tiles")

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even: a window has a centre, use {value - 1} or {value + 1}")
        return value


class ModelRecipe(Section):
    """The network, trained from scratch unless weights are given; `model.registry` knows what each of them takes."""

    arch: str = Field(
        "unet", description="unet, unetplusplus, fpn, deeplabv3plus, segformer, ..., ratio, forest, or your own"
    )
    size: Literal["tiny", "small", "base", "large"] | None = Field(
        None, description="tiny, small, base or large: encoder or width that are not given; null: base"
    )
    encoder: str | None = Field(
        None, description="encoder of segmentation-models-pytorch, or of timm as tu-NAME; null: by size (resnet34)"
    )
    weights: str | None = Field(None, description="safetensors file that the encoder starts from, as timm has them")
    attention: Literal["scse", "cse"] | None = Field(
        "scse", description="attention in the decoder of unet: scse, cse or null"
    )
    scale: float = Field(
        1.0, ge=0.25, le=1, description="the network sees the image at this scale: at 0.5, four times the ground"
    )
    width: int | None = Field(None, ge=4, le=1024, description="channels of glavitu; null: by size (64)")
    groups: dict[str, list[str]] | None = Field(
        None, description="modalities of glavitu, name -> bands; null: by what they measure"
    )
    options: dict[str, Any] = Field({}, description="further options of a network, by name")

    @model_validator(mode="before")
    @classmethod
    def _encoder_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("arch") in ENCODERS:
            return {**value, "arch": "unet", "encoder": value["arch"]}
        return value


class RampRecipe(Section):
    """Parts of the loss that start small and grow linearly to their full weight."""

    start: dict[Part, Fraction] = Field({"boundary": 0.05}, description="part -> fraction of its weight at first")
    epochs: int = Field(30, ge=1, le=1_000_000, description="epochs until the weight is full")
    by: Literal["epoch", "batch"] = Field("epoch", description="move once an epoch, or with every batch")


def _augment_schema(schema: dict[str, Any]) -> None:
    names = {"enum": list(Augmentation.model_fields)}
    schema["anyOf"] = [
        {"enum": list(PRESETS)},
        {"type": "array", "items": {"anyOf": [names, {"type": "object", "propertyNames": names}]}},
        {"$ref": schema.pop("$ref")},
    ]


class TrainRecipe(Section):
    """How to train."""

    epochs: int | None = Field(None, ge=1, le=1_000_000, description="epochs; 60 where there are no steps")
    steps: int | None = Field(
        None, ge=1, le=1_000_000_000, description="optimiser steps, in place of epochs; at most 20 epochs of them"
    )
    batch_size: int = Field(8, ge=1, le=10_000, description="crops per batch, of all processes together")
    accumulate: int = Field(1, ge=1, le=1_000_000, description="batches per optimiser step")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest norm of the gradient, 0 = no clipping")
    lr: Positive = Field(5e-4, description="learning rate of AdamW")
    warmup: Fraction = Field(0.0, description="share of the run, at its start, over which lr rises linearly from 0")
    decay: Fraction = Field(0.0, description="share of the run, at its end, over which lr falls linearly to 0")
    encoder_lr_factor: Positive = Field(1.0, description="learning rate of the encoder, as a multiple of lr")
    freeze_epochs: int = Field(
        0, ge=0, le=1_000_000, description="first epochs that leave the encoder as it came, norm layers included"
    )
    weight_decay: Weight = Field(1e-4, description="weight decay of AdamW")
    plateau_patience: int = Field(
        5, ge=0, le=1_000_000, description="epochs without a better MCC before lr is cut, as in PyTorch"
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="lr is multiplied by it")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="moving average of the weights is validated and kept: its decay per step, 0 = off"
    )
    early_stop: int | None = Field(
        None, ge=1, le=1_000_000, description="stop after so many epochs without a better MCC"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="auto: fp16 on CUDA, bf16 on CPUs that are made for it, else fp32"
    )
    compile: bool = Field(False, description="compile the model (torch.compile): minutes at first, then faster steps")
    sync_bn: bool = Field(False, description="norm layers share their statistics between the GPUs of a launch")
    bad_batches: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="batches in a row without finite loss and gradients that end the run; such are skipped",
    )
    max_minutes: Positive | None = Field(None, description="save and stop after so many minutes; it can be resumed")
    workers: int = Field(2, ge=0, le=256, description="threads that read data ahead")

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs") is None and value.get("steps") is None:
            return {**value, "epochs": 60}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainRecipe:
        if self.epochs and self.steps:
            raise ValueError(f"epochs={self.epochs} and steps={self.steps} are both given: set one of them to null")
        if self.warmup + self.decay > 1 + 1e-9:  # as 0.7 + 0.2 + 0.1 is
            raise ValueError(f"warmup={self.warmup} and decay={self.decay} are shares of one run: at most 1 together")
        return self

    @property
    def n_epoch(self) -> int:
        """Epochs; of `steps` at least 25 make one, as far as there are so many."""
        return self.epochs or max(1, min(20, (self.steps or 0) // 25))

    @property
    def epoch_steps(self) -> int | None:
        """Optimiser steps of an epoch, all of the same number; None where the number of tiles decides."""
        return self.steps and -(-self.steps // self.n_epoch)


class RecordRecipe(Section):
    """What a run keeps while it goes. Nothing here changes what is trained."""

    save_every: int = Field(1, ge=1, le=1_000_000, description="epochs between checkpoints (last.ckpt)")
    save_minutes: Positive | None = Field(10.0, description="save within long epochs, too, after so many minutes")
    keep: int = Field(
        1, ge=1, le=1_000_000, description="checkpoints to keep; all but last.ckpt are named epochNNNN.ckpt"
    )
    panels_every: int = Field(
        10, ge=0, le=1_000_000, description="epochs between TensorBoard's pictures of tiles, 0 = none"
    )
    wandb: str | None = Field(None, description="project on Weights & Biases to report to, too")


class PostprocessRecipe(Section):
    """What is done to a class map (`core.morphology`). Classes that are not named are left as they are."""

    min_size: dict[str, int] = Field(
        {"glacier": 100, "debris": 100, "lake": 100},
        description="class -> its components of fewer pixels go to the class around them",
    )
    fill_holes: dict[str, int] = Field(
        {"glacier": 50, "debris": 50}, description="class -> background of fewer pixels that it encloses goes to it"
    )
    smooth: int = Field(0, ge=0, le=10, description="first, the most frequent class so many pixels around; 0 = off")

    @field_validator("min_size", "fill_holes")
    @classmethod
    def _of_classes(cls, value: dict[str, int]) -> dict[str, int]:
        for name, pixels in value.items():
            if name not in CLASSES[1:]:
                raise ValueError(f"unknown class {name!r}: use {', '.join(CLASSES[1:])}{did_you_mean(name, CLASSES)}")
            if not 0 <= pixels <= 1000:
                raise ValueError(f"{name}: {pixels} pixels; use 0 (off) to 1000")
        return value

    def by_code(self) -> dict[str, Any]:
        """Return the arguments of `core.morphology.postprocess`: sizes by class code."""
        sizes = {k: [getattr(self, k).get(c, 0) for c in CLASSES] for k in ("min_size", "fill_holes")}
        return {**sizes, "smooth": self.smooth}


class PredictRecipe(Section):
    """How the trained model is used, by `evaluate`, `predict` and `submit`."""

    views: bool = Field(False, description="average the probabilities of the 8 flips and quarter turns: 8 times slower")
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field(
        (1.0,),
        strict=False,
        min_length=1,
        max_length=16,
        description="and those of the image resized by each of these factors",
    )
    postprocess: PostprocessRecipe | None = Field(None, description="{}: with its defaults; null: the map as it is")

    @field_validator("scales")
    @classmethod
    def _once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({*value}) < len(value):
            raise ValueError("a scale is named twice: name each once")
        return value

    @property
    def passes(self) -> list[tuple[int, float]]:
        """View and scale of each time that a model sees an image."""
        from .core.dihedral import VIEWS  # brings torch, which reading a recipe does not need

        return [(k, scale) for scale in self.scales for k in (VIEWS if self.views else VIEWS[:1])]


class Recipe(Section):
    """A training run. Load with `load_recipe`; unknown keys are refused with the nearest right name."""

    version: Literal[1] = Field(1, description="version of this format")
    about: str = Field("", description="what the recipe is for, in a line")
    bands: tuple[str, ...] = Field(strict=False, description="bands to train on, by name, in the order of the tensors")
    data: DataRecipe = DataRecipe()
    texture: TextureRecipe = TextureRecipe()
    model: ModelRecipe = ModelRecipe()
    loss: LossSettings = LossSettings()
    ramp: RampRecipe | None = Field(None, description="null: every part has its full weight from the start")
    augment: Augmentation = Field(
        Augmentation(),
        description="random changes of training batches: a preset's name, a list of transforms, or every field",
        json_schema_extra=_augment_schema,
    )
    balance: PixelBalance | None = Field(None, description="null: crops anywhere, as many from each tile")
    train: TrainRecipe = TrainRecipe()
    record: RecordRecipe = RecordRecipe()
    predict: PredictRecipe = PredictRecipe()
    seed: int = Field(42, ge=0, lt=2**63, description="seed of every random number")

    @field_validator("bands")
    @classmethod
    def _bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if {*(bands := Bands(value))} <= {*LOCATION}:
            raise ValueError(f"{', '.join(bands)} alone show no image: name bands that do, too")
        return bands

    @field_validator("loss")
    @classmethod
    def _loss(cls, loss: LossSettings) -> LossSettings:
        if not any(getattr(loss, part) for part in PARTS):
            raise ValueError(f"the weights of all parts are 0: give one of {', '.join(PARTS)} a weight")
        if len(loss.alpha) != len(CLASSES):
            raise ValueError(f"alpha has {len(loss.alpha)} values: one per class, {', '.join(CLASSES)}")
        if not all(loss.alpha):
            raise ValueError(
                f"alpha {list(loss.alpha)}: a class of weight 0 would not be learned; use positive numbers"
            )
        return loss

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.train.steps and self.data.crops_per_tile > 1:
            raise ValueError(
                f"data.crops_per_tile={self.data.crops_per_tile}: train.steps decides how many crops an epoch has; "
                "set it to 1, or train.steps to null"
            )
        for part in self.ramp.start if self.ramp else ():
            if getattr(self.loss, part) == 0:
                raise ValueError(f"ramp.start.{part}: that part of the loss has no weight; set loss.{part} or drop it")
        return self

    def save(self, path: str | Path) -> None:
        """Write the recipe, every default included, as YAML (temporary name, then rename)."""
        with whole_file(path) as file:
            file.write(self.to_yaml().encode())

    def to_yaml(self) -> str:
        """Return the recipe, every default included, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_dir() -> Path:
    """Return the folder of the recipes that come with the package (inside the wheel, or beside a source tree)."""
    inside = Path(str(files("glacier_fastai"))) / "recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(p.stem for p in recipe_dir().glob("*.yaml"))


def load_recipe(
    name: str | Path,  # name of a shipped recipe, or path of a YAML file
    overrides: Sequence[str] = (),  # such as "train.lr=1e-4"
) -> Recipe:
    """Return the validated recipe.

    >>> recipe = load_recipe("demo", ["train.lr=1e-4", "model.arch=fpn"])
    >>> recipe.train.lr, recipe.model.arch, recipe.model.size
    (0.0001, 'fpn', 'small')

    Raises:
        RecipeError: No such recipe, not YAML, or a field that is unknown, of a wrong type or impossible; the one-line
            message gives the field's path, what is allowed and the nearest right name.
    """
    path = Path(name)
    if not path.suffix and not os.path.isfile(path):
        path = recipe_dir() / f"{name}.yaml"
        if not os.path.isfile(path):
            names = recipe_names()
            raise RecipeError(
                f"no recipe {str(name)!r}: use {', '.join(names)}, or the path of a YAML file"
                f"{did_you_mean(str(name), names)}"
            )
    tree = read_yaml(path, RecipeError, link=True)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a recipe; `glacier-fastai recipes show demo` prints one")
    for item in overrides:
        _override(tree, item)
    said = {item.partition("=")[0].strip() for item in overrides}
    for one, *others in (("train.epochs", "train.steps"), ("train.steps", "train.epochs", "data.crops_per_tile")):
        train = tree.get("train")
        if one in said and isinstance(train, dict) and train.get(one.partition(".")[2]) is not None:
            for section, _, field in (other.partition(".") for other in others if other not in said):
                if isinstance(tree.get(section), dict):
                    tree[section].pop(field, None)  # the file's word of how long is what was changed
    return recipe_from(tree, str(path))


def recipe_from(
    tree: dict[str, Any],  # the recipe as plain data
    where: str,  # file named in errors
) -> Recipe:
    """Return the validated recipe of a tree of plain data; raises `RecipeError` like `load_recipe`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as err:
        raise RecipeError(f"{where}: {explain(err, Recipe)}") from err


def predict_with(
    settings: PredictRecipe,
    overrides: Sequence[str],  # such as "predict.views=true"
) -> PredictRecipe:
    """Return the settings with some changed; raises `RecipeError` like `load_recipe`, also for any other section."""
    tree: dict[str, Any] = {"bands": ["red"], "predict": settings.model_dump(mode="json")}
    for item in overrides:
        if not item.strip().startswith("predict."):
            raise RecipeError(f"{item}: a trained model's section predict alone can be changed")
        _override(tree, item)
    return recipe_from(tree, "overrides").predict


def _override(tree: dict[str, Any], item: str) -> None:
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"{item}: write it as section.field=value, for instance train.lr=1e-4")
    value = parse_yaml(text, item, RecipeError)
    *parents, last = key.strip().split(".")
    if parents == ["augment"] and isinstance(tree.get("augment"), (str, list)):
        try:
            tree["augment"] = spelled_out(tree["augment"])
        except RecipeError as err:
            raise RecipeError(f"{item}: augment: {err}") from err
    node = tree
    for part in parents:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise RecipeError(f"{item}: {part!r} has no fields below it")
    node[last] = value
