"""What balance reaches and how long its solution takes. Run: pytest tests/benchmarks -k "test_balance" -s."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.competition_like import competition_like
from benchmarks.timing import interleaved

from glacier_fastai.core.balance import LEVELS, PixelBalance, cell_edges, crop_counts, solve
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.recipe import load_recipe

BATCHES = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return competition_like(tmp_path_factory.mktemp("competition") / "store")


def achieved(dls) -> np.ndarray:
    pixels = sum(torch.bincount(y.as_subclass(torch.Tensor).flatten(), minlength=256)[:4] for _, y in dls.train)
    return (pixels / pixels.sum()).numpy()


def test_target_reachable_and_achieved(store):
    own = store.class_counts().sum(0) / store.class_counts().sum()
    augment = AugmentTiles(**load_recipe("seed_competition").augment.model_dump())

    def row(name, values):
        print(f"{name:<44}" + "".join(f"{100 * v:>12.3f}" for v in values))

    print(f"\nper cent of labelled pixels{'':<17}{'background':>12}{'glacier':>12}{'debris':>12}{'lake':>12}")
    row(f"{len(store)} tiles as they are", own)
    for level in LEVELS:
        tiles = 20
        options = {"bs": 8, "crop": 256, "crops_per_tile": BATCHES * 8 // tiles, "balance": PixelBalance(level=level)}
        dls = GlacierDataLoaders.from_store(store, 0, folds=5, **options)
        assert (len(dls.train), len(dls.train_tiles)) == (BATCHES, tiles)
        found = dls.train.crops.sampling
        print(f"level {level}: {len(found.probabilities)} places, effective sample size {found.effective:.1%}")
        row("  target", found.target)
        row("  most that crops reach, few drawn for ever", found.limit)
        row("  reachable by crops", found.reachable)
        row("  expected", found.expected)
        row(f"  achieved over {BATCHES} batches", result := achieved(dls))
        row("    less expected", result - found.expected)
        dls = GlacierDataLoaders.from_store(store, 0, folds=5, augment=augment, **options)
        row("  achieved, augmented as in the competition's recipe", achieved(dls))
        if level == "pixel":
            print(f"  trained on: {found.supervised:.2%} of the crops' labelled pixels")
        for note in found.notes:
            print(f"  {note}")


def test_time_to_solve(store):
    rng = np.random.default_rng(0)
    counts = 65536 * rng.dirichlet([2, 0.5, 0.1, 0.002], 100_000) * rng.uniform(0.3, 1, (100_000, 1))
    counts[rng.random(100_000) < 0.5, 1:] = 0
    mask, edges = store.masks[0], cell_edges(512, 256)
    jobs = {
        "solve, 100,000 candidates": lambda: solve(counts, np.ones(len(counts)), PixelBalance()),
        "solve, 1,620 candidates": lambda: solve(counts[:1620], np.ones(1620), PixelBalance()),
        "crop_counts of a tile of 512 px, 81 cells": lambda: crop_counts(mask, 256, edges),
    }
    print()
    for name, took in interleaved(jobs, 5).items():
        print(f"{name:<44}{took:8.1f} ms")
