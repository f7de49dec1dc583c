"""The whole way on synthetic landscapes: two sensors, pretraining, fine-tuning, evaluation, a map, a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio

from ..bands import composite
from ..core.settings import PHASE_A
from ..data.sources.scene import SceneRaster
from ..data.sources.synthetic import synthetic_store, write_scene
from ..errors import OutputError
from ..model.bundle import ModelBundle
from ..model.evaluate import evaluate
from ..plots.panels import class_rgba, draw, error_rgba, false_colour, legend
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
    with SceneRaster(scene) as source, rasterio.open(classes) as pred, rasterio.open(label) as truth:
        name, rgb = composite(source.bands)
        values, valid = source.read(range(len(source.bands)), 0, 0, source.height, source.width)
        image = np.where(valid, values.astype(np.float32), np.nan)
        p, t = pred.read(1), truth.read(1)
    panels = (
        (false_colour(image, rgb), name),
        (class_rgba(t), "truth"),
        (class_rgba(p), "map"),
        (error_rgba(p, t), "errors"),
    )
    fig, axes = plt.subplots(1, 4, figsize=(16, 4.6))
    for ax, (rgba, title) in zip(axes, panels, strict=True):
        draw(ax, rgba, title)
    fig.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.09, wspace=0.03)
    legend(fig, errors=True)
    fig.savefig(out, dpi=110)
    plt.close(fig)


def run(
    out: Path,  # folder to make; must not exist
    overrides: Sequence[str] = (),  # of the demo recipe, for a shorter demo
) -> None:
    """Run the demo; every landscape in it is made up.

    Raises:
        OutputError: `out` exists already.
    """
    began = time.monotonic()
    if out.exists():
        raise OutputError(f"{out}: exists already; choose another --out or remove it first")
    out.mkdir(parents=True)
    recipe = load_recipe("demo", overrides)
    cut = {"tile_size": recipe.data.tile_size, "scene_size": 256, "bands": recipe.bands}
    log.info("making synthetic landscapes")
    first = synthetic_store(out / "pretrain-tiles", "landsat7", n_scenes=12, seed=1, **cut)
    second = synthetic_store(out / "finetune-tiles", "landsat8", n_scenes=10, seed=2, **cut)
    unseen = synthetic_store(out / "test-tiles", "landsat8", n_scenes=4, seed=3, **cut)
    scene, label = write_scene(out / "scene.tif", "landsat8", size=384, bands=recipe.bands, seed=4)

    log.info("\npretraining on synthetic Landsat 7")
    pre = pretrain(load_recipe("demo", [*overrides, *PRETRAIN]), first.path, out / "pretrain")
    log.info("\nfine-tuning on synthetic Landsat 8, fold 0")
    fine = finetune(recipe, second.path, out / "finetune", fold=0, weights=pre / "best.safetensors")

    bundle = ModelBundle.load(fine / "best.safetensors")
    scores = evaluate(bundle, unseen)
    files = predict_scene(bundle, scene, out / "maps", Wanted(confidence=True, outlines=True))["files"]
    classes = Path(files["classes"])
    map_figure(scene, classes, label, out / "map.png")
    write_report([fine], out / "report.html")
    log.info(f"\non {len(unseen)} synthetic tiles that neither run has seen:")
    log.info(f"MCC {scores['mcc']:.3f}, ice MCC {scores['ice_mcc']:.3f}, mean IoU {scores['mean_iou']:.3f}")
    log.info(f"done in {time.monotonic() - began:.0f} s")
    print(f"bundle    {fine / 'best.safetensors'}")
    print(f"map       {classes}")
    print(f"outlines  {files['outlines']}")
    print(f"pictures  {out / 'map.png'}")
    for name in ("batch", "results"):
        print(f"          {fine / 'figures' / name}.png")
    print(f"report    {out / 'report.html'}")
