"""Sessions of `requests` that hang up on servers which send too slowly."""

from __future__ import annotations

import io
import threading
import time
from http.client import HTTPResponse, parse_headers
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session

__all__ = ["HEADERS", "SLOW", "paced_session"]

# no-transform: Google's store unpacks what it keeps as "Content-Encoding: gzip" for those who do not say so
HEADERS = {"User-Agent": "glacier_fastai", "Accept-Encoding": "identity", "Cache-Control": "no-transform"}
SLOW = 1000  # bytes a second
HINTS = 10  # answers before the answer, such as 100 Continue and 103 Early Hints


class _Clock(threading.local):
    """The seconds of waiting that are left to each thread, over all answers to it."""

    def __init__(self, patience: float, slow: float):
        self.left, self.patience, self.slow = patience, patience, slow


class _Paced(io.RawIOBase):
    """What a server sends, headers too; the network's own timeout starts anew with every byte."""

    def __init__(self, raw: io.RawIOBase, clock: _Clock):
        self.raw, self.clock = raw, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began, clock = time.monotonic(), self.clock
        count = self.raw.readinto(buffer) or 0
        clock.left -= time.monotonic() - began
        if clock.slow:
            clock.left = min(clock.left + count / clock.slow, clock.patience)
        if clock.left < 0:
            clock.left = clock.patience
            raise ConnectionAbortedError(
                f"sends less than {clock.slow:,g} bytes a second"
                if clock.slow
                else f"sends what was asked for over more than {clock.patience:g} s"
            )
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


def paced_session(
    patience: float,  # seconds of waiting, in each thread
    *,
    slow: float = SLOW,  # bytes that buy back a second of them; 0: none do
    retries: Any = 0,  # as `max_retries` of `requests`' adapters
) -> Session:
    """Return a session whose requests, what is slower than this, end in `ConnectionAbortedError`, wrapped by requests.

    Time in which nobody reads does not count. What comes with a redirect is not read.
    """
    from requests import Session
    from requests.adapters import HTTPAdapter

    clock = _Clock(patience, slow)

    class Response(HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.fp = io.BufferedReader(_Paced(self.fp.detach(), clock))

        def _read_status(self) -> tuple[str, int, str]:
            for _ in range(HINTS):  # which http.client takes for the answer, or skips without end
                found = super()._read_status()  # type: ignore[misc]
                if not 100 <= found[1] < 200:
                    return found
                parse_headers(self.fp)
            raise ConnectionAbortedError("sends hints without end")

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            if pool.ConnectionCls.response_class is not Response:
                pool.ConnectionCls = type("Connection", (pool.ConnectionCls,), {"response_class": Response})
            return pool

    def leave(answer: Any, **_: Any) -> None:
        if answer.is_redirect:
            answer.close()
            answer._content, answer._content_consumed = b"", True

    session = Session()
    session.hooks["response"].append(leave)
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(max_retries=retries))
    return session
