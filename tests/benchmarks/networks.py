"""GlaViTU beside the U-Net: same recipe, equal steps and equal time, on real and on synthetic ground.

    python tests/benchmarks/networks.py DATA [--size tiny] [--steps 300] [--seeds 3] [--out FOLDER]

DATA holds the folder `competition`, of which a third is held out, as by real_ground.py, with the recipe
`competition_cpu` in windows of 192 px, seen at one size; synthetic landscapes are 12 to train on and 24 others, with
the recipe `demo`. Each seed has ground of its own: another third, other landscapes. Both networks are of one size and
make the same steps; then the U-Net makes as many as it can in GlaViTU's time. Each is trained by one core in a
process of its own; images per second count the seconds of the core, of which other work on the machine takes nothing,
and memory is that of the process at its peak. Nothing is stopped or chosen by what is held out.
FOLDER gets a line of JSON as soon as one is measured; run the command again to go on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from real_ground import held_out, minutes_used, prepare

from glacier_fastai.core.confusion import ice, mcc
from glacier_fastai.data.sources.synthetic import synthetic_store
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.recipe import load_recipe
from glacier_fastai.train.folder import BEST
from glacier_fastai.train.run import train

RECIPES = {"competition": "competition_cpu", "synthetic": "demo"}
FULL = ["model.attention=scse", "data.crop=192", "predict.scales=[1.0]"]
FOLDS = 3
COLUMNS = {"ice": "ice MCC", "mcc": "4-class MCC", "steps": "steps", "minutes": "minutes"}
COLUMNS |= {"rate": "images/s", "memory": "memory, GiB"}


def measure(run: dict, data: Path) -> dict:
    """Train one network on one fold and score it."""
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPES[run["ground"]], ["train.epochs=null"])
    with TemporaryDirectory() as folder:
        out = Path(folder)
        if run["ground"] == "synthetic":
            size = recipe.data.tile_size
            made = {"tile_size": size, "scene_size": 256, "bands": recipe.bands}
            store = synthetic_store(out / "tiles", n_scenes=12, seed=10 + run["seed"], **made)
            judge, tiles = synthetic_store(out / "others", n_scenes=24, seed=20 + run["seed"], **made), None
        else:
            fold = held_out(prepare("competition", data, out / "all"), FOLDS, run["seed"] % FOLDS, out / "tiles")
            store, judge, tiles = fold.store, fold.store, fold.test
        settings = ["train.epochs=null", f"train.steps={run['steps']}", f"seed={run['seed']}"]
        settings += ["model.encoder=null", f"model.arch={run['arch']}", f"model.size={run['size']}"]
        settings += FULL if run["ground"] == "competition" else []
        recipe, began = load_recipe(RECIPES[run["ground"]], settings), minutes_used()
        train(recipe, TileStore(store.path), out / "run", fold=None)
        minutes = minutes_used() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found = evaluate(ModelBundle.load(out / "run" / BEST), judge, tiles)
    matrix = torch.as_tensor(found["confusion"])
    four = found["mcc"] if run["ground"] == "synthetic" else None
    rate = run["steps"] * recipe.train.batch_size / minutes / 60
    return run | {"ice": mcc(ice(matrix)), "mcc": four, "minutes": minutes, "rate": rate, "memory": memory}


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ground", choices=RECIPES, action="append", help="one of the two; again for both")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("networks"), metavar="FOLDER")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args.run, args.data)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    results, rows = args.out / "results.json", []
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []

    def measured(**run) -> dict:
        row = next((k for k in known if run.items() <= k.items()), None)
        if row is None:
            command = [sys.executable, __file__, str(args.data), "--run", json.dumps(run)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        rows.append(row)
        return row

    for ground, seed in product(args.ground or RECIPES, range(args.seeds)):
        run = {"ground": ground, "seed": seed, "size": args.size}
        glavitu = measured(**run, arch="glavitu", steps=args.steps, equal="steps")
        unet = measured(**run, arch="unet", steps=args.steps, equal="steps")
        steps = int(round(args.steps * glavitu["minutes"] / unet["minutes"], -1))
        measured(**run, arch="unet", steps=steps, equal="time")
    table = pd.DataFrame(rows).astype({"mcc": float}).rename(columns=COLUMNS)
    networks = table.groupby(["ground", "arch", "equal"], sort=False)[list(COLUMNS.values())]
    print(f"\nsize {args.size}, {args.seeds} seeds: mean +- spread over seeds\n\n{spread(networks)}")
    scores = table.pivot(index=["ground", "seed"], columns=["arch", "equal"], values=["ice MCC", "4-class MCC"])
    glavitu = scores.xs(("glavitu", "steps"), axis=1, level=(1, 2))
    for equal in ("steps", "time"):
        more = (glavitu - scores.xs(("unet", equal), axis=1, level=(1, 2))).groupby("ground", sort=False)
        print(f"\nGlaViTU above the U-Net at equal {equal}, mean +- spread of the differences\n\n{spread(more)}")


def spread(groups) -> str:
    """Return mean and standard deviation of groups as text."""
    mean, deviation = (part.map("{:.3f}".format) for part in (groups.mean(), groups.std()))
    return (mean + " +- " + deviation).replace("nan +- nan", "-").to_string()


if __name__ == "__main__":
    main()
