"""Are our maps better than the peers', on real ground that no method has seen? All in one run.

    python tests/benchmarks/real_ground.py DATA --ground competition|everest [--folds 3] [--seeds 3] [--minutes 20]
        [--only ours,forest] [--recipe NAME]... [--out FOLDER]

DATA holds the folders `competition` and `everest`. Each spatial fold (of three; of `everest`, whose tiles overlap by
half, two fifths of the scene) is held out in turn and decides nothing: all methods train on the tiles that do not
touch it, ours keeps its last weights, and nothing is stopped, chosen or normalised by it. One after another they have
all cores; smp and TorchGeo have so many minutes (of processor time by the number of cores), ours makes the steps of
its recipe, the ratio and the forest take what they need: compare the minutes in the table. "ours and forest" is the
mean of the probabilities of both. The calibration error is that of the most probable class; beside it, that after a
temperature found on the other folds, and that of all folds together, in which what is too sure on one ground and too
unsure on another cancels out. FOLDER gets a line of JSON in `results.json` as soon as one is measured, and its
probabilities on the fold; run the command again to go on, and name another folder when the code or a recipe has
changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from sklearn.ensemble import RandomForestClassifier

from glacier_fastai.bands import CLASSES, ICE_OF_ANY_KIND, IGNORE
from glacier_fastai.core.calibration import calibrated, expected_calibration_error, fit_temperature, reliability
from glacier_fastai.core.confusion import confusion_matrix, ice, mcc
from glacier_fastai.core.folds import train_valid
from glacier_fastai.data.folds import store_folds
from glacier_fastai.data.sources.competition import prepare_competition
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.errors import DataError, GlacierError, RunStopped
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import predict_tiles
from glacier_fastai.model.predictor import default_device
from glacier_fastai.recipe import Recipe, load_recipe
from glacier_fastai.terminal import show_messages
from glacier_fastai.train.build import effective_precision
from glacier_fastai.train.folder import BEST
from glacier_fastai.train.run import train

RECIPES = {"competition": "competition_cpu", "everest": "everest"}
PEERS = ("ratio", "forest", "smp", "torchgeo")
GLACIER = CLASSES.index("glacier")

EACH = 7  # pixel of those that a temperature is fitted to

Map = Callable[[int], np.ndarray]  # position of a tile -> probabilities (4, H, W)


class Fold(NamedTuple):
    """What is trained on and what is held out; in the store all but `train` is of the split "test"."""

    number: int
    store: TileStore
    train: list[int]
    test: list[int]

    def truth(self, i: int, ice_is: int = GLACIER) -> np.ndarray:
        """Return the labels of a tile, those of ice of unknown kind as `ice_is`."""
        mask = np.array(self.store.masks[i])
        mask[mask == ICE_OF_ANY_KIND] = ice_is
        return mask

    @property
    def kinds(self) -> bool:
        """Whether the labels tell more than ice and background."""
        return bool(self.store.class_counts()[:, GLACIER + 1 :].any())


def prepare(ground: str, data: Path, out: Path) -> TileStore:
    """Make the store of a ground; Landsat 8 in units (Collection 2 Level 2)."""
    if ground == "competition":
        scale, offset = [2.75e-5] * 4 + [0.00341802], [-0.2] * 4 + [149.0]
        return prepare_competition(data / ground, out, scale=scale, offset=offset)
    scene, label = data / ground / "scene.tif", data / ground / "label.tif"
    return prepare_scenes([scene], out, labels=[label], tile_size=128, overlap=64)


def held_out(store: TileStore, folds: int, k: int, out: Path) -> Fold:
    """Return a fold of the package's own, in a copy of the store from which nothing else can be trained on."""
    train, test = (part.tolist() for part in train_valid(store_folds(store, folds), k, **store.footprints()))
    shutil.copytree(store.path, out)
    split = np.full(len(store), "test", object)
    split[train] = "train"
    store.table.assign(split=split).to_csv(out / "tiles.csv", index=False)
    return Fold(k, TileStore(out), train, test)


def of_recipe(recipe: Recipe, fold: Fold, out: Path) -> Map:
    """Train a recipe, validating on nothing."""
    train(recipe, fold.store, out, fold=None)
    bundle = ModelBundle.load(out / BEST)
    return lambda i: next(predict_tiles(bundle, fold.store, [i])).probs


def minutes_used() -> float:
    """Minutes that this process and its children have had of each core, whatever else the machine did."""
    return sum(os.times()[:4]) / torch.get_num_threads() / 60


