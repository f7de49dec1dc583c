"""What do corrected places bring, where the map is in doubt and at random?

    python tests/benchmarks/corrections.py DATA [--arch forest|network] [--seeds 3] [--out FOLDER]

DATA holds the folder `everest`. A model is trained on a third of its scene, 2 of 6 rows of blocks of 104 x 104
pixels. It maps the rest, the blocks of which take turns: on one half places are corrected, the other half judges the
model that is trained anew (a forest) or fine-tuned (a network) with them; pixels less than 8 from the edge of a block
do not judge, so that no window of the forest reaches from one half to the other. Places are those of `predict
--doubtful`, or boxes as large drawn at random; a person's edits are the true labels as polygons, laid in by `correct
--checked`. Each third is trained on once per seed.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import product
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

TILE, BLOCKS, RIM = 104, (6, 5), 8
PLACES = (10, 50, 200)
SIDE = 16  # of a place, pixels
STEPS = range(0, TILE - SIDE + 1, SIDE)
BANDS = "bands=[blue, green, red, nir]"
RECIPES = {
    "forest": (
        "forest",
        [BANDS, f"data.tile_size={TILE}", f"data.crop={TILE}", "model.options={trees: 40, pixels: 30000}"],
    ),
    "network": ("everest", [f"data.tile_size={TILE}", "data.crop=96", "model.size=tiny", "predict.views=false"]),
}


def grounds(data: Path, folder: Path, third: int, parity: int) -> dict[str, Path]:
    """Write the scene, labels to train on, labels that judge, all labels, and a mask of all that is not corrected."""
    row, col = np.mgrid[: BLOCKS[0] * TILE, : BLOCKS[1] * TILE]
    rows, cols = row // TILE, col // TILE
    known = rows // 2 == third
    judges = ~known & ((rows + cols) % 2 == parity)
    inner = (np.minimum(row % TILE, col % TILE) >= RIM) & (np.maximum(row % TILE, col % TILE) < TILE - RIM)
    window, found = Window(0, 0, *known.shape[::-1]), {}
    with rasterio.open(data / "everest" / "scene.tif") as scene, rasterio.open(data / "everest" / "label.tif") as label:
        truth = label.read(1, window=window)
        layers = {"known": np.where(known, truth, 255), "judge": np.where(judges & inner, truth, 255), "truth": truth}
        layers["mask"] = (known | judges).astype(np.uint8)
        for name, values in {"scene": scene.read(window=window), **{k: v[None] for k, v in layers.items()}}.items():
            profile = {"driver": "GTiff", "count": len(values), "dtype": "uint8", "crs": scene.crs}
            profile |= {"height": known.shape[0], "width": known.shape[1], "transform": scene.transform}
            profile["nodata"] = 255 if name in ("known", "judge") else None
            found[name] = folder / f"{name}.tif"
            with rasterio.open(found[name], "w", **profile) as file:
                file.write(values.astype(np.uint8))
                file.descriptions = scene.descriptions if name == "scene" else ("",)
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


def box_of(mask: Path) -> shapely.Geometry:
    """Return what is not masked."""
    with rasterio.open(mask) as file:
        hidden = file.read(1)
        found = shapes(hidden, hidden == 0, transform=file.transform)
        return shapely.union_all([shapely.geometry.shape(polygon) for polygon, _ in found])


def at_random(mask: Path, seed: int) -> geopandas.GeoDataFrame:
    """Return all boxes of a grid of places that can be corrected, in an order that is drawn."""
    with rasterio.open(mask) as file:
        hidden, half = file.read(1), SIDE // 2
        corners = [(c, r) for r in range(0, file.height, half) for c in range(0, file.width, half)]
        blocks = {(c // TILE, r // TILE) for c, r in corners if not hidden[r, c]}
        at = np.array([(c * TILE + x, r * TILE + y) for c, r in blocks for x in STEPS for y in STEPS])
        at = np.random.default_rng(seed).permutation(at[np.lexsort(at.T)])
        (x0, y0), (x1, y1) = (file.transform * corner.T for corner in (at, at + SIDE))
        return geopandas.GeoDataFrame(geometry=shapely.box(x0, y1, x1, y0), crs=file.crs)


def fitted(arch: str, store: Any, out: Path, seed: int, weights: Path | None) -> ModelBundle:
    """Grow a forest, or train a network, on all labels of a store."""
    name, settings = RECIPES[arch]
    more = ["train.epochs=6", "train.lr=1e-4"] if weights is not None else ["train.epochs=30"]
    recipe = load_recipe(
        name, [f"data.tile_size={TILE}", *settings, f"seed={seed}", *(more if arch == "network" else [])]
    )
    train(recipe, store, out, fold=None, weights=weights if arch == "network" else None)
    return ModelBundle.load(out / "best.safetensors")


def trial(arch: str, data: Path, third: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return the scores where a third of the scene is trained on."""
    made = grounds(data, folder, third, seed % 2)
    tiles, judge = (
        prepare_scenes([made["scene"]], folder / f"tiles_{k}", labels=[made[k]], tile_size=TILE)
        for k in ("known", "judge")
    )
    judges = np.flatnonzero(judge.class_counts().sum(1))
    edited = true_outlines(made["truth"], folder / "edited.gpkg")

    def score(model: ModelBundle, rule: str, n: int) -> dict[str, Any]:
        told = evaluate(model, judge, judges)
        row = {"third": third, "seed": seed, "rule": rule, "places": n, "mcc": told["mcc"], "ice": told["ice_mcc"]}
        print(row, flush=True)
        return row

    start = fitted(arch, tiles, folder / "start", seed, None)
    rows = [score(start, "none", 0)]
    maps = predict_scene(start, made["scene"], folder / "maps", Wanted(doubtful=max(PLACES)), mask=made["mask"])
    doubtful = geopandas.read_file(maps["files"]["doubtful"], layer="doubtful")
    doubtful = doubtful.clip(box_of(made["mask"])).sort_values("rank")
    orders = {"doubtful": doubtful, "random": at_random(made["mask"], seed)}
    runs = [(rule, n) for rule in orders for n in PLACES] + [("random", len(orders["random"]))]
    for rule, n in runs:
        boxes = orders[rule].head(n).assign(checked=True)
        boxes.to_file(folder / f"{rule}{n}.gpkg", layer="checked")
        store = correct(tiles.path, edited, folder / f"{rule}{n}", checked=folder / f"{rule}{n}.gpkg")
        model = fitted(arch, store, folder / f"run_{rule}{n}", seed, folder / "start" / "best.safetensors")
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
    plt.close(figure)


def summarise(rows: list[dict[str, Any]], arch: str, out: Path) -> None:
    """Write and print what was measured so far."""
    table = pd.DataFrame(rows)
    start = table[table["rule"] == "none"].set_index(["third", "seed"])
    trials = [*zip(table["third"], table["seed"], strict=True)]
    for kind in ("mcc", "ice"):
        table[f"{kind} gain"] = table[kind] - start[kind].loc[trials].to_numpy()
    table.to_csv(out / f"{arch}.csv", index=False)
    drawn(table, out / f"{arch}.png")
    about = table.groupby(["rule", "places"])[["mcc", "ice", "mcc gain", "ice gain"]].agg(["mean", "std"])
    print(about.round(4).to_string())
    each = table.pivot_table(index=["third", "seed"], columns=["places", "rule"], values="mcc gain")
    print(each.round(3).to_string(), flush=True)


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
        for seed, third in product(range(given.seeds), range(3)):
            with TemporaryDirectory(dir=name) as folder:
                rows += trial(given.arch, given.data, third, seed, Path(folder))
            summarise(rows, given.arch, given.out)


if __name__ == "__main__":
    main()
