"""Makes the fixtures beside this file: files as glacier_fastai 0.1.0.dev0 of commit 5bc99b0 wrote them.

Kept to show how they were made; it runs with the code of that commit alone, and is not meant to run with any later one:

    git clone REPO base && cd base && git checkout 5bc99b0 && pip install -e .
    OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= python make.py OUT

Everything is written by that code itself. Only the values of weights and optimiser states are replaced before it saves
them: by short patterns that repeat, so that xz makes 30 to 230 MB small. At the end all is read again,
and the run resumed.
"""

import json
import lzma
import math
import os
import shutil
import signal
import sys
import tempfile
import zlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import torch
from glacier_fastai.predict.calibrate import calibrate
from glacier_fastai.predict.ensemble import Calibration, Ensemble, Member
from glacier_fastai.predict.tiles import evaluate_ensemble, map_tiles
from glacier_fastai.train.bundle import ModelBundle
from glacier_fastai.train.evaluate import evaluate, predicted
from glacier_fastai.train.oof import OutOfFold

from glacier_fastai.data.sources.synthetic import synthetic_store
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.errors import RunStopped
from glacier_fastai.files import file_hash
from glacier_fastai.recipe import load_recipe
from glacier_fastai.train.checkpoint import CheckpointCallback, load_checkpoint, save_checkpoint
from glacier_fastai.train.run import crossval, train

CPU = torch.device("cpu")
BANDS = ("green", "red", "swir1")
TINY = (
    *("data.tile_size=32", "data.crop=32", "data.crops_per_tile=1", "data.folds=3"),
    *("train.batch_size=4", "train.precision=fp32", "train.workers=0", "record.panels_every=0"),
)
RUN_FILES = ("recipe.yaml", "environment.json", "folds.csv", "history.csv", "events.jsonl")


def recipe(bands, *overrides):
    """Return the demo recipe, made tiny."""
    return load_recipe("demo", [f"bands={json.dumps(list(bands))}", *TINY, *overrides])


# low entropy

CYCLE = (3, -1, 2, -4, 1, 4, -2, 0, -3, 2, 1, -2, -1)  # 13 is prime, and no number of channels is a multiple of it


def cycled(shape, values, start):
    """Return float32 of that shape, in which `values` repeat in the order of a contiguous tensor."""
    n = math.prod(shape)
    return torch.tensor(np.resize(np.roll(np.float32(values), -start), n)).reshape(tuple(shape))


def pattern(weights, seed):
    """Return a state dict of the same keys, shapes, strides and types; integers stay."""
    norms = {k.rpartition(".")[0] for k in weights if k.endswith("running_var")}
    out = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        start = zlib.crc32(f"{seed} {name}".encode()) % 13
        if not tensor.is_floating_point():
            new = tensor
        elif kind == "running_var" or (module in norms and kind == "weight"):
            new = cycled(tensor.shape, (1, 0.75, 1.25, 0.875, 1.125), start)
        elif kind in ("running_mean", "bias"):
            new = cycled(tensor.shape, (0, 0.125, -0.125, 0.25, -0.1875, 0.0625, -0.25), start)
        else:
            new = cycled(tensor.shape, CYCLE, start)  # `tamed` scales it
        out[name] = tensor.clone().copy_(new)
    return out


def tamed(bundle, seed):
    """Return a bundle with patterns for weights, each convolution scaled so that what it gives deviates by about 1."""
    model = replace(bundle, weights=pattern(bundle.weights, seed)).model()

    def scale(conv, args):
        deviation = float(conv._conv_forward(args[0], conv.weight, None).std())
        if deviation > 0:  # a gate may get nothing but zeros
            conv.weight.mul_(2.0 ** -round(math.log2(deviation)))  # powers of two stay exact in float16

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(scale)
    torch.manual_seed(seed)
    x = torch.randn(4, len(bundle.bands), 8, 8)
    with torch.no_grad():
        model(torch.nn.functional.interpolate(x, size=32, mode="bilinear"))
        model.segmentation_head[0].weight.mul_(2)
    weights = model.state_dict()
    assert all(torch.equal(w, w.half().float()) for w in weights.values() if w.is_floating_point())
    return replace(bundle, weights={k: v.contiguous() for k, v in weights.items()})


def fill(tensor, values):
    """Fill a tensor in place; the values repeat in the order in which they lie in memory."""
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,))  # these have no gaps
    flat.copy_(cycled(flat.shape, values, 0))