def ratio(fold: Fold, seed: int, bands: tuple[str, ...], out: Path) -> Map:
    """Train the package's own band ratio."""
    size = fold.store.size
    recipe = Recipe(bands=bands, data={"tile_size": size, "crop": size}, model={"arch": "ratio"}, seed=seed)
    return of_recipe(recipe, fold, out)


def features(values: np.ndarray) -> np.ndarray:
    """Return of each pixel and band the value, and mean and deviation in windows of 5 and 15 px: (H * W, 5 C)."""
    valid = np.isfinite(values[0])
    filled = np.where(valid, values, 0).astype(np.float64)
    found = [filled]
    for side in (5, 15):
        share = np.maximum(uniform_filter(valid.astype(np.float64), side), side**-2)
        mean, square = (uniform_filter(x, (1, side, side)) / share for x in (filled, filled**2))
        found += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    return np.concatenate(found).reshape(-1, valid.size).T.astype(np.float32)


def forest(fold: Fold, seed: int, pixels: int = 200_000) -> Map:
    """Fit a random forest to the texture of labelled pixels, drawn as they come."""
    store, truth = fold.store, np.stack([fold.truth(i) for i in fold.train])
    known = np.flatnonzero(truth != IGNORE)
    chosen = np.random.default_rng(seed).choice(known, min(pixels, len(known)), replace=False)
    tile, pixel = np.divmod(chosen, store.size**2)
    order = np.argsort(tile, kind="stable")
    x = [features(store.read(i))[pixel[tile == n]] for n, i in enumerate(fold.train)]
    model = RandomForestClassifier(200, min_samples_leaf=5, n_jobs=torch.get_num_threads(), random_state=seed)
    model.fit(np.concatenate(x), truth.flat[chosen[order]])

    def predict(i: int) -> np.ndarray:
        probs = np.zeros((len(CLASSES), store.size, store.size), np.float32)
        probs[model.classes_] = model.predict_proba(features(store.read(i))).T.reshape(-1, store.size, store.size)
        return probs

    return predict


def plain_loop(
    fold: Fold,
    seed: int,
    minutes: float,
    network: Callable[[int, int], torch.nn.Module],  # of the numbers of bands and classes
    lr: float,
    decay: bool,  # of the lr, linearly to 0 at the end of the time
    crop: int = 256,
    batch: int = 4,
) -> Map:
    """Train a network as everyone would: random crops, flips, AdamW, cross-entropy, z-scores."""
    started, store, rng = minutes_used(), fold.store, np.random.default_rng(seed)
    torch.manual_seed(seed)
    mean, std = (v.astype(np.float32)[:, None, None] for v in store.statistics(store.bands, fold.train))
    device, crop = default_device(), min(crop, store.size)
    reduced = effective_precision(Recipe(bands=store.bands)) != "fp32"  # where ours has half precision
    layout = torch.channels_last
    model = network(len(store.bands), len(CLASSES) if fold.kinds else 2).to(device, memory_format=layout)
    optimiser = torch.optim.AdamW(model.parameters(), lr)

    def image(i: int) -> np.ndarray:
        return np.nan_to_num((store.read(i) - mean) / std)

    def logits(images: np.ndarray) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            return model(torch.from_numpy(images).to(device, memory_format=layout)).float()

    def crops() -> tuple[np.ndarray, np.ndarray]:
        x, y = [], []
        for _ in range(batch):
            n, row, col = rng.integers(len(tiles)), *rng.integers(store.size - crop + 1, size=2)
            step = rng.choice((-1, 1), 2)
            for out, whole in zip((x, y), tiles[n], strict=True):
                out.append(whole[..., row : row + crop, col : col + crop][..., :: step[0], :: step[1]])
        return np.stack(x), np.stack(y)

    tiles = [(image(i), fold.truth(i)) for i in fold.train]
    model.train()
    while (left := 1 - (minutes_used() - started) / minutes) > 0:
        for group in optimiser.param_groups:
            group["lr"] = lr * left if decay else lr
        x, y = crops()
        target = torch.from_numpy(y).long().to(device)
        loss = F.cross_entropy(logits(x), target, ignore_index=IGNORE, reduction="sum")
        optimiser.zero_grad()
        (loss / (target != IGNORE).sum().clamp(min=1)).backward()
        optimiser.step()

    @torch.no_grad()
    def predict(i: int) -> np.ndarray:
        probs = logits(image(i)[None])[0].softmax(0).cpu().numpy()
        return np.pad(probs, ((0, len(CLASSES) - len(probs)), (0, 0), (0, 0)))

    model.eval()
    return predict


