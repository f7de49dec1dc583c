"""Files and folders that are whole or absent, their locks, and their hashes: the one road of all that is written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from .errors import OutputError, note

__all__ = [
    "check_room",
    "digest",
    "file_hash",
    "held",
    "identity",
    "locked",
    "names_only",
    "no_link",
    "remove",
    "remove_unused",
    "replaceable",
    "Scratch",
    "take_names",
    "whole_file",
    "whole_folder",
    "work_folder",
    "write_text",
]

log = logging.getLogger(__name__)

LOCKLESS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)  # what drives without locks answer
DATABASE = ("", "-wal", "-shm", "-journal")  # how the files of a GeoPackage end that somebody has open, or left so
SCRATCH = "glacier_fastai_"  # how temporary folders begin
OWN = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY  # of a file that nobody made before
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


def identity(
    path: str | os.PathLike | int,  # file, or the descriptor of an open one
) -> tuple[int, ...]:
    """Return what tells whether a file is the one it was, and as it was: device, inode, size and time."""
    about = os.stat(path)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def no_link(
    path: Path,  # of a folder or file of ours
) -> None:
    """Raise `OutputError` if a link stands there, which would lead what is written elsewhere."""
    if path.is_symlink():
        raise OutputError(f"{path}: a link, which is not followed to write; remove it, or choose another folder")


def replaceable(
    paths: Iterable[Path],  # where files are to take their names
) -> None:
    """Raise `OutputError` if something stands there that is no file, so that it is said before files are removed."""
    for path in paths:
        if os.path.lexists(path) and not (path.is_file() or path.is_symlink()):
            raise OutputError(f"{path}: stands in the way and is no file; move it away, or choose another folder")


def take_names(
    folder: Path,  # where the files of one piece of work take their names
    made: Iterable[Path],  # those files, which lie elsewhere
    old: Iterable[Path],  # what goes: files of other work may not go by the new ones' names
) -> None:
    """Let files take their names in a folder, after what was there is removed.

    What SQLite keeps beside a database goes, too: it would play that into the new one.
    """
    for path in old:
        ends = DATABASE if path.suffix == ".gpkg" else ("",)
        for end in ends:
            path.with_name(path.name + end).unlink(missing_ok=True)
    for path in made:
        path.replace(folder / path.name)


def _writable(path: Path) -> None:
    """Raise `OutputError` if a name is no text, which GDAL and JSON cannot hold, or an address, which GDAL follows."""
    if found := re.match(r"[a-z][a-z0-9+.-]+:/|/vsi[a-z0-9_]+/", str(path), re.IGNORECASE):
        raise OutputError(f"{found[0]}...: an address; what is made is written to this disk, so choose a folder of it")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as err:
        raise OutputError(f"{path}: a name that is not UTF-8; choose another") from err


def names_only(
    text: str,
    *known: object,  # paths that it may hold: where their folders have spaces, text alone does not tell them
) -> str:
    """Return text with the last names alone of absolute paths: what is meant for others tells of no home folder.

    >>> names_only("python /opt/bin/train --data=/home/me/tiles --out runs/a https://a.org/b")
    'python train --data=tiles --out runs/a https://a.org/b'
    >>> names_only("zip:///home/me/rgi.zip!rgi.shp: odd"), names_only("/home/a b/s.tif: odd", "/home/a b/t.tif")
    ('rgi.zip!rgi.shp: odd', 's.tif: odd')
    """
    archive = re.compile(r"(?<![a-z0-9+])[a-z0-9+]{1,20}://(?=/)|/vsi[a-z0-9]{1,20}/(?=/)")
    text = archive.sub("", text)
    folders = {str(folder) for path in known for folder in Path(archive.sub("", str(path))).parents}
    for folder in sorted(folders, key=len, reverse=True):
        if folder.startswith("/") and re.search(r"[\s'\"]", folder):
            text = text.replace(f"{folder}/", "")
    return re.sub(r"(?<![\w./:~-])~?/(?:[^/\s'\"]+/)*(?=[^/\s])", "", text)


def check_room(
    path: str | os.PathLike,  # file or folder that is to be made
    size: float,  # bytes it will have at least
) -> None:
    """Raise `OutputError` if its drive has no room for it."""
    path = Path(path)
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if size > (free := shutil.disk_usage(folder).free):
        need, there = (f"{n / 1e9:,.1f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB" for n in (size, free))
        raise OutputError(f"{path}: needs {need}, and there are {there}; make room, or choose another place")


def remove(
    path: Path,  # file, link or folder
) -> None:
    """Remove what is there, if anything is; of a link the link."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


class _File(io.FileIO):
    """Remembers why it could not be written, which libraries that write into it may swallow."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as err:
            self.error = err
            raise


@contextmanager
def whole_file(
    path: str | os.PathLike,  # file to write
) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is complete and on the disk; until then one of that name stays as it is.

    Its temporary name is nobody else's, and locked; those that killed processes left are removed.

    Raises:
        OutputError: It cannot be written, as when the disk is full.
    """
    path, partial, raw = Path(path), None, None
    _writable(path)
    try:
        _sweep(path)
        partial, raw = _own(path)
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            if raw.error:
                raise raw.error
            os.fsync(file.fileno())
            partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network drives refuse it for folders
            os.fsync(folder)
        os.close(folder)
    except BaseException as err:
        if partial is not None:
            partial.unlink(missing_ok=True)
        cause = (raw and raw.error) or err
        if isinstance(cause, OSError) and not isinstance(cause, OutputError):
            kept = "the one before it is kept" if path.exists() else "there is none before it"
            raise OutputError(f"{path}: cannot be written ({cause.strerror or cause}); {kept}") from err
        raise


def _own(path: Path) -> tuple[Path, _File]:
    """Return a temporary name beside a file, and that file, open and locked."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        raw = _File(os.open(partial, OWN, 0o666), "w")
        with suppress(OSError):  # a drive without locks, where nobody sweeps
            try:
                fcntl.flock(raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process took it for a leftover
                raw.close()
        if not raw.closed and os.fstat(raw.fileno()).st_nlink:
            return partial, raw
        raw.close()
        partial.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of a file; those that live hold a lock."""
    for old in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError), held(old, exclusive=True):
            old.unlink()


def write_text(
    path: str | os.PathLike,  # file to write
    text: str,
) -> None:
    """Write a text file, whole or not at all; raises `OutputError`."""
    with whole_file(path) as file:
        file.write(text.encode())


def held(
    path: str | os.PathLike,  # file, of what is used
    exclusive: bool = False,  # nobody else may use it
) -> BinaryIO:
    """Open a file, and hold it until it is closed, so that others see that it is in use (`remove_unused`).

    Raises:
        OSError: It is not there, or another process holds it otherwise.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as err:
        if exclusive or err.errno not in LOCKLESS:
            file.close()
            raise
    return file


class Scratch:
    """A temporary folder, which goes when it is closed, forgotten, or by the next one where its process was killed."""

    def __init__(self):
        for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/lock"):
            with suppress(OSError), held(old, exclusive=True):
                if time.time() - old.stat().st_mtime > 60 and old.stat().st_uid == os.getuid():  # else it may begin
                    remove(old.parent)
        base = Path(tempfile.mkdtemp(prefix=SCRATCH))
        self.path = base / "files"
        self.path.mkdir()
        (base / "lock").touch()
        self._end = weakref.finalize(self, _let_go, base, held(base / "lock"))

    def close(self) -> None:
        """Remove it."""
        self._end()


def _let_go(base: Path, file: BinaryIO) -> None:
    remove(base)
    file.close()


def remove_unused(
    path: Path,  # folder
    sign: str,  # name of the file in it that is `held` by those who use it
) -> None:
    """Remove a folder, unless another process uses it."""
    with ExitStack() as stack, suppress(BlockingIOError):
        with suppress(FileNotFoundError):
            try:
                stack.enter_context(held(path / sign, exclusive=True))
            except OSError as err:
                if err.errno not in LOCKLESS:
                    raise
        remove(path)


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
        OutputError: Another process holds it, or it is a link.
        OSError: Its folder cannot be made or written.
    """
    path, made, lock = Path(path), set[Path](), None
    _writable(path)
    try:
        lock = _acquire(path, made, wait=False)
        if lock is None:
            if not wait:
                raise OutputError(busy)
            log.info(busy)
            lock = _acquire(path, made, wait=True)
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                path.unlink()
        for folder in sorted(made, reverse=True):
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()
        if lock is not None:  # who waits for it finds the folders gone, and makes its own
            os.close(lock)


