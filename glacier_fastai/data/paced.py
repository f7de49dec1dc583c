"""Sessions of `requests` that hang up on servers which send too slowly."""

from __future__ import annotations

import io
import time
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session

__all__ = ["HEADERS", "SLOW", "paced_session"]

# no-transform: Google's store unpacks what it keeps as "Content-Encoding: gzip" for those who do not say so
HEADERS = {"User-Agent": "glacier_fastai", "Accept-Encoding": "identity", "Cache-Control": "no-transform"}
SLOW = 1000  # bytes a second


class _Paced(io.RawIOBase):
    """What a server sends, headers too; the network's own timeout starts anew with every byte."""

    def __init__(self, raw: io.RawIOBase, patience: float, slow: float):
        self.raw, self.left, self.patience, self.slow = raw, patience, patience, slow

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began = time.monotonic()
        count = self.raw.readinto(buffer) or 0
        self.left -= time.monotonic() - began
        if self.slow:
            self.left = min(self.left + count / self.slow, self.patience)
        if self.left < 0:
            pace = (
                f"less than {self.slow:,g} bytes a second"
                if self.slow
                else f"an answer for more than {self.patience:g} s"
            )
            raise ConnectionAbortedError(f"sends {pace}")
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


def paced_session(
    patience: float,  # seconds of waiting for an answer
    *,
    slow: float = SLOW,  # bytes that buy back a second of them; 0: none do
    retries: Any = 0,  # as `max_retries` of `requests`' adapters
) -> Session:
    """Return a session whose requests, what is slower than this, end in `ConnectionAbortedError`, wrapped by requests.

    Time in which nobody reads does not count.
    """
    from requests import Session
    from requests.adapters import HTTPAdapter

    class Response(HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.fp = io.BufferedReader(_Paced(self.fp.detach(), patience, slow))

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            if pool.ConnectionCls.response_class is not Response:
                pool.ConnectionCls = type("Connection", (pool.ConnectionCls,), {"response_class": Response})
            return pool

    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(max_retries=retries))
    return session
