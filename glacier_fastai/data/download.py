"""Large archives from unreliable networks, and what is in them.

Trouble that may pass (drops, stalls, busy servers) is waited out, and the file goes on at the very byte, on the next
mirror if the last one brought little; a mirror that cannot be right is given up.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import logging
import os
import re
import shutil
import tarfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from posixpath import normpath
from typing import IO, Any, BinaryIO, cast

from ..errors import DataError, OutputError, printable
from ..files import locked, remove
from .paced import HEADERS, paced_session

__all__ = ["Progress", "RemoteStream", "fetch", "members"]

Progress = Callable[[int, int | None], None]
"""Called with what is done and the total (None: unknown), as `terminal.progress` yields it."""

WAITS = (1, 2, 4, 8, 16, 32, 60, 60)  # seconds before each retry in a row that brings no byte
WORTH = 8 << 20  # bytes from one connection after which a mirror that drops is asked again before the next one
CHUNK = 1 << 20  # bytes read and written at a time
PACKET = 1 << 16  # bytes taken from the network at a time; what a stall costs
PATIENCE = 3  # times the timeout, of waiting for what comes too slowly
BEHIND = 1 << 24  # bytes, at most, after the end mark of an archive, which fill its last record
HEADERS_OF_A_MEMBER = 1 << 20  # bytes, at most, of all headers of a file in an archive
log = logging.getLogger(__name__)


def _number(text: str | None) -> int:
    """Return a number of bytes, -1 if it is none."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text.strip()) else -1


