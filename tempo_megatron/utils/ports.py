"""The ports at which the ranks of a run meet."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

RENDEZVOUS_PORTS = range(20_000, 30_000)
"""Ports below 32768, from which Linux gives ports to connections by default. One of those could be taken by another
process's connection before the first rank listens."""
_TRIES = 1_000


def free_ports(count: int = 1) -> list[int]:
    """Returns different ports of `RENDEZVOUS_PORTS` on which nothing listens, in random order.

    Raises RuntimeError if 1,000 ports have fewer free ones among them.
    """
    with ExitStack() as listeners:
        ports: list[int] = []
        for port in random.SystemRandom().sample(RENDEZVOUS_PORTS, _TRIES):
            if len(ports) == count:
                break
            try:
                listeners.enter_context(socket.create_server(("", port)))
            except OSError:  # taken
                continue
            ports.append(port)
    if len(ports) < count:
        raise RuntimeError(
            f"{len(ports)} of {_TRIES} ports from {RENDEZVOUS_PORTS.start} to {RENDEZVOUS_PORTS.stop - 1} are free, "
            f"and {count} are needed; end what listens there"
        )
    return ports
