"""Files and folders that are whole or absent, their locks, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputError, note

__all__ = ["digest", "file_hash", "locked", "whole_file", "whole_folder", "write_text"]

log = logging.getLogger(__name__)

LOCKLESS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)  # what drives without locks answer
_lockless: set[int] = set()  # those that were named, by device


def file_hash(
    path: str | os.PathLike,  # file to read
) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(
    what: Any,  # bytes, text, or plain data that JSON can hold
    length: int = 16,  # hexadecimal digits
) -> str:
    """Return the first digits of the SHA-256 of plain data.

    >>> digest("tiles"), digest({"b": 1, "a": [2.5]}, 12)
    ('ad9243fa6fb22714', 'e29416a8e900')
    """
    if not isinstance(what, (bytes, str)):
        what = json.dumps(what, sort_keys=True)
    return hashlib.sha256(what if isinstance(what, bytes) else what.encode()).hexdigest()[:length]


@contextmanager
def whole_file(
    path: str | os.PathLike,  # file to write
) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is complete and on the disk; until then one of that name stays as it is.

    Raises:
        OutputError: It cannot be written, as when the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network drives refuse it for folders
            os.fsync(folder)
        os.close(folder)
    except BaseException as err:
        partial.unlink(missing_ok=True)
        cause = err.__context__ if isinstance(err, RuntimeError) else err  # torch's writer hides what the disk said
        if isinstance(cause, OSError) and not isinstance(cause, OutputError):
            kept = "the one before it is kept" if path.exists() else "there is none before it"
            raise OutputError(f"{path}: cannot be written ({cause.strerror}); {kept}") from err
        raise


def write_text(
    path: str | os.PathLike,  # file to write
    text: str,
) -> None:
    """Write a text file, whole or not at all; raises `OutputError`."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def locked(
    path: str | os.PathLike,  # lock file; its folder is made if need be
    busy: str,  # what is said if another process holds it
    wait: bool = False,  # wait until it does no more; else that is an error
) -> Iterator[None]:
    """Hold a lock, which goes with the process however that ends.

    Afterwards the lock file is gone, and so are the folders that were made for it and are empty. Some network drives
    have no locks: there the work goes on without one, which is a note.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with locked(f"{folder}/maps/.lock", "maps: in use"):
    ...         print(os.listdir(folder))
    ...     os.listdir(folder)
    ['maps']
    []

    Raises:
        OutputError: Another process holds it.
        OSError: Its folder cannot be made or written.
    """
    path = Path(path)
    ours, made = not path.exists(), set[Path]()
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        try:
            _acquire(lock, path, 0, made)
        except Timeout as err:
            ours = False
            if not wait:
                raise OutputError(busy) from err
            log.info(busy)
            _acquire(lock, path, -1, made)
        except OSError as err:
            if err.errno not in LOCKLESS:
                raise
            ours = True
            if (device := path.parent.stat().st_dev) not in _lockless:
                _lockless.add(device)
                why = f"this drive has no locks ({err.strerror})"
                note(f"{path.parent.resolve()}: {why}; let no two processes write the same there at a time", [])
        yield
    finally:
        if ours or lock.is_locked:
            with suppress(OSError):
                path.unlink()
        lock.release()
        for folder in sorted(made, reverse=True):
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()


def _acquire(lock: FileLock, path: Path, timeout: float, made: set[Path]) -> None:
    for again in (True, True, False):  # a process that ends may remove the folder in between
        made.update(folder for folder in path.parents if not folder.exists())
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout)
            return
        except FileNotFoundError:
            if not again:
                raise


@contextmanager
def whole_folder(
    path: str | os.PathLike,  # folder to make
    replace: bool = False,  # one that is there is replaced when the new one is whole; else it is an error
) -> Iterator[Path]:
    """Yield a temporary folder that takes its name when the block ends; on an exception nothing of it stays.

    A lock, which goes with the process however that ends, keeps others from making the same folder.

    Raises:
        OutputError: It exists already, is being made by another process, or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    if path.exists() and not replace:
        raise OutputError(f"{path}: exists already; choose another name or remove it first")
    busy = f"{path}: another process is writing it; wait, or choose another name"
    with ExitStack() as held:
        try:
            held.enter_context(locked(path.with_name(f".{path.name}.partial.lock"), busy))
        except OSError as err:
            if isinstance(err, OutputError):
                raise
            where = err.filename or path
            raise OutputError(f"{where}: cannot be made ({err.strerror}); choose another place") from err
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        except OSError as err:
            elsewhere = err.filename is not None and not str(err.filename).startswith(str(partial))  # an input, perhaps
            if elsewhere or isinstance(err, OutputError):
                raise
            raise OutputError(
                f"{path}: cannot be written ({err.strerror or err}); nothing was kept; make room or choose another "
                "place"
            ) from err
        finally:
            shutil.rmtree(partial, ignore_errors=True)