class RemoteStream(io.RawIOBase):
    """A file on the network, read from front to end, as a context manager; no byte of it is lost or doubled.

    Raises:
        DataError: Also while reading: every mirror is given up, or none has brought a byte in any of the retries.
    """

    def __init__(
        self,
        urls: Sequence[str],  # mirrors of one file, in the order of asking
        sha256: str = "",  # what the whole file must hash to, for `verify`
        *,
        timeout: float = 30,  # seconds without a byte that count as a stall
        waits: Sequence[float] = WAITS,  # seconds before each retry in a row that brings no byte
        progress: Progress | None = None,  # called with the bytes that are here, and the total
        start: int = 0,  # bytes that are here already
        digest: Any = None,  # hashlib object that has seen them
        size: range | None = None,  # bytes that the file can have
        fits: Callable[[int], bool] = lambda more: True,  # whether there is room for so many more bytes
    ):
        self.name, self.sha256 = urls[0].rpartition("/")[2], sha256.lower()
        self.size, self.fits = size, fits
        self.position, self.total = start, -1  # bytes so far, and of the whole file
        self.digest = digest or hashlib.sha256()  # of the bytes so far
        self.sources: list[str] = []  # mirrors whose bytes were read
        self._pieces, self._rest = self._receive(deque(urls), timeout, waits, progress), memoryview(b"")
        self.readinto(bytearray())  # so that `total` is known

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer) -> int:
        """Read what comes next, as much as is there and fits; 0 at the end."""
        if self.closed:
            raise ValueError(f"{self.name}: read after it was closed")
        try:
            data = self._rest or memoryview(next(self._pieces, b""))
        except BaseException:
            self.close()
            raise
        count = min(len(data), len(buffer))
        buffer[:count], self._rest = data[:count], data[count:]
        return count

    def verify(self) -> None:
        """Read to the end; DataError if that was not the right file, and so what was made of it is not to be kept."""
        while self.read(CHUNK):
            pass
        if self.sha256 and (got := self.digest.hexdigest()) != self.sha256:
            wrong = f"SHA-256 is {got}, not {self.sha256} (from {', '.join(self.sources)})"
            raise DataError(f"{self.name}: {wrong}; discard what was made of it and start again")

    def close(self) -> None:
        """Hang up."""
        self._pieces.close()
        super().close()

    def _receive(
        self, mirrors: deque[str], timeout: float, waits: Sequence[float], progress: Progress | None
    ) -> Generator[bytes, None, None]:
        from requests import RequestException, TooManyRedirects
        from urllib3.exceptions import HTTPError

        troubles, failures, claims = dict[str, str](), 0, dict[int, list[str]]()
        while self.position != self.total and not self._is_whole():
            if not mirrors or failures > len(waits):
                if claims:  # those that said it first may have lied
                    self.total, others = claims.popitem()
                    mirrors, failures = deque(others), 0
                    continue
                reasons = "; ".join(f"{url}: {why}" for url, why in troubles.items())
                raise DataError(f"{self.name}: no mirror delivers it ({reasons}); check the network and start again")
            if failures:
                log.info(f"{self.name}: going on in {waits[failures - 1]:g} s, after {troubles}")
                time.sleep(waits[failures - 1])
            url, before = mirrors[0], self.position
            try:
                for data in self._ask(url, timeout, claims, last=len(mirrors) == 1):
                    self.digest.update(data)
                    self.position, failures = self.position + len(data), 0
                    if url not in self.sources:
                        self.sources.append(url)
                    if progress:
                        progress(self.position, self.total)
                    yield data
            except (ArithmeticError, LookupError, TooManyRedirects, ValueError) as err:  # an answer of nonsense
                troubles[mirrors.popleft()] = why = printable(str(err))
                log.warning(f"{url}: {why}; given up")
            except (RequestException, HTTPError, HTTPException, OSError) as err:
                troubles[url] = printable(str(err))
                failures += 1
                if self.position - before < WORTH:
                    mirrors.rotate(-1)

    def _is_whole(self) -> bool:
        """Return whether all is here, whatever a mirror says."""
        return bool(self.sha256 and self.position) and self.digest.hexdigest() == self.sha256

    def _ask(self, url: str, timeout: float, claims: dict[int, list[str]], last: bool) -> Iterator[bytes]:
        """Yield what one connection brings of what is missing; DataError if it cannot be right, else what befell it."""
        at = self.position
        headers = HEADERS | ({"Range": f"bytes={at}-"} if at else {})
        with (
            paced_session(PATIENCE * timeout) as session,
            session.get(url, headers=headers, stream=True, timeout=timeout) as answer,
        ):
            status, said = answer.status_code, answer.headers.get("Content-Range", "missing")
            if status == 416 and last and self.total < 0:
                self.total = at  # or less: what is here is not of this file, as its digest will show
                return
            if status in (408, 425, 429) or status >= 500:
                raise ConnectionError(f"HTTP {status} {answer.reason}")
            if status not in (200, 206):
                raise DataError(f"HTTP {status} {answer.reason}")
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise DataError("answers with a web page, not with the file")
            part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said.strip())
            total = _number(answer.headers.get("Content-Length") if status == 200 else part and part[2])
            if status == 206 and (part is None or _number(part[1]) != at):
                raise DataError(f"asked for bytes from {at} on, its Content-Range is {said}")
            if total < 0:
                raise DataError("does not tell how long the file is")
            if total == 0 or self.size and total not in self.size:
                raise DataError(f"the file there has {total} bytes, not that of {self.name}")
            if self.total not in (-1, total):
                if total >= at and url not in self.sources:
                    claims.setdefault(total, []).append(url)
                raise DataError(f"the file there has {total} bytes, not {self.total}")
            if total <= at:
                if total < at and not last:
                    raise DataError(f"the file there has {total} bytes, and {at} are here")
                self.total = at
                return
            if not self.fits(total - at):
                raise DataError(f"the file there has {total} bytes, for which there is no room here")
            skip = at if status == 200 else 0  # it knows no ranges, and begins anew
            for data in answer.raw.stream(PACKET, decode_content=False):
                skip, data = max(skip - len(data), 0), data[skip:]
                if data := data[: total - self.position]:
                    self.total = total
                    yield data
        if self.position < total:
            raise ConnectionError(f"broke off at byte {self.position}")


