"""Files on the network, read in parts, where the user named their address: http, https, and s3.

GDAL asks no network. It reads from an object of this process, which asks `requests`: proxies and certificates are as in
the environment, a part counts once all of its bytes are here and its headers say that it is the right one, a connection
that breaks goes on where it broke, and nothing but the file that was named can be asked for.
"""

from __future__ import annotations

import atexit
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np
import rasterio
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.io import DatasetReader

from ...errors import DataError
from ...files import check_room, digest, file_hash
from ..paced import HEADERS, SLOW, paced_session
from .address import Address, named
from .s3 import s3_request

__all__ = [
    "LOST",
    "Link",
    "WebRaster",
    "copy_to",
    "identity",
    "is_json",
    "open_link",
    "fingerprint",
    "text_at",
    "unversioned",
]

CHUNK = 2**14  # bytes that are kept together
KEPT = 2**27  # bytes, of all files, that are kept
LARGEST, TEXT = 2**23, 120.0  # bytes of a text, and seconds of waiting for it
WHOLE = 2**33  # bytes of a file that is copied
PART = 2**23  # of them, asked for at once
AT_ONCE = 8  # parts that are asked for at once
CONNECT, SILENCE, RETRIES, DELAY = 10.0, 15.0, 3, 0.5  # seconds, but for retries in a row that bring no byte
SETTINGS = {  # by which GDAL lets the environment change them
    "GDAL_HTTP_CONNECTTIMEOUT": CONNECT,
    "GDAL_HTTP_LOW_SPEED_TIME": SILENCE,
    "GDAL_HTTP_MAX_RETRY": RETRIES,
    "GDAL_HTTP_RETRY_DELAY": DELAY,
}

LOST: list[str] = []
"""Why bytes that GDAL asked for could not be had, each time; what it was given in their place is not the file's."""


class _Passing(Exception):
    """Trouble that may pass; `deaf` if there is nobody to be asked."""

    def __init__(self, why: str, deaf: bool = False):
        super().__init__(why)
        self.deaf = deaf


