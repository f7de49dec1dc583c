"""What do corrected places bring, where the map is in doubt and at random?

    python tests/benchmarks/corrections.py DATA [--arch forest|network] [--seeds 3] [--out FOLDER]

DATA holds the folder `everest`. Its scene is cut into three parts, apart by 15 pixels: on one a model is trained, it maps
the second, of which places are corrected, and the third judges the model that is trained anew (a forest) or fine-tuned
(a network) with them. Places are those of `predict --doubtful`, or boxes as large drawn at random; a person's edits are
the true labels as polygons, laid in by `correct --checked`. Every part is the judge once; the rest goes by `--seeds`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.windows import Window

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.predict.correct import correct
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.predict.whole import Wanted
from glacier_fastai.recipe import load_recipe
from glacier_fastai.train.run import train

ROWS, GAP, TILE = 208, 15, 104
PLACES = (10, 50, 200)
SIDE = 16  # of a place, pixels
BANDS = "bands=[blue, green, red, nir]"
RECIPES = {
    "forest": ("forest", [BANDS, f"data.tile_size={TILE}", f"data.crop={TILE}", "model.options={trees: 100}"]),
    "network": ("everest", [f"data.tile_size={TILE}", "data.crop=96", "model.size=tiny", "predict.views=false"]),
}


def parts(data: Path, folder: Path) -> list[tuple[Path, Path, Path]]:
    """Cut the scene; return of each part the scene, its labels, and a raster without any label."""
    found = []
    for k in range(3):
        made = []
        for name, empty in (("scene", False), ("label", False), ("label", True)):
            with rasterio.open(data / "everest" / f"{name}.tif") as file:
                window = Window(0, k * (ROWS + GAP), file.width, ROWS)
                profile = {**file.profile, "height": ROWS, "transform": file.window_transform(window)}
                profile.pop("blockysize", None)
                values, path = file.read(window=window), folder / f"{name}{k}{'_none' if empty else ''}.tif"
                with rasterio.open(path, "w", **{**profile, **({"nodata": 255} if name == "label" else {})}) as out:
                    out.write(np.full_like(values, 255) if empty else values)
                    out.descriptions = file.descriptions
            made.append(path)
        found.append(tuple(made))
    return found


def true_outlines(label: Path, path: Path) -> Path:
    """Write the labels as a person's polygons."""
    with rasterio.open(label) as file:
        found = [
            (shapely.geometry.shape(p), CLASSES[int(k)]) for p, k in shapes(file.read(1), transform=file.transform)
        ]
        table = geopandas.GeoDataFrame({"class": [k for _, k in found]}, geometry=[p for p, _ in found], crs=file.crs)
    table.to_file(path, layer="classes")
    return path


def at_random(scene: Path, seed: int) -> geopandas.GeoDataFrame:
    """Return all boxes of a grid of places, in an order that is drawn."""
    with rasterio.open(scene) as file:
        at = np.stack(np.meshgrid(np.arange(0, file.width - SIDE + 1, SIDE), np.arange(0, file.height, SIDE)), -1)
        at = np.random.default_rng(seed).permutation(at.reshape(-1, 2))
        (x0, y0), (x1, y1) = (file.transform * corner.T for corner in (at, at + SIDE))
        return geopandas.GeoDataFrame(geometry=shapely.box(x0, y1, x1, y0), crs=file.crs)


def fitted(arch: str, store: Any, out: Path, seed: int, weights: ModelBundle | None) -> ModelBundle:
    """Grow a forest, or train a network, on all labels of a store."""
    name, settings = RECIPES[arch]
    more = ["train.epochs=10", "train.lr=1e-4"] if weights is not None else ["train.epochs=60"]
    recipe = load_recipe(name, [*settings, f"seed={seed}", *(more if arch == "network" else [])])
    train(recipe, store, out, fold=None, weights=weights if arch == "network" else None)
    return ModelBundle.load(out / "best.safetensors")


