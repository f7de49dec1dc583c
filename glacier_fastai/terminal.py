"""Whether someone looks at the messages while they come."""

import os
import sys

__all__ = ["in_terminal"]


def in_terminal() -> bool:
    """Return whether stderr is a terminal, where bars may be drawn; a notebook's `!` only looks like one."""
    return sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ
