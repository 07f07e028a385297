"""A gate in front of a server on loopback: it can be shut, and it can hold a request back."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

PIECE = 2**16


class Gate:
    """Relays connections to `upstream` (http://host:port) until the end of the block.

    Attributes:
        endpoint: its own address, http://host:port.
        held: set when a request has been held back.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").rpartition(":")
        self._upstream = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.held = threading.Event()
        self._pattern: re.Pattern[bytes] | None = None
        self._open, self._connections = True, set[socket.socket]()

    def environment(self) -> dict[str, str]:
        """What leads a driver to the gate, and the workers that Ray starts for it."""
        places = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint}
        # As `ray job submit` hands its runtime environment to a driver.
        job: Mapping[str, object] = {"runtime_env": {"env_vars": places}, "metadata": {}}
        return {**places, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}

    def shut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._open = False
        for connection in list(self._connections):
            self._break(connection)

    def open(self) -> None:
        """Let connections through again."""
        self._open = True

    def hold(self, pattern: bytes) -> None:
        """Hold back requests whose first line matches `pattern`: they are never answered, and not passed on."""
        self._pattern = re.compile(pattern)

    def release(self) -> None:
        """Hold nothing back from now on."""
        self._pattern = None

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._break(self._listener)
        self.shut()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if not self._open:
                    client.close()
                    continue
                server = socket.create_connection(self._upstream)
                self._connections |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # either was closed
            while data := source.recv(PIECE):
                if self._pattern is not None and self._pattern.match(data):
                    self.held.set()
                    continue
                target.sendall(data)
        self._break(source)
        self._break(target)

    def _break(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
