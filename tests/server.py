"""A web server on this machine whose every answer is scripted: drops, stalls, lies."""

import re
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET


@dataclass
class Answer:
    """One answer; by default what an honest server says."""

    status: int | None = None  # instead of 200 or 206
    body: bytes | None = None  # instead of the part asked for
    headers: dict = field(default_factory=dict)  # added to, or instead of, the honest ones; None leaves one out
    drop: int | None = None  # hang up after so many bytes of the body
    reset: bool = False  # and rudely
    stall: int | None = None  # send so many bytes of the body, then nothing, until the server ends
    ranges: bool = True  # heed Range


class Mirror(ThreadingHTTPServer):
    """Serves `content` at any path; `script` holds the next answers, `always` those after it."""

    daemon_threads = False  # closing waits for all threads, so no socket is left open

    def __init__(self, content, *script, always=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.script, self.always = content, list(script), always or Answer()
        self.requests = []  # headers of each
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/patches.tar.gz"

    @property
    def starts(self):
        """First byte asked for, of each request."""
        return [int(re.match(r"bytes=(\d+)-$", h.get("Range", "bytes=0-"))[1]) for h in self.requests]

    def handle_error(self, request, client_address):
        pass  # clients hang up as they like

    def close(self):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        mirror = self.server
        mirror.requests.append(self.headers)
        answer = mirror.script.pop(0) if mirror.script else mirror.always
        total, status, body, headers = len(mirror.content), 200, mirror.content, {}
        start = mirror.starts[-1]
        if "Range" in self.headers and answer.ranges:
            if start >= total:
                status, body, headers = 416, b"", {"Content-Range": f"bytes */{total}"}
            else:
                status, body = 206, mirror.content[start:]
                headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        body = body if answer.body is None else answer.body
        headers |= {"Content-Type": "application/gzip", "Content-Length": len(body)}
        self.send_response(answer.status or status)
        for name, value in (headers | answer.headers).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if answer.reset:
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        if answer.stall is not None:
            self.wfile.write(body[: answer.stall])
            mirror.ended.wait()
        else:
            self.wfile.write(body[: answer.drop])
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def dripping(begins):
    """Give the address of a server that sends this at once, and then a byte twenty times a second."""
    ended = threading.Event()

    def serve(connection):
        with connection, suppress(OSError):
            connection.recv(10_000)
            connection.sendall(begins)
            while not ended.wait(0.05):
                connection.sendall(b"I")

    def listen():
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(server.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=listen)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
