"""Models for other programs: one file of ONNX or torch.export that turns a file's numbers into probabilities."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..bands import CLASSES, INDICES, LOCATION, Bands
from ..core.calibration import all_glacier, tempered
from ..core.dihedral import fraction
from ..core.indices import normalised_difference
from ..core.moments import standardise
from ..errors import BundleError, OutputError, PredictionError, note
from ..files import whole_file
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble

__all__ = ["Format", "Numbers", "export_model"]

Format = Literal["onnx", "torch"]

STRIDE, MOST = 32, 256  # sides of an image are multiples of it; of a network at a scale, of more
TOLERANCE = 1e-4  # largest difference of probabilities, exported from ours
TILE, OVERLAP = 512, 25  # pixels, and percent, as scenes are mapped here


class Numbers(nn.Module):
    """An ensemble from the numbers in files to calibrated probabilities.

    A pixel has no data where a band is not finite, or all are 0; all its probabilities are 0 then.
    """

    def __init__(self, ensemble: Ensemble):
        super().__init__()
        names = [band for band, _ in ensemble.channels]
        if texture := [band for band, how in ensemble.channels if how is not None]:
            raise BundleError(
                f"band {texture[0]}: texture is counted in windows of grey levels, which neither ONNX nor torch.export "
                "can express; train a model without it"
            )
        if ensemble.members[0].bundle.standardised:
            raise BundleError(
                f"{ensemble.members[0].fingerprint}: trained on values that came standardised, so what turns a file's "
                "numbers into them is not known; train on data as delivered"
            )
        self.ensemble = ensemble
        computed = Bands(names).made_of([b for b in names if b not in INDICES])
        self.bands = tuple(dict.fromkeys(computed))
        """Bands of the image, in this order."""
        self.scaling = [_scaling(ensemble, band) for band in self.bands]
        self.models = nn.ModuleList(member.loaded().model() for member in ensemble.members)
        self.stride = _stride([float(getattr(model, "scale", 1)) for model in self.models])
        """Sides of an image are multiples of it."""
        self.weights = [member.weight for member in ensemble.members]
        for name, k in (("scale", 0), ("offset", 1)):
            self.register_buffer(name, torch.tensor([s[k] for s in self.scaling])[:, None, None])
        self.register_buffer("bias", torch.tensor(ensemble.calibration.bias, dtype=torch.float32)[:, None, None])
        for k, member in enumerate(ensemble.members):
            for name in ("mean", "std"):
                values = torch.tensor(getattr(member.bundle, name), dtype=torch.float32)
                self.register_buffer(f"{name}{k}", values[:, None, None])

    def forward(self, numbers: Tensor) -> Tensor:
        """Return probabilities `(B, K, H, W)` of numbers `(B, C, H, W)`, float32."""
        known = torch.isfinite(numbers).all(1, keepdim=True) & (numbers != 0).any(1, keepdim=True)
        values = torch.where(known, numbers, 0) * self.get_buffer("scale") + self.get_buffer("offset")
        there = dict(zip(self.bands, values.unbind(1), strict=True))
        for band in {b for m in self.ensemble.members for b in m.bundle.bands} - there.keys():
            there[band] = normalised_difference(*(there[of] for of in INDICES[band]))
        total: Any = 0
        for k, (model, member) in enumerate(zip(self.models, self.ensemble.members, strict=True)):
            image = torch.stack([there[band] for band in member.bundle.bands], 1)
            image = standardise(image, self.get_buffer(f"mean{k}"), self.get_buffer(f"std{k}"))
            total = total + model(torch.where(known, image, 0)).float().softmax(1) * member.weight
        probs, c = total / sum(self.weights), self.ensemble.calibration
        if not self.ensemble.tells_debris:
            probs = all_glacier(probs, 1)
        if c.temperature != 1 or any(c.bias):
            probs = tempered(probs, c.temperature, self.get_buffer("bias"), 1)
            if not self.ensemble.tells_debris:
                probs = all_glacier(probs, 1)
        return torch.where(known, probs, 0)


def export_model(
    model: ModelBundle | Ensemble,  # an ensemble gives the mean of its models
    out: str | os.PathLike,  # file to write
    to: Format = "onnx",
) -> dict[str, Any]:
    """Write a model that takes numbers as files hold them, `(B, C, H, W)`, and gives probabilities `(B, K, H, W)`.

    Scale and offset of the bands, indices, normalisation, nodata, the mean of an ensemble and its calibration are
    inside. Batch and size may be any, sides being multiples of 32 (of a network that sees its images at half the size,
    of 64: `stride`), from twice that on. Views and other scales are left out, which is a note. What is written is read
    again and compared with ours.

    Returns:
        What the file says of itself: `bands`, `scaling`, `classes`, `resolution`, ..., and `difference`, the largest.

    Raises:
        BundleError: A model takes texture or standardised values, sees its images at an odd scale, or two of an
            ensemble take the numbers of a band for different values.
        OutputError: The file exists already or cannot be written.
        PredictionError: A package that this needs is not there, or what was written gives other probabilities.
    """
    if os.path.lexists(out):
        raise OutputError(f"{out}: exists already; choose another name, or remove it first")
    ensemble = Ensemble.of(model)
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" and not find_spec(name)]:
        raise PredictionError(f"ONNX needs {missing[0]}: pip install 'glacier-fastai[onnx]'")
    if len(ensemble.predict.passes) > 1:
        note(f"{out}: views and scales (predict) are not exported, so it gives what one view of the image does", [])
    network = Numbers(ensemble).eval()
    about = _about(network)
    example = (_numbers(network, 2, 2 * network.stride, 3 * network.stride),)
    sides = [network.stride * torch.export.Dim(name, min=2, max=512) for name in ("rows", "columns")]
    shapes = {"numbers": {0: torch.export.Dim("batch", min=1, max=4096), 2: sides[0], 3: sides[1]}}
    try:
        with torch.no_grad():
            program = torch.export.export(network, example, dynamic_shapes=shapes)
            graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
            for node in (node for graph in graphs for node in graph.nodes):
                node.meta.pop("stack_trace", None)  # paths of this computer, and source
            content = _onnx(program, about) if to == "onnx" else _saved(program, about)
    except Exception as err:  # whatever stands in a stranger's network
        why = " ".join(str(err).split())[:200]
        raise PredictionError(f"{out}: a model cannot be expressed as {to} ({why}); use another network") from err
    about["difference"] = difference = _difference(network, content, to)
    if difference > TOLERANCE:
        raise PredictionError(f"{out}: gives probabilities that differ by {difference:.2g}; use the other format")
    with whole_file(out) as file:
        file.write(content)
    return about


def _scaling(ensemble: Ensemble, band: str) -> tuple[float, float]:
    """Return scale and offset of a band's numbers; raises `BundleError` where models take them for different values."""
    profiles = [m.bundle.profile for m in ensemble.members if band in m.bundle.profile.units]
    known = {p.scaling.get(band, (1.0, 0.0)) for p in profiles} or {(1.0, 0.0)}
    if len(known) > 1:
        raise BundleError(
            f"band {band}: the models take its numbers by different scale and offset ({', '.join(map(str, known))}); "
            "export one of them"
        )
    return known.pop()


