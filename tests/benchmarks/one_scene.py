"""What does a recipe learn from part of one real scene? Its maps are scored as users get them, beside its tiles.

    python tests/benchmarks/one_scene.py DATA [--recipe everest] [--overlap 64] [--folds 3] [--seeds 3]
        [--weights BUNDLE] [--set KEY=VALUE]...

DATA holds the folder `everest`. The spatial folds are those of tiles of 128 px that do not overlap, each a third of the
scene; what touches the held-out one is left out. Of the tiles to train on a scene is made, without data or labels
anywhere else, and cut anew, with `--overlap`; so whatever it is, the ground is the same. The held-out tiles are scored
one by one, each seen alone, and as part of the map of the whole scene, whose windows see what lies around them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
import torch
from real_ground import Fold, held_out, minutes_used, score

from glacier_fastai.bands import IGNORE
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import predict_tiles
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.recipe import load_recipe
from glacier_fastai.terminal import show_messages
from glacier_fastai.train.folder import BEST
from glacier_fastai.train.run import train

SIZE, NODATA = 128, -9999


def windows(store: TileStore, tiles: list[int]) -> list[tuple[slice, slice]]:
    """Return rows and columns of tiles in their scene."""
    corners = store.table.loc[tiles, ["row", "col"]].to_numpy()
    return [(slice(row, row + SIZE), slice(col, col + SIZE)) for row, col in corners]


def cut_anew(ground: Path, fold: Fold, overlap: int, out: Path) -> TileStore:
    """Return a store of the ground that a fold trains on."""
    out.mkdir()
    known: np.ndarray | None = None
    for name, dtype, fill in (("scene", "float32", NODATA), ("label", "uint8", IGNORE)):
        with rasterio.open(ground / f"{name}.tif") as file:
            values, profile, described = file.read(), file.profile, file.descriptions
        if known is None:
            known = np.zeros(values.shape[1:], bool)
            for window in windows(fold.store, fold.train):
                known[window] = True
        with rasterio.open(out / f"{name}.tif", "w", **{**profile, "dtype": dtype, "nodata": fill}) as file:
            file.write(np.where(known, values.astype(dtype), np.array(fill, dtype)))
            file.descriptions = described
    scene, label = out / "scene.tif", out / "label.tif"
    return prepare_scenes([scene], out / "tiles", labels=[label], tile_size=SIZE, overlap=overlap)


def main() -> None:
    """Train and score, print a line for each run and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="everest")
    parser.add_argument("--overlap", type=int, default=SIZE // 2)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="bundle to start from")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="of the recipe")
    args = parser.parse_args()
    show_messages()
    ground, found = args.data / "everest", []
    with TemporaryDirectory() as folder:
        home = Path(folder)
        store = prepare_scenes([ground / "scene.tif"], home / "t", labels=[ground / "label.tif"], tile_size=SIZE)
        for k, seed in itertools.product(range(args.folds), range(args.seeds)):
            work = home / f"{k}-{seed}"
            work.mkdir()
            fold = held_out(store, args.folds, k, work / "fold")
            tiles, began = cut_anew(ground, fold, args.overlap, work / "anew"), minutes_used()
            settings = [f"seed={seed}", f"data.tile_size={SIZE}", *args.settings]
            train(load_recipe(args.recipe, settings), tiles, work / "run", fold=None, weights=args.weights)
            took = minutes_used() - began
            bundle, wanted = ModelBundle.load(work / "run" / BEST), Wanted(probabilities="float32")
            alone = np.stack([t.probs for t in predict_tiles(bundle, fold.store, fold.test, torch.device("cpu"))])
            made = predict_scene(bundle, ground / "scene.tif", work / "maps", wanted)
            with rasterio.open(made["files"]["probabilities"]) as file:
                whole = file.read()
            mapped = np.stack([whole[:, rows, cols] for rows, cols in windows(fold.store, fold.test)])
            scores = [score(probs, fold) for probs in (alone, mapped)]
            found.append([s[name] for s in scores for name in ("mcc", "ice_mcc", "ece")])
            print(f"fold {k}, seed {seed}, {took:.1f} minutes, {len(tiles)} tiles:", _line(found[-1]), flush=True)
    by_seed = np.reshape(found, (args.folds, args.seeds, -1)).mean(0)
    print(f"mean over folds and seeds: {_line(by_seed.mean(0))}")
    if args.seeds > 1:
        print(f"spread over seeds: {_line(by_seed.std(0, ddof=1))}")


def _line(row: Sequence[float] | np.ndarray) -> str:
    tiles, maps = (f"{m:.3f}, ice {i:.3f}, calibration error {e:.3f}" for m, i, e in np.reshape(row, (2, 3)))
    return f"tiles: MCC {tiles}; map: MCC {maps}"


if __name__ == "__main__":
    main()