def plain_smp(fold: Fold, seed: int, minutes: float) -> Map:
    """Train a U-Net of segmentation-models-pytorch."""

    def unet(bands: int, classes: int) -> torch.nn.Module:
        return smp.Unet("resnet34", encoder_weights=None, in_channels=bands, classes=classes)

    return plain_loop(fold, seed, minutes, unet, lr=5e-4, decay=True)


def torchgeo(fold: Fold, seed: int, minutes: float) -> Map:
    """Train the network of TorchGeo's task by its defaults; its plateau sees no validation, so never cuts its lr."""
    try:
        from torchgeo.trainers import SemanticSegmentationTask
    except ImportError as err:
        raise DataError("not installed") from err

    def network(bands: int, classes: int) -> torch.nn.Module:
        return SemanticSegmentationTask(in_channels=bands, num_classes=classes).model

    return plain_loop(fold, seed, minutes, network, lr=1e-3, decay=False)


def score(probs: np.ndarray, fold: Fold, others: tuple[np.ndarray, np.ndarray] | None = None) -> dict:
    """Return what probabilities `(N, 4, H, W)` of the tiles of a fold score.

    Ice MCC, pooled, its mean over tiles and that of each; MCC of the classes where labels tell kinds; the calibration
    error, and that after the temperature of probabilities and labels of other folds.
    """
    pooled, classes, tiles = 0, 0, {}
    for i, found in zip(fold.test, probs.argmax(1), strict=True):
        binary = ice(confusion_matrix(found, fold.truth(i), len(CLASSES)))
        classes += confusion_matrix(found, fold.truth(i, IGNORE), len(CLASSES))
        pooled, tiles[str(fold.store.table["id"][i])] = pooled + binary, mcc(binary)
    found = {"ice_mcc": mcc(pooled), "ice_mcc_tiles": float(np.mean(list(tiles.values())))}
    found["mcc"] = mcc(classes) if fold.kinds else None
    p, truth = (torch.from_numpy(x) for x in pixels(probs, fold, 1))
    found["ece"] = expected_calibration_error(reliability(p, truth))
    if others:
        p = calibrated(p, *fit_temperature(*others), dim=1)
        found["ece_scaled"] = expected_calibration_error(reliability(p, truth))
    return found | {"tiles": tiles}


