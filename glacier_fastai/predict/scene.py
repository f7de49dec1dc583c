"""From models and a scene to a map, and what else people want of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..bands import CLASSES, ICE, IGNORE, LOCATION, TERRAIN
from ..data.channels import Corner, location
from ..data.scenes import web
from ..data.scenes.address import Address, named
from ..data.scenes.opening import HowRead, open_scene, scene_name
from ..data.scenes.raster import block_cache
from ..data.scenes.scene import Place, Scene
from ..data.sources.inventory import Inventory
from ..errors import DataError, note
from ..files import check_room, digest, file_hash, identity
from ..memory import fits
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble
from ..model.fit import check_fit
from ..model.predictor import Predictor
from .doubtful import Doubtful
from .glaciers import inventory_on, write_glaciers
from .outlines import Outlines
from .postprocess import postprocessed
from .sink import SIDECAR, ClassMap, ConfidenceMap, ProbabilityMap, RasterMap, Strip, check_grid
from .sliding import sliding_probabilities
from .source import Grid, SceneSource
from .whole import Wanted, make_whole

__all__ = [
    "Looked",
    "Wanted",
    "by_glacier",
    "decided",
    "look_at",
    "map_strips",
    "mean_strips",
    "predict_scene",
    "write_map",
]

LOOKED_AT = 8  # windows that are seen without their mask
LEAST_SHARE = 50  # maps are packed to no less than this fraction of a byte a pixel


def map_strips(
    source: SceneSource,  # scene with the channels of the ensemble
    predictor: Predictor,
    window: int = 512,  # side of a window, pixels; windows overlap by a quarter
) -> Generator[Strip]:
    """Yield the map of a scene, top to bottom, calibrated, decided and post-processed; it is read ahead in a thread."""
    yield from decided(mean_strips(source, predictor, window), predictor.ensemble)


def mean_strips(source: SceneSource, predictor: Predictor, window: int) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield first row, mean probabilities of the models `(K, h, W)`, and where there is data, top to bottom."""
    size = source.height, source.width
    return sliding_probabilities(source.read, predictor, *size, window, window // 4, len(CLASSES))


def decided(strips: Iterable[tuple[int, Tensor, np.ndarray]], ensemble: Ensemble) -> Generator[Strip]:
    """Yield the map of mean probabilities."""

    def found() -> Iterator[Strip]:
        for row, mean, valid in strips:
            classes, probs = ensemble.decide(mean)
            classes[~valid] = IGNORE
            yield Strip(row, classes, probs)

    return postprocessed(found(), ensemble.predict.postprocess)


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
    wanted, ensemble = wanted or Wanted(), Ensemble.of(model)
    out, name, looked = Path(out), scene_name(scene), look_at(scene, ensemble, wanted, force, how)
    about = {**looked.about}
    note_unused_dem([looked], wanted, how, about["notes"])

    def make(partial: Path) -> dict[str, Any]:
        with looked.source(ensemble, wanted) as source:
            check_room(out, source.height * source.width * len(wanted.files(name)) // LEAST_SHARE)
            check_grid(source, partial)
            models = predictor() if predictor else Predictor(ensemble, device, batch_size)
            models.normalise_by(source.statistics() if wanted.statistics == "scene" else None)
            strips = map_strips(source, models, wanted.window)
            found: dict[str, Any] = {
                "pixels": write_map(strips, source, ensemble, wanted, partial, name, about["notes"])
            }
            add_notes(source, about["notes"])
            if wanted.glaciers:
                found |= by_glacier(wanted, looked.inventory, partial, name, about, how.get("dem"))
            return found | masked_share(source, models, wanted.window, about["notes"])

    private = [looked.path, *looked.parts, how.get("dem"), how.get("mask")]
    return make_whole(out, name, about, wanted, make, overwrite, private)


@dataclass(frozen=True)
class Looked:
    """A scene that was looked at and fits the models; what it is, and what it is made of."""

    path: Path | Address
    open: Callable[[], Scene]
    about: dict[str, Any]  # for the record, with a hash of it
    parts: dict[str, tuple[Any, ...]]  # its files, and what tells whether they are the same
    grid: Grid
    inventory: Inventory | None = None  # its glaciers, where those of an inventory are wanted

    @contextmanager
    def source(self, ensemble: Ensemble, wanted: Wanted) -> Iterator[SceneSource]:
        """Open the scene to be mapped; raises `DataError` if it is too large, or is changed meanwhile."""
        with self.open() as scene, block_cache(scene.cached_bytes):
            source = SceneSource(scene, ensemble.channels)
            _check_memory(source, wanted)
            yield source
        _check_same(self.path, self.parts)


def look_at(
    scene: str | os.PathLike,  # see `data.scenes.opening.open_scene`
    ensemble: Ensemble,
    wanted: Wanted,
    force: bool,  # see `predict_scene`
    how: HowRead,
) -> Looked:
    """Look at a scene before it is mapped, and say what is odd about it; raises as `predict_scene`."""
    path, notes = named(scene), list[str]()
    needed = [band for band, _ in ensemble.channels]

    def opened() -> Scene:
        return open_scene(scene, needed, ensemble.pixel_size, **how)

    with opened() as raster:
        ensemble.check(path, raster.bands)
        for text in raster.look():
            note(text, notes)
        middle = Corner(raster.crs, raster.transform, raster.height // 2, raster.width // 2)
        if {*needed} & {*LOCATION} - {*raster.bands} and not location(middle, (1, 1)).any():
            note(f"{path}: lies nowhere on the Earth by its CRS, so the models do not know where it is", notes)
        check_fit(ensemble, path, raster.profile, notes, wanted.statistics, force)
        masks = {"keep": sorted(how.get("keep", ())), "buffer": how.get("mask_buffer", 0.0)}
        parts = _parts(raster)
        inventory = inventory_on(wanted.glaciers, raster, path, notes) if wanted.glaciers else None
        about = _about(ensemble, wanted.about(inventory, how.get("dem")), raster, masks, parts)
        about |= {"tells_debris": ensemble.tells_debris, "notes": notes}
        grid = Grid(path, raster.crs, raster.transform, raster.height, raster.width)
        return Looked(path, opened, about, parts, grid, inventory)


def note_unused_dem(looked: Sequence[Looked], wanted: Wanted, how: HowRead, notes: list[str]) -> None:
    """Say that an elevation model plays no part in a map."""
    bands = {band for each in looked for band in each.about["bands"]}
    if (dem := how.get("dem")) is not None and not wanted.glaciers and not bands & {*TERRAIN}:
        note(f"{dem}: no model takes a band of terrain, so this elevation model is not used", notes)


def _check_memory(source: SceneSource, wanted: Wanted) -> None:
    """Refuse a scene of which a row of windows cannot be held, as `sliding_probabilities` does."""
    rows = min(wanted.window, source.height) + 2 * source.halo
    bands = max(len(source.index), len(source.channels)) * (source.scene.dtype.itemsize + 20)
    held = (bands + len(CLASSES) * (16 + 8 * bool(wanted.probabilities))) * rows * source.width
    fits(held, f"{source.path}: {rows:,} rows of {source.width:,} px", "use a smaller window, or cut the scene")


def write_map(
    strips: Generator[Strip],  # all of a map, as from `map_strips`
    source: Place,  # where the map lies
    ensemble: Ensemble,
    wanted: Wanted,
    folder: Path,  # where the files are written
    name: str,  # see `Wanted.files`
    notes: list[str],  # see `errors.note`
) -> dict[str, int]:
    """Write the files of a map, and return its pixels by class; raises `DataError` if none has data."""
    counts = np.zeros(256, np.int64)
    files = {kind: folder / file for kind, file in wanted.files(name).items()}
    if wanted.glaciers:
        files.setdefault("probabilities", _hidden(folder, name))
    with ExitStack() as stack:
        sinks: list[RasterMap | Doubtful] = [ClassMap(files["classes"], source)]
        if "probabilities" in files:
            sinks.append(ProbabilityMap(files["probabilities"], source, wanted.probabilities or "uint8"))
        if "confidence" in files:
            sinks.append(ConfidenceMap(files["confidence"], source))
        if "outlines" in files:
            area = ensemble.calibration.area
            sinks.append(Outlines(files["outlines"], source, area, wanted.simplify, wanted.geoparquet))
        if "doubtful" in files:
            sinks.append(Doubtful(files["doubtful"], source, wanted.doubtful, notes))
        for sink in sinks:
            stack.enter_context(sink)

        def write(strip: Strip) -> None:
            nonlocal counts
            counts += np.bincount(strip.classes.ravel(), minlength=256)
            for sink in sinks:
                sink.write(strip)

        stack.enter_context(closing(strips))
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
    return dict(zip(CLASSES, counts[: len(CLASSES)].tolist(), strict=True))


def _hidden(folder: Path, name: str) -> Path:
    """Return a file of probabilities that nobody asked for, but intervals of glaciers need."""
    return folder / f".{name}_probabilities.tif"


def by_glacier(
    wanted: Wanted,  # with `glaciers`
    inventory: Inventory | None,  # of `inventory_on`
    folder: Path,  # with the files of `write_map`
    name: str,  # see `Wanted.files`
    about: dict[str, Any],  # the record of the map; what is odd is added to its notes
    dem: str | os.PathLike | None = None,  # elevation model, for heights, slope and aspect
) -> dict[str, Any]:
    """Write the tables of glaciers of a map, and return for the record how much ice went where.

    Raises:
        DataError: As `glaciers`, or the elevation model was changed meanwhile.
    """
    assert wanted.glaciers
    maps, notes = {k: folder / file for k, file in wanted.files(name).items()}, about["notes"]
    maps = {k: maps[k] for k in ("classes", "confidence", "probabilities") if k in maps}
    maps.setdefault("probabilities", _hidden(folder, name))
    more: dict[str, Any] = {"geoparquet": wanted.geoparquet, "dem": dem}
    made = write_glaciers(maps, wanted.glaciers, inventory, folder, name, about, notes, **more)
    if wanted.about(inventory, dem)["glaciers"] != about["wanted"]["glaciers"]:
        raise DataError(f"{dem or wanted.glaciers.divides}: was changed while {name} was mapped; map it again")
    return {"glaciers": {k: made[k] for k in ("inventory", "totals")}}


def _parts(scene: Scene) -> dict[str, tuple[Any, ...]]:
    """Return the files that a scene is made of, as those of a VRT, and what tells whether they are the same."""
    # not statistics and overviews, which viewers add
    names = [n for n in sorted(scene.files) if not n.endswith((SIDECAR, ".ovr"))]
    return {name: _identity(name) for name in names}


def _identity(name: str) -> tuple[Any, ...]:
    if isinstance(name, Address):
        return web.identity(name)
    return identity(name) if os.path.exists(name) else ()


def _check_same(scene: Path | Address, parts: dict[str, tuple[Any, ...]]) -> None:
    """Raise `DataError` if a scene is not what it was before it was read."""
    for name, before in parts.items():
        if before != _identity(name):
            raise DataError(f"{scene}: {name} was changed while it was mapped; map it again when nobody writes it")


def add_notes(source: SceneSource, notes: list[str]) -> None:
    """Add what was noted while a scene was read."""
    notes.extend(text for text in source.scene.notes if text not in notes)


def masked_share(source: SceneSource, predictor: Predictor, window: int, notes: list[str]) -> dict[str, Any]:
    """Return for the record how much of a scene is masked, and of that, where it is most, what the models call ice.

    Flags of clouds err on snow and ice; where that share is large, they hide glaciers.
    """
    counts = source.masked
    if not counts.seen:
        return {}
    if counts.idle:
        note(f"{source.path}: {counts.idle}", notes)
    found: dict[str, Any] = {"share": round(counts.share, 4), "pixels": counts.pixels}
    if not counts.lost:
        return {"masked": found}
    line, ice, total = f"{source.path}: {counts.text}", 0, 0
    for row, col in source.most_masked(LOOKED_AT):
        image, masked = source.behind(row, col, window)
        (probs,) = predictor([image])
        classes, _ = predictor.ensemble.decide(probs)
        ice, total = ice + int(np.isin(classes, ICE)[masked].sum()), total + int(masked.sum())
    if total:
        found |= {"looked_at": total, "ice": round(ice / total, 4)}
        line += f"; the models would call {ice / total:.1%} of it ice"
    note(line, notes)
    return {"masked": found}


def _about(
    ensemble: Ensemble, wanted: dict[str, Any], raster: Scene, masks: dict[str, Any], parts: dict[str, tuple[Any, ...]]
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
    calibration = ensemble.calibration.model_dump(mode="json")
    if calibration["glacier"] is None:  # as in records of before, whose maps are the same
        del calibration["glacier"]
    about = {
        "version": __version__,
        "scene": raster.path.name,
        "scene_sha256": content.hexdigest(),
        "date": raster.date,
        "sensor": raster.sensor or "",
        "bands": list(raster.bands),
        "units": [how.unit for how in raster.scaling],
        "scaling": [how[:2] for how in raster.scaling],
        "grid": [raster.height, raster.width, *raster.transform[:6]],
        "models": models,
        "predict": ensemble.predict.model_dump(mode="json"),
        "calibration": calibration,
        "wanted": wanted,
        "masks": masks,
    }
    same = {k: v for k, v in about.items() if k not in ("scene", "date", "sensor", "models")}
    same["models"] = [[m["weight"], m["sha256"]] for m in models]
    return {"hash": digest(same), **about}
