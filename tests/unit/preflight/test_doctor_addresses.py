"""Where nodes say that they are, and where their ranks are."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest

from tempo_megatron.megatron import topology
from tempo_megatron.preflight import placement, reach
from tempo_megatron.preflight.facts import NodeVerdict
from tempo_megatron.preflight.reach import Listener
from tests.unit.preflight.doctor import config, free_port, report, wrong


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """The host name resolves to these; to none without any."""

    def resolved(host: str, port: int, **_: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.parametrize(
    ("resolved", "expected"),
    [(["127.0.1.1"], "127.0.1.1"), (["192.0.2.1", "127.0.0.3"], "127.0.0.3"), ([], "127.0.0.1")],
    ids=["as /etc/hosts has it", "the first that it can listen on", "no such name"],
)
def test_a_nodes_address_is_the_one_that_gloo_takes(
    resolved: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor tries the path that training uses: gloo reads the host name where no interface is named."""
    resolve(monkeypatch, *resolved)
    assert reach.own_address() == expected


def test_a_named_interface_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gloo has it. A name that is wrong on one node is said."""
    resolve(monkeypatch, "127.0.1.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert reach.own_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    with pytest.raises(OSError, match="GLOO_SOCKET_IFNAME=ib7: no such interface"):
        Listener("n1").open("token")


def test_nodes_find_each_other_and_take_nobody_else_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a loopback address a node finds itself, or a process of its own."""
    monkeypatch.setattr(reach, "own_address", lambda: "127.0.1.1")
    listener = Listener("n2")
    address = listener.open("token")
    nowhere = ("127.0.1.1", free_port())
    addresses = {"n2": address, "n3": address, "n4": nowhere}
    try:
        said = reach.failures("n1", addresses, {"n1": ["n2", "n3", "n4"]}, "token")
    finally:
        listener.close()
    assert (said["n2"], said["n3"]) == ("", "another process answers there")
    assert "refused" in said["n4"]


def test_a_host_that_resolves_to_itself_is_named() -> None:
    """gloo would wait for it for minutes. A node is as good as its better neighbor finds it."""
    tries = reach.neighbors(["n1", "n2", "n3"])
    assert tries == {"n1": ["n2", "n3"], "n2": ["n1", "n3"], "n3": ["n1", "n2"]}
    assert reach.neighbors(["n1", "n2"]) == {"n1": ["n2"], "n2": ["n1"]}
    addresses = {"n1": ("10.0.0.1", 1), "n2": ("127.0.1.1", 1), "n3": ("10.0.0.3", 1)}
    refused = "Connection refused"
    tried = {"n1": {"n2": refused, "n3": ""}, "n2": {"n1": refused, "n3": refused}, "n3": {"n1": "", "n2": refused}}
    findings = list(reach.findings(addresses, tried))
    assert wrong(findings) == [("n2", "address", "bad")]
    (bad,) = [finding for finding in findings if finding.verdict is NodeVerdict.bad]
    assert "resolves to 127.0.1.1 on it" in bad.found and "n1 (Connection refused)" in bad.found
    assert "GLOO_SOCKET_IFNAME" in bad.remedy


def test_ranks_that_are_dealt_out_over_nodes_are_named() -> None:
    """Each layer's all-reduce would cross the network, and every other check is good. Other nodes would not help."""
    blocks = {rank: f"n{rank // 8}" for rank in range(16)}
    dealt = {rank: f"n{rank % 2}" for rank in range(16)}
    of = config()
    assert not list(placement.check_placement(blocks, of))
    assert not list(placement.check_placement({rank: node for rank, node in blocks.items() if rank not in (3, 8)}, of))
    (finding,) = placement.check_placement(dealt, of)
    assert finding.verdict is NodeVerdict.bad and "n0 has ranks 0, 2, 4, 6; n1 has ranks 1, 3, 5, 7" in finding.found
    assert "--distribution=block" in finding.remedy
    of_dealt = report({})
    of_dealt.findings.append(finding)  # type: ignore[attr-defined]
    assert not of_dealt.others_may_do and not of_dealt.nodes_to_use(of)
    of.parallel.tensor_model_parallel_size = 1
    (finding,) = placement.check_placement(dealt, of)
    assert finding.verdict is NodeVerdict.warning


def test_a_rank_that_meets_nobody_gives_up_and_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checks are turned off, the process group waits a minute too, not as long as a collective may take."""
    port = free_port()
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    said = f"rank 1 of 2 did not meet the others at localhost:{port} within 1 s, preflight.presence_seconds"
    with pytest.raises(RuntimeError, match=said):
        topology._join_process_group("gloo", timedelta(seconds=1), timedelta(hours=1))
