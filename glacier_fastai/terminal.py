"""What a process shows to people, and how it takes its memory: messages, the one progress bar, malloc's arenas.

The library logs to ``glacier_fastai`` and its children (`logging.getLogger(__name__)`) and prints nothing. Commands and
notebooks call `show_messages`, so that what it says appears on stderr.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from .errors import DataNote, TrainingError, printable

__all__ = [
    "close_stdout",
    "in_terminal",
    "launched",
    "mute_rasterio",
    "one_arena",
    "open_streams",
    "progress",
    "rank",
    "show_messages",
    "told",
]

log = logging.getLogger(__name__)
EVERY = 30  # seconds between the lines that stand in for a bar


def launched() -> tuple[int, int]:
    """Return which of how many processes of a launch this is; 0 of 1 without one.

    Raises:
        TrainingError: The environment speaks of a launch that cannot be.
    """
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not all(told.values()):  # a batch script's own
        return 0, 1
    if all(re.fullmatch(r"\d{1,6}", text) for text in told.values()) and int(told["RANK"]) < int(told["WORLD_SIZE"]):
        return int(told["RANK"]), int(told["WORLD_SIZE"])
    said = ", ".join(f"{name}={text}" for name, text in told.items())
    raise TrainingError(f"{said}: no launch numbers its processes so; unset both to work alone")


def rank() -> int:
    """Return which of the processes of a launch this is; 0 without one."""
    return launched()[0]


class _Dropping:
    """A stream whose reader may go away, or whose disk may be full: what cannot be written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Let no message end what it is about, and no file take the place of a stream that was closed before."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  stays open with the process
        if getattr(stream := getattr(sys, name), "errors", "") == "strict" and name != "stdin":
            stream.reconfigure(errors="backslashreplace")  # of a terminal that knows ASCII alone
    if not isinstance(sys.stderr, _Dropping):
        sys.stderr = _Dropping(sys.stderr)


def close_stdout() -> OSError | None:
    """Write what is left of the results, and return why that failed, if not because nobody reads them."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as err:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more, and tell
        return err if isinstance(err, OSError) and err.errno != errno.EPIPE else None
    return None


def told(
    text: str,  # a message of ours, of one line or several
) -> str:
    r"""Return it with what is no printable character escaped, but for the ends of lines.

    >>> told("recipe   a\x1b[2Jb\nseed     1")
    'recipe   a\\x1b[2Jb\nseed     1'
    """
    return "\n".join(printable(line, 10_000) for line in text.split("\n"))


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return told(super().format(record))


class _Stderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time, which notebooks and tests replace."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


def show_messages() -> None:
    """Show what the library says on stderr, once; of the processes of a launch only rank 0 speaks."""
    root = logging.getLogger(__package__)
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        root.addHandler(handler := _Stderr())
        handler.setFormatter(_Printable())
    root.setLevel(logging.ERROR if rank() else logging.INFO)
    if warnings.showwarning is not _show_note:
        _show_note.others = warnings.showwarning  # type: ignore[attr-defined]
        warnings.showwarning = _show_note
        warnings.simplefilter("always", DataNote)  # `errors.note` says each once
    mute_rasterio()


def mute_rasterio() -> None:
    """Let what GDAL says in another encoding, which rasterio cannot log, be no noise."""
    if sys.unraisablehook is not _unraisable:
        _unraisable.others = sys.unraisablehook  # type: ignore[attr-defined]
        sys.unraisablehook = _unraisable
    if sys.excepthook is not _uncaught:
        _uncaught.others = sys.excepthook  # type: ignore[attr-defined]
        sys.excepthook = _uncaught


def _show_note(message, category, filename, lineno, file=None, line=None) -> None:
    if issubclass(category, DataNote):
        log.info("note: %s", message)
    else:
        _show_note.others(message, category, filename, lineno, file, line)  # type: ignore[attr-defined]


def _unraisable(about) -> None:
    if "rasterio._env.log_error" not in str(about.object):  # which cannot log names in a file that are not UTF-8
        _unraisable.others(about)  # type: ignore[attr-defined]


def _uncaught(kind, value, trace) -> None:
    if kind is not UnicodeDecodeError or trace is not None:  # of `log_error` it comes here first, from nowhere
        _uncaught.others(kind, value, trace)  # type: ignore[attr-defined]


def in_terminal() -> bool:
    """Return whether stderr is a terminal, where bars may be drawn; a notebook's `!` only looks like one."""
    return sys.stderr is not None and sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ


@contextmanager
def progress(
    what: str,  # what is counted, in words
) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function of the number done and their total (None: unknown), which shows them.

    In a terminal that is a bar, which appears with the first call; elsewhere a line twice a minute.
    """
    if not in_terminal():
        last = time.monotonic()

        def tell(done: int, total: int | None) -> None:
            nonlocal last
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                log.info("%s", f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def one_arena() -> None:
    """Let all threads share one pool of memory, where glibc would give each its own; to be called before they start.

    What strips of a scene leave behind in the others was 100 MB of 4,096 x 16,384 px.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-8, 1)  # M_ARENA_MAX
