"""Large archives from unreliable networks, and what is in them; urls are mirrors of one gzip file.

Trouble that may pass (drops, stalls, busy servers) is waited out, and the file goes on at the very byte, on the next
mirror if the last one brought little; a mirror that cannot be right is given up.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import io
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request  # not requests: read1 hands over what each packet brought, so that a stall loses no byte
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PureWindowsPath
from posixpath import normpath
from typing import Any, BinaryIO

from ..errors import DataError, OutputError
from ..terminal import in_terminal

__all__ = ["RemoteStream", "fetch", "members", "open_stream"]

GZIP = b"\x1f\x8b"
WAITS = (1, 2, 4, 8, 16, 32, 60, 60)  # seconds before each retry in a row that brings no byte
WORTH = 8 << 20  # bytes from one connection after which a mirror that drops is asked again before the next one
CHUNK = 1 << 20  # bytes read and written at a time
MINUTE = 60.0  # seconds between progress lines
# no-transform: Google's store unpacks what it keeps as "Content-Encoding: gzip" for those who do not say so
HEADERS = {"User-Agent": "glacier_fastai", "Accept-Encoding": "identity", "Cache-Control": "no-transform"}


class _Meter:
    """How far it is, on stderr: a bar in a terminal, else a line a minute."""

    def __init__(self, name: str, done: int, show: bool):
        self.name, self.first, self.show, self.bar = name, done, show, None
        self.began = self.last = time.monotonic()
        if show and in_terminal():
            from rich import console, progress

            self.bar = progress.Progress(console=console.Console(stderr=True), transient=True)
            self.bar.columns += (progress.DownloadColumn(), progress.TransferSpeedColumn())
            self.bar.add_task(name, total=None, completed=done)
            self.bar.start()

    def at(self, done: int, total: int) -> None:
        if (now := time.monotonic()) - self.last < (0.2 if self.bar else MINUTE):
            return
        self.last, speed = now, (done - self.first) / (now - self.began)
        if self.bar:
            return self.bar.update(0, completed=done, total=total)
        left = f"{speed / 1e6:.0f} MB/s, about {(total - done) / speed / 60:.0f} min left"
        self.say(f"{self.name}: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {left}")

    def say(self, line: str) -> None:
        if self.show:
            print(line, file=sys.stderr, flush=True)


class RemoteStream(io.RawIOBase):
    """A file on the network, read from front to end. Whatever happens to the line, not a byte is lost or doubled.

    Raises:
        DataError: Also while reading: every mirror is given up, or none has brought a byte in any of the retries.
    """

    def __init__(
        self,
        urls: Sequence[str],  # mirrors of one gzip file, in the order of asking
        sha256: str | None = None,  # what the whole file must hash to, for `verify`
        *,
        size: int | None = None,  # bytes, if known: mirrors of another size are given up
        timeout: float = 30,  # seconds without a byte that count as a stall
        waits: Sequence[float] = WAITS,  # seconds before each retry in a row that brings no byte
        progress: bool = True,  # say on stderr how far it is
        start: int = 0,  # bytes that are here already
        digest: Any = None,  # hashlib object that has seen them
        given_up: dict[str, str] | None = None,  # mirrors not to ask, and why
        steady: bool = False,  # stay with the first mirror that brings a byte
        advice: str = "check the network and start again",  # what to do when no mirror delivers
    ):
        self.sha256, self.total, self.position, self.advice = sha256, size, start, advice
        self.name, self.timeout, self.waits, self.steady = urls[0].rpartition("/")[2], timeout, waits, steady
        self.sources: list[str] = []  # mirrors whose bytes were read
        self._mirrors = deque(u for u in urls if u not in (given_up or {}))  # the first is being asked
        self._given_up, self._troubles, self._failures = dict(given_up or {}), dict[str, str](), 0
        self._digest, self._meter = digest or hashlib.sha256(), _Meter(self.name, start, progress)
        self._pieces, self._rest = self._receive(), memoryview(b"")
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
        if self.sha256 and (got := self._digest.hexdigest()) != self.sha256.lower():
            wrong = f"SHA-256 is {got}, not {self.sha256} (from {', '.join(self.sources)})"
            raise DataError(f"{self.name}: {wrong}; discard what was made of it and start again")

    def close(self) -> None:
        """Hang up."""
        self._pieces.close()
        if self._meter.bar:
            self._meter.bar.stop()
        super().close()

    def _receive(self) -> Iterator[bytes]:
        while self.total is None or self.position < self.total:
            if not self._mirrors:
                reasons = "; ".join(f"{url}: {why}" for url, why in (self._troubles | self._given_up).items())
                raise DataError(f"{self.name}: no mirror delivers it ({reasons}); {self.advice}")
            url, brought = self._mirrors[0], 0
            try:
                with self._request(url) as answer:
                    skip = self._check(url, answer)
                    while self.position < self.total:
                        if not (data := answer.read1(min(CHUNK, skip or self.total - self.position))):
                            raise ConnectionError(f"broke off at byte {self.position}")
                        if skip:
                            skip -= len(data)
                            continue
                        self._digest.update(data)
                        self.position, brought, self._failures = self.position + len(data), brought + len(data), 0
                        self.sources += [url] * (url not in self.sources)
                        self._meter.at(self.position, self.total)
                        yield data
            except DataError as err:
                self._given_up[self._mirrors.popleft()] = str(err)
                self._meter.say(f"{url}: {err}; given up")
            except (OSError, http.client.HTTPException) as err:
                self._wait(url, err)
                if brought < WORTH and not (self.steady and self.sources):
                    self._mirrors.rotate(-1)

    def _wait(self, url: str, err: Exception) -> None:
        reason = getattr(err, "reason", 0) or err  # URLError wraps what befell it
        self._troubles[url] = why = " ".join(str(reason).split()) or type(reason).__name__
        if self._failures == len(self.waits):
            return self._mirrors.clear()
        if self._failures:
            self._meter.say(f"{url}: {why}; trying again in {self.waits[self._failures]:g} s")
        time.sleep(self.waits[self._failures])
        self._failures += 1

    def _request(self, url: str) -> http.client.HTTPResponse:
        headers = HEADERS | ({"Range": f"bytes={self.position}-"} if self.position else {})
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as err:
            err.close()
            if beyond := err.code == 416 and self.total is None and len(self._mirrors) == 1:
                self.total = self.position  # or less: what is here is not of this file, as its digest will show
            passing = beyond or err.code in (408, 425, 429) or err.code >= 500
            raise (ConnectionError if passing else DataError)(f"HTTP {err.code} {err.reason}") from err

    def _check(self, url: str, answer: http.client.HTTPResponse) -> int:
        """Return the bytes to skip in what the mirror sends; DataError if that cannot be right."""
        at, whole, said = self.position, answer.status == 200, answer.headers.get("Content-Range", "missing")
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said.strip()) or ("", -1, 0)
        total, head = answer.length if whole else int(part[2]), GZIP if at else answer.peek(2)[:2]
        for wrong, why in (
            (answer.status not in (200, 206), f"HTTP {answer.status} {answer.reason}"),
            (answer.headers.get_content_type() == "text/html", "answers with a web page, not with the file"),
            (len(head) == 2 and head != GZIP, f"not a gzip file, it begins with {head!r}"),
            (not whole and int(part[1]) != at, f"asked for bytes from {at} on, its Content-Range is {said}"),
            (total is None, "does not tell how long the file is"),
            (total != (self.total or total), f"the file there has {total} bytes, not {self.total}"),
            (whole and at and len(self._mirrors) > 1, "cannot go on in the middle of the file"),
        ):
            if wrong:
                raise DataError(why)
        if len(head) < 2:
            raise ConnectionError("broke off at its first byte")
        if whole and at:
            self._meter.say(f"{url}: cannot go on in the middle of the file; skipping the {at} bytes here")
        self.total = total
        return at if whole else 0


def open_stream(urls: Sequence[str], sha256: str | None = None, **options: Any) -> RemoteStream:
    """Open a file on the network, as a context manager. Options: size, timeout, waits, progress of `RemoteStream`."""
    return RemoteStream(urls, sha256, **options)


def fetch(urls: Sequence[str], path: str | os.PathLike, sha256: str, **options: Any) -> Path:
    """Download a file by way of `.NAME.partial` beside it, going on where an earlier call was interrupted.

    What is there already was checked before it got its name: it is returned at once. Options as of `open_stream`.

    Raises:
        DataError: No mirror delivers the right file.
        OutputError: The disk is full or cannot be written, or another process is downloading it.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    if path.is_file():
        return path
    partial, lock = (path.with_name(f".{path.name}.{end}") for end in ("partial", "lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):  # a lock of the system: it goes with the process, however that ends
            if not path.is_file():
                _download(urls, path, partial, sha256.lower(), options)
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
        lock.unlink(missing_ok=True)  # who waits for it finds the file
    except Timeout as err:
        raise OutputError(f"{path}: another process is downloading it; wait until it is done") from err
    except OutputError:
        raise
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err.strerror}); choose another folder") from err
    return path