class Link:
    """A file on the network."""

    def __init__(
        self,
        address: Address,
        first: int = CHUNK,  # bytes that are asked for at once
        look: Callable[..., None] | None = None,  # as a hook of `requests`, called with each answer
    ):
        self.address = address
        self.identity: tuple[Any, ...] = ()
        """Size, ETag and date, as its server says; empty if it sends no parts of it."""
        self.trouble = ""
        """Why some of its bytes could not be had."""
        self._where, self._region = address.url, ""
        self._connect, self._silence, retries, self._delay = (_setting(name) for name in SETTINGS)
        self._retries = int(retries)
        patience = max(self._silence, 0.01)
        self.session = paced_session(patience) if first == CHUNK else paced_session(max(TEXT, patience), slow=0)
        self.session.headers.update(HEADERS)
        self.session.hooks["response"] += [look] if look else []
        try:
            self.begins = self._fetch(0, first)
        except BaseException:
            self.close()
            raise
        if self.identity and first == CHUNK:
            _cache.put((address.url, self.identity), 0, self.begins)

    def close(self) -> None:
        """Hang up."""
        self.session.close()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity[0]

    def read(
        self,
        start: int,  # first byte
        stop: int,  # last one, and 1
    ) -> bytes:
        """Return some of its bytes; zeros where they could not be had, which `trouble` then tells."""
        stop = min(stop, self.size)
        if start >= stop or self.trouble:
            return self._lost(start, stop, self.trouble)
        key, first, last = (self.address.url, self.identity), start // CHUNK, (stop - 1) // CHUNK
        found = {n: _cache.get(key, n) for n in range(first, last + 1)}
        lacking = [n for n, data in found.items() if not data]
        try:
            for run in np.split(lacking, np.flatnonzero(np.diff(lacking) > 1) + 1) if lacking else ():
                data = self._fetch(int(run[0]) * CHUNK, min(int(run[-1] + 1) * CHUNK, self.size))
                for k, n in enumerate(run.tolist()):
                    found[n] = data[k * CHUNK : (k + 1) * CHUNK]
                    _cache.put(key, n, found[n])
        except DataError as err:
            return self._lost(start, stop, str(err))
        return b"".join(found.values())[start - first * CHUNK : stop - first * CHUNK]

    def _lost(self, start: int, stop: int, why: str) -> bytes:
        self.trouble = why
        LOST.extend([why] if why else [])
        return bytes(max(stop - start, 0))

    def _fetch(self, start: int, stop: int) -> bytes:
        """Return bytes of the file, fewer at its end, and of one that is not sent in parts as many as are sent."""
        out, failures, new = bytearray(), 0, not self.identity
        least = min(max(SLOW * self._delay, 1), CHUNK // 4)  # bytes of an answer; one with fewer is as good as none
        while start + len(out) < stop:
            before = len(out)
            try:
                for piece in self._ask(start + len(out), stop):
                    out += piece
                stop = min(stop, self.size) if self.identity else 0
                if start + len(out) < stop and len(out) - before < least:
                    raise _Passing("sends a few bytes at a time")
            except _Passing as err:
                failures = 0 if len(out) - before >= least else failures + 1
                if failures > self._retries or new and err.deaf:
                    again = "" if new and err.deaf else f", {failures} times in a row"
                    raise DataError(f"{self.address}: {err}{again}; check address and network") from None
                self._where = self.address.url
                time.sleep(self._delay * 2 ** max(failures - 1, 0))
        return bytes(out)

    def _ask(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield what one connection brings of some bytes."""
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        url, auth = self._where, None
        if self.address.startswith("s3://"):
            url, auth = s3_request(self.address.url, self._region)
        try:
            timeout, part = (max(self._connect, 0.01), max(self._silence, 0.01)), {"Range": f"bytes={start}-{stop - 1}"}
            with self.session.get(url, headers=part, stream=True, timeout=timeout, auth=auth) as answer:
                self._check_status(answer)
                lacking = self._check_part(answer, start, stop)
                while lacking and (piece := answer.raw.read1(min(lacking, 2**16), decode_content=False)):
                    lacking -= len(piece)
                    yield piece
                if lacking and (self.identity or answer.headers.get("Content-Length")):
                    raise _Passing("the connection breaks off")
                if lacking:  # sent without its length, to its end
                    self.identity = stop - start - lacking, *_version(answer)
                self._where = url if auth else answer.url
        except (RequestException, HTTPError, OSError, ValueError) as err:
            raise self._meant(err) from None

    def _meant(self, err: Exception) -> Exception:
        """Return what an error of `requests` means, without the address in it, which may hold secrets."""
        from requests import exceptions as of

        if isinstance(err, DataError):
            return err
        said = str(err)
        if found := re.search(r"certificate verify failed: ([^(]*)", said, re.IGNORECASE):
            return DataError(
                f"{self.address}: its certificate cannot be trusted ({found[1].strip(' :')}); check the address, or "
                "name the authority that signed it (REQUESTS_CA_BUNDLE)"
            )
        if found := re.search(r"sends [\w,. ]+", said):
            return DataError(f"{self.address}: {found[0]}; try again later")
        if isinstance(err, of.ProxyError):
            return _Passing("the proxy that the environment names does not answer", deaf=True)
        if isinstance(err, of.ConnectTimeout):
            return _Passing(f"its host does not answer within {self._connect:g} s", deaf=True)
        if re.search("NameResolution|getaddrinfo", said):
            return _Passing("the name of its host is not known", deaf=True)
        if re.search("refused|unreachable|No route", said):
            return _Passing("its host does not answer", deaf=True)
        if isinstance(err, (of.Timeout, TimeoutError)) or "timed out" in said:
            return _Passing(f"nothing comes for {self._silence:g} s")
        if isinstance(err, of.TooManyRedirects):
            return DataError(f"{self.address}: leads from one address to the next without end")
        if isinstance(err, ValueError):  # of what cannot be an address
            return DataError(f"{self.address}: is no address of http or https, or leads to what is none")
        return _Passing("the connection breaks off")

    def _check_status(self, answer: Any) -> None:
        """Raise what an answer says, unless it sends a file."""
        status, said, s3 = answer.status_code, _plain(answer.reason), self.address.startswith("s3://")
        region = answer.headers.get("x-amz-bucket-region", "")
        if s3 and status in (301, 400) and region and not self._region:
            self._region = region
            raise _Passing(f"lies in region {_plain(region)}")
        if status in (408, 425, 429) or status >= 500:
            raise _Passing(f"HTTP {status} {said}")
        if status in (401, 403, 404) and self._where != self.address.url:
            raise _Passing(f"HTTP {status} {said}")  # where it led to holds for a while only
        keys = "the keys in the environment (AWS_ACCESS_KEY_ID)" if s3 else "whether a signature in it still holds"
        hint = {
            401: "it asks who you are; name user and password in ~/.netrc",
            403: f"it may not be read; check the address, and {keys}",
            404: "there is no such file; check the address",
            410: "there is no such file any more; check the address",
            416: "an empty file",
        }.get(status, said)
        if status not in (200, 206):
            raise DataError(f"{self.address}: HTTP {status}, {hint}")
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError(f"{self.address}: answers with a web page, not with a file; take the link of the download")
        if answer.headers.get("Content-Encoding", "").lower() not in ("", "identity"):
            raise DataError(f"{self.address}: is sent compressed, so it has no parts; download it, and name the file")

    def _check_part(self, answer: Any, start: int, stop: int) -> int:
        """Return how many bytes of an answer are to be read; raises `DataError` if they are not those asked for."""
        length, said = answer.headers.get("Content-Length", ""), answer.headers.get("Content-Range", "").strip()
        many = int(length) if re.fullmatch(r"\d{1,18}", length) else None
        if answer.status_code == 200 and not start and not self.identity:
            if many is not None and many <= stop:
                self.identity = many, *_version(answer)
            return stop if many is None else min(many, stop)
        part = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", said)
        first, last, size = map(int, part.groups()) if part else (-1, -1, -1)
        if first != start or not first <= last < min(stop, size) or many not in (None, last - first + 1):
            raise DataError(
                f"{self.address}: was asked for bytes {start} to {stop - 1}, and answers with "
                f"{_plain(said) or 'all of it'}, so it cannot be read in parts; download it, and name the file"
            )
        now = size, *_version(answer)
        if self.identity not in ((), now):
            raise DataError(f"{self.address}: was changed while it was read; start again when nobody writes it")
        self.identity = now
        return last - first + 1


def _version(answer: Any) -> tuple[str, str]:
    """Return ETag and date; of servers behind one name the dates may differ."""
    tag = answer.headers.get("ETag", "").removeprefix("W/")
    return tag, "" if tag else answer.headers.get("Last-Modified", "")


def _plain(said: object) -> str:
    """Return what a server says as one short line."""
    return " ".join(str(said).split())[:80]


def _setting(name: str) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text or SETTINGS[name])
        if 0 <= value < 1e6:
            return value
    except ValueError:
        pass
    raise DataError(f"{name} {text!r}, in the environment: give a number, or leave it out")


class _Cache:
    """Bytes of files, those used last."""

    def __init__(self):
        self.chunks, self.size, self.lock = OrderedDict[Any, bytes](), 0, Lock()

    def get(self, key: Any, number: int) -> bytes:
        with self.lock:
            if (key, number) in self.chunks:
                self.chunks.move_to_end((key, number))
            return self.chunks.get((key, number), b"")

    def put(self, key: Any, number: int, data: bytes) -> None:
        with self.lock:
            self.size += len(data) - len(self.chunks.pop((key, number), b""))
            self.chunks[key, number] = data
            while self.size > KEPT:
                self.size -= len(self.chunks.popitem(last=False)[1])


_cache = _Cache()


class _Opener(MultiByteRangeResourceContainer):
    """The one file that GDAL finds."""

    def __init__(self, link: Link):
        self.link = link

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> _File:
        return _File(self.link)

    def isfile(self, path: str) -> bool:
        return path.endswith("/file")

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise OSError(path)

    def size(self, path: str) -> int:
        return self.link.size


class _File:
    """What GDAL reads from; it raises nothing, for GDAL's own code lies between it and us."""

    def __init__(self, link: Link):
        self.link, self.at = link, 0

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def tell(self) -> int:
        return self.at

    def seek(self, to: int, whence: int = 0) -> int:
        self.at = to + (0, self.at, self.link.size)[whence]
        return self.at

    def read(self, count: int = -1) -> bytes:
        data = self._read(self.at, self.at + count if count >= 0 else self.link.size)
        self.at += len(data)
        return data

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        with ThreadPoolExecutor(min(AT_ONCE, max(len(sizes), 1))) as pool:
            found = pool.map(lambda start, size: self._read(start, start + size), offsets, sizes)
            return [data.ljust(size, b"\0") for data, size in zip(found, sizes, strict=True)]

    def _read(self, start: int, stop: int) -> bytes:
        try:
            return self.link.read(start, stop)
        except BaseException as err:
            return self.link._lost(start, stop, f"{self.link.address}: cannot be read ({type(err).__name__})")


class WebRaster(DatasetReader):
    """A raster on the network."""

    link: Link
    context: Any
    """In which GDAL finds its file: openers are kept by context, and threads have their own."""

    @property
    def name(self) -> Address:
        """Its address."""
        return self.link.address

    @property
    def files(self) -> list[Address]:
        """Its address; it has nothing beside."""
        return [self.link.address]

    def read(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return values, as of any raster; raises `DataError` if some could not be had."""
        values = super().read(*args, **kwargs)
        if self.link.trouble:
            raise DataError(self.link.trouble)
        return values

    def close(self) -> None:
        """Close it, and hang up."""
        self.context.run(super().close)
        self.link.close()

    def __del__(self) -> None:
        if not self.closed:
            self.close()


_opened: WeakSet[WebRaster] = WeakSet()


@atexit.register
def _close_all() -> None:
    for raster in [*_opened]:
        raster.close()


def open_link(
    link: Link,  # of a raster
    driver: str,  # GDAL's name of its kind
) -> WebRaster:
    """Open a raster on the network, with GDAL's options as they are set; it owns the link from then on."""
    context = copy_context()
    raster = context.run(rasterio.open, "web://here/file", driver=driver, sharing=False, opener=_Opener(link))
    raster.__class__ = WebRaster
    raster.link, raster.context = link, context
    _opened.add(raster)
    return raster


def unversioned(
    raster: DatasetReader,
) -> list[str]:
    """Return a note where a server says nothing by which a change of the file could be seen."""
    if isinstance(raster, WebRaster) and not any(raster.link.identity[1:]):
        return [f"{raster.name}: its server says neither version nor date, so a change is seen by its size alone"]
    return []


def identity(
    address: Address,
) -> tuple[Any, ...]:
    """Return what tells whether a file on the network is as it was: size, ETag, date; raises `DataError`."""
    link = Link(address)
    link.close()
    return link.identity or ()


def fingerprint(
    file: str | os.PathLike,  # on this disk, or an address
) -> str:
    """Return what tells whether a file is as it was: its SHA-256, on the network that of what `identity` says.

    Raises:
        DataError: It is not there.
    """
    where = named(file)
    return digest(repr(identity(where))) if isinstance(where, Address) else file_hash(where)


def copy_to(
    address: Address,
    path: Path,  # file to write
) -> None:
    """Copy a file of the network to this disk; raises `DataError`, `OutputError` where there is no room."""
    link = Link(address)
    try:
        if not link.identity:
            raise DataError(f"{address}: its server sends no parts of files; download it, and name the file")
        if link.size > WHOLE:
            raise DataError(
                f"{address}: has {link.size:,} bytes, and {WHOLE:,} are copied at most; download it yourself"
            )
        check_room(path, link.size)
        with open(path, "wb") as out:
            for start in range(0, link.size, PART):
                out.write(link.read(start, start + PART))
                if link.trouble:
                    raise DataError(link.trouble)
    finally:
        link.close()


def is_json(
    address: Address,
) -> bool:
    """Return whether a file on the network is JSON, by how it begins; raises `DataError`."""
    link = Link(address)
    link.close()
    return link.begins.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def text_at(
    address: Address,  # of a small file
    look: Callable[..., None] | None = None,  # as a hook of `requests`, called with each answer
) -> str:
    """Return a text on the network; raises `DataError`."""
    link = Link(address, LARGEST + 1, look)
    link.close()
    if not link.identity or link.size > LARGEST:
        raise DataError(f"{address}: more than {LARGEST:,} bytes; such a file has fewer")
    try:
        return link.begins.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{address}: no text") from None
