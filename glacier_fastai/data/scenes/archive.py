"""Products as they are downloaded: what is in a .tar, .tar.gz or .zip, without unpacking more of it than is read."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import IO

from ...errors import DataError, OutputError
from ...files import Scratch, check_room
from ...reading import opened, refusing
from ..download import members
from .address import Address
from .product import MOST, Folder
from .raster import local_file

__all__ = ["ARCHIVES", "Archive"]

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")
LARGEST, PACKED = 2**36, (2**30, 100)  # bytes that a product unpacks to; and if more than so many, times its own
KEPT = 2**22, 2**26  # bytes of one text of a tar, and of all, which is read once more for others
DAMAGED = "not a zip archive, cut short or damaged", "download it again"
TWICE = "{path}: holds {name} more than once; download it again, or unpack it and name the folder"
TEXTS = (".json", ".xml", ".txt", ".gml")


class Archive(Folder):
    """The files of an archive; those that are read lie in a temporary folder until it is closed."""

    def __init__(self, path: Path):
        self.path, self.chosen, self.archive = path, "", str(path)
        self._scratch: Scratch | None = None
        self._texts: dict[str, bytes] = {}
        self._most = min(LARGEST, max(PACKED[0], PACKED[1] * local_file(path).stat().st_size))
        with opened(path, DataError, link=True) as file:
            self._zipped = file.read(2) == b"PK"
        self.names = tuple(sorted(self._list_zip() if self._zipped else self._list_tar()))

    @property
    def root(self) -> Path:
        """The temporary folder."""
        if self._scratch is None:
            self._scratch = Scratch()
        return self._scratch.path

    def fetch(self, names: Iterable[str]) -> None:
        """Unpack files that are needed; of a .tar.gz all of it is read for them."""
        wanted = {name for name in names if not (self.root / name).exists()}
        unpack = self._from_zip if self._zipped else self._from_tar
        for name, content in unpack(wanted.__contains__) if wanted else ():
            path = self.root / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as out:
                    while data := self._piece(content):
                        out.write(data)
            except OSError as err:
                if isinstance(err, OutputError):
                    raise
                why = f"cannot be unpacked to {self.root} ({err.strerror})"
                raise OutputError(f"{self.path}: {why}; make room, or unpack it elsewhere") from err

    def _piece(self, content: IO[bytes]) -> bytes:
        with refusing(self.path, DataError, *DAMAGED):
            return content.read(2**20)

    def local(self, name: str) -> Path:
        """Return the path of a file that was unpacked."""
        self.fetch([name])
        return self.root / name

    def read_text(self, name: str) -> str:
        """Return the text of a small file, such as metadata."""
        if (text := self._texts.get(name)) is None:
            return super().read_text(name)
        with refusing(f"{self.path}/{name}", DataError, "no text in UTF-8"):
            return text.decode("utf-8-sig")

    def close(self) -> None:
        """Remove what was unpacked."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _list_tar(self) -> list[str]:
        names: list[str] = []

        def text(name: str) -> bool:
            names.extend([name] if _counts(name) else [])
            _check_many(self.path, names)
            return name.lower().endswith(TEXTS) and sum(map(len, self._texts.values())) < KEPT[1]

        for name, content in members(self.path, text, limit=LARGEST, most=self._most):
            if len(data := content.read(KEPT[0] + 1)) <= KEPT[0]:
                self._texts[name] = data
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(TWICE.format(path=self.path, name=twice[0]))
        return names

    def _from_tar(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
        yield from members(self.path, wanted, limit=shutil.disk_usage(self.root).free)

    def _list_zip(self) -> list[str]:
        with refusing(self.path, DataError, *DAMAGED), zipfile.ZipFile(self.path) as file:
            found = file.infolist()
            _check_many(self.path, found)
            self._at: dict[str, zipfile.ZipInfo] = {}
            for each in found:
                name, kind = PureWindowsPath(each.filename), stat.S_IFMT(each.external_attr >> 16)
                if name.anchor or ".." in name.parts:
                    raise DataError(
                        f"{self.path}: member {each.filename!r} leads outside the archive; do not use this file"
                    )
                plain = kind in (0, stat.S_IFREG) and not each.is_dir()  # 0 where a system has no kinds
                if plain and _counts(name.as_posix()):
                    first = self._at.setdefault(name.as_posix(), each)
                    if (first.CRC, first.file_size) != (each.CRC, each.file_size):
                        raise DataError(TWICE.format(path=self.path, name=name.as_posix()))
            return [*self._at]

    def _from_zip(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
        names = [name for name in self._at if wanted(name)]
        check_room(self.root, sum(self._at[name].file_size for name in names))
        with refusing(self.path, DataError, *DAMAGED), zipfile.ZipFile(self.path) as file:
            for name in names:
                with file.open(self._at[name]) as content:
                    yield name, content


def _check_many(path: Path | Address, found: list) -> None:
    if len(found) > MOST:
        raise DataError(f"{path}: holds more than {MOST:,} files; give the archive of one scene")


def _counts(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
