"""What a product is, such as a folder of Landsat's: which file holds a band, in what units, which flags mask it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """Of that file; 0 for its only one, or the one that is described as ours."""
    scale: float | None = None
    """What its numbers are multiplied with; default: as the file says."""
    offset: float | None = None
    """What is added then. Degrees Celsius become kelvin by it."""
    fill: float | None = None
    """The number of pixels without data, beside what the file declares."""
    planck: tuple[float, float] | None = None
    """K1 and K2, where what scale and offset give is a radiance, which becomes a temperature."""
    shape: tuple[int, int] | None = None
    """Rows and columns that the metadata say it has."""


@dataclass(frozen=True)
class Flag:
    """A raster of codes or bits that say what is wrong with a pixel."""

    file: str
    kinds: Mapping[str, tuple[int, tuple[int, ...]]]
    """Kind of `masks.KINDS`, or "fill" -> mask and values: a pixel is of it where its number & mask is one of them.

    No pixel that is fill is of another kind.
    """
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
    metadata: tuple[str, ...] = ()
    """Files that say all this."""
    zone: int | None = None
    """UTM zone that these name."""
    polygons: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Kind of `masks.KINDS` -> polygons of what is of it, as GeoJSON has them, in the CRS of its bands."""


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
        deep = not self.chosen or self.chosen.upper().startswith("MTD_")  # of a product with folders of its own
        self.names = tuple(sorted(_names(self.root, DEEPEST if deep else 0)))

    archive = ""
    """The file that it is packed in."""
    sensor = ""
    """What the user says of it, for metadata that do not."""

    @property
    def root(self) -> Path:
        """The folder itself."""
        assert isinstance(self.path, Path)
        return self.path.parent if self.chosen else self.path

    def fetch(self, names: Iterable[str]) -> None:
        """Unpack files that are needed."""

    def local(self, name: str) -> Path | Address:
        """Return the path of a file, or its address where the user named the item that says it."""
        if isinstance(name, Address):
            return name
        path, inside = self.root / name, os.path.abspath(self.root)
        if os.path.commonpath([os.path.abspath(path), inside]) != inside:
            raise DataError(f"{self.path}: names {name}, which does not lie in its folder; put it there")
        return path

    def named(self, name: str) -> str:
        """Return how messages call a file: folders between, of long names, are left out."""
        if isinstance(name, Address):
            return name
        folders, _, file = name.rpartition("/")
        return f"{self.archive or self.root}/{'.../' if folders else ''}{file}"

    def read_text(self, name: str) -> str:
        """Return the text of a small file, such as metadata."""
        return read_text(self.local(name), DataError, link=True)

    def close(self) -> None:
        """Remove what was unpacked."""

    def the_one(
        self,
        found: Mapping[str, Sequence[str]],  # product -> its files that a user may name
        advice: str = "name its metadata file",  # how one of several is chosen
    ) -> str | None:
        """Return the product that is in it, or that the user named; None if there is none.

        Raises:
            DataError: There are several.
        """
        meant = [key for key, names in found.items() if not self.chosen or self.chosen in names]
        if len(meant) > 1:
            raise DataError(f"{self.path}: holds {len(meant)} products, {meant[0]} and {meant[1]}; {advice}")
        return meant[0] if meant else None


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

    def named(self, name: str) -> str:
        """Return its address."""
        return self.local(name)

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
