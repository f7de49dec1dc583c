"""Raw folders opened as tile stores: the store is made on first use, kept in a cache, and reused while nothing changes.

The cache is the folder `.glacier_fastai` beside the data, or, where that cannot be written, `glacier_fastai` in the
user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`). It may be removed at any time.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..bands import BANDS, Bands
from ..errors import DataError, OutputError
from ..files import digest
from .sources.competition import competition_files, find_competition, prepare_competition
from .sources.hkh import DEFAULT_BANDS, find_hkh, hkh_files, prepare_hkh
from .tiles import VERSION, TileStore

__all__ = ["cache_key", "cached_store", "open_tiles"]

HOME = ".glacier_fastai"
log = logging.getLogger(__name__)


def open_tiles(
    path: str | os.PathLike,  # tile store, or a folder of the competition or of HKH
    bands: Sequence[str] | None = None,  # bands that will be asked for; HKH has more than anyone keeps
) -> TileStore:
    """Return the tile store at `path`, or that of a raw folder, made now if it is not in the cache.

    Raises:
        DataError: Neither of them, or raw data that cannot be used.
        OutputError: A store has to be made and cannot be written.
    """
    path = Path(path)
    if (path / "dataset.json").is_file():
        return TileStore(path)
    if root := find_competition(path):
        return _opened(root, "competition", competition_files(root), {}, prepare_competition)
    if root := find_hkh(path):
        options = {"bands": list(Bands(bands or DEFAULT_BANDS).made_of(BANDS))}
        return _opened(root, "hkh", hkh_files(root), options, prepare_hkh)
    what = "no such folder" if not path.exists() else "neither a tile store (dataset.json), nor GlacierHack (Band1)"
    what += "" if not path.exists() else " nor HKH tiles (slices, splits); `glacier-fastai prepare` makes a store"
    raise DataError(f"{path}: {what}")


def _opened(root: Path, kind: str, files: Sequence[Path], options: dict[str, Any], prepare) -> TileStore:
    state = [(os.path.relpath(f, root), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    base = f"{kind}-{cache_key(options)}"

    def build(out: Path) -> None:
        for old in out.parent.iterdir():  # of other states of the same files, with their textures and leftovers
            if old.name.lstrip(".").startswith(f"{root.resolve().name}-{base}-") and old.is_dir():
                shutil.rmtree(old)
        log.info(f"{root}: making its tile store {out}; the next run finds it there")
        prepare(root, out, **options)

    return cached_store(root, f"{base}-{cache_key(state)}", build)


def cache_key(*what: Any) -> str:
    """Return a hash of plain data and of our version: another one may make the same store otherwise."""
    return digest([__version__, VERSION, *what], 12)


def cached_store(
    beside: Path,  # data that the store is made from
    key: str,  # tells what it is made of and how; part of the name
    build: Callable[[Path], Any],  # makes the store at the path it is given
) -> TileStore:
    """Return the store of that key from the cache, built first if it is not there, or is damaged.

    Several processes may ask at once: one builds, the others wait.

    Raises:
        OutputError: There is no place to write it.
    """
    beside = beside.resolve()
    name = f"{beside.name}-{key}"
    homes = _homes(beside)
    for home in homes:
        if store := _whole(home / name):
            return store
    home, lock = _locked(homes, beside)
    try:
        if store := _whole(home / name):
            return store
        shutil.rmtree(home / name, ignore_errors=True)
        build(home / name)
    finally:
        lock.release()
    return TileStore(home / name)


def _locked(homes: Sequence[Path], beside: Path) -> tuple[Path, FileLock]:
    """Return the first home that can be written, and its lock, held."""
    for home in homes:
        with suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info(f"{home}: waiting for another process that writes there")
                lock.acquire()
            return home, lock
    raise OutputError(f"{beside}: its tile store can be kept neither in {' nor in '.join(map(str, homes))}")


def _whole(path: Path) -> TileStore | None:
    try:
        return TileStore(path)
    except DataError:
        return None


def _homes(beside: Path) -> list[Path]:
    if beside.parent.name == HOME:  # what is made from a cached store is kept next to it
        return [beside.parent]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glacier_fastai"
    return [beside.parent / HOME, user / digest(str(beside.parent), 12) / HOME]
