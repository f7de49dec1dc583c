"""What is made of a scene, whole or absent: files that take their names together, and the record of what made them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from rasterio.errors import RasterioError

from ..bands import CLASSES
from ..core.divides import PARAMETERS
from ..data.scenes.address import Address, named
from ..data.scenes.web import fingerprint
from ..data.sources.inventory import Inventory
from ..errors import DataError, OutputError, PredictionError, note
from ..files import file_hash, names_only, replaceable, take_names, work_folder, write_text
from ..memory import out_of_memory
from ..reading import read_json
from ..recipe import Section
from .doubtful import DOUBTFUL
from .glaciers import ByGlacier, glacier_files
from .outlines import LAYERS, check_layer, check_name, rows_digest
from .sink import SIDECAR, checksums

__all__ = ["Wanted", "make_whole", "page_name", "read_record"]


BESIDE = (SIDECAR, ".ovr", ".msk")  # what GDAL takes for a part of a raster, and viewers add to one


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
    dates: bool = False  # `SCENE_dates.tif`, of a composite: how many scenes see a pixel
    glaciers: ByGlacier | None = None  # `SCENE_glaciers.gpkg`, `.csv` and `.json`: the ice by glacier
    doubtful: int = 0  # places of `SCENE_doubtful.gpkg`, where looking pays most

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
            names |= {f"{k} parquet": f"{stem}_outlines_{k}.parquet" for k in LAYERS}
        if self.dates:
            names["dates"] = f"{stem}_dates.tif"
        if self.doubtful:
            names["doubtful"] = f"{stem}_doubtful.gpkg"
        if self.glaciers:
            names |= glacier_files(stem, self.geoparquet)
        return names

    def about(self, inventory: Inventory | None, dem: str | os.PathLike | None = None) -> dict[str, Any]:
        """Return all of it for the record; of an inventory or an elevation model its name and SHA-256 tell."""
        of: dict[str, Any]
        found = {k: v for k, v in asdict(self).items() if k != "glaciers" and (k != "doubtful" or v)}
        if by := self.glaciers:
            if inventory is not None:
                of = {"inventory": inventory.name, "sha256": inventory.sha256}
            else:
                of = {"divides": named(by.divides or "").name, "sha256": fingerprint(by.divides or ""), **PARAMETERS}
            found["glaciers"] = {**of, "buffer": by.buffer, "min_area": by.min_area}
            found["glaciers"] |= {"dem": fingerprint(dem)} if dem is not None else {}
        return found

    @staticmethod
    def every(stem: str) -> list[str]:
        """Return the names of all files that there may be of a scene."""
        names = Wanted("uint8", True, True, True, dates=True, glaciers=ByGlacier(""), doubtful=1).files(stem).values()
        return [*names, page_name(stem)]


class _Record(Section):
    """What of a record is relied on where a map was made before."""

    model_config = {**Section.model_config, "extra": "allow"}

    hash: str
    pixels: dict[str, Annotated[int, Field(ge=0)]]
    seconds: Annotated[float, Field(ge=0)]
    sidecars: list[Annotated[str, Field(pattern=rf"^[^/]+{re.escape(SIDECAR)}$")]] = []
    sha256: dict[str, str] = {}
    rows: dict[str, str] = {}

    @field_validator("pixels")
    @classmethod
    def _by_class(cls, pixels: dict[str, int]) -> dict[str, int]:
        if {*pixels} != {*CLASSES} or not any(pixels.values()):
            raise ValueError(f"use a number for each of {', '.join(CLASSES)}")
        return pixels

    @classmethod
    def of(cls, path: Path) -> dict[str, Any]:
        """Return a record as it is; one that is not as we write it counts as none."""
        found = read_record(path)
        with suppress(ValidationError):
            cls.model_validate(found)
            return found
        return {}


def page_name(stem: str) -> str:
    """Return the name of a scene's map page, which is made of the files of its map when these are there."""
    return f"{stem}_map.html"


