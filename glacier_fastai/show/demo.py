"""The whole way on synthetic landscapes: two sensors, pretraining, fine-tuning, evaluation, a map, a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio

from ..bands import composite
from ..core.settings import PHASE_A
from ..data.scenes.opening import open_scene
from ..data.sources.synthetic import synthetic_store, write_scene
from ..errors import OutputError
from ..model.bundle import ModelBundle
from ..model.evaluate import evaluate
from ..plots.panels import draw_panels, grid, legend, panels
from ..predict.scene import Wanted, predict_scene
from ..recipe import load_recipe
from ..train.run import finetune, pretrain
from .report import write_report

__all__ = ["map_figure", "run"]

log = logging.getLogger(__name__)

PRETRAIN = (*(f"loss.{part}={weight}" for part, weight in PHASE_A.items()), "ramp=null")


def map_figure(
    scene: Path,  # GeoTIFF with band descriptions
    classes: Path,  # class map on its grid
    label: Path,  # true classes on its grid
    out: Path,  # PNG to write
) -> None:
    """Draw scene, truth, map and errors side by side."""
    with open_scene(scene) as source, rasterio.open(classes) as pred, rasterio.open(label) as truth:
        name, rgb = composite(source.bands)
        values, valid = source.read_window(range(len(source.bands)), 0, 0, source.height, source.width)
        image = np.where(valid, values.astype(np.float32), np.nan)
        true = truth.read(1)
        shown = panels(image, true, pred.read(1), rgb)
    fig, axes = grid(1, ("scene", "truth", "map", "errors"), cell=4)
    draw_panels(axes[0], shown, name, prediction="map")
    legend(fig, errors=True, truths=[true])
    fig.savefig(out, dpi=110)
    plt.close(fig)


def run(
    out: Path,  # folder to make; must not exist
    overrides: Sequence[str] = (),  # of the demo recipe, for a shorter demo
) -> dict[str, Path]:
    """Run the demo, in which every landscape is synthetic; return what it made, by name.

    Raises:
        OutputError: `out` exists already.
    """
    began = time.monotonic()
    if out.exists():
        raise OutputError(f"{out}: exists already; choose another folder, or remove it first")
    recipe = load_recipe("demo", overrides)
    synthetic = partial(synthetic_store, tile_size=recipe.data.tile_size, scene_size=256, bands=recipe.bands)
    log.info("making synthetic landscapes")
    first = synthetic(out / "pretrain-tiles", "landsat7", n_scenes=12, seed=1)
    second = synthetic(out / "finetune-tiles", "landsat8", n_scenes=10, seed=2)
    unseen = synthetic(out / "test-tiles", "landsat8", n_scenes=4, seed=3)
    scene, label = write_scene(out / "scene.tif", "landsat8", size=384, bands=recipe.bands, seed=4)

    log.info("\npretraining on synthetic Landsat 7")
    pre = pretrain(load_recipe("demo", [*overrides, *PRETRAIN]), first.path, out / "pretrain")
    log.info("\nfine-tuning on synthetic Landsat 8, fold 0")
    fine = finetune(recipe, second.path, out / "finetune", fold=0, weights=pre / "best.safetensors")

    bundle = ModelBundle.load(fine / "best.safetensors")
    scores = evaluate(bundle, unseen)
    files = predict_scene(bundle, scene, out / "maps", Wanted(confidence=True, outlines=True))["files"]
    made = {
        "bundle": fine / "best.safetensors",
        "map": Path(files["classes"]),
        "outlines": Path(files["outlines"]),
        "map figure": out / "map.png",
        "batch figure": fine / "figures" / "batch.png",
        "results figure": fine / "figures" / "results.png",
        "report": out / "report.html",
    }
    map_figure(scene, made["map"], label, made["map figure"])
    write_report([fine], made["report"])
    log.info("\non %d synthetic tiles that neither run has seen:", len(unseen))
    log.info("MCC %.3f, ice MCC %.3f, mean IoU %.3f", *(scores[key] for key in ("mcc", "ice_mcc", "mean_iou")))
    log.info("done in %.0f s", time.monotonic() - began)
    return made
