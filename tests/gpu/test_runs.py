"""Whole runs: resumed bit for bit, launched, and one process of several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learners import assert_same
from scenes import make_store, tiny_recipe

from glacier_fastai.errors import RunStopped
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.train.checkpoint import load_checkpoint
from glacier_fastai.train.run import train

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def deterministic():
    """What torch can do in one order alone is done in it."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(tmp_path, device, deterministic):
    store = make_store(tmp_path / "store")
    precision = "fp16" if device.type == "cuda" else "fp32"
    words = ["train.epochs=3", f"train.precision={precision}", "augment=heavy", "train.ema=0.9", "train.accumulate=2"]
    recipe, stopped = (tiny_recipe(*words, f"train.max_minutes={m}") for m in (60, 1e-6))
    train(recipe, store, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(RunStopped):
            train(stopped, store, tmp_path / "run", resume=True)
    train(recipe, store, tmp_path / "run", resume=True)
    for name in ("history.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    assert_same(*(load_checkpoint(tmp_path / run / "last.ckpt") for run in ("whole", "run")))
    assert_same(*(ModelBundle.load(tmp_path / run / "best.safetensors").weights for run in ("whole", "run")))


def environment(device):
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    return found if device.type == "cuda" else {**found, "CUDA_VISIBLE_DEVICES": ""}


def python(device, *words):
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(
        command, env=environment(device), capture_output=True, text=True, timeout=300, check=False, cwd=TESTS.parent
    )


def test_a_launch_of_one_process(tmp_path, device):
    store = make_store(tmp_path / "store")
    words = ["model.size=tiny", "record.panels_every=0", "data.tile_size=32", "data.crop=32", "data.folds=3"]
    settings = [word for item in (*words, "train.epochs=1") for word in ("--set", item)]
    launch = ["-m", "glacier_fastai", "launch", "--processes", "1", "--", "finetune", "--recipe", "demo"]
    done = python(device, *launch, "--data", store.path, "--out", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"device   {device.type}" in done.stderr and (tmp_path / "run" / "best.safetensors").exists()


def test_one_process_of_several_trains_as_one_alone(tmp_path, device):
    """By NCCL, with shared norm statistics, see `one_process.py`; by gloo without them on the CPU."""
    store = make_store(tmp_path / "store")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = python(device, *torchrun, TESTS / "gpu" / "one_process.py", device.type, store.path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["nccl" if device.type == "cuda" else "gloo", "same"]
