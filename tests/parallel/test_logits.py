"""Megatron's logits and values equal transformers', for every family and layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from checkpoints_convert import convert
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tests.models import CONFIGS, EXPERT_CONFIGS, SHAPE, write_model
from tests.parallel.launcher import run_ranks
from tests.parallel.logits_worker import sequences

WORKER = Path(__file__).with_name("logits_worker.py")
CRITICS = ("qwen3-tied", "olmo-3")
EXPERT_CRITICS = ("qwen3-moe", "olmoe")
WINDOW = 24
EP2 = "parallel.expert_model_parallel_size=2"
EXPERT_LAYOUTS: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "one process": (1, 1, 1, ()),
    "EP2": (1, 1, 2, (EP2,)),
    "TP2 x EP2": (2, 1, 1, (EP2, "parallel.sequence_parallel=true")),
    "PP2 x EP2": (1, 2, 2, (EP2,)),
    "PP2 x VPP2": (1, 2, 1, ("parallel.virtual_pipeline_model_parallel_size=2",)),
}
"""Name -> TP, PP, DP, settings. The ranks of TP x DP share the experts of a stage."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), CONFIGS, CRITICS)


def write_models(directory: Path, names: Iterable[str], critics: Iterable[str], **changes: int) -> Path:
    for name in names:
        write_model(name, directory / name, **changes)
    for name in critics:
        convert.to_megatron(directory / name, directory / f"{name}.critic", role="critic", seed=5)
    return directory


def megatron_outputs(
    models: Path, out: Path, tensor_size: int, pipeline_size: int, dtype: str, *overrides: str, data_size: int = 1
) -> dict[str, Any]:
    ranks = data_size * tensor_size * pipeline_size
    run_ranks(WORKER, ranks, models, out, tensor_size, pipeline_size, dtype, *overrides)
    outputs: dict[str, Any] = torch.load(out)
    return outputs


def transformers_logits(directory: Path, dtype: torch.dtype = torch.float32, upcast: bool = False) -> list[Tensor]:
    """Return the logits of each sequence, [sequence, vocabulary]. `upcast` computes in fp32 with bf16 weights."""
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16 if upcast else dtype)
    reference = reference.float() if upcast else reference
    with torch.no_grad():
        return [reference(torch.tensor([ids])).logits[0].float() for ids in sequences(SHAPE["vocab_size"])]


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_logits_values_and_windows_are_those_of_transformers(
    models: Path, tmp_path: Path, tensor_size: int, pipeline_size: int
) -> None:
    """They agree within 1e-5 in fp32, and so do the values of a converted critic.

    The models have random norms and biases, an odd vocabulary, tied and untied embeddings, Llama 3's scaling and YaRN
    at three times their original context, and a window of a quarter of the sequence. Each sliding layer of OLMo 3 sees
    its window only, and all other layers see every token.
    """
    outputs = megatron_outputs(models, tmp_path / "out.pt", tensor_size, pipeline_size, "fp32")
    for name in CONFIGS:
        for row, expected in enumerate(transformers_logits(models / name)):
            assert expected.std() > 0.3
            assert_close(outputs[name][row, : len(expected)], expected, name)
        windows = [WINDOW, WINDOW, WINDOW, 40] if name == "olmo-3" else [40] * SHAPE["num_hidden_layers"]
        assert outputs[f"{name} seen"] == {layer: list(range(40 - window, 40)) for layer, window in enumerate(windows)}
    for name in CRITICS:
        assert_values_close(models, name, outputs)


@pytest.fixture(scope="module")
def expert_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("expert_models"), EXPERT_CONFIGS, EXPERT_CRITICS, num_hidden_layers=5)


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_logits_and_values_of_models_with_experts_are_those_of_transformers(
    layout: str, expert_models: Path, tmp_path: Path
) -> None:
    """They agree within 1e-5 in fp32, in one process and with three of the six experts on each rank.

    Two pipeline stages have three and two of the five layers, also in two chunks each. Dense layers stand among layers
    with experts, one or every second. Both orders of softmax and choice of experts occur; the other one is off by more
    than 0.1.
    """
    tensor_size, pipeline_size, data_size, overrides = EXPERT_LAYOUTS[layout]
    outputs = megatron_outputs(
        expert_models, tmp_path / "out.pt", tensor_size, pipeline_size, "fp32", *overrides, data_size=data_size
    )
    for name in EXPERT_CONFIGS:
        for row, expected in enumerate(transformers_logits(expert_models / name)):
            assert expected.std() > 0.3
            assert_close(outputs[name][row, : len(expected)], expected, name)
    for name in EXPERT_CRITICS:
        assert_values_close(expert_models, name, outputs)


def assert_values_close(models: Path, name: str, outputs: dict[str, Any]) -> None:
    """Assert that the values of a converted critic are transformers' final hidden states times its value head."""
    head = checkpoint_format.CheckpointReader(models / f"{name}.critic", "critic")("output_layer.weight")
    backbone = AutoModel.from_pretrained(models / name)
    for row, ids in enumerate(sequences(SHAPE["vocab_size"])):
        with torch.no_grad():
            expected = backbone(torch.tensor([ids])).last_hidden_state[0] @ head.T
        assert expected.std() > 0.01
        assert_close(outputs[f"{name}.critic"][row, : len(ids)], expected, name)


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_bf16_logits_are_as_near_the_truth_as_those_of_transformers(models: Path, tmp_path: Path) -> None:
    """The reference is fp32 logits of the same bf16 weights, at TP2 x PP2, which rounds sums once more. The largest
    error is under twice that of transformers in bf16, and under 2.5e-2 of the largest logit."""
    outputs = megatron_outputs(models, tmp_path / "out.pt", 2, 2, "bf16")
    for name in CONFIGS:
        bf16_logits = transformers_logits(models / name, torch.bfloat16)
        fp32_logits = transformers_logits(models / name, upcast=True)
        for row, (bf16, fp32) in enumerate(zip(bf16_logits, fp32_logits, strict=True)):
            error = (outputs[name][row, : len(fp32)] - fp32).abs().max()
            assert 0 < error < 2 * (bf16 - fp32).abs().max(), name
            assert error < 2.5e-2 * fp32.abs().max(), name
