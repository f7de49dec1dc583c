"""Files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

__all__ = ["file_hash", "whole_file"]


def file_hash(
    path: str | os.PathLike,  # file to read
) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        os.fsync(folder)
        os.close(folder)
    except BaseException as err:
        partial.unlink(missing_ok=True)
        cause = err.__context__ if isinstance(err, RuntimeError) else err  # torch's writer hides what the disk said
        if isinstance(cause, OSError) and not isinstance(cause, OutputError):
            kept = "the one before it is kept" if path.exists() else "there is none before it"
            raise OutputError(f"{path}: cannot be written ({cause.strerror}); {kept}") from err
        raise
