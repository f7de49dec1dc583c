"""Many scenes, on one machine or many: each is whole or absent, and what failed is told at the end."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..bands import CLASSES, ICE
from ..data.scenes.address import Address, named
from ..data.scenes.opening import scene_name
from ..errors import DataError, GlacierError, PredictionError, note, printable
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble
from ..model.predictor import Predictor
from ..model.processes import all_gather, init_processes, world_size
from ..reading import read_table, read_text
from ..terminal import launched
from .scene import predict_scene
from .sink import SIDECAR
from .whole import Wanted, read_record

__all__ = ["find_scenes", "part_of", "predict_scenes", "raise_failed", "split_models", "summary"]

log = logging.getLogger(__name__)

ENDS = (*Wanted.every(""), "_prediction.json")  # of what is made of a scene


def split_models(
    paths: Sequence[str],  # models and scenes, as a command names them
) -> tuple[list[str], list[str]]:
    """Return the models, known by their suffix, and the scenes, all else; raises `DataError` if either is missing."""
    models = [p for p in paths if isinstance(named(p), Path) and Path(p).suffix in (".safetensors", ".yaml", ".yml")]
    scenes = [p for p in paths if p not in models]
    if not models or not scenes:
        missing = "no model: name a bundle (.safetensors) or an ensemble.yaml" if not models else "no scene to map"
        raise DataError(f"{missing}; the order is MODEL... SCENE...")
    return models, scenes


def find_scenes(
    names: Sequence[str | os.PathLike],  # files, folders, patterns such as "scenes/*.tif", manifests (.txt, .csv)
) -> list[Path | Address]:
    """Return the scenes that are meant, each once, in the order given.

    A manifest has a path or an address per line, or is a table with a column `scene`; paths are as seen from it. Of
    what a pattern matches, folders beside files, maps that `predict_scene` made, .aux.xml and .ovr are no scenes; maps
    named beside scenes are left out, too, which is noted.

    Raises:
        DataError: A pattern matches no scene, a manifest cannot be read, or two scenes would have maps of one name.
    """
    found: list[Path | Address] = []
    for given in names:
        path = named(given)
        if isinstance(path, Address):
            found.append(path)
            continue
        name = str(path)
        if path.suffix.lower() in (".txt", ".csv") and not path.stem.endswith("_MTL"):
            found += _listed(path)
        elif path.exists() or not glob.has_magic(name):
            found.append(path)
        else:
            every = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            matches = [match for match in every if match.is_file() and not match.name.endswith((SIDECAR, ".ovr"))]
            if every and not any(match.is_file() for match in every):
                matches = every  # folders of products
            if not matches:
                raise DataError(f"{name}: no file matches")
            scenes = [match for match in matches if not _is_map(match)]
            if not scenes:
                raise DataError(f"{name}: matches nothing but maps made before, such as {matches[0]}; name the scenes")
            found += scenes
    found = list(dict.fromkeys(found))
    if (maps := [path for path in found if _is_map(path)]) and len(maps) < len(found):  # as a shell expands *.tif
        found = [path for path in found if path not in maps]
        note(
            f"{maps[0]}{f' and {len(maps) - 1} more' if len(maps) > 1 else ''}: a map made before, no scene; left out",
            [],
        )
    stems: dict[str, Path | Address] = {}
    for path in found:
        if (other := stems.setdefault(scene_name(path), path)) != path:
            raise DataError(f"{path}: its map would have the name of that of {other}; use an output folder for each")
    return found


def _is_map(path: Path | Address) -> bool:
    """Return whether a file belongs to a map, as the record beside it says."""
    if isinstance(path, Address):
        return False
    for end in ENDS:
        stem = path.name[: -len(end)]
        if path.name.lower().endswith(end) and "scene_sha256" in read_record(path.with_name(f"{stem}_prediction.json")):
            return True
    return False


def _listed(path: Path) -> list[Path | Address]:
    if path.suffix.lower() == ".csv":
        lines = read_table(path, DataError, {"scene": str}, link=True)["scene"].tolist()
    else:
        lines = read_text(path, DataError, link=True).splitlines()
    if not (lines := [line for line in map(str.strip, lines) if line and line[0] != "#"]):
        raise DataError(f"{path}: names no scene")
    return [scene if isinstance(scene := named(line), Address) else path.parent / scene for line in lines]


def part_of(
    scenes: Sequence[Path | Address],
    part: str = "",  # "2/8": the second of eight; default what a launcher says (RANK and WORLD_SIZE), else all
) -> list[Path | Address]:
    """Return the share of one of several processes; all shares together are all scenes, each once.

    Raises:
        DataError: `part` is not i/n with 1 <= i <= n.
    """
    if not part:
        rank, n = launched()
        return list(scenes[rank::n])
    try:
        i, n = map(int, part.split("/"))
    except ValueError:
        i = n = 0
    if not 1 <= i <= n:
        raise DataError(f"part {part}: write it as i/n with i from 1 to n, for instance 2/8")
    return list(scenes[i - 1 :: n])


def predict_scenes(
    model: ModelBundle | Ensemble,
    scenes: Sequence[str | os.PathLike],  # see `find_scenes`
    out: str | os.PathLike,  # folder for the maps
    wanted: Wanted | None = None,  # what else is made, default the map of classes alone
    *,
    part: str = "",  # which of the scenes are done here, see `part_of`
    on_error: Literal["continue", "stop"] = "continue",  # after a scene that fails
    page: Callable[..., Path] | None = None,  # writes the page of a map, as `show.page.page_of`
    **kwargs: Any,  # of `predict_scene`
) -> pd.DataFrame:
    """Map scenes one after the other; return a row for each: scene, state, error, pixels by class, seconds, files.

    `state` is "done", "done before" or "failed". In a launch every process does its share, on its own GPU.

    Raises:
        DataError: As `find_scenes` and `part_of`.
        TrainingError: As `init_processes`.
        GlacierError: Whatever a scene raised, where errors are to stop it.
    """
    chosen = part_of(find_scenes(scenes), part)
    init_processes()  # `raise_failed` wants it, and refuses before work what cannot meet after it
    rows: list[dict[str, Any]] = []
    ensemble, alone = Ensemble.of(model), len(chosen) == 1 and world_size() == 1
    models = cache(lambda: Predictor(ensemble, kwargs.get("device"), kwargs.get("batch_size")))  # once for all scenes
    if wanted and (wanted.outlines or wanted.geoparquet) and ensemble.calibration.area is None:
        log.info("no area intervals: `calibrate` fits them, to one way of use; other settings leave them out")
    for k, scene in enumerate(chosen, 1):
        try:
            result = predict_scene(ensemble, scene, out, wanted, predictor=models, **kwargs)
            if page:
                result["files"]["page"] = str(page(result["files"], [scene], result["done_before"]))
        except (GlacierError, OSError) as err:
            if alone or on_error == "stop":
                raise
            rows.append({"scene": str(scene), "state": "failed", "error": str(err), "files": None})
        else:
            state = "done before" if result["done_before"] else "done"
            rows.append({"scene": str(scene), "state": state, "error": "", "seconds": result["seconds"]})
            rows[-1] |= {**result["pixels"], "files": result["files"]}
        if not alone:
            said = rows[-1]["error"] or f"{rows[-1]['state']}, {rows[-1]['seconds']} s"
            log.log(
                logging.ERROR if world_size() > 1 else logging.INFO,
                f"{k} of {len(chosen)}: {printable(str(scene))}: {said}",
            )
    return pd.DataFrame(rows)


def raise_failed(
    table: pd.DataFrame,  # as from `predict_scenes`
) -> None:
    """Raise `PredictionError` if scenes failed, here or in another process of the launch; each must call it."""
    counts = [int((table["state"] == "failed").sum()) if len(table) else 0, len(table)]
    if world_size() > 1:  # a launcher ends all processes when one fails, so they meet before
        counts = [sum(each) for each in zip(*all_gather(counts), strict=True)]
    if counts[0]:
        raise PredictionError(f"{counts[0]} of {counts[1]} scenes failed, see above; the others are done")


def summary(
    table: pd.DataFrame,  # as from `predict_scenes`
) -> str:
    """Return the table as text: a line per scene, its share of ice, and how many failed."""
    lines = []
    for row in table.to_dict("records"):
        if row["state"] == "failed":
            lines.append(printable(f"{row['scene']}  failed: {row['error']}", 1000))
            continue
        mapped = sum(row[c] for c in CLASSES)
        ice = sum(row[CLASSES[k]] for k in ICE)
        done = f"{row['state']}, {mapped:,.0f} px mapped, {ice / mapped:.1%} ice, {row['seconds']} s"
        lines.append(f"{printable(row['scene'])}  {done}")
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    return "\n".join([*lines, f"{len(table)} scenes: {counts}"])