def _acquire(path: Path, made: set[Path], wait: bool) -> int | None:
    """Return the descriptor that holds a lock, None if another process does."""
    while True:
        made.update(folder for folder in path.parents if not folder.exists())
        path.parent.mkdir(parents=True, exist_ok=True)
        no_link(path)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # a process that ends has removed the folder in between
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.lstat(path)):
                    return lock
            os.close(lock)  # that process has removed the file, which so locks nothing
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError as err:
            if err.errno in LOCKLESS:
                if (device := path.parent.stat().st_dev) not in _lockless:
                    _lockless.add(device)
                    why = f"this drive has no locks ({err.strerror})"
                    note(f"{path.parent.resolve()}: {why}; let no two processes write the same there at a time", [])
                return lock
            path.unlink(missing_ok=True)
            os.close(lock)
            raise
        except BaseException:
            os.close(lock)
            raise


@contextmanager
def work_folder(
    folder: Path,  # where files are to lie
    name: str,  # of what they are of
    busy: str,  # what is said if another process makes them
) -> Iterator[Path]:
    """Hold a lock and give an empty folder, for files that take their names in `folder` when all of them are whole.

    Afterwards it is gone, with whatever was not moved. Its path is absolute, as GDAL takes others for more than paths.

    Raises:
        OutputError: Another process holds the lock, or a file cannot be written; it is called by its name in `folder`.
    """
    work = folder.absolute() / f".{name}.partial"
    try:
        with locked(folder / f".{name}.lock", busy):
            try:
                remove(work)
                work.mkdir()
                yield work
            finally:
                remove(work)
    except OutputError as err:
        raise OutputError(str(err).replace(str(work), str(folder))) from err


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
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    if os.path.lexists(path) and not replace:
        raise OutputError(f"{path}: exists already; choose another name or remove it first")
    no_link(path)
    _writable(path)
    busy = f"{path}: another process is writing it; wait, or choose another name"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.partial.lock"), busy))
        except OSError as err:
            if isinstance(err, OutputError):
                raise
            where = err.filename or path
            raise OutputError(f"{where}: cannot be made ({err.strerror}); choose another place") from err
        try:
            remove(partial)
            partial.mkdir()
            yield partial
            if replace:
                _give_back(old, path)
                if path.exists():
                    path.rename(old)
            partial.rename(path)
        except OSError as err:
            elsewhere = err.filename is not None and not str(err.filename).startswith(str(partial))  # an input, perhaps
            if isinstance(err, OutputError):
                raise OutputError(str(err).replace(str(partial), str(path))) from err
            if elsewhere:
                raise
            raise OutputError(
                f"{path}: cannot be written ({err.strerror or err}); nothing was kept; make room or choose another "
                "place"
            ) from err
        finally:
            remove(partial)
            if replace:
                _give_back(old, path)


def _give_back(old: Path, path: Path) -> None:
    """Let a folder have its name again if none took it, else remove it."""
    if not path.exists():
        with suppress(FileNotFoundError):
            old.rename(path)
    remove(old)
