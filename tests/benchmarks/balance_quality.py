"""Does balance help? Uniform crops, the seed plan's tile weights, and the three levels, trained alike and compared.

    python tests/benchmarks/balance_quality.py OUT [--scene scene.tif --label label.tif] [--seeds 3] [--jobs 2]

trains on synthetic landscapes (48 tiles of 256 px, five folds, the first two), and with `--scene` on a real one (tiles
of 128 px, five spatial folds, the first three). Each run keeps the weights with the best MCC of its validation fold and
is scored there, so all are a little too good, and all alike. OUT keeps every run; rerun the command to go on.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from glacier_fastai.core.balance import TARGET, Sampling

METHODS = {
    "uniform": ["balance=null"],
    "seed plan": ["balance.level=tile"],
    "tile": ["balance.level=tile", "balance.min_effective=0.2"],
    "crop": ["balance.level=crop", "balance.min_effective=0.2"],
    "crop, mild": ["balance.level=crop", "balance.min_effective=0.6"],
    "pixel": ["balance.level=pixel", "balance.min_effective=0.2"],
}
COMMON = ("ramp=null", "augment=[flip]", "train.ema=0.98", "train.plateau_patience=10", "train.workers=0")
SETTINGS = {
    "synthetic": (
        "demo",
        (
            *COMMON,
            "data.tile_size=256",
            "data.crop=128",
            "data.crops_per_tile=2",
            "train.epochs=24",
            "train.batch_size=8",
            "train.lr=6e-4",
        ),
        (0, 1),
    ),
    "scene": (
        "everest",
        (
            *COMMON,
            "data.tile_size=128",
            "data.crop=64",
            "data.crops_per_tile=8",
            "data.folds=5",
            "train.epochs=20",
            "train.batch_size=16",
            "train.lr=4e-4",
        ),
        (0, 1, 2),
    ),
}


def seed_plan(counts, places, balance):
    """The seed plan's weights: one over the L1 deviation of a tile's composition from the target, plus 0.01."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    p = 1 / (np.abs(shares - list(TARGET.values())).sum(1) + 0.01)
    p /= p.sum()
    expected = p @ counts / (p @ counts).sum()
    rest = dict.fromkeys(("target", "limit", "reachable"), expected)
    return Sampling(p, np.argsort(p), **rest, expected=expected, keep=np.ones(4), supervised=1.0, effective=1.0)


def run(kind: str, store: str, out: str, method: str, seed: int, fold: int) -> dict:
    """Train one run and return its row."""
    import torch

    from glacier_fastai.recipe import load_recipe
    from glacier_fastai.train.run import finetune

    torch.set_num_threads(1)
    name, settings, _ = SETTINGS[kind]
    recipe = load_recipe(name, [*settings, *METHODS[method], f"seed={seed}"])
    folder = Path(out) / f"{kind}-{method.replace(', ', '-').replace(' ', '-')}-{fold}-{seed}"
    if not folder.exists():
        planned = patch("glacier_fastai.data.balanced.solve", seed_plan)
        with planned if method == "seed plan" else nullcontext():
            finetune(recipe, fold=fold, data=store, out=folder)
    scores = json.loads((folder / "metrics.json").read_text())
    history = pd.read_csv(folder / "history.csv")
    shares = {c: history[f"share_{c}"].mean() for c in TARGET}
    matrix = np.array(scores["confusion"], float)
    recall = np.diag(matrix) / np.where(matrix.sum(1) > 0, matrix.sum(1), np.nan)
    found = {k: scores[k] for k in ("mcc", "ice_mcc", "mean_iou")}
    return {"data": kind, "method": method, "fold": fold, "seed": seed, **found, **shares} | {
        f"{c} recall": r for c, r in zip(TARGET, recall, strict=True)
    }


def table(rows: list[dict]) -> str:
    """Mean and spread over seeds (of the mean over folds); compositions as per cent."""
    lines = []
    frame = pd.DataFrame(rows)
    for kind, part in frame.groupby("data", sort=False):
        folds, seeds = part["fold"].nunique(), part["seed"].nunique()
        lines.append(f"{kind}: {folds} folds, {seeds} seeds, mean (spread over seeds)")
        lines.append(
            f"{'':<11}{'achieved BG/glacier/debris/lake %':<36}"
            + "".join(f"{h:>18}" for h in ("MCC", "ice MCC", "debris recall", "lake recall"))
        )
        for method in METHODS:
            runs = part[part["method"] == method]
            seeds = runs.groupby("seed").mean(numeric_only=True)
            shares = " / ".join(f"{100 * runs[c].mean():.2f}" for c in TARGET)
            cells = (f"{seeds[k].mean():.3f} ({seeds[k].std():.3f})" for k in ("mcc", "ice_mcc", "debris recall"))
            lake = f"{seeds['lake recall'].mean():.3f} ({seeds['lake recall'].std():.3f})"
            lines.append(f"{method:<11}{shares:<36}" + "".join(f"{c:>18}" for c in (*cells, lake)))
    return "\n".join(lines)


def main() -> None:
    """Make the stores, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--label", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    from glacier_fastai.data.sources.scene import prepare_scenes
    from glacier_fastai.data.sources.synthetic import synthetic_store

    stores = {"synthetic": args.out / "synthetic-tiles"}
    if not stores["synthetic"].exists():
        synthetic_store(stores["synthetic"], n_scenes=12, tile_size=256, scene_size=512, seed=11)
    if args.scene:
        stores["scene"] = args.out / "scene-tiles"
        if not stores["scene"].exists():
            prepare_scenes([args.scene], stores["scene"], labels=[args.label], tile_size=128)
    jobs = [
        (kind, str(stores[kind]), str(args.out), method, seed, fold)
        for seed in range(args.seeds)
        for kind in stores
        for fold in SETTINGS[kind][2]
        for method in METHODS
    ]
    rows = []
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, *job) for job in jobs]):
            rows.append(done.result())
            pd.DataFrame(rows).to_csv(args.out / "runs.csv", index=False)
    print(table(rows))


if __name__ == "__main__":
    main()
