"""An exporter sends the present weights each time, from buckets that it cuts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("export_worker.py")
LAYOUTS = {
    "EP2": ("parallel.expert_model_parallel_size=2",),
    "TP2": ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"),
    "PP2": ("parallel.pipeline_model_parallel_size=2",),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_second_export_has_the_new_weights_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Protects the generator from weights of an earlier update, and each sync from the seconds of cutting buckets."""
    write_model("qwen3-moe", tmp_path / "model")
    run_ranks(WORKER, 2, tmp_path / "model", tmp_path / "out.pt", *LAYOUTS[name])
    exported, stored = torch.load(tmp_path / "out.pt"), load_file(tmp_path / "model" / "model.safetensors")
    assert exported["before"].keys() == exported["after"].keys() == stored.keys()
    for tensor_name, tensor in stored.items():
        assert torch.equal(exported["before"][tensor_name], tensor), tensor_name
        assert torch.equal(exported["after"][tensor_name], 2 * tensor), tensor_name
