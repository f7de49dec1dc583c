"""A web server on this machine that sends parts of files, counts what it sends, and misbehaves as a test wants."""

import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from server import Answer

__all__ = ["Answer", "Web"]


class Web(ThreadingHTTPServer):
    """Serves files by their paths; `plan(number, path, start)` says how a request is answered, None: honestly."""

    daemon_threads = False  # closing waits for all threads, so no socket is left open

    def __init__(self, files, plan=None, context=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.plan = {f"/{k}": v for k, v in files.items()}, plan or (lambda number, path, start: None)
        self.asked, self.sent, self.lock = [], 0, threading.Lock()  # (path, first byte), and bytes of bodies
        self.version = '"1"'
        self.context = context
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()

    @property
    def url(self):
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.server_port}"

    def get_request(self):
        connection, address = super().get_request()
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request, client_address):
        pass  # clients hang up as they like


class _Handler(BaseHTTPRequestHandler):
    def handle(self):
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.do_handshake()
            super().handle()
        except (OSError, ssl.SSLError):
            pass

    def do_GET(self):
        web, path = self.server, self.path.partition("?")[0]
        match = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        with web.lock:
            web.asked.append((path, start))
            number = len(web.asked)
        answer = web.plan(number, path, start) or Answer()
        whole, status, headers = web.files.get(path), 200, {}
        if whole is None:
            status, body = 404, b""
        elif match and answer.ranges:
            stop = min(int(match[2]) + 1 if match[2] else len(whole), len(whole))
            status, body = (206, whole[start:stop]) if start < len(whole) else (416, b"")
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}", "ETag": web.version}
        else:
            body = whole
        body = body if answer.body is None else answer.body
        self.send_response(answer.status or status)
        for name, value in (headers | {"Content-Length": len(body)} | answer.headers).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        body = body[: answer.drop if answer.stall is None else answer.stall]
        self.wfile.write(body)
        with web.lock:
            web.sent += len(body)
        if answer.stall is not None:
            self.wfile.flush()
            web.ended.wait()

    def log_message(self, *args):
        pass
