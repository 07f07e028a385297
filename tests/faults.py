"""A real HTTP proxy on loopback in front of an S3 server, which counts what it serves and fails as stores fail."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
TRANSIENT = ("500", "503", "reset", "cut", "stall", "short", "long", "elsewhere")
PERMANENT = ("403", "404")


class FaultProxy(ThreadingHTTPServer):
    """Forwards to `upstream`; a GET of a shard gets the next of `faults`, None for none, or else `always`."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: deque[str | None] = deque()
        self.always: str | None = None
        self.done: list[str] = []
        self.served = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> str | None:
        with self.lock:
            fault = self.faults.popleft() if self.faults else self.always
            self.done += [fault] if fault else []
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing for every request."""

    def forward(self) -> None:
        shard = self.command == "GET" and ".tar" in self.path
        fault = self.server.next_fault() if shard else None
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None and fault.isdigit():
            self.fail(int(fault))
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, content, dict(self.headers))
        answer = upstream.getresponse()
        body, headers = answer.read(), dict(answer.getheaders())
        upstream.close()
        if shard:
            with self.server.lock:
                self.server.served += len(body)
        self.answer(answer.status, headers, body, fault)

    def fail(self, status: int) -> None:
        body = f"<Error><Code>{CODES[status]}</Code><Message>no luck</Message></Error>".encode()
        self.answer(status, {"Content-Type": "application/xml"}, body, None)

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: str | None) -> None:
        half = body[: len(body) // 2]
        if fault == "short":
            body = half
        elif fault == "long":
            body += b"more"
        elif fault == "elsewhere":
            headers["Content-Range"] = "bytes 1-2/3"
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "content-length", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(half if fault in ("reset", "cut", "stall") else body)
        if fault == "stall":
            self.server.closing.wait(10)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = fault in ("reset", "cut", "stall")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at the address `upstream`, for the length of the block."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.shutdown()
        thread.join()
        proxy.server_close()
