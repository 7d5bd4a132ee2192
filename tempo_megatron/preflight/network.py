"""Checks that nodes can reach each other at the addresses that gloo uses.

Training uses gloo beside NCCL. gloo tells other nodes the address to which this node's host name resolves here. If that
is the loopback address, the others connect to themselves and wait for minutes.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import psutil

from tempo_megatron.preflight.findings import Finding, NodeVerdict

_INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_CONNECT_SECONDS = 3.0
_LOOPBACK = "127.0.0.1"

Address = tuple[str, int]
"""Host and port."""


def gloo_address() -> str:
    """Return the address that gloo tells other nodes.

    It is the address of the interface in GLOO_SOCKET_IFNAME, otherwise the first address of the host name at which this
    node can listen, otherwise the loopback address. Raises OSError if there is no such interface.
    """
    name = os.environ.get(_INTERFACE_VARIABLE, "").split(",")[0]
    if name:
        families = (socket.AF_INET, socket.AF_INET6)
        candidates = [each.address for each in psutil.net_if_addrs().get(name, []) if each.family in families]
        if not candidates:
            raise OSError(f"{_INTERFACE_VARIABLE}={name}: no such interface with an address")
        return candidates[0]
    with suppress(socket.gaierror):
        for family, kind, protocol, _, address in socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as candidate:
                candidate.bind(address)
                return str(address[0])
    return _LOOPBACK


class AddressListener:
    """Sends a token and this node's name to each client, so that no other node or process is taken for this one."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._server: socket.socket | None = None

    def open(self, token: str) -> Address:
        """Listen until `close` and return the address. Raises OSError."""
        host = gloo_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        threading.Thread(target=self._serve, args=(self._server, token + self._node), daemon=True).start()
        return host, self._server.getsockname()[1]

    def close(self) -> None:
        if self._server:
            self._server.close()

    def _serve(self, server: socket.socket, message: str) -> None:
        with suppress(OSError):  # raised once the server is closed
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.sendall(message.encode())


def connection_failures(
    node: str, addresses: Mapping[str, Address], targets: Mapping[str, Sequence[str]], token: str
) -> dict[str, str]:
    """Return why `node` cannot reach each of its targets: target -> reason, "" for a target that it reaches."""
    return {target: _connection_failure(addresses[target], token + target) for target in targets.get(node, ())}


def _connection_failure(address: Address, expected: str) -> str:
    try:
        with socket.create_connection((address[0], address[1]), timeout=_CONNECT_SECONDS) as connection:
            message = connection.makefile().read()
    except OSError as error:
        return error.strerror or str(error)
    return "" if message == expected else "another process answers there"


def ring_neighbors(nodes: Sequence[str]) -> dict[str, list[str]]:
    """Return the targets of each node: the nodes before and after it in a ring."""
    pairs = {node: (nodes[index - 1], nodes[(index + 1) % len(nodes)]) for index, node in enumerate(nodes)}
    return {node: sorted({*pair} - {node}) for node, pair in pairs.items()}


def check_addresses(addresses: Mapping[str, Address], failures: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Yield one finding per node. `failures` has, by node, what `connection_failures` returned there.

    A node is good if at least one of its neighbors reaches it.
    """
    for node, (host, _) in addresses.items():
        reasons = {other: targets[node] for other, targets in failures.items() if node in targets}
        if not reasons or "" in reasons.values():
            yield Finding("address", node, NodeVerdict.good, f"{host} is reached by others")
            continue
        others = ", ".join(f"{other} ({reason})" for other, reason in reasons.items())
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            problem = f"its own name resolves to {host} on it, where others find themselves: not reached from {others}"
            remedy = f"correct its /etc/hosts, or export {_INTERFACE_VARIABLE}=the interface of the nodes' network"
        else:
            problem = f"{host} is not reached from {others}"
            remedy = (
                f"check the network and firewalls, or export {_INTERFACE_VARIABLE}=the interface of the nodes' network"
            )
        yield Finding("address", node, NodeVerdict.bad, f"gloo's address: {problem}", remedy)
