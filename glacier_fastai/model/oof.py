"""Out-of-fold predictions: of every tile, by the model that was not trained on it. Calibration is fitted to them.

The epoch that a model is kept from was chosen on these very tiles, so they flatter it a little.

OUT/oof/models.json        SHA-256 of each model, by its path from OUT
OUT/oof/digests.json       SHA-256 of the three files below
OUT/oof/tiles.csv          a row per tile: key (as `TileStore.keys`), id, fold, once (`core.folds.counted_once`: 0, 1)
OUT/oof/probabilities.npy  (N, K, H, W) float16, views and scales averaged as the recipe wants
OUT/oof/labels.npy         (N, H, W) uint8, 254 = ice of unknown kind, 255 = no label
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from ..bands import CLASSES, ICE_OF_ANY_KIND, IGNORE
from ..core.folds import counted_once
from ..data.tiles import TileStore
from ..errors import BundleError, DataError, cell, note
from ..files import check_room, file_hash, whole_file, whole_folder, write_text
from ..reading import SHORT, check_length, read_array, read_json, read_table
from .bundle import ModelBundle
from .ensemble import Member
from .evaluate import predict_tiles

__all__ = ["OutOfFold"]

AGAIN = "repeat the cross-validation"
DIGESTED = ("tiles.csv", "labels.npy", "probabilities.npy")


class OutOfFold:
    """Out-of-fold predictions on disk, opened for reading; arrays are memory-mapped."""

    def __init__(
        self,
        path: str | os.PathLike,  # folder that `write` made, or the one of the cross-validation that it is in
    ):
        path = Path(path)
        self.path = path / "oof" if (path / "oof").is_dir() else path
        if not (self.path / "models.json").is_file():
            raise DataError(f"{path}: no out-of-fold predictions; a cross-validation writes them")
        self.models: dict[str, str] = read_json(self.path / "models.json", DataError)
        self.table = read_table(self.path / "tiles.csv", DataError, {"key": str, "id": str, "fold": int})
        self.probabilities = read_array(self.path / "probabilities.npy", DataError, np.float16, hint=AGAIN)
        self.labels = read_array(self.path / "labels.npy", DataError, np.uint8, hint=AGAIN)
        once = self.table.get("once", pd.Series("1", self.table.index))  # no earlier version wrote it
        if not once.isin(["0", "1"]).all():
            raise DataError(f"{self.path / 'tiles.csv'}: column once holds what is neither 0 nor 1; {AGAIN}")
        self.table["once"] = once == "1"
        self.folder = self.path.parent
        n = len(self.table)
        if self.labels.ndim != 3 or not self.labels.size:
            raise DataError(f"{self.path / 'labels.npy'}: of {self.labels.shape}, which are no tiles; {AGAIN}")
        if self.probabilities.shape != (n, len(CLASSES), *self.labels.shape[1:]) or self.labels.shape[:1] != (n,):
            raise DataError(f"{self.path}: files do not fit each other; {AGAIN}")
        keys = self.table["key"]
        if odd := keys[keys.duplicated() | (keys == "")].tolist():  # one key is one tile, of all cross-validations
            said = f"tile key {odd[0][:80]!r} stands twice" if odd[0] else "a tile has no key"
            raise DataError(f"{self.path / 'tiles.csv'}: {said}; {AGAIN}")
        if not self.models or not all(isinstance(sha256, str) for sha256 in self.models.values()):
            raise DataError(f"{self.path / 'models.json'}: names no models with their SHA-256; {AGAIN}")
        if odd := [name for name in self.models if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise DataError(f"{self.path / 'models.json'}: {odd[0][:80]!r} leads out of {self.folder}; {AGAIN}")
        if len({os.path.normpath(name) for name in self.models}) < max(len(self.models), self.table["fold"].nunique()):
            raise DataError(f"{self.path / 'models.json'}: names a model twice, or fewer than there are folds; {AGAIN}")
        if len({*self.models.values()}) < len(self.models):
            raise DataError(f"{self.path / 'models.json'}: two of its models are the same; {AGAIN}")

    def tile(
        self,
        i: int,  # row of `table`
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities `(K, H, W)` float32 and labels `(H, W)` of a tile; raises `DataError`."""
        check_length(self.probabilities, self.path / "probabilities.npy", DataError)
        check_length(self.labels, self.path / "labels.npy", DataError)
        probs, labels = self.probabilities[i].astype(np.float32), np.array(self.labels[i])
        if not np.isin(labels, [*range(len(CLASSES)), ICE_OF_ANY_KIND, IGNORE]).all():
            raise DataError(f"{self.path}: labels of tile {self.table['id'][i]} hold unknown codes; {AGAIN}")
        if not ((probs >= 0) & (probs <= 1)).all():
            raise DataError(f"{self.path}: probabilities of tile {self.table['id'][i]} are not in 0 to 1; {AGAIN}")
        return probs, labels

    def check(self) -> None:
        """Raise `DataError` if tiles, labels or probabilities are not as they were written, where that is known."""
        if (digests := self.path / "digests.json").is_file():
            told = read_json(digests, DataError)
            for name in DIGESTED:
                if told.get(name) != file_hash(self.path / name):
                    raise DataError(f"{self.path / name}: not as it was written; {AGAIN}")

    def stale(self) -> str | None:
        """Return the first model that is not the one that predicted, or None."""
        for name, sha256 in self.models.items():
            try:
                now = Member.load(self.folder / name).sha256  # no hash of what is no bundle, which may be long
            except BundleError as err:
                if isinstance(err.__cause__, OSError) and err.__cause__.errno in SHORT:
                    raise  # which says nothing of the model
                now = ""
            if now != sha256:
                return name
        return None

    @staticmethod
    def write(
        folder: Path,  # of the cross-validation
        models: dict[int, str],  # by fold, the path of its bundle from there
        store: TileStore,  # the tiles they were trained on and validated on
    ) -> None:
        """Predict the validation tiles of each fold; FOLDER/oof appears when it is whole, in place of one before it.

        Tiles on ground that their model was trained on, in another tile, are said (`errors.note`).

        Raises:
            OutputError: It cannot be written.
        """
        bundles = {fold: ModelBundle.load(folder / name) for fold, name in models.items()}
        keys = store.keys()
        place = {key: i for i, key in enumerate(keys)}
        tiles = [(fold, place[key]) for fold, b in bundles.items() for key in b.trained_on.valid]
        ground = store.ground()
        seen = sum(b.trained_on.covers(ground[[i for f, i in tiles if f == fold]]).sum() for fold, b in bundles.items())
        if seen:
            text = f"{folder}: {seen} of {len(tiles)} tiles lie on ground that the model which predicts them has seen"
            note(f"{text}, so calibration is too sure; keep neighbours in one fold (data.spatial)", [])
        shape = (len(tiles), len(CLASSES), store.size, store.size)
        check_room(folder / "oof", math.prod(shape) * 2 + math.prod(shape) // len(CLASSES))
        with whole_folder(folder / "oof", replace=True) as out:
            with (  # front to end: of a memory map that no longer fits on the disk, a process dies without a word
                _array(out / "probabilities.npy", np.float16, shape) as probabilities,
                _array(out / "labels.npy", np.uint8, (shape[0], *shape[2:])) as labels,
            ):
                for fold, bundle in bundles.items():
                    for i, _, probs in predict_tiles(bundle, store, [i for f, i in tiles if f == fold]):
                        probabilities.write(np.asarray(probs, np.float16).tobytes())
                        labels.write(store.labels(i).tobytes())
            rows = [{"key": keys[i], "id": cell(store.table["id"][i]), "fold": fold} for fold, i in tiles]
            once = _counted_once(store, [i for _, i in tiles]).astype(int)
            write_text(out / "tiles.csv", pd.DataFrame(rows).assign(once=once).to_csv(index=False))
            hashes = {name: file_hash(folder / name) for name in models.values()}
            write_text(out / "models.json", json.dumps(hashes, indent=1))
            write_text(out / "digests.json", json.dumps({name: file_hash(out / name) for name in DIGESTED}, indent=1))


def _counted_once(store: TileStore, tiles: list[int]) -> np.ndarray:
    """Return `counted_once` of some tiles, scene by scene; those that do not say where they lie all count."""
    t, place = store.table.iloc[tiles], store.footprints()
    frame = np.where(t["transform"] != "", place["frame"][tiles] + " " + t["scene"], np.arange(len(t)).astype(str))
    return counted_once(frame, place["box"][tiles])


@contextmanager
def _array(path: Path, dtype: type, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Open an .npy file to which the values are to be written."""
    with whole_file(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file
