"""Memory: how much this process may take, and whether what is about to be held fits."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from .errors import DataError, GlacierError

__all__ = ["available", "fits", "out_of_memory"]

CGROUPS = {  # of Linux, by version: folder, limit, use, and what of the use is cache that goes when it is needed
    2: ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
OWN = "/proc/self/cgroup"
# what torch says on a CPU and a GPU, oneDNN, cuBLAS and cuDNN, kernels that count in 32 bits, Python of threads,
# and what loads libraries
WORDS = (
    "out of memory",
    "allocate memory",
    "create a primitive",
    "ALLOC_FAILED",
    "INT_MAX",
    "32-bit index",
    "new thread",
    "failed to map segment",
)
LEAST = 2**26  # bytes that are taken without asking


def out_of_memory(err: BaseException) -> bool:
    """Return whether an error says that there is no memory left, or that sizes are beyond what a GPU's kernels count.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("sizes do not match"))
    (True, False)
    """
    known = isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError"  # torch's
    return known or not isinstance(err, GlacierError) and any(words in str(err) for words in WORDS)


def available() -> int:
    """Return how many bytes this process may still take: of the machine, its control groups, and its own limit.

    >>> 0 < available() <= psutil.virtual_memory().total
    True
    """
    free = [psutil.virtual_memory().available, *_cgroups()]
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(free))


def _cgroups() -> list[int]:
    """Return what is left in each control group that this process is in, and in those above it."""
    free = []
    with suppress(OSError):
        for line in Path(OWN).read_text().splitlines():
            _, names, place = line.split(":", 2)
            if names and "memory" not in names.split(","):
                continue
            root, limit, use, cache = CGROUPS[1 if names else 2]
            own = Path(root, place.strip("/"))
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError, KeyError):  # no such file, or "max"
                    most, used = (int((folder / name).read_text()) for name in (limit, use))
                    stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    free.append(most - used + int(stat[cache]))
                if str(folder) == root:
                    break
    return free


def fits(
    size: float,  # bytes that are about to be held
    what: str,  # the file and its size, for the message
    hint: str,  # what to do if it does not
) -> None:
    """Raise `DataError` if there is not as much memory.

    >>> fits(1e15, "s.tif: 10,000,000 x 10,000,000 px", "cut it")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    glacier_fastai.errors.DataError: s.tif: 10,000,000 x 10,000,000 px need 1,000,000.0 GB of memory, but ... are free; cut it
    """  # noqa: E501
    if size > LEAST and size > (free := available()):
        raise DataError(f"{what} need {size / 1e9:,.1f} GB of memory, but {free / 1e9:,.1f} GB are free; {hint}")
