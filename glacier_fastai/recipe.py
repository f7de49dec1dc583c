"""The recipe: everything a training run depends on, in one validated, frozen object that is saved with the run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .bands import CLASSES, Bands
from .core.balance import TARGET, PixelBalance
from .core.dihedral import VIEWS
from .errors import DataError, RecipeError, did_you_mean
from .files import whole_file

__all__ = ["PredictRecipe", "Recipe", "load_recipe", "recipe_dir", "recipe_names"]

ENCODERS = ("resnet18", "resnet34", "resnet50")
"""What `model.arch` was while every network was a U-Net."""

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of every part: no unknown keys, no silent change of types, no change after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class DataRecipe(Section):
    """What to train on."""

    path: str | None = Field(None, description="tile store, or raw folder of the competition or of HKH; see --data")
    tile_size: int = Field(512, ge=32, description="side of the tiles it is made for, pixels")
    crop: int = Field(256, ge=16, description="side of a training crop, pixels; at most the tile's side")
    crops_per_tile: int = Field(1, ge=1, description="crops per epoch for each training tile")
    folds: int = Field(5, ge=2, description="number of folds")
    spatial: bool = Field(True, description="no training tile touches a validation tile")
    min_valid: Fraction = Field(0.1, description="least share of pixels with data for a tile to be used")
    statistics: Literal["data", "weights"] = Field(
        "data", description="mean and deviation that bands are normalised with: of the training tiles, or of --weights"
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

    arch: str = Field("unet", description="unet, unetplusplus, fpn, deeplabv3plus, segformer, ..., or your own")
    encoder: str = Field("resnet34", description="encoder of segmentation-models-pytorch, or of timm as tu-NAME")
    attention: str | None = Field("scse", description="attention in the decoder of unet: scse, cse or null")
    options: dict[str, Any] = Field({}, description="options of a network of your own, by name")

    @model_validator(mode="before")
    @classmethod
    def _encoder_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("arch") in ENCODERS:
            return {**value, "arch": "unet", "encoder": value["arch"]}
        return value


class LossRecipe(Section):
    """The combined loss: a weighted sum of parts that share one softmax."""

    focal: Weight = Field(0.25, description="weight of the focal part")
    dice: Weight = Field(0.25, description="weight of the Dice part")
    mcc: Weight = Field(0.35, description="weight of the soft MCC part")
    boundary: Weight = Field(0.15, description="weight of the boundary-weighted cross-entropy")
    bf1: Weight = Field(0.0, description="weight of the boundary F1 part (Bokhovkin and Burnaev 2019)")
    alpha: tuple[Positive, ...] = Field((1.0, 2.0, 3.0, 4.0), strict=False, description="focal weight per class")
    gamma: Annotated[float, Field(ge=0)] = Field(2.0, description="focal exponent")
    smooth: Positive = Field(1.0, description="Dice smoothing, pixels")
    mcc_exponent: Positive = Field(0.7, description="Focal-Phi exponent of the MCC part")
    edge_weight: Positive = Field(3.0, description="boundary part: weight on class edges")
    interface_weight: Positive = Field(5.0, description="boundary part: weight on the debris-glacier interface")
    learned: bool = Field(False, description="learn the weights of the parts (Kendall et al. 2018)")

    @model_validator(mode="after")
    def _sums(self) -> LossRecipe:
        if not self.focal + self.dice + self.mcc + self.boundary + self.bf1 > 0:
            raise ValueError("the weights of all parts are 0: give one of focal, dice, mcc, boundary, bf1 a weight")
        if len(self.alpha) != len(CLASSES):
            raise ValueError(f"alpha has {len(self.alpha)} values: one per class, {', '.join(CLASSES)}")
        return self


class RampRecipe(Section):
    """Parts of the loss that start small and grow linearly to their full weight."""

    start: dict[Literal["focal", "dice", "mcc", "boundary", "bf1"], Fraction] = Field(
        {"boundary": 0.05}, description="part -> fraction of its weight in the first epoch"
    )
    epochs: int = Field(30, ge=1, description="epochs until the weight is full")
    by: Literal["epoch", "batch"] = Field("epoch", description="move once an epoch, or with every batch")


AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "light": {"flip": True, "rotate": 45, "scale": 0.2, "shift": 0.1, "brightness": 0.2, "contrast": 0.2},
    "heavy": {
        **{"flip": True, "rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 4, "grid": 0.3},
        **{"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "noise": 0.1, "blur": 1.0, "dropout": 0.1},
    },
}
"""What `augment` may be by name; heavy has every transform, and the values of those that a list names without one."""


def augment_fields(
    value: str | list,  # name of a preset, or a list such as [flip, {rotate: 45}]
) -> dict[str, Any]:
    """Return the fields of `AugmentRecipe` that a name or a list stands for: just what it says, nothing by default.

    Raises:
        RecipeError: An unknown name or transform, one named twice, or something else.
    """
    forms = "a list such as [flip, rotate: 45], or [] for none"
    if isinstance(value, str):
        if value not in AUGMENT_PRESETS:
            near = did_you_mean(value, AUGMENT_PRESETS)
            raise RecipeError(f"unknown name {value!r}: use {', '.join(AUGMENT_PRESETS)}, {forms}{near}")
        value = [AUGMENT_PRESETS[value]]
    if not isinstance(value, list):
        raise RecipeError(f"use {', '.join(AUGMENT_PRESETS)}, {forms}, not {json.dumps(value, default=str)}")
    heavy, fields = AUGMENT_PRESETS["heavy"], {}
    for item in value:
        named = {item: heavy.get(item)} if isinstance(item, str) else item
        named = named if isinstance(named, dict) and named else {None: item}
        for name, size in named.items():
            if name not in heavy:
                shown = json.dumps(item, default=str) if name is None else repr(name)
                near = did_you_mean(name or "", heavy)
                raise RecipeError(f"unknown transform {shown}: use {', '.join(heavy)}, with or without a value{near}")
            if name in fields:
                raise RecipeError(f"{name!r} is named twice: name each transform once")
            fields[name] = size
    return {"flip": False} | fields


def _augment_schema(schema: dict[str, Any]) -> None:
    names = {"enum": list(AUGMENT_PRESETS["heavy"])}
    schema["anyOf"] = [
        {"enum": list(AUGMENT_PRESETS)},
        {"type": "array", "items": {"anyOf": [names, {"type": "object", "propertyNames": names}]}},
        {"$ref": schema.pop("$ref")},
    ]


class AugmentRecipe(Section):
    """Random changes of training batches; each sample draws its own. Also a preset's name, or a list of transforms."""

    flip: bool = Field(True, description="the 8 flips and quarter turns, exact without other geometry")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="largest rotation, degrees")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="largest relative change of scale")
    shift: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="largest shift, share of the crop's side")
    elastic: Annotated[float, Field(ge=0)] = Field(0.0, description="standard deviation of elastic warping, pixels")
    grid: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="grid distortion, largest relative step change")
    brightness: Annotated[float, Field(ge=0)] = Field(0.0, description="largest offset per band, standard deviations")
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="largest relative change of gain per band")
    gamma: Annotated[float, Field(ge=0, le=2)] = Field(0.0, description="largest relative change of exponent per band")
    noise: Annotated[float, Field(ge=0)] = Field(0.0, description="largest noise per pixel, standard deviations")
    blur: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="largest deviation of Gaussian blur, pixels")
    dropout: Fraction = Field(0.0, description="probability that one band of a sample becomes 0, its mean")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, (dict, cls)) else augment_fields(value)


