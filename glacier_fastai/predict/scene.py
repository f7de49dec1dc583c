"""From models and a scene to a map, and what else people want of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from rasterio.errors import RasterioError

from .. import __version__
from ..bands import CLASSES, ICE, IGNORE
from ..data.scenes import web
from ..data.scenes.address import Address, named
from ..data.scenes.opening import HowRead, open_scene, scene_name
from ..data.scenes.raster import block_cache
from ..data.scenes.scene import Scene
from ..errors import DataError, OutputError, PredictionError, note
from ..files import check_room, digest, file_hash, identity, locked, names_only, remove, write_text
from ..memory import fits
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble
from ..model.fit import check_fit
from ..model.predictor import Predictor, out_of_memory
from ..reading import read_json
from .outlines import LAYERS, Outlines, check_layer
from .postprocess import postprocessed
from .sink import SIDECAR, ClassMap, ConfidenceMap, ProbabilityMap, Sink, Strip, check_grid, checksums
from .sliding import sliding_probabilities
from .source import SceneSource, Source

__all__ = ["Wanted", "map_strips", "predict_scene"]

LOOKED_AT = 8  # windows that are seen without their mask
LEAST_SHARE = 50  # maps are packed to no less than this fraction of a byte a pixel


@dataclass(frozen=True)
class Wanted:
    """What is made of a scene beside the map of classes."""

    probabilities: Literal["uint8", "float32"] | None = None  # type of `SCENE_probabilities.tif`
    confidence: bool = False  # `SCENE_confidence.tif`
    outlines: bool = False  # `SCENE_outlines.gpkg`
    geoparquet: bool = False  # `SCENE_outlines_glaciers.parquet` and `..._classes.parquet`
    simplify: float = 0.0  # of the outlines: tolerance in pixels
    statistics: Literal["bundle", "scene"] = "bundle"  # what bands are normalised with
    window: int = 512  # side of a window, pixels

    def files(self, stem: str) -> dict[str, str]:
        """Return the names of the files of a scene, by kind."""
        names = {"classes": f"{stem}_classes.tif"}
        if self.probabilities:
            names["probabilities"] = f"{stem}_probabilities.tif"
        if self.confidence:
            names["confidence"] = f"{stem}_confidence.tif"
        if self.outlines or self.geoparquet:
            names["outlines"] = f"{stem}_outlines.gpkg"
        if self.geoparquet:
            names |= {f"{k} parquet": f"{stem}_outlines_{k}.parquet" for k in ("glaciers", "classes")}
        return names


def map_strips(
    source: Source,  # scene with the channels of the ensemble
    predictor: Predictor,
    window: int = 512,  # side of a window, pixels; windows overlap by a quarter
) -> Generator[Strip]:
    """Yield the map of a scene, top to bottom, calibrated, decided and post-processed; it is read ahead in a thread."""
    ensemble = predictor.ensemble

    def strips() -> Iterator[Strip]:
        size = source.height, source.width
        found = sliding_probabilities(source.read, predictor, *size, window, window // 4, len(CLASSES))
        for row, mean, valid in found:
            classes, probs = ensemble.decide(mean)
            classes[~valid] = IGNORE
            yield Strip(row, classes, probs)

    yield from postprocessed(strips(), ensemble.predict.postprocess)


def predict_scene(
    model: ModelBundle | Ensemble,  # trained models
    scene: str | os.PathLike,  # see `data.scenes.opening.open_scene`; with the models' bands, or what makes them
    out: str | os.PathLike,  # folder for the map
    wanted: Wanted | None = None,  # what else is made, default the map of classes alone
    *,
    batch_size: int | None = None,  # windows at once, default as `Predictor`
    force: bool = False,  # map values far from those the models were trained on
    overwrite: bool = False,  # replace what is there of another prediction
    device: torch.device | None = None,  # default `predictor.default_device`
    predictor: Callable[[], Predictor] | None = None,  # gives the models where they are read already
    **how: Unpack[HowRead],
) -> dict[str, Any]:
    """Write `OUT/SCENE_classes.tif`, uint8 class codes on the scene's grid, 255 without data, and what else is wanted.

    >>> from tempfile import TemporaryDirectory
    >>> from glacier_fastai.data.sources.synthetic import write_scene
    >>> from glacier_fastai.model.registry import build_model
    >>> weights = build_model("fpn", ["green", "ndsi"], encoder="resnet18").state_dict()
    >>> bundle = ModelBundle(weights, "fpn", {"encoder": "resnet18"}, ("green", "ndsi"), (2e4, 0.3), (1e4, 0.4))
    >>> with TemporaryDirectory() as folder:
    ...     scene, label = write_scene(Path(folder) / "scene.tif", size=64)
    ...     made = predict_scene(bundle, scene, Path(folder) / "maps")
    >>> Path(made["files"]["classes"]).name, sum(made["pixels"].values()) <= 64 * 64, made["done_before"]
    ('scene_classes.tif', True, False)

    Files take their names when all of them are whole. `OUT/SCENE_prediction.json` says what they were made of; if it
    names the same scene, models and settings, and the files are as it says, nothing is done again.

    Returns:
        `files` (paths by kind), `pixels` (by class name), `seconds`, and `done_before`.

    Raises:
        DataError: The scene cannot be read, has no coordinate reference system or one that no map can hold, unnamed
            bands or no data at all, or is changed while it is mapped.
        BundleError: The scene lacks a band of a model, is in other units, or far from what the models know.
        OutputError: A file exists already, is being written by another process, or cannot be written.
        PredictionError: There is not enough memory.
    """
    began, wanted, ensemble = time.monotonic(), wanted or Wanted(), Ensemble.of(model)
    scene, out, name = named(scene), Path(out), scene_name(scene)
    files = {kind: out / file for kind, file in wanted.files(name).items()}
    record = out / f"{name}_prediction.json"
    needed = [band for band, _ in ensemble.channels]
    notes: list[str] = []

    def opened() -> Scene:
        return open_scene(scene, needed, ensemble.pixel_size, **how)

    with opened() as raster:
        ensemble.check(scene, raster.bands)
        for text in raster.look():
            note(text, notes)
        check_fit(ensemble, scene, raster.profile, notes, wanted.statistics, force)
        parts = _parts(raster)
        masks = {"keep": sorted(how.get("keep", ())), "buffer": how.get("mask_buffer", 0.0)}
        about = _about(ensemble, wanted, raster, masks, parts) | {"tells_debris": ensemble.tells_debris, "notes": notes}
    every = [out / file for file in Wanted("uint8", True, True, True).files(name).values()]
    partial = out / f".{name}.partial"
    try:
        busy = f"{out}: another process is mapping {name}; wait until it ends"
        with locked(out / f".{name}.lock", busy):
            try:
                before = read_record(record)
                ours = before.get("hash") == about["hash"]
                made = [*files.values(), *(out / name for name in before.get("sidecars", []))] if ours else []
                if made and all(p.is_file() for p in made) and _whole(made, before, overwrite):
                    return {**before, "files": {k: str(p) for k, p in files.items()}, "done_before": True}
                if not (ours or overwrite) and (there := next((p for p in every if p.exists()), None)):
                    raise OutputError(
                        f"{there}: exists already, of another scene, models or settings; overwrite it, or choose "
                        "another folder"
                    )
                remove(partial)
                partial.mkdir()
                with opened() as raster, block_cache(raster.cached_bytes):
                    source = SceneSource(raster, ensemble.channels)
                    _check_memory(source, wanted)
                    check_room(out, source.height * source.width * len(files) // LEAST_SHARE)
                    check_grid(source, partial)
                    statistics = source.statistics() if wanted.statistics == "scene" else None
                    models = predictor() if predictor else Predictor(ensemble, device, batch_size)
                    models.normalise_by(statistics)
                    counts = _write(source, models, wanted, {k: partial / p.name for k, p in files.items()})
                    notes += [text for text in raster.notes if text not in notes]
                    if source.masked:
                        about["masked"] = _masked(source, models, wanted.window, notes)
                _check_same(scene, parts)
                pixels = dict(zip(CLASSES, counts[: len(CLASSES)].tolist(), strict=True))
                sidecars = sorted(p.name for p in partial.glob(f"*{SIDECAR}"))
                if sidecars:
                    keep = f"lies in {sidecars[0]} beside it; keep the two together"
                    text = f"{files['classes']}: a GeoTIFF cannot hold its coordinate reference system, which {keep}"
                    note(text, about.setdefault("notes", []))
                about |= {"pixels": pixels, "seconds": round(time.monotonic() - began, 1), "sidecars": sidecars}
                about["sha256"] = {p.name: file_hash(p) for p in sorted(partial.iterdir())}
                for path in every:  # none of another prediction may go by the new record's name
                    path.unlink(missing_ok=True)
                    path.with_name(path.name + SIDECAR).unlink(missing_ok=True)
                public = {**about, "notes": [_public(text, [scene, *parts]) for text in about["notes"]]}
                write_text(record, json.dumps(public, indent=1))
                for name in (*sidecars, *(p.name for p in files.values())):
                    (partial / name).replace(out / name)
            finally:
                remove(partial)
    except (MemoryError, RuntimeError) as err:
        if not out_of_memory(err):
            raise
        raise PredictionError(f"{scene}: not enough memory; use a smaller window, or cut the scene") from err
    except OSError as err:
        if isinstance(err, OutputError):
            raise OutputError(str(err).replace(str(partial), str(out))) from err
        raise OutputError(f"{err.filename or out}: cannot be written ({err.strerror}); choose another folder") from err
    return {**about, "files": {k: str(p) for k, p in files.items()}, "done_before": False}


def _check_memory(source: SceneSource, wanted: Wanted) -> None:
    """Refuse a scene of which a row of windows cannot be held, as `sliding_probabilities` does."""
    rows = min(wanted.window, source.height) + 2 * source.halo
    bands = max(len(source.index), len(source.channels)) * (source.scene.dtype.itemsize + 20)
    held = (bands + len(CLASSES) * (16 + 8 * bool(wanted.probabilities))) * rows * source.width
    fits(held, f"{source.path}: {rows:,} rows of {source.width:,} px", "use a smaller window, or cut the scene")


def _write(source: SceneSource, predictor: Predictor, wanted: Wanted, files: dict[str, Path]) -> np.ndarray:
    """Write the files of a scene, and return the pixels by code."""
    counts = np.zeros(256, np.int64)
    with ExitStack() as stack:
        sinks: list[Sink] = [stack.enter_context(ClassMap(files["classes"], source))]
        if "probabilities" in files:
            sinks.append(
                stack.enter_context(ProbabilityMap(files["probabilities"], source, wanted.probabilities or "uint8"))
            )
        if "confidence" in files:
            sinks.append(stack.enter_context(ConfidenceMap(files["confidence"], source)))
        if "outlines" in files:
            area = predictor.ensemble.calibration.area
            outlines = Outlines(files["outlines"], source, area, wanted.simplify, wanted.geoparquet)
            sinks.append(stack.enter_context(outlines))

        def write(strip: Strip) -> None:
            nonlocal counts
            counts += np.bincount(strip.classes.ravel(), minlength=256)
            for sink in sinks:
                sink.write(strip)

        strips = stack.enter_context(closing(map_strips(source, predictor, wanted.window)))
        with ThreadPoolExecutor(1) as pool:  # while the models see the next rows, in this thread
            written = None
            for strip in strips:
                if written:
                    written.result()
                written = pool.submit(write, strip)
            if written:
                written.result()
        if counts[IGNORE] == counts.sum():
            raise DataError(f"{source.path}: every pixel is nodata, so there is nothing to map")
    return counts


def _parts(scene: Scene) -> dict[str, tuple[Any, ...]]:
    """Return the files that a scene is made of, as those of a VRT, and what tells whether they are the same."""
    # not statistics and overviews, which viewers add
    names = [n for n in sorted(scene.files) if not n.endswith((SIDECAR, ".ovr"))]
    return {name: _identity(name) for name in names}


def _identity(name: str) -> tuple[Any, ...]:
    if isinstance(name, Address):
        return web.identity(name)
    return identity(name) if os.path.exists(name) else ()


def _public(text: str, names: Sequence[Any]) -> str:
    """Return a note with the last names alone of paths and addresses."""
    for name in names:
        text = text.replace(name, name.name) if isinstance(name, Address) else text
    return names_only(text)


def _check_same(scene: Path | Address, parts: dict[str, tuple[Any, ...]]) -> None:
    """Raise `DataError` if a scene is not what it was before it was read."""
    for name, before in parts.items():
        if before != _identity(name):
            raise DataError(f"{scene}: {name} was changed while it was mapped; map it again when nobody writes it")


def _whole(made: Sequence[Path], record: dict[str, Any], overwrite: bool) -> bool:
    """Return whether maps that are there are as they were written; raises `OutputError` if one was edited since."""
    sums = record.get("sha256")
    for path in made:
        try:
            if path.suffix == ".gpkg":  # which programs write into that only show it
                for layer in LAYERS:
                    check_layer(path, layer)
            elif not isinstance(sums, dict) or file_hash(path) != sums.get(path.name):
                if path.suffix == ".tif":
                    checksums(path)
                if isinstance(sums, dict) and not overwrite:
                    raise OutputError(f"{path}: was changed after it was made; overwrite it, or move it away")
                return False
        except (RasterioError, OSError) as err:
            if isinstance(err, OutputError):
                raise
            note(f"{path}: is damaged, so it is made again", [])
            return False
    return True


def _masked(source: SceneSource, predictor: Predictor, window: int, notes: list[str]) -> dict[str, Any]:
    """Return how much of a scene is masked, and of that, where it is most, what the models would call ice.

    Flags of clouds err on snow and ice; where that share is large, they hide glaciers.
    """
    pixels = dict(source.masked)
    seen, lost = max(pixels.pop("seen"), 1), pixels.pop("any")
    found: dict[str, Any] = {"share": round(lost / seen, 4), "pixels": pixels}
    if not lost:
        return found
    kinds = ", ".join(f"{kind} {n / seen:.1%}" for kind, n in pixels.items() if n)
    line = f"{source.path}: {lost / seen:.1%} of it is masked ({kinds})"
    ice = total = 0
    for row, col in source.most_masked(LOOKED_AT):
        image, masked = source.behind(row, col, window)
        (probs,) = predictor([image])
        classes, _ = predictor.ensemble.decide(probs)
        ice, total = ice + int(np.isin(classes, ICE)[masked].sum()), total + int(masked.sum())
    if total:
        found |= {"looked_at": total, "ice": round(ice / total, 4)}
        line += f"; the models would call {ice / total:.1%} of it ice"
    note(line, notes)
    return found


def _about(
    ensemble: Ensemble, wanted: Wanted, raster: Scene, masks: dict[str, Any], parts: dict[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Return what a prediction is made of, and a hash of it."""
    content = hashlib.sha256()
    for name, version in parts.items():
        try:
            content.update((json.dumps([name, version]) if isinstance(name, Address) else file_hash(name)).encode())
        except OSError as err:
            raise DataError(f"{raster.path}: {name}, which it is made of, cannot be read ({err.strerror})") from err
    content.update(digest(raster.seen()).encode())
    models: list[dict[str, Any]] = [
        {"bundle": m.path and m.path.name, "weight": m.weight, "sha256": m.fingerprint} for m in ensemble.members
    ]
    about = {
        "version": __version__,
        "scene": raster.path.name,
        "scene_sha256": content.hexdigest(),
        "bands": list(raster.bands),
        "units": [how.unit for how in raster.scaling],
        "scaling": [how[:2] for how in raster.scaling],
        "grid": [raster.height, raster.width, *raster.transform[:6]],
        "models": models,
        "predict": ensemble.predict.model_dump(mode="json"),
        "calibration": ensemble.calibration.model_dump(mode="json"),
        "wanted": asdict(wanted),
        "masks": masks,
    }
    same = {k: v for k, v in about.items() if k not in ("scene", "models")}
    same["models"] = [[m["weight"], m["sha256"]] for m in models]
    return {"hash": digest(same), **about}


def read_record(path: Path) -> dict[str, Any]:
    """Return what a `SCENE_prediction.json` says; nothing if it is not there, or of something else."""
    try:
        return read_json(path, DataError)
    except DataError:
        return {}
