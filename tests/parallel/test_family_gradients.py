"""Losses and gradients of every layout on packed sequences, against single sequences in one process.

Those of models with experts are compared with transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tempo_megatron.config import Config
from tempo_megatron.conversion.critics import fresh_value_head
from tests.models import split_experts, write_model
from tests.parallel.family_worker import rollouts
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("family_worker.py")
FAMILIES = ("qwen3", "olmo-3")
PACKED = "policy.micro_batch_tokens=2048"
ALONE = "policy.micro_batch_tokens=1"
"""A budget below the length of every sequence, so that each is packed alone."""
TP2 = "parallel.tensor_model_parallel_size=2"
SHARED = "shared kernels"
"""The policy's layers for `numerics: exact`, which OLMo 3 has not."""
LAYOUTS = {
    "alone": (1, (ALONE,)),
    "packed": (1, (PACKED,)),
    "recompute mlp": (1, (PACKED, "model.recompute=mlp")),
    SHARED: (1, (PACKED, "numerics=exact")),
    f"{SHARED}, recompute mlp": (1, (PACKED, "model.recompute=mlp", "numerics=exact")),
    f"{SHARED}, recompute full": (1, (PACKED, "model.recompute=full", "numerics=exact")),
    "recompute full": (1, (PACKED, "model.recompute=full")),
    "TP2": (2, (PACKED, TP2)),
    "TP2 with SP": (2, (PACKED, TP2, "parallel.sequence_parallel=true")),
    f"{SHARED}, TP2 with SP": (2, (PACKED, TP2, "parallel.sequence_parallel=true", "numerics=exact")),
    "PP2": (2, (PACKED, "parallel.pipeline_model_parallel_size=2")),
    "PP2 x VPP2": (
        2,
        (PACKED, "parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"),
    ),
    "CP2": (2, (PACKED, "parallel.context_parallel_size=2")),
    "DP2": (2, (PACKED,)),
}
"""Name -> ranks, settings."""

Gradients = dict[str, dict[str, dict[str, Tensor]]]
"""Case -> role -> Hugging Face name, or `loss` [rows] -> tensor."""


def write_models(directory: Path, **shape: int) -> None:
    heads = shape["num_attention_heads"]
    for name in FAMILIES:
        groups = heads if name == "olmo-3" else heads // 2
        config = {"num_key_value_heads": groups, "vocab_size": 1000, "max_position_embeddings": 2048, **shape}
        write_model(name, directory / name, dtype=torch.bfloat16, **config)


def compute(models: Path, ranks: int, cases: dict[str, tuple[str, tuple[str, ...]]], precision: str) -> Gradients:
    """Runs the worker for each case, a family and settings; returns its results."""
    arguments = {
        case: (family, (f"model.precision={precision}", *settings)) for case, (family, settings) in cases.items()
    }
    run_ranks(WORKER, ranks, models, models / f"{ranks}.pt", json.dumps(arguments))
    loaded: Gradients = torch.load(models / f"{ranks}.pt")
    return loaded


def every_layout(ranks: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        f"{family} {name}": (family, settings)
        for family in FAMILIES
        for name, (layout_ranks, settings) in LAYOUTS.items()
        if layout_ranks == ranks and (SHARED not in name or family == "qwen3")
    }


def distances(actual: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Returns relative distances (norm of the difference / norm) of losses, gradients and the worst tensor, and of the
    gradient norm that the optimizer clips by."""
    shares = {}
    for role, reference in expected.items():
        names = [name for name in reference if name not in ("loss", "norm")]
        errors = {name: actual[role][name] - reference[name] for name in names}
        assert all(reference[name].norm() > 0 for name in names)
        shares[f"{role} loss"] = float((actual[role]["loss"] - reference["loss"]).norm() / reference["loss"].norm())
        whole = torch.cat([reference[name].flatten() for name in names])
        shares[f"{role} norm"] = abs(float(actual[role]["norm"] / whole.double().norm()) - 1)
        shares[f"{role} gradient"] = float(torch.cat([e.flatten() for e in errors.values()]).norm() / whole.norm())
        shares[f"{role} worst"] = max(float(error.norm() / reference[name].norm()) for name, error in errors.items())
    return shares


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    models = tmp_path_factory.mktemp("models")
    write_models(models, hidden_size=64, intermediate_size=128, num_attention_heads=4, head_dim=16)
    return compute(models, 1, every_layout(1), "fp32") | compute(models, 2, every_layout(2), "fp32")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in FAMILIES
        for name in LAYOUTS
        if name != "alone" and not (SHARED in name and family == "olmo-3")
    ],
)
def test_every_layout_has_the_losses_and_gradients_of_single_sequences(
    family: str, name: str, results: Gradients
) -> None:
    """In fp32, with lengths from 5 to 700 tokens in one micro-batch, losses, the whole gradient and each tensor's
    gradient agree up to rounding. OLMo 3 has windows, norms after sub-layers, and norms over all heads that
    are split over TP ranks."""
    shares = distances(results[f"{family} {name}"], results[f"{family} alone"])
    assert max(shares.values()) < 2e-5, shares


@pytest.mark.parametrize("name", ["qwen3-moe", "olmoe"])
def test_gradients_of_experts_and_routers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """In fp32 in one process, packed: losses, the whole gradient, and the gradient of every expert's projections and of
    every router agree up to rounding, for policy and critic."""
    write_model(name, tmp_path / name, max_position_embeddings=2048)
    actual = compute(tmp_path, 1, {name: (name, (PACKED,))}, "fp32")[name]
    shares = distances(actual, {role: transformers_gradients(tmp_path / name, role) for role in ("policy", "critic")})
    assert max(shares.values()) < 2e-5, shares


def transformers_gradients(directory: Path, role: str) -> dict[str, Tensor]:
    """Returns what the worker measures, computed by transformers' model one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.embed_tokens.padding_idx = None  # It would drop the gradient of token 0, which the rollouts contain.
    head = fresh_value_head(model.config.hidden_size, Config().seed).requires_grad_()
    batch = rollouts(model.config.vocab_size)
    losses = []
    for tokens, length, mask, advantages in zip(
        batch.tokens, batch.lengths.tolist(), batch.response_mask, batch.columns["advantages"], strict=True
    ):
        tokens, mask, advantages = tokens[:length], mask[:length], advantages[:length]
        if role == "critic":
            values = (model.model(tokens[None]).last_hidden_state[0] @ head.T)[:, 0]
            losses.append(((values - advantages).square() * mask).sum())
            continue
        log_probs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        chosen = log_probs.gather(1, tokens[1:, None])[:, 0]
        losses.append(((-chosen * advantages[1:] - 0.01 * entropy) * mask[1:]).sum())
    loss = torch.stack(losses) / batch.response_mask.sum()
    loss.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    value_head = {"score.weight": head.grad} if head.grad is not None else {}
    return {"loss": loss.detach(), **split_experts(gradients), **value_head}
