"""Names of the shared memory of vLLM's ranks on CPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tempo_megatron.generation import shared_memory


def test_ranks_of_one_machine_alone_have_one_name_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM shares memory if all ranks of a group have the same name, so a replica that spans machines needs two names.
    The first rank of each machine removes the names of its run, and those of other runs stay."""
    # Other tests do without vLLM, whose import takes seconds.
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    monkeypatch.setattr(_CPUSHMDistributed, "make_group_name", None)  # Restored afterwards.
    monkeypatch.setattr(shared_memory.dist, "broadcast_object_list", lambda box, src: None)
    monkeypatch.setattr(shared_memory.dist, "barrier", lambda: None)
    monkeypatch.setattr(shared_memory, "_DIRECTORY", tmp_path)
    token = shared_memory.use_unique_names()
    names = []
    for machine in ("n1", "n1", "n2"):
        monkeypatch.setattr(shared_memory.socket, "gethostname", lambda machine=machine: machine)
        names.append(_CPUSHMDistributed.make_group_name(SimpleNamespace(ranks=[0, 1], unique_name="tp:0")))
    assert names[0] == names[1] != names[2] and all(token in name for name in names)
    for name in (names[0], "of-another-run"):
        (tmp_path / name).touch()
    shared_memory.unlink(token)
    shared_memory.unlink(token)
    assert [path.name for path in tmp_path.iterdir()] == ["of-another-run"]
