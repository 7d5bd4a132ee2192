"""Our maps against an independent implementation of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("mbridge_worker.py")
MODELS = ("qwen3", "qwen3-tied", "llama", "llama-3")


@pytest.mark.parametrize("tensor_size", [1, 2])
def test_mbridge_loads_the_same_megatron_tensors(tensor_size: int, tmp_path: Path) -> None:
    """Every parameter of every rank, bit for bit."""
    pytest.importorskip("mbridge", reason="a development dependency: uv sync installs it")
    for name in MODELS:
        write_model(name, tmp_path / "models" / name)
    output = run_ranks(WORKER, tensor_size, tmp_path / "models", tensor_size)
    assert all(output.count(f"{name}: ") == tensor_size for name in MODELS)