def make_whole(
    out: Path,  # folder
    name: str,  # of the scene
    about: dict[str, Any],  # what the files are made of: "hash" of all that, "notes", and more for the record
    wanted: Wanted,
    make: Callable[[Path], dict[str, Any]],  # writes the files wanted into a folder, and returns more for the record
    overwrite: bool = False,  # replace what is there of another prediction
    private: Sequence[Any] = (),  # addresses and paths of which the record keeps the last name alone
) -> dict[str, Any]:
    """Make the files of a scene under a lock; they take their names when all of them are whole.

    Returns:
        The record, `files` (paths by kind), and `done_before`: whether all was there, made of the same.

    Raises:
        OutputError: A file exists already, is being written by another process, or cannot be written.
        PredictionError: There is not enough memory.
    """
    began = time.monotonic()
    files = {kind: out / file for kind, file in wanted.files(name).items()}
    record, every = out / f"{name}_prediction.json", [out / file for file in wanted.every(name)]
    beside = [path.with_name(path.name + end) for path in every for end in BESIDE]
    try:
        with work_folder(out, name, f"{out}: another process is mapping {name}; wait until it ends") as partial:
            before = _Record.of(record)
            ours = before.get("hash") == about["hash"]
            made = [*files.values(), *(out / name for name in before.get("sidecars", []))] if ours else []
            if made and all(p.is_file() for p in made) and _whole(made, before, overwrite):
                return {**before, "files": {k: str(p) for k, p in files.items()}, "done_before": True}

            def refuse_others() -> None:
                replaceable((record, *every, *beside))
                if not (ours or overwrite) and (there := next((p for p in every if p.exists()), None)):
                    raise OutputError(
                        f"{there}: exists already, of another scene, models or settings; overwrite it, or choose "
                        "another folder"
                    )

            refuse_others()
            for path in files.values():
                if path.suffix == ".gpkg":
                    check_name(path)
            about |= make(partial)
            names = [path.name for path in files.values()]
            sidecars = sorted(name + SIDECAR for name in names if (partial / f"{name}{SIDECAR}").is_file())
            if sidecars:
                keep = f"lies in {sidecars[0]} beside it; keep the two together"
                text = f"{files['classes']}: a GeoTIFF cannot hold its coordinate reference system, which {keep}"
                note(text, about["notes"])
            about |= {"seconds": round(time.monotonic() - began, 1), "sidecars": sidecars}
            about["sha256"] = {file: file_hash(partial / file) for file in sorted([*names, *sidecars])}
            about["rows"] = {
                path.name: rows_digest(partial / path.name) for path in files.values() if path.suffix == ".gpkg"
            }
            private = [*private, *files.values(), *([by.inventory, by.divides] if (by := wanted.glaciers) else [])]
            public = {**about, "notes": [_public(text, private) for text in about["notes"]]}
            write_text(partial / record.name, json.dumps(public, indent=1))
            refuse_others()
            take_names(out, [partial / file for file in (record.name, *sidecars, *names)], [*every, *beside])
    except (MemoryError, RuntimeError) as err:
        if not out_of_memory(err):
            raise
        raise PredictionError(f"{name}: not enough memory; use a smaller window, or cut the scene") from err
    except OSError as err:
        if isinstance(err, OutputError):
            raise
        raise OutputError(f"{err.filename or out}: cannot be written ({err.strerror}); choose another folder") from err
    return {**about, "files": {k: str(p) for k, p in files.items()}, "done_before": False}


def _public(text: str, names: Sequence[Any]) -> str:
    """Return a note with the last names alone of paths and addresses."""
    for name in names:
        text = text.replace(name, name.name) if isinstance(name, Address) else text
    return names_only(text, *(name for name in names if not isinstance(name, Address)))


def _whole(made: Sequence[Path], record: dict[str, Any], overwrite: bool) -> bool:
    """Return whether maps that are there are as they were written; raises `OutputError` if one was edited since."""
    sums = record.get("sha256")
    for path in made:
        try:
            if path.suffix == ".gpkg":  # which programs write into that only show it
                kind = path.stem.rpartition("_")[2]
                for layer in {"glaciers": LAYERS[:1], DOUBTFUL: (DOUBTFUL,)}.get(kind, LAYERS):
                    check_layer(path, layer)
                if (rows := record.get("rows", {}).get(path.name)) and rows_digest(path) != rows:
                    note(f"{path}: was changed after it was made; it stays as it is", [])
            elif not isinstance(sums, dict) or file_hash(path) != sums.get(path.name):
                if path.suffix == ".tif":
                    checksums(path.absolute())
                if isinstance(sums, dict) and not overwrite:
                    raise OutputError(f"{path}: was changed after it was made; overwrite it, or move it away")
                return False
        except (RasterioError, OSError) as err:
            if isinstance(err, OutputError):
                raise
            note(f"{path}: is damaged, so it is made again", [])
            return False
    return True


def read_record(path: Path) -> dict[str, Any]:
    """Return what a `SCENE_prediction.json` says; nothing if it is not there, or of something else."""
    try:
        return read_json(path, DataError)
    except DataError:
        return {}
