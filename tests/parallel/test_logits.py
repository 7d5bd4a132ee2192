"""Megatron's logits against transformers', for every family and layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import CONFIGS, SHAPE, write_model
from tests.parallel.launcher import run_ranks
from tests.parallel.logits_worker import sequences

WORKER = Path(__file__).with_name("logits_worker.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for name in CONFIGS:
        write_model(name, directory / name)
    return directory


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_logits_are_those_of_transformers(models: Path, tmp_path: Path, tensor_size: int, pipeline_size: int) -> None:
    """Within 1e-5 in fp32, with random norms, an odd vocabulary, tied and untied, and Llama 3's RoPE scaling at
    sequences three times as long as its original context."""
    out = tmp_path / "logits.pt"
    run_ranks(WORKER, tensor_size * pipeline_size, models, out, tensor_size, pipeline_size)
    found = torch.load(out)
    assert found.keys() == CONFIGS.keys()
    for name, logits in found.items():
        reference = AutoModelForCausalLM.from_pretrained(models / name)
        for row, ids in enumerate(sequences(SHAPE["vocab_size"])):
            with torch.no_grad():
                expected = reference(torch.tensor([ids])).logits[0]
            assert expected.std() > 0.3
            torch.testing.assert_close(
                logits[row, : len(ids)], expected, rtol=0, atol=1e-5, msg=lambda m, n=name: n + m
            )
