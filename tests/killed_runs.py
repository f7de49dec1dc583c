"""Runs that are killed and resumed, in processes forked from one that has imported everything: a helper of tests.

    python killed_runs.py STORE FOLDER KILLS SEED

trains FOLDER/whole without a stop and FOLDER/killed with KILLS times `kill -9`, and prints the phases in which they
fell as JSON.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from scenes import tiny_recipe

from glacier_fastai.train.checkpoint import CheckpointCallback
from glacier_fastai.train.learner import GlacierLearner
from glacier_fastai.train.run import train

ENCODER = "tu-tf_mobilenetv3_small_minimal_100"  # small, as checkpoints are written often
RECIPE = (
    f"model.encoder={ENCODER}",
    "train.epochs=7",
    "data.crops_per_tile=3",  # 6 batches per epoch
    "train.accumulate=4",  # the second step of an epoch takes what is left
    "train.plateau_patience=0",
    "train.warmup=0.2",
    "train.decay=0.6",
    "balance.level=pixel",
    "balance.min_effective=0.3",
    "data.crop=16",
    "augment=heavy",
    "ramp.by=batch",
    "record.save_minutes=1e-6",  # after each batch
    "record.panels_every=2",
)
PHASES = ("other", "batch", "save", "validation")


def traced(phase: mmap.mmap) -> None:
    """Note the phase in memory that the parent sees."""

    def within(cls, name, code, only=lambda self: True):
        inner = getattr(cls, name)

        def outer(self, *args, **kwargs):
            before = phase[0]
            if only(self):
                phase[0] = code
            out = inner(self, *args, **kwargs)
            phase[0] = before
            return out

        setattr(cls, name, outer)

    within(GlacierLearner, "one_batch", 1, lambda learn: learn.training)
    within(CheckpointCallback, "_write", 2)
    within(GlacierLearner, "_do_epoch_validate", 3)


def child(store: str, out: Path, phase: mmap.mmap) -> int:
    """Train in a forked process and return its id."""
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        traced(phase)
        with open(out.with_suffix(".log"), "a", buffering=1) as sys.stderr:
            try:
                train(tiny_recipe(*RECIPE), store, out, resume=True)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os._exit(0)
    finally:
        os._exit(2)


def main(store: str, folder: Path, kills: int, seed: int) -> None:
    rng, phase = random.Random(seed), mmap.mmap(-1, 1)
    _, status = os.waitpid(child(store, folder / "whole", phase), 0)
    assert status == 0, (folder / "whole.log").read_text()
    fell = []
    while True:
        pid, ended = child(store, folder / "killed", phase), False
        phase[0] = 0
        if len(fell) < kills:
            wanted = len(fell) % 4  # 0: at any moment
            deadline = time.monotonic() + (rng.uniform(0, 2) if wanted == 0 else 60)
            while time.monotonic() < deadline and not ended and (not wanted or phase[0] != wanted):
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
            if not ended:
                fell.append(PHASES[phase[0]])
                os.kill(pid, signal.SIGKILL)
        if not ended:
            status = os.waitpid(pid, 0)[1]
            if os.WIFSIGNALED(status):
                continue
            assert status == 0, (folder / "killed.log").read_text()
        break
    print(json.dumps(fell))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
