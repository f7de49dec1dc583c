"""Compiles plain loops with numba, where arrays are passed over once instead of once per operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

__all__ = ["jit"]


@cache
def jit(kernel: Callable, reorder: bool = False) -> Callable:
    """Return the compiled kernel; numba is imported only here, at the first call. `reorder`: sums in any order.

    Threads are ours, not numba's: its own end the process when it forks after their first use, as a DataLoader does.
    """
    from numba import njit

    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"} if reorder else False}
    try:
        return njit(cache=True, **options)(kernel)
    except RuntimeError:  # neither beside the package nor in the user's cache can a file be written
        return njit(**options)(kernel)