def fill_optimizer(state):
    """Fill the moments in place; steps and hyperparameters stay as they are."""
    for moments in state["state"].values():
        fill(moments["exp_avg"], [v / 2**12 for v in CYCLE])
        fill(moments["exp_avg_sq"], [2.0**-20, 2.0**-19, 2.0**-18])


def fill_like(other, weights):
    """Fill weights in place with others of the same sizes as those given: their cycles in another order."""
    for name, tensor in other.items():
        if tensor.ndim == 4:
            fill(tensor, weights[name].flatten()[:13].tolist())
        else:
            tensor.copy_(weights[name])


def squeeze(file, out):
    """Write OUT as xz of a file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(lzma.compress(file.read_bytes(), preset=9))
    print(f"{out.name}: {file.stat().st_size:,} -> {out.stat().st_size:,} bytes")


def unsqueeze(file, out):
    """Write OUT as it was before `squeeze`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(lzma.decompress(file.read_bytes()))
    return out


def patterned(path, seed):
    """Replace a bundle's weights in its file; all else is as the run wrote it."""
    tamed(ModelBundle.load(path), seed).save(path)


# what is made


def make_run(store):
    """Train epoch 1 of 2 and stop, as after Ctrl-C; weights and moments become patterns."""
    after_epoch = CheckpointCallback.after_epoch

    def interrupted(self):
        after_epoch(self)
        os.kill(os.getpid(), signal.SIGINT)

    CheckpointCallback.after_epoch = interrupted
    try:
        train(recipe(BANDS, "train.epochs=2"), store, "run", fold=0)
    except RunStopped as stop:
        print(stop)
    else:
        raise AssertionError("the run did not stop")
    finally:
        CheckpointCallback.after_epoch = after_epoch
    state = load_checkpoint("run/last.ckpt")
    assert state["at"] == (1, 0) and not state["ended"] and state["gradients"] == []
    patterned("run/best.safetensors", 5)  # of epoch 1, so of the weights that the checkpoint holds
    weights = ModelBundle.load("run/best.safetensors").weights
    for name, tensor in state["model"].items():
        tensor.copy_(weights[name])
    fill_like(state["callbacks"]["average_weights"]["other"], weights)
    fill_optimizer(state["optimizer"])
    save_checkpoint(Path("run/last.ckpt"), state)


def made(out):
    """Make all in the working directory, which shows in the files as relative paths, and copy it to OUT."""
    synthetic_store("store", "landsat7", n_scenes=3, tile_size=32, scene_size=64, bands=BANDS, seed=6)
    print(TileStore("store"), *TileStore("store").table["valid"])
    shutil.copytree("store", out / "store")

    train(recipe(BANDS, "train.epochs=1"), "store", "plain", fold=0)
    textures = ("green", "swir1", "glcm_contrast(swir1)")
    train(recipe(textures, "train.epochs=1", "model.attention=cse", "texture.levels=16"), "store", "texture", fold=0)
    for name, run, seed in (("bundle", "plain", 1), ("bundle_texture", "texture", 2)):
        patterned(f"{run}/best.safetensors", seed)
        shutil.copy(f"{run}/best.safetensors", f"{name}.safetensors")
        squeeze(Path(f"{name}.safetensors"), out / f"{name}.safetensors.xz")

    make_run("store")
    squeeze(Path("run/last.ckpt"), out / "last.ckpt.xz")
    squeeze(Path("run/best.safetensors"), out / "run/best.safetensors.xz")
    for name in RUN_FILES:
        shutil.copy(f"run/{name}", out / "run")
    (out / "run/figures").mkdir()
    (out / "run/figures/.gitkeep").touch()  # a run folder is known by this folder

    crossval(recipe(BANDS, "train.epochs=1"), data="store", out="crossval")
    models = {int(k[4:].split("/")[0]): k for k in OutOfFold("crossval").models}
    for fold, name in models.items():
        patterned(f"crossval/{name}", 3 + fold)
        squeeze(Path(f"crossval/{name}"), out / f"crossval/{name}.xz")
    OutOfFold.write(Path("crossval"), models, TileStore("store"))
    shutil.copytree("crossval/oof", out / "crossval/oof")
    shutil.copy("crossval/crossval.csv", out / "crossval")
    fit = Calibration(temperature=1.5, bias=(0, 0, 0, 0), offsets=(0.0, -0.25, 0.5, 0.125), area=(-1.25, 1.5))
    ensemble = Ensemble((Member.load("bundle.safetensors"),), calibration=fit)
    ensemble.save("crossval/ensemble.yaml", {"tiles": 12, "about": "set by hand, not measured"})
    shutil.copy("crossval/ensemble.yaml", out / "crossval")


