"""Where the workers of a run find each other: torch's store, which asks for no token, on one address only.

Left to itself, the store listens on every device of the first worker's node. It can be given a socket, though, and the
process group of the same process then takes the store that has the port already.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch import config as of_ray
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_open: list[TCPStore] = []  # of this process: a store ends with the last who knows it


def open_store() -> tuple[str, int]:
    """Start the store on the address that this node has in the cluster; that address, and the port."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    server = bind(address)
    port: int = server.getsockname()[1]
    store = TCPStore(
        address, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=server.detach()
    )
    _open.append(store)
    return address, port


def bind(address: str) -> socket.socket:
    """A server's socket on a free port of `address`; of all addresses where a node is known by one that is not its own,
    as behind a gateway that translates them.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return socket.create_server(("", 0), family=family)


class Rendezvous(TorchConfig):
    """Ray Train's set-up of the process group, at the store of `open_store`."""

    @property
    def backend_cls(self) -> type[of_ray._TorchBackend]:
        """What sets it up."""
        return _Backend


class _Backend(of_ray._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # What Ray lets the first worker call for an address and a port that is free, for torch to listen on.
        of_ray.get_address_and_port = open_store  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)
