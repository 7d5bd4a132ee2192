"""Where ranks meet: a port that no other process takes in the meantime."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from tempo_megatron.utils import ports


def test_ports_are_free_different_and_no_connection_can_be_given_one() -> None:
    chosen = ports.free_ports(5)
    assert len(set(chosen)) == 5
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(port < int(limits[0]) or port > int(limits[1]) for port in chosen)
    for port in chosen:
        socket.create_server(("", port)).close()


def test_a_port_with_a_listener_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_ports(2)

    class InOrder(random.Random):
        def sample(self, population: Sequence[int], k: int) -> list[int]:  # type: ignore[override]
            return [taken, free]

    monkeypatch.setattr(random, "SystemRandom", InOrder)
    with socket.create_server(("", taken)):
        assert ports.free_ports() == [free]
        with pytest.raises(RuntimeError, match=r"1 of 1000 ports from 20000 to 29999 are free, and 2 are needed"):
            ports.free_ports(2)