def fetch(urls: Sequence[str], path: str | os.PathLike, sha256: str, **options: Any) -> Path:
    """Download a file by way of `.NAME.partial` beside it, going on where an earlier call was interrupted.

    What is there already was checked before it got its name: it is returned at once. Options: timeout, waits, size
    and progress of `RemoteStream`.

    Raises:
        DataError: No mirror delivers the right file.
        OutputError: The disk is full or cannot be written, or another process is downloading it.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.exists():
        raise OutputError(f"{path}: is no file; remove it, or choose another folder")
    partial, lock = (path.with_name(f".{path.name}.{end}") for end in ("partial", "lock"))
    try:
        with locked(lock, f"{path}: another process is downloading it; wait until it is done"):
            if not path.is_file():
                _download(urls, partial, sha256.lower(), options)
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
    except OutputError:
        raise
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err.strerror}); choose another folder") from err
    return path


def _download(urls: Sequence[str], partial: Path, sha256: str, options: dict[str, Any]) -> None:
    attempts, wrong = deque([list(urls)]), ""
    while attempts:
        chosen, start, digest = attempts.popleft(), 0, hashlib.sha256()
        if os.path.lexists(partial):
            if partial.is_symlink() or not partial.is_file() or partial.stat().st_nlink > 1:  # leads elsewhere
                remove(partial)
            else:
                log.info(f"{partial}: checking what is here, to go on from there")
                with open(partial, "rb") as there:
                    digest, start = hashlib.file_digest(there, "sha256"), there.tell()
        if digest.hexdigest() == sha256:  # interrupted just before it got its name
            return
        sources = _go_on(chosen, partial, start, digest, {"sha256": sha256, **options})
        if (got := digest.hexdigest()) == sha256:
            return
        partial.unlink()
        name = urls[0].rpartition("/")[2]
        wrong = f"{name}: SHA-256 is {got}, not {sha256} (from {', '.join(sources)})"
        if start:  # nobody knows whose fault it is
            attempts.append(chosen)
            continue
        attempts.extend([rest] if (rest := [url for url in chosen if url not in sources]) else [])
        attempts.extend([[url] for url in sources] if len(sources) > 1 else [])  # one of them may be right
    raise DataError(f"{wrong}; nothing was kept; start again later")


def _go_on(urls: list[str], partial: Path, start: int, digest: Any, options: dict[str, Any]) -> list[str]:
    """Add to a file what it lacks, and return the mirrors that brought it."""
    lacking, free = list[int](), shutil.disk_usage(partial.parent).free

    def fits(more: int) -> bool:
        lacking.extend([more] if more > free else [])
        return more <= free

    def full(why: str, more: int) -> OutputError:
        return OutputError(f"{partial}: {why}, {more} more bytes are needed; make room and start again, it goes on")

    try:
        with (
            RemoteStream(urls, start=start, digest=digest, fits=fits, **options) as stream,
            open(partial, "ab", 0, opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)) as file,
        ):
            try:
                while data := memoryview(stream.read(CHUNK) or b""):
                    while data:
                        data = data[file.write(data) :]
            except OSError as err:
                if isinstance(err, DataError):
                    raise
                raise full(err.strerror or str(err), stream.total - file.tell()) from err
            return stream.sources
    except DataError as err:
        if len(lacking) == len(urls):  # all of them say so
            raise full(os.strerror(errno.ENOSPC), min(lacking)) from err
        raise


class _Bounded:
    """The file of a tar while headers are read, which tarfile takes into memory whatever their size."""

    def __init__(self, file: Any):
        self.file, self.left = file, HEADERS_OF_A_MEMBER

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of {size} bytes, allowed are {HEADERS_OF_A_MEMBER} for a member")
        self.left -= size
        return self.file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class _Header(tarfile.TarInfo):
    """A header of a tar; a damaged one is an error, not the archive's end as it is for tarfile."""

    @classmethod
    def fromtarfile(cls, tar):
        file = tar.fileobj
        if not isinstance(file, _Bounded):
            tar.fileobj = _Bounded(file)
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as err:
            ends = isinstance(err, tarfile.EOFHeaderError)  # type: ignore[attr-defined]  # typeshed lacks it
            raise err if ends else tarfile.ReadError(str(err)) from err
        finally:
            tar.fileobj = file


class _Part(io.RawIOBase):
    """What is read from a file that may be damaged."""

    def __init__(self, file: Any, damage: Callable[[], AbstractContextManager], ends: bool = True):
        self.file, self.damage, self.ends = file, damage, ends

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with self.damage():
            if not (count := self.file.readinto(buffer)) and not self.ends:
                raise EOFError("no end mark")  # at the end, tarfile would go on and on to skip a terabyte
            return count


