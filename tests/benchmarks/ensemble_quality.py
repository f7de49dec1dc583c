"""Do ensembles, test-time views and calibration help? Measured on ground that no model, fit or choice has seen.

    python tests/benchmarks/ensemble_quality.py OUT [--scene scene.tif --label label.tif] [--seeds 1]

On synthetic landscapes: five folds on 12 landscapes, scored on 24 others. With `--scene`, on a real one: each of its
thirds (east, west, north, south) is held out in turn, five spatial folds are trained and calibrated on the rest, and
the third is scored. "best fold" is the model with the best MCC on its own validation fold. ECE is that of the most
probable class. OUT keeps every run; rerun the command to go on. Cross-validations of several seeds are joined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from glacier_fastai.bands import ICE
from glacier_fastai.core.areas import area_interval, fit_area_interval
from glacier_fastai.core.calibration import expected_calibration_error, nll, reliability
from glacier_fastai.core.confusion import confusion_matrix, ice, mcc, recall
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.model.calibrate import calibrate, glacier_areas
from glacier_fastai.model.ensemble import Calibration, Ensemble
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.predict.scene import map_strips
from glacier_fastai.predict.source import SceneSource
from glacier_fastai.recipe import PostprocessRecipe, load_recipe
from glacier_fastai.train.run import crossval

SYNTHETIC = ("data.folds=5", "predict.views=true", "train.epochs=20")
EVEREST = ("data.folds=5",)


def variants(folders: list[Path], fitted: Path) -> dict[str, Ensemble]:
    """What is compared, by name."""
    whole = Ensemble.load([fitted])
    table = pd.read_csv(folders[0] / "crossval.csv")
    path = folders[0] / f"fold{table['mcc'].idxmax()}" / "best.safetensors"
    best = next(m for m in whole.members if m.path.samefile(path))
    once = whole.predict.model_copy(update={"views": False, "postprocess": None})
    views = once.model_copy(update={"views": True})
    sure = whole.calibration.model_copy(update={"offsets": Calibration().offsets})
    cleaned = views.model_copy(update={"postprocess": PostprocessRecipe()})
    return {
        "best fold": Ensemble((best,), once),
        "best fold, views": Ensemble((best,), views),
        "ensemble": Ensemble(whole.members, once),
        "ensemble, views": Ensemble(whole.members, views),
        "ensemble, views, calibrated": Ensemble(whole.members, views, sure),
        "the same, and offsets": Ensemble(whole.members, views, whole.calibration),
        "the same, post-processed": Ensemble(whole.members, cleaned, whole.calibration),
    }


def score(ensemble: Ensemble, scenes: list[tuple[Path, Path]]) -> dict:
    """Confusion matrix, reliability table and loss of some scenes, and areas of mapped glaciers of each."""
    predictor = Predictor(ensemble)
    total, tables, losses, pixels, areas = 0, [], 0.0, 0, []
    for scene, label in scenes:
        with open_scene(scene) as opened:
            source = SceneSource(opened, ensemble.channels)
            strips = list(map_strips(source, predictor))
        classes = np.concatenate([s.classes for s in strips])
        probs = torch.from_numpy(np.concatenate([s.probs for s in strips], 1))
        with rasterio.open(label) as file:
            truth = np.where(classes == 255, 255, file.read(1))
        total = total + confusion_matrix(classes, truth, 4)
        tables.append(reliability(probs, truth, dim=0))
        n = int((truth != 255).sum())
        losses, pixels = losses + n * nll(probs, truth, dim=0), pixels + n
        classes[truth == 255] = 255
        areas.append(glacier_areas(classes, 1 - probs[list(ICE)].sum(0).numpy(), truth))
    table = sum(tables[1:], start=tables[0])
    return {"matrix": total, "table": table, "nll": losses / pixels, "areas": areas}


def row(found: dict, calibration: Calibration) -> dict:
    """What is printed of `score`."""
    out = {"MCC": mcc(found["matrix"]), "ice MCC": mcc(ice(found["matrix"]))}
    out |= {"debris recall": recall(found["matrix"])[2].item(), "NLL": found["nll"]}
    out["ECE"] = expected_calibration_error(found["table"])
    area, doubt, truth = np.concatenate(found["areas"]).T
    if calibration.area and len(area):
        low, high = area_interval(area, doubt, *calibration.area)
        out["glaciers"], out["coverage"] = len(area), float(((low <= truth) & (truth <= high)).mean())
        out["width"] = float(np.median((high - low) / area))
    return out


def coverage_of_halves(areas: list[np.ndarray]) -> np.ndarray:
    """Coverage of the glaciers of half the scenes by intervals fitted to the other half, 200 times."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(len(areas))
        fitted_to, held = (np.concatenate([areas[k] for k in part]) for part in np.array_split(order, 2))
        low, high = area_interval(*held[:, :2].T, *fit_area_interval(*fitted_to.T))
        found.append(((low <= held[:, 2]) & (held[:, 2] <= high)).mean())
    return np.array(found)


