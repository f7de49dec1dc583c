"""Weights that others trained for an encoder, from a local safetensors file, for any bands."""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any

import torch

from ..errors import BundleError, RecipeError
from ..files import file_hash
from ..reading import parse_json, read_tensors
from .registry import architecture, built_as
from .unet import adapt_first_conv, adapted_bands

__all__ = ["load_encoder", "takes_encoder"]

RGB = ["red", "green", "blue"]
SAFE = "give a safetensors file; a pickle may hold code, so save its state dict by safetensors.torch.save_file first"


def takes_encoder(
    name: str,  # of a network
) -> None:
    """Raise `RecipeError` for a network without an encoder of segmentation-models-pytorch or timm."""
    kind = architecture(name)[0]
    if "encoder" not in kind.options or kind.first is None:
        raise RecipeError(f"model.weights: model {kind.name!r} has no encoder that they could be of; set it to null")


def load_encoder(
    model: Any,  # as from `build_model`
    path: str | os.PathLike,  # safetensors file; names of weights are those of timm, or of segmentation-models-pytorch
    bands: tuple[str, ...],  # bands of the model
) -> tuple[str, list[str]]:
    """Load weights into a model's encoder; return the file's SHA-256, and in words what had to be adapted.

    The first convolution goes by band (`unet.adapt_first_conv`): its bands are those that the file's metadata name
    (`bands`, a list in JSON), or red, green and blue. What stands beside the encoder, a classifier say, is left out.

    Raises:
        RecipeError: The model has no encoder.
        BundleError: No safetensors file, a damaged one, or one of another encoder.
    """
    name, options = built_as(model)
    takes_encoder(name)
    metadata, tensors = read_tensors(path, BundleError, link=True, hint=SAFE)
    fresh = model.encoder.state_dict()
    inner = "model." if options["encoder"].startswith("tu-") else ""
    first = architecture(name)[0].first(model).removeprefix(f"encoder.{inner}")  # type: ignore[misc]  # has one
    wanted = {_dotted(key.removeprefix(inner)): key for key in fresh}
    found = _without_prefix(tensors, wanted, _dotted(first))
    lacking = [k for k in wanted if k not in found and not k.endswith("num.batches.tracked")]
    parts = (key.removeprefix(inner).split(".")[0].split("_") for key in fresh)
    tops = {top for words in parts for top in accumulate(words, "{}_{}".format)}
    left = {k: key for k, key in found.items() if k not in wanted}
    more = [key for k, key in left.items() if key[-len(k) :].split(".")[0] in tops]
    other = f"{path}: not of the encoder {options['encoder']}"
    if lacking or more:
        what = f"it has no {wanted[lacking[0]].removeprefix(inner)}" if lacking else f"it has {more[0]}, too"
        raise BundleError(f"{other}: {what}; set model.encoder to what it is of")
    weights, said = {}, []
    for k, key in wanted.items():
        value, shape = tensors[found[k]] if k in found else fresh[key], tuple(fresh[key].shape)
        value = value.float() if value.is_floating_point() else value  # of 8 bits nothing is known
        if value.is_complex() or not torch.isfinite(value).all() or (k.endswith("running.var") and (value < 0).any()):
            raise BundleError(f"{path}: {found[k]} is not finite, or no weight; take another copy")
        if k == _dotted(first) and value.shape[:1] + value.shape[2:] == shape[:1] + shape[2:]:
            have = _bands(path, metadata, value.shape[1])
            value = adapt_first_conv(value, have, bands)
            said.append(adapted_bands(have, bands))
        if tuple(value.shape) != shape:
            raise BundleError(
                f"{other}: {found[k]} is {tuple(value.shape)}, wanted is {shape}; set model.encoder to what it is of"
            )
        weights[key] = value.to(fresh[key].dtype)
    model.encoder.load_state_dict(weights)
    beside = {key[-len(k) :].split(".")[0] for k, key in left.items()}
    return file_hash(path), [*said, *([f"left out: {', '.join(sorted(beside))}"] if beside else [])]


def _dotted(key: str) -> str:
    return key.replace("_", ".")  # timm writes stages.0 in a file and stages_0 in an encoder


def _without_prefix(tensors: dict[str, Any], wanted: dict[str, str], first: str) -> dict[str, str]:
    """Return the names of a file's weights by how they are called within the encoder, which may be part of a model."""
    keys = {_dotted(key): key for key in tensors}
    prefixes = {key.removesuffix(first) for key in keys if f".{key}".endswith(f".{first}")}
    prefix = max(sorted(prefixes), key=lambda p: sum(p + k in keys for k in wanted), default="")
    return {k.removeprefix(prefix): key for k, key in keys.items() if k.startswith(prefix)}


def _bands(path: str | os.PathLike, metadata: dict[str, str], channels: int) -> list[str]:
    if "bands" not in metadata and channels == len(RGB):
        return RGB
    named = parse_json(metadata.get("bands", "[]"), f"{path}: bands", BundleError)
    if not isinstance(named, list) or [str(b) for b in named] != named or len({*named}) != channels:
        raise BundleError(
            f"{path}: nothing says which {channels} bands its first convolution takes; put their names into its "
            'metadata, as bands: ["red", "nir", ...]'
        )
    return named
