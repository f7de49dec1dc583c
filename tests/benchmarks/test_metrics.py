"""Time and memory of the confusion matrix and MCC. Run: pytest tests/benchmarks -k metrics -s."""

from __future__ import annotations

import re
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from benchmarks.timing import interleaved

from glacier_fastai.core.confusion import confusion_matrix, mcc

K, IGNORE, TILES, SIZE = 4, 255, 25, 512
STATUS = Path("/proc/self/status")


def tile(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, K, (SIZE, SIZE), generator=g, dtype=dtype)
    pred = target.where(torch.rand(SIZE, SIZE, generator=g) < 0.8, target.flip(0))
    target[:40] = IGNORE
    return pred, target


def ours(tiles) -> tuple[torch.Tensor, float]:
    cm = sum(confusion_matrix(pred, target, K) for pred, target in tiles)
    return cm, mcc(cm)


def scikit_learn(tiles) -> tuple[np.ndarray, float]:
    pred, target = (np.concatenate([t[i].numpy().ravel() for t in tiles]) for i in (0, 1))
    valid = target != IGNORE
    pred, target = pred[valid], target[valid]
    return sk.confusion_matrix(target, pred, labels=range(K)), sk.matthews_corrcoef(target, pred)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_metrics_time(dtype):
    tiles = [tile(i, dtype) for i in range(TILES)]
    results = {}
    jobs = {f.__name__: lambda f=f: results.__setitem__(f.__name__, f(tiles)) for f in (ours, scikit_learn)}
    best = interleaved(jobs, 3)
    print(
        f"\nconfusion matrix + MCC of {TILES} tiles of {SIZE}x{SIZE}, {dtype}, 1 thread: {best['ours']:.0f} ms; "
        f"scikit-learn {best['scikit_learn']:.0f} ms, {best['scikit_learn'] / best['ours']:.0f} times as long"
    )
    np.testing.assert_array_equal(results["ours"][0], results["scikit_learn"][0])
    assert results["ours"][1] == pytest.approx(results["scikit_learn"][1], abs=1e-9)


def peak() -> float:
    """Largest resident memory of the process so far, MB; getrusage would count the parent's too."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 2**10


def peaks() -> tuple[list[float], list, list]:
    """Peak memory after 3, 25 and 250 tiles, and after 25 tiles kept for scikit-learn; both matrices of 25 tiles."""
    torch.set_num_threads(1)

    def stream(n: int) -> torch.Tensor:
        return sum(confusion_matrix(*tile(i, torch.int64), K) for i in range(n))

    out, matrices = [], {}
    for n in (3, TILES, 10 * TILES):
        matrices[n] = stream(n)
        out.append(peak())
    kept, _ = scikit_learn([tile(i, torch.int64) for i in range(TILES)])
    out.append(peak())
    return out, matrices[TILES].tolist(), kept.tolist()


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's account of memory")
def test_metrics_memory():
    with get_context("spawn").Pool(1) as pool:  # a process has one peak, so this test wants its own
        (few, many, most, keeping), ours, theirs = pool.apply(peaks)
    print(
        f"\npeak memory above that of 3 tiles, streamed: {TILES} tiles {many - few:.1f} MB, "
        f"{10 * TILES} tiles {most - few:.1f} MB; {TILES} tiles kept for scikit-learn {keeping - few:.0f} MB"
    )
    assert ours == theirs
