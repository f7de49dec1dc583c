"""A look at the validation tiles of a run, through the eyes of its model."""

from __future__ import annotations

import logging
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..bands import IGNORE, composite
from ..core.calibration import Reliability
from ..data.raw import open_tiles
from ..data.tiles import TileStore
from ..errors import DataError
from ..model.bundle import ModelBundle
from ..plots.panels import class_rgba, error_rgba, false_colour
from .interpret import GlacierInterpretation
from .runs import Run

__all__ = ["SHOWN", "Seen", "Tile", "data_uri", "evenly", "look", "number", "percent", "store_of", "train_shares"]

log = logging.getLogger(__name__)

LOOKED_AT = 200  # validation tiles of a run that its model is shown, at most
BAND_TILES = 12  # of them, at most, that the importance of bands is measured on
SHOWN = 6  # tiles in the report, and as many of the hardest
SIDE = 512  # pixels, at most, of a tile in the report


@dataclass
class Tile:
    """A tile in four pictures (data URIs)."""

    id: str
    run: str
    about: str
    image: str
    truth: str
    prediction: str
    errors: str


@dataclass
class Seen:
    """What a look at the validation tiles of a run gave."""

    table: pd.DataFrame  # of `GlacierInterpretation`
    of: int  # validation tiles that there are
    reliability: dict[str, Reliability]
    importance: pd.DataFrame
    some: list[tuple[int, Tile]]  # by position
    hardest: list[tuple[float, Tile]]  # by loss


def store_of(run: Run, data: str | os.PathLike | None, stores: dict[str, TileStore]) -> TileStore:
    """Return the tiles of a run, opened once for all."""
    known = [run.trained_on and run.trained_on.path, run.get("data", "path")] if data is None else [data]
    known = list(dict.fromkeys(str(path) for path in known if path))
    for path in known:
        if path not in stores and Path(path).exists():
            stores[path] = open_tiles(path, run.get("bands")).base()
        if path in stores:
            return stores[path]
    where = f"are not at {' or '.join(known)}" if known else "are not known"
    raise DataError(f"its tiles {where}, so none are shown; name them with --data")


def train_shares(run: Run, store: TileStore) -> np.ndarray | None:
    """Return the share of each class in the tiles that were trained on, `(K,)`."""
    counts = store.class_counts()[np.isin(store.keys(), run.trained_on.train if run.trained_on else ())].sum(0)
    return counts / counts.sum() if counts.any() else None


def look(
    run: Run,
    store: TileStore,
    n: int,  # tiles that are shown whatever their loss
) -> Seen | None:
    """Show a run's model its validation tiles, if it has both."""
    if not run.trained_on or not run.trained_on.valid:
        return None
    valid = np.flatnonzero(np.isin(store.keys(), run.trained_on.valid))
    if not len(valid):
        raise DataError(f"none of its validation tiles is in {store.path}, so none are shown; name them with --data")
    tiles = evenly(valid, LOOKED_AT)
    log.info(f"{run.name}: looking at {len(tiles)} tiles")
    bundle = ModelBundle.load(run.model)
    found = GlacierInterpretation(bundle, store, tiles)
    some, hardest = evenly(tiles, n), found.hardest(SHOWN, "loss")
    drawn = {i: _tile(run, found, store, i) for i in {*some, *hardest["tile"]}}
    plain = replace(bundle, recipe=None)  # one view instead of many: bands are told apart by many passes
    return Seen(
        found.table.assign(run=run.name),
        len(valid),
        found.reliability,
        GlacierInterpretation(plain, store, evenly(tiles, BAND_TILES)).band_importance(),
        [(i, drawn[i]) for i in some],
        [(loss, drawn[i]) for i, loss in zip(hardest["tile"], hardest["loss"], strict=True)],
    )


def evenly(items: Sequence, n: int) -> list:
    """Return at most `n` of the items, evenly taken."""
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, min(n, len(items))).round()]


def _tile(run: Run, found: GlacierInterpretation, store: TileStore, i: int) -> Tile:
    row = found.table.set_index("tile").loc[i]
    image, truth = store.read(i), store.masks[i]
    classes = found.predict(i).classes
    wrong = (classes != truth)[truth != IGNORE].mean() if row["labelled"] else None
    step = -(-store.size // SIDE)
    image, truth, classes = (x[..., ::step, ::step] for x in (image, truth, classes))
    name, rgb = composite(store.bands)
    return Tile(
        str(row["id"]),
        run.name,
        f"{percent(wrong)} wrong, loss {number(row['loss'])}; image in {name}",
        _webp(false_colour(image, rgb)),
        *(_webp(rgba, lossless=True) for rgba in (class_rgba(truth), class_rgba(classes), error_rgba(classes, truth))),
    )


def _webp(rgba: np.ndarray, lossless: bool = False) -> str:
    file = BytesIO()
    Image.fromarray((rgba * 255).round().astype(np.uint8)).save(file, "WEBP", lossless=lossless, quality=80)
    return data_uri("webp", file)


def data_uri(
    kind: str,  # of image, as "png"
    file: BytesIO,  # the image
) -> str:
    """Return an image as a URI that holds it."""
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"


def number(value: float | None) -> str:
    """Return a number in words, a dash where it is not known."""
    return "–" if value is None or value != value else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share in words, a dash where it is not known."""
    return "–" if value is None or value != value else f"{value:.2%}"
