"""Time of training steps, checkpoints and processes. Run: pytest tests/benchmarks -k training -s."""

from __future__ import annotations

import collections.abc
import json
import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from benchmarks.timing import interleaved
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from scenes import make_store, tiny_recipe

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.train.callbacks import AverageWeightsCallback, ProgressiveRampCallback, plateau
from glacier_fastai.train.checkpoint import CheckpointCallback, load_checkpoint, save_checkpoint
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.steps import CpuMixedPrecision, GradientGuard
from glacier_fastai.train.stop import StopCallback

SHAPE = (8, 5, 128, 128)
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def best_cpu() -> torch.dtype:
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def autocast(device: torch.device, dtype: torch.dtype):
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def bare_loop(loss, dls, dtype) -> collections.abc.Callable[[], None]:
    """Return what trains an epoch of the same model, loss, optimiser, clipping and batches in plain PyTorch."""
    device = dls.device
    model = glacier_unet("resnet34", 5, 4, "scse").to(device, memory_format=torch.channels_last).train()
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    opt = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4, fused=True)

    def run() -> None:
        for x, y in dls.train:
            with autocast(device, dtype):
                out = model(x.as_subclass(torch.Tensor))
                value = loss(out, y)
            scaler.scale(value).backward()
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_training_step(tmp_path, device):
    """A step with every callback of a run against the bare loop; both read the same batches in the same way."""
    store = make_store(tmp_path / "s", scenes=6, size=128)
    dtype = best_cpu() if device.type == "cpu" else torch.float16
    dls = GlacierDataLoaders.from_store(store, None, 8, 128, crops_per_tile=1, device=device, num_workers=1)
    learn = glacier_learner(dls, "resnet34", seed=0)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    if device.type == "cuda":
        learn.to_fp16()
    elif dtype == torch.bfloat16:
        learn.add_cb(CpuMixedPrecision())
    cbs = [ProgressiveRampCallback(), GradientGuard(1.0), StopCallback()]
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    bare = bare_loop(learn.loss_func, dls, dtype)
    bare()
    learn.fit(1, 1e-4, cbs=cbs)

    class Start(Callback):
        order = -100

        def before_train(self):
            self.learn.began = time.perf_counter()

    class End(Callback):
        """Times the training of each epoch, the sums at its end included, and then an epoch of the bare loop."""

        order = 100

        def after_train(self):
            if device.type == "cuda":
                torch.cuda.synchronize()
            times["ours"].append(time.perf_counter() - self.learn.began)

        def after_epoch(self):
            began = time.perf_counter()
            bare()
            times["bare"].append(time.perf_counter() - began)

    learn.fit(12, 1e-4, cbs=[*cbs, Start(), End()])
    n = len(dls.train)
    ratios = sorted(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
    ours, peer = (min(times[k]) / n * 1e3 for k in ("ours", "bare"))
    print(
        f"\nstep of ResNet34 U-Net, {SHAPE}, {device}, {dtype}, {torch.get_num_threads()} threads: ours {ours:.1f} ms, "
        f"bare loop {peer:.1f} ms; ratio of the best {ours / peer:.3f}, median of {len(ratios)} pairs of epochs "
        f"{ratios[len(ratios) // 2]:.3f}"
    )


def test_training_precision_and_memory_format():
    """Steps on the CPU in each precision and memory format, against float32 NCHW."""
    x, y = torch.randn(SHAPE), torch.randint(0, 4, (8, 128, 128))
    jobs = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            model = glacier_unet("resnet34", 5, 4, "scse").to(memory_format=layout).train()
            opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

            images = x.to(memory_format=layout)

            def step(model=model, opt=opt, dtype=dtype, x=images):
                with autocast(torch.device("cpu"), dtype):
                    out = model(x)
                torch.nn.functional.cross_entropy(out.float(), y).backward()
                opt.step()
                opt.zero_grad()

            step()
            jobs[f"{str(dtype)[6:]} {'channels_last' if layout == torch.channels_last else 'NCHW'}"] = step
    best = interleaved(jobs, 5)
    print(f"\nstep of ResNet34 U-Net, {SHAPE}, CPU, {torch.get_num_threads()} threads")
    for name, ms in best.items():
        print(f"  {name:<24}{ms:6.0f} ms, {best['float32 NCHW'] / ms:.2f} times as fast as float32 NCHW")


def test_training_checkpoint(tmp_path):
    """Our checkpoint, synced to the disk and renamed, against `torch.save` of the same state."""
    store = make_store(tmp_path / "s")
    dls = GlacierDataLoaders.from_store(store, 0, 4, 32, folds=3)
    learn = glacier_learner(dls, "resnet34", seed=0)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    path = tmp_path / "last.ckpt"
    save = CheckpointCallback(path, {})
    learn.fit(1, 1e-4, cbs=[AverageWeightsCallback(), plateau("mcc", 0.5, 3), GradientGuard(1.0), save])
    state = load_checkpoint(path)
    jobs = {
        "ours": partial(save_checkpoint, path, state),
        "over": partial(torch.save, state, tmp_path / "peer"),
        "new": lambda: torch.save(state, tmp_path / f"peer{time.perf_counter_ns()}"),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(9):
        for name, job in jobs.items():
            os.sync()  # or ours, which waits for the disk, would wait for what its peers have left to write
            times[name].append(interleaved({name: job}, 1)[name])
        for file in tmp_path.glob("peer?*"):
            file.unlink()
    ours, over, new = (sorted(t)[len(t) // 2] for t in times.values())
    print(
        f"\ncheckpoint of {path.stat().st_size / 2**20:.0f} MB, medians: ours {ours:.0f} ms; torch.save over a file "
        f"{over:.0f} ms, ratio {ours / over:.2f}, to a new file {new:.0f} ms, ratio {ours / new:.2f}; "
        f"{ours / 1e3 / 120:.2%} of an epoch of 2 minutes"
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_training_processes(tmp_path):
    """Two gloo processes of one thread each against one process of two threads; the same recipe."""
    store = make_store(tmp_path / "s", scenes=6, size=128)
    recipe = tiny_recipe("data.crop=128", "data.tile_size=128", "train.batch_size=8", "train.epochs=3")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"arch": "resnet34"})})
    recipe.save(tmp_path / "r.yaml")
    words = ["finetune", "--recipe", tmp_path / "r.yaml", "--data", store.path, "--set", "data.crops_per_tile=4"]
    seconds = {}
    for name, start, threads in (("2 x 1", ["launch", "--processes", "2", "--"], "1"), ("1 x 2", [], "2")):
        out = tmp_path / name.replace(" ", "")
        subprocess.run(
            [sys.executable, "-m", "glacier_fastai", *start, *map(str, words), "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        )
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        seconds[name] = min(e["seconds"] for e in events if e["event"] == "epoch")
    print(
        f"\nepoch of ResNet34 U-Net, {SHAPE} a batch: 2 gloo processes of 1 thread {seconds['2 x 1']:.1f} s, "
        f"1 process of 2 threads {seconds['1 x 2']:.1f} s; ratio {seconds['2 x 1'] / seconds['1 x 2']:.2f}"
    )
