"""What a GPU does at the recipes' full shapes, as ratios of two things timed in turns.

    python tests/benchmarks/gpu.py [DATA]

DATA is a tile store with the bands of `hkh_pretrain`, 512 px a tile (by default one of made-up tiles). Without a GPU
the same code runs on the CPU at tiny shapes: that shows that it works, and its figures mean nothing.
"""

import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from scenes import BANDS, make_store, write_scene

from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.tiles import TileStore
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.registry import build_model, of_recipe
from glacier_fastai.predict.scene import map_strips
from glacier_fastai.predict.source import SceneSource
from glacier_fastai.recipe import load_recipe, recipe_names
from glacier_fastai.train.build import effective_precision, make_dls, make_learner
from glacier_fastai.train.steps import AccumulateBatches, GradientGuard

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
BATCH, SIDE, TILES, SCENE, STEPS, TURNS = (48, 512, 96, 6144, 10, 5) if CUDA else (2, 64, 8, 256, 2, 2)
TINY = [] if CUDA else ["data.tile_size=64", "data.crop=64", "train.batch_size=2", "model={arch: unet, size: tiny}"]


def done():
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def in_turns(jobs):
    """Best time of each job in seconds, after one that does not count."""
    best = dict.fromkeys(jobs, np.inf)
    for turn in range(TURNS + 1):
        for name, job in jobs.items():
            done()
            began = time.perf_counter()
            job()
            done()
            best[name] = min(best[name], time.perf_counter() - began) if turn else np.inf
    return best


def peak():
    """Most memory of the GPU since it was last asked for, in words."""
    if not CUDA:
        return ""
    found = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f", {found:.1f} GiB at most"


def stepper(recipe):
    """Return a network and what makes a step of it in the recipe's precision, as bare as it goes."""
    kind, options = of_recipe(recipe.model)
    model = build_model(kind.name, recipe.bands, **options).to(DEVICE, memory_format=torch.channels_last).train()
    opt, loss_func = torch.optim.AdamW(model.parameters(), fused=True), CombinedLoss.phase_b().to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA)

    def step(x, y):
        with torch.autocast(DEVICE.type, torch.float16 if CUDA else torch.bfloat16, enabled=CUDA):
            value = loss_func(model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor))
        scaler.scale(value).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()

    return step


def training(store):
    """Loading, loss and augmentation, each beside a step."""
    recipe = load_recipe("hkh_pretrain", [*TINY, f"data.crops_per_tile={max(1, STEPS * BATCH // len(store))}"])
    dls, step = make_dls(recipe, store, None), stepper(recipe)
    x, y = dls.one_batch()

    def same():
        for _ in range(len(dls.train)):
            step(x, y)

    def loaded():
        for batch in dls.train:
            step(*batch)

    found = in_turns({"same": same, "loaded": loaded})
    ratio = found["same"] / found["loaded"]
    print(f"steps/s with real loading / of one batch, {tuple(x.shape)}: {ratio:.3f} (wanted: 0.95){peak()}")
    logits = torch.randn(len(x), 4, *x.shape[2:], device=DEVICE, requires_grad=True)
    labels, loss_func = y.as_subclass(torch.Tensor), CombinedLoss.phase_b().to(DEVICE)
    heavy = AugmentTiles.preset("heavy")
    jobs = {
        "combined": lambda: loss_func(logits, labels).backward(),
        "entropy": lambda: F.cross_entropy(logits, labels, ignore_index=255).backward(),
        "heavy": lambda: heavy.encodes((x, y)),
        "step": lambda: step(x, y),
    }
    found = in_turns(jobs)
    print(f"combined loss / cross-entropy: {found['combined'] / found['entropy']:.2f}")
    print(f"combined loss / step: {found['combined'] / found['step']:.3f}")
    print(f"heavy augmentation / step: {found['heavy'] / found['step']:.3f}")


def scenes(folder):
    """Pixels of a scene per second against those of the bare model, batches of the same size."""
    options = {} if CUDA else {"encoder": "tu-test_resnet.r160_in1k"}
    weights = build_model("unet", BANDS, **options).state_dict()
    bundle = ModelBundle(weights, "unet", options, BANDS, (5e3,) * 5, (2e3,) * 5)
    window, (scene, _) = SIDE, write_scene(folder / "scene.tif", SCENE, SCENE)
    predictor = Predictor(Ensemble.of(bundle), DEVICE)
    softmax, seen = predictor.models[0], []
    predictor.models[0] = lambda x: seen.append(len(x)) or softmax(x)

    def ours():
        seen.clear()
        with open_scene(scene) as opened:
            for _ in map_strips(SceneSource(opened, predictor.ensemble.channels), predictor, window):
                pass

    def bare():
        for n in list(seen):
            softmax(torch.zeros(n, 5, window, window, device=DEVICE))

    found = in_turns({"ours": ours, "bare": bare})
    rate = SCENE**2 / found["ours"] / 1e6
    print(
        f"pixels/s of a scene / of the bare model, {sum(seen)} windows of {window} px, {max(seen)} at once: "
        f"{found['bare'] / found['ours']:.3f} (wanted: 0.9), {rate:.2f} million pixels/s{peak()}"
    )


class Clock(Callback):
    """Times the training of each epoch."""

    order = 100

    def before_fit(self):
        self.seconds = []

    def before_train(self):
        done()
        self.began = time.perf_counter()

    def after_train(self):
        done()
        self.seconds.append(time.perf_counter() - self.began)


def recipes(folder):
    """An epoch of each recipe at its own shape, with all that a run has in its steps."""
    for name in recipe_names():
        recipe = load_recipe(name)
        if of_recipe(recipe.model)[0].fit is not None:
            continue
        recipe = load_recipe(name, TINY)
        bands = tuple(b for b in recipe.bands if "(" not in b)
        store = make_store(folder / name, bands, scenes=max(2, TILES // 4), size=recipe.data.tile_size)
        crops = max(1, STEPS * recipe.train.batch_size // len(store))
        data = recipe.data.model_copy(update={"crops_per_tile": crops})
        train = recipe.train.model_copy(update={"epochs": 2, "steps": None})
        recipe = recipe.model_copy(update={"data": data, "train": train})
        dls = make_dls(recipe, store, None)
        learn, clock = make_learner(recipe, dls), Clock()
        learn.remove_cbs(ProgressCallback)
        learn.logger = lambda row: None
        peak()
        learn.fit(2, 1e-4, cbs=[clock, GradientGuard(1.0), AccumulateBatches(recipe.train.accumulate)])
        seen = dls.train.n
        print(
            f"{name:20} {recipe.train.batch_size:3} crops of {recipe.data.crop} px, {effective_precision(recipe)}: "
            f"{seen / clock.seconds[-1]:8.1f} crops/s, {len(dls.train)} steps in {clock.seconds[-1]:.2f} s "
            f"(the first time {clock.seconds[0]:.1f} s){peak()}",
            flush=True,
        )


def main(data=None):
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'CPU: a trial at tiny shapes'}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = TileStore(data) if data else make_store(folder / "tiles", BANDS, TILES // 4, SIDE)
        training(store)
        scenes(folder)
        recipes(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