def trial(arch: str, found: list[tuple[Path, Path, Path]], k: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return the scores where part k judges."""
    first, second = ((k + 1) % 3, (k + 2) % 3) if seed % 2 == 0 else ((k + 2) % 3, (k + 1) % 3)
    (a, a_label, _), (b, b_label, b_none), (c, c_label, _) = found[first], found[second], found[k]
    judge = prepare_scenes([c], folder / "judge", labels=[c_label], tile_size=TILE)
    tiles = prepare_scenes([a, b], folder / "tiles", labels=[a_label, b_none], tile_size=TILE)
    edited = true_outlines(b_label, folder / "edited.gpkg")

    def score(model: ModelBundle, rule: str, n: int) -> dict[str, Any]:
        told = evaluate(model, judge, range(len(judge)))
        row = {"judge": k, "seed": seed, "rule": rule, "places": n, "mcc": told["mcc"], "ice": told["ice_mcc"]}
        print(row, flush=True)
        return row

    start = fitted(arch, tiles, folder / "start", seed, None)
    rows = [score(start, "none", 0)]
    made = predict_scene(start, b, folder / "maps", Wanted(doubtful=max(PLACES)))
    orders = {
        "doubtful": geopandas.read_file(made["files"]["doubtful"], layer="doubtful"),
        "random": at_random(b, seed),
    }
    runs = [(rule, n) for rule in orders for n in PLACES] + [("random", len(orders["random"]))]
    for rule, n in runs:
        boxes = orders[rule].head(n).assign(checked=True)
        boxes.to_file(folder / f"{rule}{n}.gpkg", layer="checked")
        store = correct(tiles.path, edited, folder / f"{rule}{n}", checked=folder / f"{rule}{n}.gpkg")
        model = fitted(arch, store, folder / f"run_{rule}{n}", seed, start)
        rows.append(score(model, rule, n))
    return rows


def drawn(table: pd.DataFrame, path: Path) -> None:
    """Draw gain against places."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for ax, kind in zip(axes, ("mcc", "ice"), strict=True):
        for rule, colour in (("doubtful", "#d55e00"), ("random", "#0b3c8c")):
            part = table[table["rule"] == rule].groupby("places")[f"{kind} gain"]
            x, mean, spread = part.mean().index, part.mean(), part.std() / np.sqrt(part.count())
            ax.errorbar(x, mean, spread, color=colour, marker="o", capsize=3, label=f"{rule} places")
        ax.axhline(0, color="#999999", linewidth=0.8)
        ax.set(xscale="log", xlabel="places of 16 x 16 px that were corrected", ylabel=f"gain of MCC, {kind}")
        ax.legend(frameon=False)
    axes[0].set_ylabel("gain of MCC, 4 classes")
    axes[1].set_ylabel("gain of MCC, ice")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print the table, write it and the curve."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("data", type=Path)
    options.add_argument("--arch", choices=RECIPES, default="forest")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("corrections"))
    given = options.parse_args()
    warnings.simplefilter("ignore")
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        found = parts(given.data, Path(name))
        for seed in range(given.seeds):
            for k in range(3):
                with TemporaryDirectory(dir=name) as folder:
                    rows += trial(given.arch, found, k, seed, Path(folder))
    table = pd.DataFrame(rows)
    start = table[table["rule"] == "none"].set_index(["judge", "seed"])
    for kind in ("mcc", "ice"):
        table[f"{kind} gain"] = (
            table[kind] - start[kind].loc[[*zip(table["judge"], table["seed"], strict=True)]].to_numpy()
        )
    table.to_csv(given.out / f"{given.arch}.csv", index=False)
    drawn(table, given.out / f"{given.arch}.png")
    about = table.groupby(["rule", "places"])[["mcc", "ice", "mcc gain", "ice gain"]].agg(["mean", "std"])
    print(about.round(4).to_string())


if __name__ == "__main__":
    main()
