"""Addresses of files on the network, as users write them; shown without what may be secret."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from ...errors import DataError

__all__ = ["Address", "named", "shown"]


class Address(str):
    """Where a file is on the network; as text without what may be secret: user, password, query."""

    url: str
    """All of it."""

    def __new__(cls, url: str) -> Address:
        """Take an address; raises `DataError`."""
        try:
            parts = urlsplit(url)
            host = parts.hostname and parts.netloc.rpartition("@")[2]
            parts.port  # noqa: B018  may raise
        except ValueError:
            host = None
        if not host:
            raise DataError("an address without a host that can be; write https://HOST/FILE or s3://BUCKET/KEY")
        path = url.partition("://")[2].partition("/")[2] if parts.scheme == "s3" else parts.path.lstrip("/")
        self = super().__new__(cls, f"{parts.scheme}://{host}/{path}")
        self.url = url
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.url == other.url

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def name(self) -> str:
        """The last part, as the name of a file."""
        last = next(part for part in reversed(self.split("/")) if part)
        return re.sub(r"[^\w .+~@=-]", "_", unquote(last)).lstrip(".") or "_"

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    def is_dir(self) -> bool:
        """Return False: nothing is listed."""
        return False

    def joined(self, href: str) -> Address:
        """Return the address that a file at this one means by a link."""
        if self.startswith("s3://") and "://" not in href:
            bucket, _, key = self.url[len("s3://") :].partition("/")
            return Address(f"s3://{bucket}{posixpath.normpath(posixpath.join('/', posixpath.dirname(key), href))}")
        url = urljoin(self.url, href)
        if not re.match("(https?|s3)://", url):
            raise DataError(f"{self}: leads to {href[:80]!r}; only https, http and s3 are read")
        return Address(url)

    def below(self, name: str) -> Address:
        """Return the address of a file in this folder; what signs the folder's signs it, too."""
        if self.startswith("s3://"):
            return Address(f"{self.url.rstrip('/')}/{name}")
        parts = urlsplit(self.url)
        return Address(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}")))


def shown(
    text: str,  # an address, of any kind
) -> str:
    """Return it without what may be secret, as `Address` does."""
    return re.sub(r"//[^/]*@", "//", text.partition("?")[0])


def named(
    what: str | os.PathLike,  # as a user writes it
) -> Path | Address:
    """Return the path of a file on this disk, or an address.

    >>> named("/vsicurl/https://me:secret@x.org/a/s.tif?signature=secret"), isinstance(named("s.tif"), Path)
    ('https://x.org/a/s.tif', True)
    """
    if isinstance(what, Address):
        return what
    text = os.fspath(what)
    if isinstance(what, os.PathLike) and re.match(r"(https?|s3):/", text, re.IGNORECASE):
        raise DataError(f"{shown(text)}: give an address as text; Path changes it")
    if match := re.match(r"(?:/vsicurl/)?(https?)://(.*)", text, re.IGNORECASE | re.DOTALL):
        return Address(f"{match[1].lower()}://{match[2]}")
    if match := re.match(r"(?:s3://|/vsis3/)(.*)", text, re.IGNORECASE | re.DOTALL):
        return Address(f"s3://{match[1]}")
    if re.match(r"[a-z][a-z0-9+.-]+://|/vsi", text, re.IGNORECASE):
        raise DataError(
            f"{shown(text)}: only files on this disk and addresses by https, http and s3 are read; copy it here"
        )
    return Path(text)
