"""Addresses that nodes give each other for gloo, and whether they can be reached there.

gloo, which training uses beside NCCL, gives others the address that this node's host name resolves to here. Where that
is the loopback address, others connect to themselves and wait for minutes.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import psutil

from tempo_megatron.preflight.facts import Finding, NodeVerdict

_INTERFACE = "GLOO_SOCKET_IFNAME"
_CONNECT_SECONDS = 3.0
_LOOPBACK = "127.0.0.1"

Address = tuple[str, int]
"""host and port"""


def own_address() -> str:
    """The address that gloo gives to other nodes: of the interface in GLOO_SOCKET_IFNAME, else of the host name, as far
    as this node can listen there, else the loopback address. Raises OSError where there is no such interface."""
    name = os.environ.get(_INTERFACE, "").split(",")[0]
    if name:
        wanted = (socket.AF_INET, socket.AF_INET6)
        candidates = [each.address for each in psutil.net_if_addrs().get(name, []) if each.family in wanted]
        if not candidates:
            raise OSError(f"{_INTERFACE}={name}: no such interface with an address")
        return candidates[0]
    with suppress(socket.gaierror):
        for family, kind, protocol, _, where in socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as tried:
                tried.bind(where)
                return str(where[0])
    return _LOOPBACK


class Listener:
    """Says a token and the node's name to whoever connects to it, so that nobody takes another node for it."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._server: socket.socket | None = None

    def open(self, token: str) -> Address:
        """Listen until `close`; returns where. Raises OSError."""
        host = own_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        threading.Thread(target=self._serve, args=(self._server, token + self._node), daemon=True).start()
        return host, self._server.getsockname()[1]

    def close(self) -> None:
        if self._server:
            self._server.close()

    def _serve(self, server: socket.socket, said: str) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.sendall(said.encode())


def failures(
    node: str, addresses: Mapping[str, Address], tries: Mapping[str, Sequence[str]], token: str
) -> dict[str, str]:
    """Why this node cannot reach those that it tries: node -> reason, "" where it can."""
    return {other: _failure(addresses[other], token + other) for other in tries.get(node, ())}


def _failure(address: Address, expected: str) -> str:
    try:
        with socket.create_connection((address[0], address[1]), timeout=_CONNECT_SECONDS) as connection:
            said = connection.makefile().read()
    except OSError as error:
        return error.strerror or str(error)
    return "" if said == expected else "another process answers there"


def neighbors(nodes: Sequence[str]) -> dict[str, list[str]]:
    """Whom each node tries: the nodes before and after it."""
    around = {node: (nodes[index - 1], nodes[(index + 1) % len(nodes)]) for index, node in enumerate(nodes)}
    return {node: sorted({*pair} - {node}) for node, pair in around.items()}


def findings(addresses: Mapping[str, Address], tried: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """A finding a node, from its address and what others say that tried it: node -> tried node -> reason, or "".

    A node is as good as its better neighbor finds it.
    """
    for node, (host, _) in addresses.items():
        said = {other: reasons[node] for other, reasons in tried.items() if node in reasons}
        if not said or "" in said.values():
            yield Finding("address", node, NodeVerdict.good, f"{host} is reached by others")
            continue
        others = ", ".join(f"{other} ({why})" for other, why in said.items())
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            reason = f"its own name resolves to {host} on it, where others find themselves: not reached from {others}"
            remedy = f"correct its /etc/hosts, or export {_INTERFACE}=the interface of the nodes' network"
        else:
            reason = f"{host} is not reached from {others}"
            remedy = f"the network, a firewall, or export {_INTERFACE}=the interface of the nodes' network"
        yield Finding("address", node, NodeVerdict.bad, f"gloo's address: {reason}", remedy)
