"""The kinds of raw folder that open as tile stores: those built in, then those of installed packages.

A package plugs its own in by an entry point of the group ``glacier_fastai.sources``, whose object is a `Source`:

    [project.entry-points."glacier_fastai.sources"]
    glims = "its_package:GLIMS"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ...errors import DataError

__all__ = ["Source", "find_source"]

GROUP = "glacier_fastai.sources"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A kind of raw folder or file, and how a tile store is made of one.

    >>> def prepare(root, out):
    ...     with TileWriter(out, ["green", "swir1"], size=128, dtype="uint16", source="of my own") as writer:
    ...         for path in sorted(root.glob("*.npz")):
    ...             writer.add(**np.load(path), scene=path.stem)
    >>> own = Source("npz", "NAME.npz of image and mask", lambda path: path if any(path.glob("*.npz")) else None,
    ...              lambda root: sorted(root.glob("*.npz")), prepare)
    >>> own.options(["green"])
    {}
    """

    name: str
    """By which it is known; no two sources have the same."""
    holds: str
    """What such a folder is known by, in words."""
    find: Callable[[Path], Path | None]
    """Return what is to be read if the path is of this source, else None; opens no file."""
    files: Callable[[Path], Sequence[Path]]
    """Return the files that the store depends on, always in the same order; opens none."""
    prepare: Callable[..., Any]
    """``prepare(root, out, **options)`` writes the store `out`, with a `TileWriter`."""
    options: Callable[[Sequence[str] | None], dict[str, Any]] = lambda bands: {}
    """Return the options of `prepare`, plain values, from the bands that will be asked for (None: any)."""


def find_source(
    path: Path,  # a folder, or a file such as an archive
) -> tuple[Source, Path]:
    """Return the source that knows a path, and what it is to read. Plug-ins are imported if no other one knows it.

    Raises:
        DataError: None does; the message says which there are.
    """
    built_in = _built_in()
    for source in built_in:
        if root := source.find(path):
            return source, root
    if not path.exists():
        raise DataError(f"{path}: no such folder")
    plug_ins, broken = _plug_ins()
    for source in plug_ins:
        if root := source.find(path):
            return source, root
    known = ", ".join(f"{s.name} ({s.holds})" for s in (*built_in, *plug_ins))
    raise DataError(
        f"{path}: neither a tile store (dataset.json) nor of a source that is known: {known}; `glacier-fastai prepare` "
        f"makes a store{f'; {len(broken)} of plug-ins cannot be used, as was said' if broken else ''}"
    )


def _built_in() -> list[Source]:
    from . import competition, hkh

    return [competition.SOURCE, hkh.SOURCE]


@cache
def _plug_ins() -> tuple[list[Source], list[str]]:
    """Return the sources of installed packages, and a line about each that cannot be used, which is logged once."""
    found, broken = list[Source](), list[str]()
    taken = {source.name for source in _built_in()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            source = _loaded(point)
            if source.name in taken:
                raise ValueError(f"the name {source.name!r} is taken")
            found.append(source)
            taken.add(source.name)
        except Exception as err:  # whatever a stranger's module raises at import
            where = f"{point.value}{f' of {point.dist.name}' if point.dist else ''}"
            why = " ".join(f"{type(err).__name__}: {err}".split())
            broken.append(f"source {point.name!r}: its plug-in {where} cannot be used ({why}); mend or uninstall it")
            log.warning(broken[-1])
    return found, broken


def _loaded(point: EntryPoint) -> Source:
    source = point.load()
    if not isinstance(source, Source):
        raise TypeError(f"it is a {type(source).__name__}, not a glacier_fastai.data.sources.registry.Source")
    return source
