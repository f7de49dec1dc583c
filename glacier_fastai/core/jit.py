"""Compiles plain loops with numba, where arrays are passed over once instead of once per operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["jit"]


@cache
def jit(kernel: Callable) -> Callable:
    """Return the compiled kernel; numba is imported only here, at the first call.

    >>> def total(x):
    ...     s = 0.0
    ...     for v in x:
    ...         s += v
    ...     return s
    >>> jit(total)((1.0, 2.0, 3.0))
    6.0

    Threads are ours, not numba's: its own end the process when it forks after their first use, as a DataLoader does.
    """
    from numba import njit

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(kernel)
    except RuntimeError:  # neither beside the package nor in the user's cache can a file be written
        return njit(**options)(kernel)
