"""A port on this machine that says whether anybody asked it for something."""

import socket
from contextlib import contextmanager


@contextmanager
def nobody_asks(monkeypatch):
    """Yield an address; at the end nobody must have connected to it."""
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return
        connection.close()
        raise AssertionError("the network was asked")