def found(where):
    """Return what this code says of the files in a folder, by name of an array."""
    store, result = TileStore(where / "store"), {}
    tiles = [int(np.argmin(store.table["valid"])), int(np.argmax((store.class_counts() > 0).sum(1)))]
    tiles = sorted(dict.fromkeys([*tiles, len(store) - 1]))[:2]
    result["tiles"] = np.int64(tiles)
    result["keys"] = np.array(store.keys())
    result["fingerprint"] = np.array(store.fingerprint())
    for name in ("bundle", "bundle_texture"):
        bundle = ModelBundle.load(where / f"{name}.safetensors")
        probs = np.stack([p.numpy() for _, p in predicted(bundle, store, tiles, device=CPU)])
        everything = np.stack([p.numpy() for _, p in predicted(bundle, store, range(len(store)), device=CPU)])
        top = np.sort(everything, 1)
        deviation, mean = (x.round(3) for x in (everything.std((0, 2, 3)), everything.mean((0, 2, 3))))
        print(f"{name}: by class, probabilities deviate by {deviation}, mean {mean}")
        gap = top[:, -1] - top[:, -2]
        print(f"    best less second: least {gap.min():.2e}, below 1e-4: {(gap < 1e-4).sum()} of {gap.size}")
        result[f"{name}_probabilities"] = probs
        result[f"{name}_evaluate"] = np.array(json.dumps(evaluate(bundle, store, device=CPU)))
    ensemble = Ensemble.load([where / "crossval/ensemble.yaml"])
    _, classes, probs = zip(*map_tiles(ensemble, store, tiles, CPU), strict=True)
    result["ensemble_classes"], result["ensemble_probabilities"] = np.stack(classes), np.stack(probs)
    result["ensemble_evaluate"] = np.array(json.dumps(evaluate_ensemble(ensemble, store)[0]))
    result["calibrate"] = np.array(json.dumps(calibrate([where / "crossval"], where / "crossval/again.yaml")))
    resumed = train(load_recipe(where / "run/recipe.yaml"), where / "store", where / "run", fold=0, resume=True)
    assert load_checkpoint(resumed / "last.ckpt")["at"] == (2, 0)
    events = [json.loads(line)["event"] for line in (resumed / "events.jsonl").read_text().splitlines()]
    assert events == ["start", "epoch", "stop", "resume", "epoch"]
    history = pd.read_csv(resumed / "history.csv")
    assert history["epoch"].tolist() == [1, 2] and np.isfinite(history["train_loss"]).all()
    result["resumed_history"] = np.array((resumed / "history.csv").read_text())
    result["resumed_metrics"] = np.array((resumed / "metrics.json").read_text())
    return result


def unpacked(out, where):
    """Lay the fixtures out as a test does: copied, and decompressed beside where the .xz lie."""
    shutil.copytree(out, where, ignore=shutil.ignore_patterns("*.xz", "make.py", "README.md"))
    for file in out.rglob("*.xz"):
        unsqueeze(file, where / file.relative_to(out).with_suffix(""))
    (where / "last.ckpt").rename(where / "run/last.ckpt")
    return where


def main(out):
    """Make the fixtures, what is expected of them, and check that a second reading gives the same."""
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("store", "run", "crossval"):
        shutil.rmtree(out / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        made(out)
        first, again = found(unpacked(out, Path(work) / "first")), found(unpacked(out, Path(work) / "again"))
        assert first.keys() == again.keys() and all((first[k] == again[k]).all() for k in first)
        np.savez_compressed(out / "expected.npz", **first)
        for file in sorted(Path(work, "again").rglob("*")):
            if file.suffix in (".safetensors", ".yaml") and file.parent.name != "run":
                print(file_hash(file), file.relative_to(Path(work, "again")))
        os.chdir(out)
    for package in ("glacier-fastai", "torch", "fastai", "segmentation_models_pytorch", "timm", "numpy", "safetensors"):
        print(package, version(package))


if __name__ == "__main__":
    main(sys.argv[1])
