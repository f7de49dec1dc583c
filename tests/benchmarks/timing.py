"""How the benchmarks measure."""

import time
from collections.abc import Callable


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Best time of each job in ms; the jobs take turns, so that a busy machine is busy for all."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best
