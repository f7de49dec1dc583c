"""From a bundle and a scene to a map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import default_device

from ..bands import IGNORE
from ..errors import DataError
from ..train.bundle import ModelBundle
from .sink import ClassMapSink
from .sliding import sliding_probabilities
from .source import SceneSource

__all__ = ["predict_scene"]


def predict_scene(
    bundle: ModelBundle,  # trained model
    scene: str | os.PathLike,  # GeoTIFF with the bundle's bands
    out: str | os.PathLike,  # folder for the map
    *,
    bands: Sequence[str] | None = None,  # names of the file's bands, default its band descriptions
    sensor: str | None = None,  # one of `bands.SENSORS`
    window: int = 512,  # side of a window, pixels
    batch_size: int = 4,  # windows per call of the model
    device: torch.device | None = None,  # default fastai's
) -> Path:
    """Write `OUT/SCENE_classes.tif`, uint8 class codes on the scene's grid, 255 without data; return its path.

    Windows overlap by a quarter and are blended as probabilities.

    Raises:
        DataError: The scene cannot be read, has no coordinate reference system, unnamed bands or no data at all.
        BundleError: The scene lacks a band of the bundle.
        OutputError: The map exists already or cannot be written.
    """
    device = device or default_device()
    probabilities = bundle.probabilities(device)

    def model(images: np.ndarray) -> np.ndarray:
        return probabilities(torch.from_numpy(images)).cpu().numpy()

    with SceneSource(scene, bundle, bands, sensor) as source:
        path = Path(out) / f"{source.path.stem}_classes.tif"
        with ClassMapSink(path, source.height, source.width, source.crs, source.transform) as sink:
            strips = sliding_probabilities(
                source.window, model, source.height, source.width, window, window // 4, batch_size
            )
            anything = False
            for row, probs in strips:
                classes = probs.argmax(0).astype(np.uint8)
                valid = source.valid(row, classes.shape[0])
                classes[~valid] = IGNORE
                anything |= bool(valid.any())
                sink.write(row, classes)
            if not anything:
                raise DataError(f"{source.path}: every pixel is nodata, so there is nothing to map")
    return path