def _download(urls: Sequence[str], path: Path, partial: Path, sha256: str, options: dict[str, Any]) -> None:
    advice = f"start again later, it goes on from {partial}; or download it by hand to {path}"
    wrong, steady = dict[str, str](), False  # steady after a wrong file: of a mix nobody knows whose fault it is
    while True:
        start, digest = 0, hashlib.sha256()
        if partial.exists():
            if options.get("progress", True):
                print(f"{path.name}: checking what is here, to go on from there", file=sys.stderr, flush=True)
            with open(partial, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                start = file.tell()
        if digest.hexdigest() == sha256:  # interrupted just before it got its name
            return
        known = {"start": start, "digest": digest, "given_up": wrong, "steady": steady, "advice": advice}
        with RemoteStream(urls, **known, **options) as stream, open(partial, "ab", buffering=0) as file:
            try:
                if stream.total - start > shutil.disk_usage(partial).free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                while chunk := memoryview(stream.read(CHUNK)):
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
            except OSError as err:
                why = f"{err.strerror}, {stream.total - file.tell()} more bytes are needed"
                raise OutputError(f"{partial}: {why}; make room and start again, it goes on from there") from err
        if (got := digest.hexdigest()) == sha256:
            return
        partial.unlink()
        if steady or (not start and len(stream.sources) == 1):
            wrong[stream.sources[0]] = f"SHA-256 is {got}, not {sha256}"
        steady = True


class _Header(tarfile.TarInfo):
    """A header of a tar; a damaged one is an error, not the archive's end as it is for tarfile."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as err:
            raise err if isinstance(err, tarfile.EOFHeaderError) else tarfile.ReadError(str(err)) from err


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RecursionError) as err:
        raise DataError(f"{name}: cut short or damaged ({err}); remove it and download it again") from err


class _Part(io.RawIOBase):
    def __init__(self, file: BinaryIO, name: str, ends: bool = True):
        self.file, self.name, self.ends = file, name, ends

    readable = RemoteStream.readable

    def readinto(self, buffer) -> int:
        with _damage(self.name):
            if not (count := self.file.readinto(buffer)) and not self.ends:
                raise EOFError("no end mark")  # at the end, tarfile would go on and on to skip a terabyte
            return count


def members(
    archive: str | os.PathLike | BinaryIO,  # tar or tar.gz: a file, or a stream such as `open_stream` returns
    wanted: Callable[[str], bool],  # says by its normalised name whether a file is yielded
    *,
    limit: int = 1 << 30,  # bytes a wanted file may have
) -> Iterator[tuple[str, BinaryIO]]:
    """Yield normalised name and content of each wanted regular file, in order; its content only until the next one.

    Content is read from front to end only (.npy: `numpy.lib.format.read_array`). Links, devices and folders are passed
    over. Checksums stand at the end of an archive, so what was read is whole only once the iteration has ended.

    Raises:
        DataError: Cut short or damaged (also while reading content), a wanted file beyond `limit`, or a member with an
            absolute name, `..` in its name, or a link to outside.
    """
    own = isinstance(archive, (str, os.PathLike))
    label = str(archive if own else getattr(archive, "name", "archive"))
    if own and not Path(archive).is_file():
        raise DataError(f"{label}: no such file")
    with _damage(label), ExitStack() as stack:
        file = io.BufferedReader(stack.enter_context(open(archive, "rb", buffering=0)) if own else archive, CHUNK)
        stack.callback(file.detach)  # else it would close what is not ours
        # not tarfile's own "r|gz", which does not look at the checksum
        data = stack.enter_context(gzip.GzipFile(fileobj=file)) if file.peek(2)[:2] == GZIP else file
        source = _Part(data, label, ends=False)
        tar = stack.enter_context(tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK, tarinfo=_Header))
        while info := tar.next():
            tar.members.clear()
            name, link = PureWindowsPath(info.name), PureWindowsPath(info.linkname)  # the stricter rules: drives, \
            goal = name.parent / link if info.issym() else link
            if name.anchor or ".." in name.parts or goal.anchor or f"{normpath(goal.as_posix())}/".startswith("../"):
                raise DataError(f"{label}: member {info.name!r} leads outside the archive; do not use this file")
            if info.isreg() and wanted(name := name.as_posix()):
                if info.size > limit:
                    raise DataError(f"{label}: member {name!r} has {info.size} bytes, allowed are {limit}; wrong file?")
                with io.BufferedReader(_Part(tar.extractfile(info), label)) as content:
                    yield name, content
        while data.read(CHUNK):
            pass