def _stride(scales: Sequence[float]) -> int:
    """Return of what an image's sides are multiples, so that networks at these scales need not pad."""
    stride = STRIDE * math.lcm(*(fraction(scale).denominator for scale in scales))
    if stride > MOST:
        raise BundleError(
            f"model.scale {min(scales)}: an image's sides would have to be multiples of {stride} px; export a network "
            "of scale 0.5, 0.25, 0.75 or 1"
        )
    return stride


def _about(network: Numbers) -> dict[str, Any]:
    """Return what a file says of itself; the names are those that QGIS's plug-in Deepness reads, then ours."""
    ensemble, (size, *_) = network.ensemble, [m.bundle.profile.pixel_size for m in network.ensemble.members]
    profile = ensemble.members[0].bundle.profile
    # Deepness divides by 255 and then standardises, which together leave numbers as they are
    as_they_are = {
        "standardization_mean": [0.0] * len(network.bands),
        "standardization_std": [1 / 255] * len(network.bands),
    }
    return {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(CLASSES)),
        "resolution": round(100 * size, 2) if size else None,
        "tiles_size": TILE,
        "tiles_overlap": OVERLAP,
        **as_they_are,
        "bands": list(network.bands),
        "scaling": dict(zip(network.bands, network.scaling, strict=True)),
        "units": {b: profile.units.get(b, "degree" if b in LOCATION else "dn") for b in network.bands},
        "stride": network.stride,
        "nodata": "a pixel of which a band is not finite, or all bands are 0; its probabilities are 0",
        "tells_debris": ensemble.tells_debris,
        "glacier": "clean ice" if ensemble.tells_debris else "ice of any kind: it was never told debris from clean ice",
        "models": [member.fingerprint for member in ensemble.members],
    }


def _onnx(program: Any, about: dict[str, Any]) -> bytes:
    names = ["numbers"], ["probabilities"]
    made = torch.onnx.export(program, input_names=names[0], output_names=names[1], external_data=False, verbose=False)
    assert made is not None
    proto = made.model_proto
    for key, value in about.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=json.dumps(value))
    return proto.SerializeToString()


def _saved(program: Any, about: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    return file.getvalue()


def _difference(network: Numbers, content: bytes, to: Format) -> float:
    """Return the largest difference of the probabilities of what was written, from ours."""
    if to == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        def run(numbers: Tensor) -> np.ndarray:
            return session.run(None, {session.get_inputs()[0].name: numbers.numpy()})[0]
    else:
        module = torch.export.load(io.BytesIO(content)).module()

        def run(numbers: Tensor) -> np.ndarray:
            return module(numbers).numpy()

    largest = 0.0
    with torch.no_grad():
        for shape in ((1, 2 * network.stride, 2 * network.stride), (3, 3 * network.stride, 5 * network.stride)):
            numbers = _numbers(network, *shape)
            numbers[:, :, : shape[1] // 4] = 0  # no data
            largest = max(largest, float(np.abs(run(numbers) - network(numbers).numpy()).max()))
    return largest


def _numbers(network: Numbers, batch: int, height: int, width: int) -> Tensor:
    """Return made-up numbers, spread as those that were trained on."""
    rng = torch.Generator().manual_seed(0)
    known: dict[str, tuple[float, float]] = {}
    for member in network.ensemble.members:
        bundle = member.bundle
        known |= {b: (m, s) for b, m, s in zip(bundle.bands, bundle.mean, bundle.std, strict=True)}
    out = torch.randn(batch, len(network.bands), height, width, generator=rng)
    for k, (band, (scale, offset)) in enumerate(zip(network.bands, network.scaling, strict=True)):
        mean, std = known.get(band, (0.5, 0.2))  # of an index's bands nothing is known
        out[:, k] = (out[:, k] * std + mean - offset) / scale
    return out
