"""What the model of a run does on its validation tiles."""

from __future__ import annotations

import logging
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from ..bands import composite
from ..core.calibration import Reliability
from ..data.raw import open_tiles
from ..data.tiles import TileStore
from ..errors import DataError
from ..model.bundle import ModelBundle
from ..model.evaluate import predict_tiles
from ..plots.panels import panels
from .interpret import GlacierInterpretation
from .runs import Run

__all__ = ["SHOWN", "TilePictures", "Validation", "data_uri", "evenly", "store_of", "train_shares", "validate"]

log = logging.getLogger(__name__)
T = TypeVar("T")

PREDICTED = 200  # validation tiles of a run, at most, that its model is run on
BAND_TILES = 12  # of them, at most, that the importance of bands is measured on
SHOWN = 6  # tiles in the report, and as many of the hardest
SIDE = 512  # pixels, at most, of a tile in the report


@dataclass(frozen=True)
class TilePictures:
    """A tile in four pictures (data URIs)."""

    id: str
    run: str
    loss: float  # nats
    wrong: float  # share of the labelled pixels
    composite: str  # name of the bands that the image is shown in
    image: str
    truth: str
    prediction: str
    errors: str


@dataclass(frozen=True)
class Validation:
    """What was measured on the validation tiles of a run."""

    table: pd.DataFrame  # of `GlacierInterpretation`, and the run's name
    total: int  # validation tiles that there are
    reliability: dict[str, Reliability]
    importance: pd.DataFrame
    examples: list[tuple[int, TilePictures]]  # by position
    hardest: list[tuple[float, TilePictures]]  # by loss


def store_of(
    run: Run,
    data: str | os.PathLike | None,  # tile store or raw folder, default where the run found it
    stores: dict[str, TileStore],  # those that are open, by their paths
) -> TileStore:
    """Return the tiles of a run, opened once for all; raises `DataError` if they are not to be found."""
    said = run.trained_on.path if run.trained_on else ""
    found = said if os.path.isabs(said) else run.environment.get("tiles", said)  # bundles of today name no folder
    known = [found, run.get("data", "path")] if data is None else [data]
    paths = list(dict.fromkeys(str(path) for path in known if path))
    for path in paths:
        if path not in stores and Path(path).exists():
            stores[path] = open_tiles(path, run.get("bands"), make=data is not None).base()
        if path in stores:
            return stores[path]
    where = f"are not at {' or '.join(paths)}" if paths else "are not known"
    raise DataError(f"its tiles {where}, so none are shown; name the folder of the tiles")


def train_shares(run: Run, store: TileStore) -> np.ndarray | None:
    """Return the share of each class, and of ice of unknown kind, in the tiles that were trained on, `(K + 1,)`."""
    if not run.trained_on:
        return None
    counts = np.column_stack([store.class_counts(), store.ice_counts()])[run.trained_on.knows(store, "train")].sum(0)
    return counts / counts.sum() if counts.any() else None


def validate(
    run: Run,
    store: TileStore,  # its tiles
    n: int,  # tiles that are shown whatever their loss
) -> Validation | None:
    """Run a run's model on its validation tiles, at most `PREDICTED` of them; None if it lacks one or the other.

    Raises:
        BundleError: The tiles do not fit the model.
        DataError: None of them is in the store, or none has a label.
    """
    if not run.trained_on or not run.trained_on.valid:
        return None
    valid = np.flatnonzero(run.trained_on.knows(store, "valid")).tolist()
    if not valid:
        raise DataError(f"none of its validation tiles is in {store.path}, so none are shown; name another folder")
    tiles = evenly(valid, PREDICTED)
    log.info("%s: predicting %d validation tiles", run.name, len(tiles))
    bundle = ModelBundle.load(run.model)
    found = GlacierInterpretation(bundle, store, tiles)
    examples, hardest = evenly(tiles, n), found.hardest(SHOWN, "loss")
    wanted = list(dict.fromkeys([*examples, *hardest["tile"]]))
    drawn = {i: _pictures(run, found, i, classes) for i, classes, _ in predict_tiles(bundle, store, wanted)}
    once = replace(bundle, recipe=None)  # one view instead of many: bands are told apart by many passes
    return Validation(
        table=found.table.assign(run=run.name),
        total=len(valid),
        reliability=found.reliability,
        importance=GlacierInterpretation(once, store, evenly(tiles, BAND_TILES)).band_importance(),
        examples=[(i, drawn[i]) for i in examples],
        hardest=[(loss, drawn[i]) for i, loss in zip(hardest["tile"], hardest["loss"], strict=True)],
    )


def evenly(
    items: Sequence[T],
    n: int,  # at least 1
) -> list[T]:
    """Return at most `n` of the items, evenly taken.

    >>> evenly("abcdefghi", 3), evenly("ab", 3)
    (['a', 'e', 'i'], ['a', 'b'])
    """
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, min(n, len(items))).round()]


def _pictures(run: Run, found: GlacierInterpretation, i: int, classes: np.ndarray) -> TilePictures:
    store, row = found.store, found.table.set_index("tile").loc[i].to_dict()
    name, rgb = composite(store.bands)
    shown = panels(store.read(i), store.labels(i), classes, rgb)
    step = -(-store.size // SIDE)
    image, *maps = (rgba[::step, ::step] for rgba in shown[:4])
    truth, prediction, errors = (_webp(rgba, lossless=True) for rgba in maps)
    return TilePictures(
        *(str(row["id"]), run.name, float(row["loss"]), shown.wrong, name),
        *(_webp(image), truth, prediction, errors),
    )


def _webp(rgba: np.ndarray, lossless: bool = False) -> str:
    file = BytesIO()
    Image.fromarray((rgba * 255).round().astype(np.uint8)).save(file, "WEBP", lossless=lossless, quality=80)
    return data_uri("webp", file)


def data_uri(
    kind: str,  # of image, as "png"
    file: BytesIO,  # the image
) -> str:
    """Return an image as a URI that holds it.

    >>> data_uri("png", BytesIO(b"..."))
    'data:image/png;base64,Li4u'
    """
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