class BalanceRecipe(Section):
    """From where crops are drawn, so that their pixels come near a composition of classes (`core.balance`)."""

    target: dict[str, float] = Field(TARGET, description="class -> wanted share of the labelled pixels; they sum to 1")
    level: Literal["tile", "crop", "pixel"] = Field(
        PixelBalance.level,
        description="choose whole tiles, crops, or crops and then pixels: what is too many is ignored",
    )
    min_effective: Annotated[float, Field(gt=0, le=1)] = Field(
        PixelBalance.min_effective, description="least effective sample size, as a share of that of even drawing"
    )

    @model_validator(mode="after")
    def _possible(self) -> BalanceRecipe:
        PixelBalance(**self.model_dump())
        return self


class TrainRecipe(Section):
    """How to train."""

    epochs: int = Field(60, ge=1, description="epochs")
    batch_size: int = Field(8, ge=1, description="crops per batch, of all processes together")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest norm of the gradient, 0 = no clipping")
    lr: Positive = Field(5e-4, description="learning rate of AdamW")
    encoder_lr_factor: Positive = Field(1.0, description="learning rate of the encoder, as a multiple of lr")
    freeze_epochs: int = Field(
        0, ge=0, description="first epochs that leave the encoder as it came, norm layers included"
    )
    weight_decay: Weight = Field(1e-4, description="weight decay of AdamW")
    plateau_patience: int = Field(5, ge=0, description="epochs without a better MCC before lr is cut, as in PyTorch")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="lr is multiplied by it")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="moving average of the weights is validated and kept: its decay per step, 0 = off"
    )
    early_stop: int | None = Field(None, ge=1, description="stop after so many epochs without a better MCC")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="auto: fp16 on CUDA, bf16 on CPUs that are made for it, else fp32"
    )
    compile: bool = Field(False, description="compile the model (torch.compile): minutes at first, then faster steps")
    sync_bn: bool = Field(False, description="norm layers share their statistics between the GPUs of a launch")
    bad_batches: int = Field(
        10, ge=1, description="batches in a row without finite loss and gradients that end the run; such are skipped"
    )
    max_minutes: Positive | None = Field(None, description="save and stop after so many minutes; --resume goes on")
    workers: int = Field(2, ge=0, description="threads that read data ahead")


