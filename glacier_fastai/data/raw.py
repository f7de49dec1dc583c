"""Raw folders opened as tile stores: the store is made on first use, kept in a cache, and reused while nothing changes.

The cache is the folder `.glacier_fastai` beside the data, or, where that cannot be written, `glacier_fastai` in the
user's cache folder (on Linux `$XDG_CACHE_HOME`, else `~/.cache`). It may be removed at any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import platformdirs

from .. import __version__
from ..errors import DataError, OutputError, note
from ..files import digest, locked, remove, remove_unused
from .sources.registry import find_source
from .tiles import VERSION, TileStore

__all__ = ["cache_key", "cached_store", "open_tiles"]

HOME = ".glacier_fastai"
log = logging.getLogger(__name__)


def open_tiles(
    path: str | os.PathLike,  # tile store, or a folder of one of the sources (see `data.sources.registry`)
    bands: Sequence[str] | None = None,  # bands that will be asked for; HKH has more than anyone keeps
    make: bool = True,  # whether a store may be made; not where a file, and not the user, names the folder
) -> TileStore:
    """Return the tile store at `path`, or that of a raw folder, made now if it is not in the cache.

    Raises:
        DataError: Neither of them, raw data that cannot be used, or a store that may not be made.
        OutputError: A store has to be made and cannot be written.
    """
    path = Path(path)
    if (path / "dataset.json").is_file():
        return TileStore(path)
    source, root = find_source(path)
    options = source.options(bands)
    files = source.files(root)
    beside = [f.with_name(f"{f.name}{end}") for f in files for end in (".aux.xml", ".msk")]
    files = [*files, *(f for f in beside if f.exists())]
    state = [(os.path.relpath(f, root), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    base = f"{source.name}-{cache_key(options)}"

    def build(out: Path) -> None:
        if not make:
            raise DataError(f"{path}: its tile store is not there; name the folder, so that it is made")
        for old in out.parent.iterdir():  # of other states of the same files, with their textures and leftovers
            if old.name.lstrip(".").startswith(f"{root.resolve().name}-{base}-") and old.is_dir():
                remove_unused(old, "dataset.json")
        log.info(f"{root}: making its tile store {out}; the next run finds it there")
        source.prepare(root, out, **options)

    return cached_store(root, f"{base}-{cache_key(state)}", build)


def cache_key(*what: Any) -> str:
    """Return a hash of plain data and of our version: another one may make the same store otherwise.

    >>> len(cache_key("bands", ["red"])), cache_key(1) == cache_key(1), cache_key(1) == cache_key(2)
    (12, True, False)
    """
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
    with ExitStack() as held:
        home = _locked(homes, beside, held)
        if store := _whole(home / name):
            return store
        remove(home / name)
        build(home / name)
    return TileStore(home / name)


def _locked(homes: Sequence[Path], beside: Path, held: ExitStack) -> Path:
    """Return the first home that can be written, and hold its lock."""
    for home in homes:
        with suppress(OSError):
            busy = f"{home}: waiting for another process that writes there"
            held.enter_context(locked(home / ".lock", busy, wait=True))
            return home
    raise OutputError(f"{beside}: its tile store can be kept neither in {' nor in '.join(map(str, homes))}")


def _whole(path: Path) -> TileStore | None:
    try:
        return TileStore(path)
    except DataError:
        return None


def _homes(beside: Path) -> list[Path]:
    if beside.parent.name == HOME:  # what is made from a cached store is kept next to it
        return [beside.parent]
    homes = [beside.parent / HOME]
    with suppress(RuntimeError):  # a user without a home folder
        user = platformdirs.user_cache_path("glacier_fastai", appauthor=False)
        homes.append(user / digest(str(beside.parent), 12) / HOME)
    if homes[0].is_symlink():
        link = homes.pop(0)
        note(
            f"{link}: a link, which is not followed; the tile store is kept in {homes[0] if homes else 'no place'}", []
        )
    return homes
