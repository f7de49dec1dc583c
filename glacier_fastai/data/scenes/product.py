"""What a product is, such as a folder of Landsat's: which file holds a band, in what units, which flags mask it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ...reading import read_text, refusing
from . import web
from .address import Address

__all__ = ["Flag", "Folder", "Links", "Part", "Product"]

DEEPEST, MOST = 8, 20_000  # folders within folders, and files, that are looked at


@dataclass(frozen=True)
class Part:
    """Where a band is."""

    file: str
    """A name of `Folder.names`."""
    band: int = 1
    """Of that file."""
    scale: float | None = None
    """What its numbers are multiplied with; default: as the file says."""
    offset: float | None = None
    """What is added then. Degrees Celsius become kelvin by it."""


@dataclass(frozen=True)
class Flag:
    """A raster of codes or bits that say what is wrong with a pixel."""

    file: str
    kinds: Mapping[str, tuple[int, tuple[int, ...]]]
    """Kind of `masks.KINDS`, or "fill" -> mask and values: a pixel is of it where its number & mask is one of them."""
    band: int = 1
    of: str = ""
    """The band of the scene that it is about; default all."""


@dataclass(frozen=True)
class Product:
    """A scene as it was delivered.

    >>> Product({"red": Part("B4.TIF", scale=2.75e-5, offset=-0.2)}, sensor="landsat8").bands["red"].file
    'B4.TIF'
    """

    bands: Mapping[str, Part]
    """Our name of a band -> where it is."""
    flags: tuple[Flag, ...] = ()
    sensor: str | None = None
    """One of `names.SENSORS`."""
    date: str = ""
    """When it was taken: ISO 8601, UTC."""
    notes: tuple[str, ...] = ()
    """What is odd about it."""


@dataclass
class Folder:
    """The files of a folder."""

    path: Path | Address
    """What the user named: a folder, or a file in it, such as its metadata."""
    names: tuple[str, ...] = field(init=False)
    """Of its files and those of folders in it, sorted, with "/" between."""
    chosen: str = field(init=False)
    """That of the file which the user named, "" for all of the folder."""

    def __post_init__(self):
        assert isinstance(self.path, Path)
        self.chosen = "" if self.path.is_dir() else self.path.name
        self.root = self.path.parent if self.chosen else self.path
        self.names = tuple(sorted(_names(self.root, 0 if self.chosen else DEEPEST)))

    archive = ""
    """The file that it is packed in."""

    def local(self, name: str) -> Path | Address:
        """Return the path of a file, or its address where the user named the item that says it."""
        return name if isinstance(name, Address) else self.root / name

    def read_text(self, name: str) -> str:
        """Return the text of a small file, such as metadata."""
        return read_text(self.local(name), DataError, link=True)

    def close(self) -> None:
        """Remove what was unpacked."""


class Links(Folder):
    """What lies at an address: a folder whose files cannot be listed, or a STAC item, whose links lead to them."""

    def __init__(self, address: Address, item: bool):
        self.path, self.address, self.names, self.item = address, address, (), item
        self.chosen = address.name if item else ""

    def local(self, name: str) -> Address:
        """Return the address of a file."""
        if isinstance(name, Address):
            return name
        return self.address.joined(name) if self.item else self.address.below(name)

    def read_text(self, name: str) -> str:
        """Return the text of the item."""
        return web.text_at(self.address)


def _names(root: Path, deepest: int) -> list[str]:
    found: list[str] = []
    with refusing(root, DataError, "its files cannot be listed"):
        for folder, inside, files in os.walk(root):
            here = Path(folder).relative_to(root)
            if len(here.parts) >= deepest:
                inside.clear()
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            found += [(here / name).as_posix() for name in files if not name.startswith(".")]
            if len(found) > MOST:
                raise ValueError(f"more than {MOST:,}; name the folder of one scene")
    return found
