"""Addresses of nodes, and the placement of ranks on nodes."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest

from tempo_megatron.megatron import topology
from tempo_megatron.preflight import network, rank_placement
from tempo_megatron.preflight.findings import NodeVerdict
from tempo_megatron.preflight.network import AddressListener
from tempo_megatron.utils.ports import free_ports
from tests.unit.preflight.doctor import make_config, make_report, problems


def resolve_host_name(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the host name resolve to these addresses, or to none."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("resolved", "expected"),
    [(["127.0.1.1"], "127.0.1.1"), (["192.0.2.1", "127.0.0.3"], "127.0.0.3"), ([], "127.0.0.1")],
    ids=["loopback in /etc/hosts", "first address it can listen on", "unknown name"],
)
def test_a_nodes_address_is_the_one_that_gloo_takes(
    resolved: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo resolves the host name unless an interface is named, and the doctor checks the same address."""
    resolve_host_name(monkeypatch, *resolved)
    assert network.gloo_address() == expected


def test_a_named_interface_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo does the same. An interface that a node does not have is an error."""
    resolve_host_name(monkeypatch, "127.0.1.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert network.gloo_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    with pytest.raises(OSError, match="GLOO_SOCKET_IFNAME=ib7: no such interface"):
        AddressListener("n1").open("token")


def test_no_other_process_is_taken_for_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a loopback address a node connects to itself or to another of its processes."""
    monkeypatch.setattr(network, "gloo_address", lambda: "127.0.1.1")
    listener = AddressListener("n2")
    address = listener.open("token")
    not_served = ("127.0.1.1", free_ports()[0])
    addresses = {"n2": address, "n3": address, "n4": not_served}
    try:
        failures = network.connection_failures("n1", addresses, {"n1": ["n2", "n3", "n4"]}, "token")
    finally:
        listener.close()
    assert (failures["n2"], failures["n3"]) == ("", "another process answers there")
    assert "refused" in failures["n4"]


def test_a_host_that_resolves_to_itself_is_named() -> None:
    """gloo would wait for it for minutes. One neighbor that reaches a node makes it good."""
    targets = network.ring_neighbors(["n1", "n2", "n3"])
    assert targets == {"n1": ["n2", "n3"], "n2": ["n1", "n3"], "n3": ["n1", "n2"]}
    assert network.ring_neighbors(["n1", "n2"]) == {"n1": ["n2"], "n2": ["n1"]}
    addresses = {"n1": ("10.0.0.1", 1), "n2": ("127.0.1.1", 1), "n3": ("10.0.0.3", 1)}
    refused = "Connection refused"
    failures = {"n1": {"n2": refused, "n3": ""}, "n2": {"n1": refused, "n3": refused}, "n3": {"n1": "", "n2": refused}}
    findings = list(network.check_addresses(addresses, failures))
    assert problems(findings) == [("n2", "address", "bad")]
    (bad,) = [finding for finding in findings if finding.verdict is NodeVerdict.bad]
    assert "resolves to 127.0.1.1 on it" in bad.message and "n1 (Connection refused)" in bad.message
    assert "GLOO_SOCKET_IFNAME" in bad.remedy


def test_ranks_that_are_dealt_out_over_nodes_are_named() -> None:
    """The all-reduce of each layer would cross the network. Other nodes would not help."""
    blocks = {rank: f"n{rank // 8}" for rank in range(16)}
    cyclic = {rank: f"n{rank % 2}" for rank in range(16)}
    config = make_config()
    assert not list(rank_placement.check_placement(blocks, config))
    incomplete = {rank: node for rank, node in blocks.items() if rank not in (3, 8)}
    assert not list(rank_placement.check_placement(incomplete, config))
    (finding,) = rank_placement.check_placement(cyclic, config)
    assert finding.verdict is NodeVerdict.bad and "n0 has ranks 0, 2, 4, 6; n1 has ranks 1, 3, 5, 7" in finding.message
    assert "--distribution=block" in finding.remedy
    report = make_report({})
    report.findings.append(finding)  # type: ignore[attr-defined]
    assert not report.other_nodes_may_help and not report.nodes_to_use(config)
    config.parallel.tensor_model_parallel_size = 1
    (finding,) = rank_placement.check_placement(cyclic, config)
    assert finding.verdict is NodeVerdict.warning


def test_a_rank_that_meets_no_other_gives_up_and_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks the process group also waits presence_seconds, not as long as a collective may take."""
    port = free_ports()[0]
    variables = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    message = f"rank 1 of 2 did not meet the others at localhost:{port} within 1 s, preflight.presence_seconds"
    with pytest.raises(RuntimeError, match=message):
        topology._join_process_group("gloo", timedelta(seconds=1), timedelta(hours=1))
