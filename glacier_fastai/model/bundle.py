"""The model bundle: one safetensors file that holds a trained model and all that is needed to use it. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

import numpy as np
import shapely
import torch
from pydantic import Field, Strict, StrictBool, ValidationError, field_validator, model_validator
from safetensors.torch import save as serialize
from torch import nn

from ..bands import CLASSES, INDICES, TERRAIN, Bands
from ..core.ground import SEEN, coarse, share
from ..data.channels import Channel, Texture, channels_of
from ..data.profile import Profile
from ..data.sources.pixels import tangled
from ..data.tiles import TileStore
from ..errors import BundleError, DataError, RecipeError
from ..files import whole_file
from ..reading import parse_json, read_tensors
from ..recipe import PredictRecipe, Section, explain
from .ratio import RatioThresholds
from .registry import architecture, build_model, built_as, weight_shapes
from .unet import adapt_first_conv, adapt_head, adapted_bands

__all__ = ["ModelBundle", "TrainedOn", "trained_ground", "unwrapped"]

FORMAT = "glacier_fastai model bundle"
VERSION = 4
NOWHERE = "POLYGON EMPTY"
WKT = re.compile(r"(MULTI)?POLYGON *(EMPTY|[-+\d.eE(), ]{,4000000})")
# before 4 nothing told whether all is as it was written, before 3 nothing of values and ground trained on; 1: `arch`
# named the encoder of a U-Net, beside `attention`
READS = ("1", "2", "3", "4")
HEAD = ("format", "version", "digest")  # the rest is JSON


class TrainedOn(Section):
    """Which tiles a model was trained on, and which it was validated on."""

    path: str = ""  # the tile store
    hash: str = ""  # of its tiles (`TileStore.fingerprint`)
    folds_hash: str = ""  # of tiles and folds (`data.folds.folds_hash`)
    train: tuple[str, ...] = ()  # keys of tiles (`TileStore.keys`)
    valid: tuple[str, ...] = ()
    tile_size: int | None = None  # pixels
    fold: int | None = None  # that was validated on; None: every tile was trained on
    folds: int = 5  # number of folds
    spatial: bool = True  # neighbours in one fold
    ground: str = ""  # that was trained on, as polygons in WKT, longitude and latitude; empty: nobody knows

    model_config = {**Section.model_config, "strict": False}  # JSON has lists, no tuples

    @field_validator("ground")
    @classmethod
    def _polygons(cls, value: str) -> str:
        plain = WKT.fullmatch(value or NOWHERE)  # collections in collections overflow the stack of GEOS
        ground = shapely.from_wkt(value or NOWHERE, on_invalid="ignore") if plain else None
        if not isinstance(ground, shapely.Polygon | shapely.MultiPolygon) or not ground.is_valid and tangled(ground):
            raise ValueError("no polygons in WKT")
        return value

    def knows(
        self,
        store: TileStore,  # tiles
        *parts: str,  # "train", "valid": of what it was trained on, or validated on
    ) -> np.ndarray:
        """Return bool `(N,)`: which tiles of a store are these very tiles."""
        if self.tile_size not in (None, store.size):
            return np.zeros(len(store), bool)
        return np.isin(store.keys(), [key for part in parts for key in getattr(self, part)])

    def covers(
        self,
        tiles: np.ndarray,  # (N,) polygons, as from `TileStore.ground`
    ) -> np.ndarray:
        """Return bool `(N,)`: which tiles lie on ground that was trained on, whatever they are called."""
        return share(tiles, shapely.make_valid(shapely.from_wkt(self.ground or NOWHERE))) > SEEN


class _About(Section):
    """What the file says of the weights; the fields of `ModelBundle`."""

    arch: str
    options: dict[str, Any]
    bands: tuple[str, ...] = Field(min_length=1)
    mean: tuple[Annotated[float, Strict()], ...]
    std: tuple[Annotated[float, Strict()], ...]
    classes: tuple[str, ...] = Field(min_length=2)
    recipe: dict[str, Any] | None = None
    texture: Texture | None = None
    standardised: StrictBool = False
    metrics: dict[str, Any] = {}
    trained_on: TrainedOn = TrainedOn()
    profile: Profile = Profile()
    tells_debris: StrictBool = True
    baseline: RatioThresholds | None = None

    model_config = {**Section.model_config, "strict": False}  # JSON has lists, no tuples

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError("bands and statistics differ in number")
        with np.errstate(over="ignore"):
            mean, std = np.array([self.mean, self.std]).astype(np.float32)  # as they are used
        if not np.isfinite([mean, std]).all() or (std <= 0).any():
            raise ValueError("statistics are not finite, or a deviation is not positive")
        bases = {base for _, base in Bands(self.bands).textures.values()}
        if self.texture is not None and not bases <= self.texture.edges.keys():
            raise ValueError("no grey levels of a band whose texture it takes")
        PredictRecipe.model_validate((self.recipe or {}).get("predict", {}))
        return self


def trained_ground(
    tiles: np.ndarray,  # (N,) polygons of what is trained on, as from `TileStore.ground`
    before: str = "",  # ground of the weights that training starts from
) -> str:
    """Return `TrainedOn.ground`.

    >>> trained_ground(np.array([shapely.box(86, 27, 86.5, 28)]), "POLYGON ((87 27, 88 27, 88 28, 87 27))")
    'MULTIPOLYGON (((86 27, 86 28, 86.5 28, 86.5 27, 86 27)), ((87 27, 88 28, 88 27, 87 27)))'
    """
    ground = shapely.union(coarse(tiles), shapely.make_valid(shapely.from_wkt(before or NOWHERE))).normalize()
    return "" if ground.is_empty else shapely.to_wkt(ground, rounding_precision=12)


@dataclass(frozen=True)
class ModelBundle:
    """Weights, and what they mean.

    >>> from tempfile import TemporaryDirectory
    >>> options = {"encoder": "resnet18", "attention": None}
    >>> weights = build_model("unet", ["red", "nir"], **options).state_dict()
    >>> with TemporaryDirectory() as folder:
    ...     made = ModelBundle(weights, "unet", options, ("red", "nir"), mean=(90.0, 80.0), std=(40.0, 30.0))
    ...     made.save(f"{folder}/m.safetensors")
    ...     bundle = ModelBundle.load(f"{folder}/m.safetensors")
    >>> bundle.arch, bundle.bands, bundle.model()(torch.zeros(1, 2, 40, 50)).shape
    ('unet', ('red', 'nir'), torch.Size([1, 4, 40, 50]))
    """

    weights: dict[str, torch.Tensor]  # state dict of the network
    arch: str  # its name in the registry
    options: dict[str, Any]  # its options
    bands: Bands  # bands it takes, in this order
    mean: tuple[float, ...]  # mean per band it is normalised with
    std: tuple[float, ...]  # standard deviation per band
    classes: tuple[str, ...] = CLASSES  # classes by code
    recipe: dict[str, Any] | None = None  # resolved recipe of the run
    texture: dict[str, Any] | None = None  # fields of `data.channels.Texture`, where bands are computed as texture
    standardised: bool = False  # trained on values that came standardised: mean and std are then 0 and 1
    metrics: dict[str, Any] = field(default_factory=dict)  # scores on the validation tiles, as `confusion.scores`
    trained_on: TrainedOn = TrainedOn()
    profile: Profile = Profile()  # what the values that it was trained on are; empty where that is not known
    tells_debris: bool = True  # whether its data told debris from clean ice; if not, all ice is mapped as glacier
    baseline: RatioThresholds | None = None  # the band ratio of its training tiles, where their bands and units allow

    def __post_init__(self):
        object.__setattr__(self, "bands", Bands(self.bands))

    @classmethod
    def from_learner(
        cls,
        learn: Any,  # fastai's `Learner` of `GlacierDataLoaders`
        **about: Any,  # further fields, such as `recipe` and `metrics`
    ) -> ModelBundle:
        """Return the bundle of a learner's present weights.

        Raises:
            BundleError: Its model is not of the registry, so that nothing says how to build it again.
        """
        model, store = unwrapped(learn.model), learn.dls.store
        arch, options = built_as(model)
        if extra := architecture(arch)[0].auxiliary:
            options = {**options, extra: 0}
        weights = {k: v for k, v in model.state_dict().items() if not (extra and k.startswith(f"{extra}."))}
        return cls(
            weights={k: v.detach().cpu().clone() for k, v in weights.items()},
            arch=arch,
            options=options,
            bands=learn.dls.bands,
            mean=tuple(float(v) for v in learn.dls.stats[0]),
            std=tuple(float(v) for v in learn.dls.stats[1]),
            texture=store.info.get("texture"),
            standardised=store.standardised,
            profile=learn.dls.profile,
            tells_debris=getattr(learn, "tells_debris", True),
            **about,
        )

    @property
    def channels(self) -> list[Channel]:
        """What the model takes, and how its texture is computed."""
        return channels_of(self.bands, Texture(**self.texture) if self.texture else None)

    def check(
        self,
        where: str | os.PathLike,  # file or folder named in errors
        bands: tuple[str, ...],  # bands it has
        standardised: bool = False,  # whether its values came standardised
    ) -> None:
        """Make sure that data fit the bundle.

        Raises:
            BundleError: A band is missing, and what it could be computed of; or one side only is standardised.
        """

        def lacks(band: str) -> bool:
            if band in self.bands.textures and not self.texture or band in INDICES and standardised:
                return band not in bands  # it cannot be computed
            return not set(Bands([band]).made_of(bands)) <= set(bands)

        textures = self.bands.textures if self.texture else {}  # of these the band that they are computed of is named
        if missing := dict.fromkeys(textures[b][1] if b in textures else b for b in self.bands if lacks(b)):
            hint = "; an elevation model gives it (dem)" if {*missing} <= {*TERRAIN} else ""
            raise BundleError(f"{where}: the bundle needs band {', '.join(missing)}; here are {', '.join(bands)}{hint}")
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

    def model(self) -> nn.Module:
        """Return the model in float32, in evaluation mode."""
        model = build_model(self.arch, self.bands, self.classes, **self.options)
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
        model = self.model().to(device).to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def probs(x: torch.Tensor) -> torch.Tensor:
            return model(x.to(device).contiguous(memory_format=torch.channels_last)).float().softmax(1)

        return probs

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
        about = {name: json.dumps(getattr(self, name), default=Section.model_dump) for name in _About.model_fields}
        metadata = {"format": FORMAT, "version": str(VERSION), **about}
        metadata["digest"] = _digest(tensors, metadata)
        with whole_file(path) as file:
            file.write(serialize({k: v.contiguous() for k, v in tensors.items()}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> ModelBundle:
        """Read a bundle; nothing else is needed, and no code in it is run.

        Raises:
            BundleError: No such file, not a safetensors file, cut short, not a bundle, of another version, of a network
                that is not registered here, or weights that do not fit it.
        """
        ours = True

        def check(metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
            nonlocal ours
            ours = _of_ours(_about(path, metadata), shapes)

        try:
            metadata, tensors = read_tensors(path, BundleError, link=True, check=check)
            about = _about(path, metadata)
            bundle = cls(
                weights={k: _restored(v) for k, v in tensors.items()},
                **{name: getattr(about, name) for name in _About.model_fields}
                | {"texture": about.texture and asdict(about.texture)},
            )
            bundle._check_weights()
            if not ours:
                bundle.model()
            known = metadata["version"] in READS[:3] and "digest" not in metadata  # of before there was one
            if not known and metadata.get("digest") != _digest(tensors, metadata):
                raise ValueError("not as it was written")
        except ValidationError as err:
            raise BundleError(f"{path}: damaged or made by other code ({explain(err, _About)})") from err
        except BundleError:
            raise
        except (RecipeError, DataError) as err:
            raise BundleError(f"{path}: {err}") from err
        except (RuntimeError, ValueError) as err:
            raise BundleError(f"{path}: damaged or made by other code ({' '.join(str(err).split())[:200]})") from err
        return bundle

    def _check_weights(self) -> None:
        """Raise `ValueError` for values that no network has."""
        if bad := next((k for k, v in self.weights.items() if not torch.isfinite(v).all()), None):
            raise ValueError(f"{bad} is not finite")
        if bad := next((k for k, v in self.weights.items() if k.endswith("running_var") and (v < 0).any()), None):
            raise ValueError(f"{bad} is negative")

    def load_into(
        self,
        model: nn.Module,  # as from `build_model`
        bands: tuple[str, ...],  # its bands
        classes: tuple[str, ...] = CLASSES,  # its classes
    ) -> list[str]:
        """Load the weights into a model, bands and classes by name; return what had to be adapted, in words.

        Raises:
            BundleError: The model is another network, or one that cannot adapt to other bands or classes.
        """
        name, options = built_as(model)
        mine: dict[str, Any] = {**architecture(self.arch)[1], **self.options}
        kind, was, now = architecture(name)[0], mine.get("scale"), options.get("scale")
        if name != self.arch or any(options[k] != mine[k] for k in options if k not in kind.apart):
            raise BundleError(
                f"the bundle is a {described(self.arch, self.options)}, the recipe wants a {described(name, options)}; "
                f"set {', '.join(f'model.{k}={json.dumps(v)}' for k, v in {'arch': self.arch, **self.options}.items())}"
            )
        extra = [k for k in model.state_dict() if kind.auxiliary and k.startswith(f"{kind.auxiliary}.")]
        weights = {**{k: model.state_dict()[k].cpu() for k in extra}, **self.weights}
        said = [f"from images at scale {was:g} to scale {now:g}"] if was != now else []
        if tuple(bands) != self.bands:
            if kind.first is None:
                raise BundleError(f"model {name!r} takes weights of its own bands alone, {', '.join(self.bands)}")
            first = kind.first(model)
            weights[first] = adapt_first_conv(weights[first], self.bands, bands)
            said.append(adapted_bands(self.bands, bands))
        if tuple(classes) != self.classes:
            if kind.head is None:
                raise BundleError(f"model {name!r} takes weights of its own classes alone, {', '.join(self.classes)}")
            fresh = model.state_dict()
            for weight in kind.head(model):
                weights[weight] = adapt_head(weights[weight], fresh[weight].cpu(), self.classes, classes)
            kept = [c for c in classes if c in self.classes]
            said.append(f"last convolution: {', '.join(kept) or 'no class'} kept, the rest starts anew")
        model.load_state_dict(weights)
        return said


def described(
    arch: str,  # name of a network
    options: dict[str, Any],  # its options
) -> str:
    """Return a network in words.

    >>> described("unet", {"encoder": "resnet34", "attention": None})
    'unet (encoder resnet34, attention none)'
    """
    said = ", ".join(f"{k} {'none' if v is None else v}" for k, v in options.items())
    return f"{arch} ({said})" if said else arch


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of `DistributedDataParallel`, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Return the SHA-256 of all that a bundle holds."""
    found = hashlib.sha256(repr(sorted((k, v) for k, v in metadata.items() if k != "digest")).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point() or tensor.abs().max() > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def _about(path: str | os.PathLike, metadata: dict[str, str]) -> _About:
    """Return what the metadata of a bundle say."""
    if metadata.get("format") != FORMAT:
        raise BundleError(f"{path}: a safetensors file, but no model bundle of glacier_fastai")
    if metadata.get("version") not in READS:
        raise BundleError(f"{path}: bundle version {metadata.get('version')}; this glacier_fastai reads 1 to {VERSION}")
    told = {k: parse_json(v, f"{path}: {k}", BundleError) for k, v in metadata.items() if k not in HEAD}
    if metadata["version"] == "1":
        told["options"] = {"encoder": told.pop("arch", None), "attention": told.pop("attention", None)}
        told["arch"] = "unet"
    return _About.model_validate(told)


def _of_ours(about: _About, there: dict[str, tuple[int, ...]]) -> bool:
    """Return whether the network is one of ours; raises `ValueError` if the weights are not its, before either is made.

    What shapes the weights of others have, their building tells.
    """
    wanted = weight_shapes(about.arch, about.bands, about.classes, **about.options)
    if wanted is not None and (other := sorted(there.items() ^ wanted.items())):
        name = other[0][0]
        raise ValueError(f"{name} is {there.get(name, 'missing')}, wanted is {wanted.get(name, 'none')}")
    return wanted is not None


def _restored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