class RecordRecipe(Section):
    """What a run keeps while it goes. Nothing here changes what is trained."""

    save_every: int = Field(1, ge=1, description="epochs between checkpoints (last.ckpt)")
    save_minutes: Positive | None = Field(10.0, description="save within long epochs, too, after so many minutes")
    keep: int = Field(1, ge=1, description="checkpoints to keep; all but last.ckpt are named epochNNNN.ckpt")
    panels_every: int = Field(10, ge=0, description="epochs between TensorBoard's pictures of tiles, 0 = none")
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
        (1.0,), strict=False, min_length=1, description="and those of the image resized by each of these factors"
    )
    postprocess: PostprocessRecipe | None = Field(None, description="{}: with its defaults; null: the map as it is")

    @property
    def passes(self) -> list[tuple[int, float]]:
        """View and scale of each time that a model sees an image."""
        return [(k, scale) for scale in self.scales for k in (VIEWS if self.views else VIEWS[:1])]


class Recipe(Section):
    """A training run. Load with `load_recipe`; unknown keys are refused with the nearest right name."""

    version: Literal[1] = Field(1, description="version of this format")
    about: str = Field("", description="what the recipe is for, in a line")
    bands: tuple[str, ...] = Field(strict=False, description="bands to train on, by name, in the order of the tensors")
    data: DataRecipe = DataRecipe()
    texture: TextureRecipe = TextureRecipe()
    model: ModelRecipe = ModelRecipe()
    loss: LossRecipe = LossRecipe()
    ramp: RampRecipe | None = Field(None, description="null: every part has its full weight from the start")
    augment: AugmentRecipe = Field(
        AugmentRecipe(),
        description="random changes of training batches: a preset's name, a list of transforms, or every field",
        json_schema_extra=_augment_schema,
    )
    balance: BalanceRecipe | None = Field(None, description="null: crops anywhere, as many from each tile")
    train: TrainRecipe = TrainRecipe()
    record: RecordRecipe = RecordRecipe()
    predict: PredictRecipe = PredictRecipe()
    seed: int = Field(42, ge=0, description="seed of every random number")

    @field_validator("bands")
    @classmethod
    def _bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return Bands(value)

    @model_validator(mode="after")
    def _ramped(self) -> Recipe:
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


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as everyone expects; YAML 1.1 takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def recipe_dir() -> Path:
    """Return the folder of the recipes that come with the package (inside the wheel, or beside a source tree)."""
    inside = Path(str(files("glacier_fastai"))) / "recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(p.stem for p in recipe_dir().glob("*.yaml"))