def fitted(out: Path, recipe: str, overrides: tuple[str, ...], store: Path, seeds: int) -> tuple[list[Path], Path]:
    """Cross-validate and calibrate what is missing."""
    folders = [out / f"cv{seed}" for seed in range(seeds)]
    for seed, folder in enumerate(folders):
        crossval(load_recipe(recipe, [*overrides, f"seed={42 + seed}"]), data=store, out=folder, resume=True)
    file = out / f"ensemble{seeds}.yaml"
    if not file.exists():
        calibrate(folders, file)
    return folders, file


def part(path: Path, out: Path, window: Window) -> Path:
    """Cut a part of a raster out."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as file:
            profile = {**file.profile, "width": window.width, "height": window.height}
            profile["transform"] = window_transform(window, file.transform)
            with rasterio.open(out, "w", **profile) as new:
                new.write(file.read(window=window))
                new.descriptions = file.descriptions
    return out


def thirds(scene: Path, label: Path, out: Path):
    """Yield the name of each third, scene and label of the rest, and of the third."""
    with rasterio.open(scene) as file:
        h, w = file.shape
    for name, rest, held in (
        ("east", Window(0, 0, w - w // 3, h), Window(w - w // 3, 0, w // 3, h)),
        ("west", Window(w // 3, 0, w - w // 3, h), Window(0, 0, w // 3, h)),
        ("north", Window(0, h // 3, w, h - h // 3), Window(0, 0, w, h // 3)),
        ("south", Window(0, 0, w, h - h // 3), Window(0, h - h // 3, w, h // 3)),
    ):
        cut = {
            kind: [part(p, out / name / f"{kind}_{p.stem}.tif", window) for p in (scene, label)]
            for kind, window in (("rest", rest), ("held", held))
        }
        yield name, cut["rest"], cut["held"]


def main() -> None:
    """Train what is missing, score, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--label", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    from glacier_fastai.data.sources.scene import prepare_scenes
    from glacier_fastai.data.sources.synthetic import synthetic_store, write_scene

    pd.set_option("display.width", 200)
    rows = []
    if args.scene:
        for name, rest, held in thirds(args.scene, args.label, args.out):
            store = args.out / name / "tiles"
            if not store.exists():
                prepare_scenes(rest[:1], store, labels=rest[1:], tile_size=128)
            folders, file = fitted(args.out / name, "everest", EVEREST, store, args.seeds)
            for variant, ensemble in variants(folders, file).items():
                found = row(score(ensemble, [tuple(held)]), ensemble.calibration)
                rows.append({"held out": name, "variant": variant, **found})
            print(pd.DataFrame([r for r in rows if r["held out"] == name]).round(3).to_string(index=False), flush=True)
        table = pd.DataFrame(rows)
        table.to_csv(args.out / "scene.csv", index=False)
        print("\nscene, mean (spread) over the thirds held out")
        groups = table.drop(columns="held out").groupby("variant", sort=False)
        print((groups.mean().round(3).astype(str) + " (" + groups.std().round(3).astype(str) + ")").to_string())
    store = args.out / "synthetic-tiles"
    if not store.exists():
        synthetic_store(store, n_scenes=12, scene_size=256, tile_size=128, seed=31)
    folders, file = fitted(args.out / "synthetic", "demo", SYNTHETIC, store, args.seeds)
    unseen = []
    for k in range(24):
        scene = args.out / "unseen" / f"{k}.tif"
        scene.parent.mkdir(exist_ok=True)
        bands = load_recipe("demo").bands
        unseen.append(write_scene(scene, "landsat8", size=256, bands=bands, seed=500 + k))
    ensembles = variants(folders, file)
    scores = {v: score(e, unseen) for v, e in ensembles.items()}
    print(f"\nsynthetic, {len(unseen)} landscapes held out")
    print(pd.DataFrame({v: row(s, ensembles[v].calibration) for v, s in scores.items()}).T.round(3).to_string())
    halves = coverage_of_halves(scores["the same, and offsets"]["areas"])
    print(
        "coverage by intervals fitted to half of these landscapes, of the other half: "
        f"{halves.mean():.3f} (5 to 95 %: {np.quantile(halves, 0.05):.3f} to {np.quantile(halves, 0.95):.3f})"
    )


if __name__ == "__main__":
    main()
