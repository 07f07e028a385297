"""A real HTTP proxy on loopback in front of an S3 server, which counts what it serves and fails as stores fail."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
TRANSIENT = ("500", "503", "reset", "cut", "stall", "short", "long", "elsewhere")
PERMANENT = ("403", "404")


class FaultProxy(ThreadingHTTPServer):
    """Forwards to `upstream`; every request that matches `where` gets the next of `faults`, None for none, or else
    `always`. "drop" hangs up and passes nothing on; so does "hold", but only once nothing holds the request any more.

    Attributes:
        done: the faults so far, each with the first line of its request.
        served: bytes of shards.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.where = r"GET \S*\.tar"
        self.faults: deque[str | None] = deque()
        self.always: str | None = None
        self.done: list[tuple[str, str]] = []
        self.served = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """What leads a driver to the proxy, and the workers that Ray starts for it."""
        places = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint}
        # As `ray job submit` hands its runtime environment to a driver.
        job = {"runtime_env": {"env_vars": places}, "metadata": {}}
        return {**places, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}

    def strike(self, where: str, fault: str | None) -> None:
        """Let `fault` happen to every request that `where` matches from now on, and to no other; None: to none."""
        with self.lock:
            self.where, self.always, self.done = where, fault, []

    def next_fault(self, request: str) -> str | None:
        with self.lock:
            if not re.match(self.where, request):
                return None
            fault = self.faults.popleft() if self.faults else self.always
            self.done += [(fault, request)] if fault else []
            return fault

    def holds(self, request: str) -> bool:
        return self.always == "hold" and re.match(self.where, request) is not None and not self.closing.is_set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing for every request."""

    def forward(self) -> None:
        fault = self.server.next_fault(self.requestline)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None and fault.isdigit():
            self.fail(int(fault))
            return
        if fault in ("drop", "hold"):
            self.close_connection = True
            while self.server.holds(self.requestline):
                time.sleep(0.05)
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, content, dict(self.headers))
        answer = upstream.getresponse()
        body, headers = answer.read(), dict(answer.getheaders())
        upstream.close()
        if self.command == "GET" and ".tar" in self.path:
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