def load_recipe(
    name: str | Path,  # name of a shipped recipe, or path of a YAML file
    overrides: Sequence[str] = (),  # "train.lr=1e-4", as given to --set
) -> Recipe:
    """Return the validated recipe.

    Raises:
        RecipeError: No such recipe, not YAML, or a field that is unknown, of a wrong type or impossible; the one-line
            message gives the field's path, what is allowed and the nearest right name.
    """
    path = Path(name)
    if not path.suffix and not path.is_file():
        path = recipe_dir() / f"{name}.yaml"
        if not path.is_file():
            names = recipe_names()
            raise RecipeError(
                f"no recipe {str(name)!r}: use {', '.join(names)}, or the path of a YAML file"
                f"{did_you_mean(str(name), names)}"
            )
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as err:
        raise RecipeError(f"{path}: cannot be read ({err.strerror})") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(err).split())})") from err
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a recipe; `glacier-fastai recipes show demo` prints one")
    for item in overrides:
        _override(tree, item)
    return recipe_from(tree, str(path))


def recipe_from(
    tree: dict[str, Any],  # the recipe as plain data
    where: str,  # file named in errors
) -> Recipe:
    """Return the validated recipe of a tree of plain data; raises `RecipeError` like `load_recipe`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as err:
        raise RecipeError(f"{where}: {explain(err)}") from err


def predict_with(
    settings: PredictRecipe,
    overrides: Sequence[str],  # "predict.views=true", as given to --set
) -> PredictRecipe:
    """Return the settings with some changed; raises `RecipeError` like `load_recipe`, also for any other section."""
    tree: dict[str, Any] = {"bands": ["red"], "predict": settings.model_dump(mode="json")}
    for item in overrides:
        if not item.strip().startswith("predict."):
            raise RecipeError(f"--set {item}: a trained model's section predict alone can be changed")
        _override(tree, item)
    return recipe_from(tree, "--set").predict


def _override(tree: dict[str, Any], item: str) -> None:
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"--set {item}: write it as section.field=value, for instance train.lr=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as err:
        raise RecipeError(f"--set {item}: the value is not YAML ({' '.join(str(err).split())})") from err
    *parents, last = key.strip().split(".")
    if parents == ["augment"] and isinstance(tree.get("augment"), (str, list)):
        try:
            tree["augment"] = augment_fields(tree["augment"])
        except RecipeError as err:
            raise RecipeError(f"--set {item}: augment: {err}") from err
    node = tree
    for part in parents:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise RecipeError(f"--set {item}: {part!r} has no fields below it")
    node[last] = value


def explain(
    err: ValidationError,
    model: type[BaseModel] = Recipe,  # what was validated
) -> str:
    """Return what is wrong in one line: each field's path, what is allowed and the nearest right name."""
    return "; ".join(_explain(e, model) for e in err.errors())


def _explain(error: dict[str, Any], model: type[BaseModel]) -> str:
    path = ".".join(str(p) for p in error["loc"] if p != "[key]") or "recipe"
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1], model)
        return f"{path}: unknown key; allowed are {', '.join(known)}{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error.get("ctx", {}).get("error"), DataError):
        return f"{path}: {error['ctx']['error']}"
    if error["type"] == "value_error":
        return f"{path}: {message}"
    near = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = did_you_mean(error["input"], re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    return f"{path}: {message}, not {json.dumps(error['input'], default=str)}{near}"


def _fields(loc: Sequence[str | int], model: Any) -> list[str]:
    for part in loc:
        if isinstance(part, str):  # a number counts the items of a list
            annotation = model.model_fields[part].annotation
            options = [annotation, *getattr(annotation, "__args__", ())]
            model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
