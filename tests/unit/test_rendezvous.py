"""Where workers find each other."""

from __future__ import annotations

import socket

import pytest
import ray.util
from torch.distributed import TCPStore

from parrot_dist.training.rendezvous import bind, open_store


def test_the_store_is_at_the_address_of_its_node_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    address, port = open_store()
    assert address == "127.0.0.2"
    TCPStore(address, port, is_master=False).set("key", "value")
    # What rank 0 does afterwards: it takes the store that is there, and listens nowhere else.
    assert TCPStore(address, port, is_master=True, wait_for_workers=False, multi_tenant=True).get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(("known", "bound"), [("127.0.0.1", "127.0.0.1"), ("192.0.2.1", "0.0.0.0")])
def test_a_node_that_is_known_by_an_address_not_its_own_listens_on_all(known: str, bound: str) -> None:
    with bind(known) as server:
        assert server.getsockname()[0] == bound