def members(
    archive: str | os.PathLike | BinaryIO | io.RawIOBase,  # tar or tar.gz: a file, or a stream such as `RemoteStream`
    wanted: Callable[[str], bool],  # says by its normalised name whether a file is yielded
    *,
    limit: int = 1 << 30,  # bytes a wanted file may have
    most: float = float("inf"),  # bytes that all files together may have
) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield normalised name and content of each wanted regular file, in order; its content only until the next one.

    Content is read from front to end only (.npy: `numpy.lib.format.read_array`). Links, devices and folders are passed
    over. Checksums stand at the end of an archive, so what was read is whole only once the iteration has ended.

    >>> file = io.BytesIO()
    >>> with tarfile.open(fileobj=file, mode="w:gz") as tar:
    ...     info = tarfile.TarInfo("./a/b.txt")
    ...     info.size = 2
    ...     tar.addfile(info, io.BytesIO(b"hi"))
    >>> [(name, content.read()) for name, content in members(io.BytesIO(file.getvalue()), lambda name: True)]
    [('a/b.txt', b'hi')]

    Raises:
        DataError: Cut short or damaged (also while reading content), larger than `most`, a wanted file beyond `limit`,
            or a member with an absolute name, `..` in its name, or a link to outside.
    """
    from ..reading import refusing

    with ExitStack() as stack:
        if isinstance(archive, (str, os.PathLike)):
            label = str(archive)
            if not Path(archive).is_file():
                raise DataError(f"{label}: no such file")
            about = Path(archive).stat()
            there = about.st_blocks * 512  # of what is packed no drive saves half
            if label.endswith("gz") and there < about.st_size // 2 - CHUNK:
                raise DataError(
                    f"{label}: of its {about.st_size:,} bytes only {there:,} are on the disk; download it again"
                )
            archive = stack.enter_context(open(archive, "rb", buffering=0))
        else:
            label = str(getattr(archive, "name", "archive"))
        damage = partial(refusing, label, DataError, "cut short or damaged", "remove it and download it again")
        stack.enter_context(damage())
        file = io.BufferedReader(cast(io.RawIOBase, archive), CHUNK)
        stack.callback(file.detach)  # else it would close what is not ours
        # not tarfile's own "r|gz", which does not look at the checksum
        data: Any = stack.enter_context(gzip.GzipFile(fileobj=file)) if file.peek(2)[:2] == b"\x1f\x8b" else file
        source = cast(IO[bytes], _Part(data, damage, ends=False))
        tar = stack.enter_context(tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK, tarinfo=_Header))
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps a header of every file
            if sum(map(len, tar.pax_headers.values())) > HEADERS_OF_A_MEMBER:  # which hold for all that follow
                raise tarfile.ReadError(f"global headers of more than {HEADERS_OF_A_MEMBER} bytes")
            # not tarfile.data_filter: nothing is extracted, and it lets "/etc/passwd" pass as "etc/passwd"
            name, link = PureWindowsPath(info.name), PureWindowsPath(info.linkname)  # the stricter rules: drives, \
            goal = name.parent / link if info.issym() else link
            if name.anchor or ".." in name.parts or goal.anchor or f"{normpath(goal.as_posix())}/".startswith("../"):
                raise DataError(f"{label}: member {info.name!r} leads outside the archive; do not use this file")
            if (most := most - info.size) < 0:
                raise DataError(f"{label}: unpacks to far more than it is for; do not use this file")
            if info.isreg() and wanted(name.as_posix()):
                if info.size > limit:
                    raise DataError(
                        f"{label}: member {name.as_posix()!r} has {info.size} bytes, allowed are {limit}; wrong file?"
                    )
                with io.BufferedReader(_Part(tar.extractfile(info), damage)) as content:
                    yield name.as_posix(), content
        behind = 0
        while data is not file and (part := data.read(CHUNK)):  # its checksum stands at the end
            if (behind := behind + len(part)) > BEHIND:
                raise DataError(f"{label}: goes on after the end of its files; do not use this file")