def pixels(probs: np.ndarray, fold: Fold, each: int = EACH) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `(n, 4)` and labels `(n,)` of every so many pixels of a fold."""
    chosen = np.moveaxis(probs, 1, -1).reshape(-1, len(CLASSES))[::each].astype(np.float32)
    return chosen, np.stack([fold.store.labels(i) for i in fold.test]).ravel()[::each]


def measure(method: str, fold: Fold, seed: int, minutes: float, recipe: str) -> tuple[float, np.ndarray]:
    """Train a method; return the minutes that it took, and probabilities `(N, 4, H, W)` of the tiles of the fold."""
    ours = load_recipe(recipe, [f"seed={seed}", f"data.tile_size={fold.store.size}"])
    with TemporaryDirectory() as folder:
        run, started = Path(folder) / "run", minutes_used()
        trained = {
            "ratio": lambda: ratio(fold, seed, ours.bands, run),
            "forest": lambda: forest(fold, seed),
            "smp": lambda: plain_smp(fold, seed, minutes),
            "torchgeo": lambda: torchgeo(fold, seed, minutes),
        }.get(method, lambda: of_recipe(ours, fold, run))()
        took = minutes_used() - started
        return took, np.stack([trained(i) for i in fold.test]).astype(np.float16)


def kept(out: Path, method: str, fold: int, seed: int) -> Path:
    """Where the probabilities of a method are kept."""
    return out / f"{re.sub('[^A-Za-z0-9_.]+', '-', method)}-{fold}-{seed}.npy"


def scored(done: dict, folds: list[Fold], out: Path, methods: Iterable[str], seeds: int) -> list[dict]:
    """Return the scores of all that is measured, and of the first of ours and the forest together."""
    members = {method: [method] for method in methods}
    if (ours := next(iter(methods))).startswith("ours") and "forest" in methods:
        members["ours and forest"] = [ours, "forest"]
    rows = []
    for (method, of), seed in itertools.product(members.items(), range(seeds)):
        there = [f for f in folds if all((m, f.number, seed) in done for m in of)]
        maps = {f.number: np.mean([np.load(kept(out, m, f.number, seed)) for m in of], 0, np.float32) for f in there}
        both = [np.concatenate(x) for x in zip(*(pixels(maps[f.number], f) for f in there), strict=True)]
        pooled = expected_calibration_error(reliability(*both)) if there else None
        for fold in there:
            others = [pixels(maps[f.number], f) for f in there if f is not fold]
            others = tuple(map(np.concatenate, zip(*others, strict=True))) if others else None
            minutes = sum(done[m, fold.number, seed] for m in of)
            found = score(maps[fold.number], fold, others)
            rows.append(
                {"method": method, "fold": fold.number, "seed": seed, "minutes": minutes, **found, "ece_pooled": pooled}
            )
    return rows


def table(rows: pd.DataFrame) -> str:
    """Return the scores of each fold, mean over seeds; and the mean over all with the spread over seeds."""
    rows = rows.reindex(columns=dict.fromkeys([*rows, "ece_scaled"]))
    columns = {"ice_mcc": "ice MCC", "ice_mcc_tiles": "mean over tiles", "mcc": "4-class MCC"}
    columns |= {"ece": "calibration error", "ece_scaled": "with temperature", "ece_pooled": "of all folds"}
    columns |= {"minutes": "minutes"}
    rows = rows[["method", "fold", "seed", *columns]].astype(dict.fromkeys(columns, float)).rename(columns=columns)
    folds = rows.drop(columns="seed").groupby(["fold", "method"], sort=False).mean().round(3)
    lines = [f"fold {k}\n{part.droplevel(0).to_string(na_rep='-')}\n" for k, part in folds.groupby(level=0)]
    seeds = rows.drop(columns="fold").groupby(["method", "seed"], sort=False).mean().groupby("method", sort=False)
    mean, spread = (part.map("{:.3f}".format) for part in (seeds.mean(), seeds.std()))
    both = (mean + " +- " + spread).replace("^nan.*", "-", regex=True).replace(r" \+- nan", "", regex=True)
    both["runs"] = rows["method"].value_counts()
    return "\n".join([*lines, "mean over folds and seeds +- spread over seeds", both.to_string()])


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ground", choices=RECIPES, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", default=",".join(("ours", *PEERS)), help="methods, separated by commas")
    parser.add_argument("--recipe", action="append", help="of ours; again for further rows")
    parser.add_argument("--out", type=Path, default=Path("real_ground"), metavar="FOLDER")
    args = parser.parse_args()
    if unknown := {*args.only.split(",")} - {"ours", *PEERS}:
        parser.error(f"unknown method {', '.join(sorted(unknown))}: use ours, {', '.join(PEERS)}")
    recipes = args.recipe or [RECIPES[args.ground]]
    methods = {f"ours {recipe}": recipe for recipe in recipes} if "ours" in args.only.split(",") else {}
    methods |= {peer: recipes[0] for peer in PEERS if peer in args.only.split(",")}
    show_messages()
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    about = {"ground": args.ground, "folds": args.folds, "limit": args.minutes, "threads": torch.get_num_threads()}
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.json"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    lines = [line for line in lines if about.items() <= line.items()]
    done, skipped = {(x["method"], x["fold"], x["seed"]): x["minutes"] for x in lines}, {}
    with TemporaryDirectory() as folder:
        store = prepare(args.ground, args.data, Path(folder) / "tiles")
        folds = [held_out(store, args.folds, k, Path(folder) / f"fold{k}") for k in range(args.folds)]
        for k, fold in enumerate(folds):
            sizes = len(fold.train), len(fold.test)
            apart = len(store) - sum(sizes)
            print(f"fold {k}: {sizes[0]} tiles to train on, {sizes[1]} held out, {apart} left out as they touch these")
            for seed, method in ((s, m) for s in range(args.seeds) for m in methods):
                if (run := (method, k, seed)) in done or method in skipped:
                    continue
                try:
                    done[run], probs = measure(method, fold, seed, args.minutes, methods[method])
                except RunStopped:
                    raise
                except GlacierError as err:
                    skipped[method] = str(err)
                    continue
                np.save(kept(args.out, *run), probs)
                with results.open("a") as file:
                    line = {"method": method, "fold": k, "seed": seed, **about, "minutes": done[run]}
                    file.write(json.dumps(line) + "\n")
                print(f"fold {k}, seed {seed}, {method}: ice MCC {score(probs, fold)['ice_mcc']:.3f}", flush=True)
        rows = scored(done, folds, args.out, methods, args.seeds)
    print(f"\n{args.ground}, {args.folds} spatial folds, {args.minutes:g} minutes, {torch.get_num_threads()} threads\n")
    for method, why in skipped.items():
        print(f"{method}: skipped ({why})")
    if rows:
        print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
