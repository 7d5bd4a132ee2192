"""The load-balancing loss in every layout, against its formula in float64 on top of transformers' model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from tests.models import split_experts, write_model
from tests.parallel.family_worker import LENGTHS, rollouts
from tests.parallel.test_family_gradients import ALONE, PACKED, compute, distances, transformers_gradients

MODEL = "qwen3-moe"
COEFFICIENT = 0.5
BALANCED = (f"policy.aux_loss_coefficient={COEFFICIENT}", f"critic.aux_loss_coefficient={COEFFICIENT}")
EP2 = "parallel.expert_model_parallel_size=2"
TP2 = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
PP2_VPP2 = ("parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2")
ROWS = len(LENGTHS)
LAYOUTS = {
    "packed": (1, 1, (PACKED,)),
    "micro-batches": (1, ROWS, (ALONE,)),
    "experts recomputed": (1, ROWS, (ALONE, "model.recompute=mlp")),
    "all recomputed": (1, ROWS, (ALONE, "model.recompute=full")),
    "EP2 with an empty micro-batch": (2, ROWS, (ALONE, EP2)),
    "TP2 with SP x EP2": (2, 1, (PACKED, *TP2, EP2)),
    "CP2 x EP2": (2, 1, (PACKED, EP2, "parallel.context_parallel_size=2")),
    "PP2": (2, ROWS, (ALONE, "parallel.pipeline_model_parallel_size=2")),
    "PP2 x VPP2": (2, ROWS, (ALONE, *PP2_VPP2)),
}
"""Name -> ranks, micro-batches with rows, settings. One micro-batch has all rows; several have one each, or none.
Under tensor and context parallelism rows are padded."""


def losses_and_gradients(directory: Path) -> tuple[dict[bool, float], dict[bool, dict[str, Tensor]]]:
    """Returns the sum of the loss over the micro-batches of a layout, and its gradient by Hugging Face name, both by
    whether every row is a micro-batch of its own; a layer's loss is E * sum over experts of f P. The loss is the mean
    over layers, the gradient that of their sum."""
    losses, gradients = {}, {}
    for is_alone in (True, False):
        model = AutoModel.from_pretrained(directory)
        model.embed_tokens.padding_idx = None  # It would drop the gradient of token 0, which the rollouts contain.
        batch = rollouts(model.config.vocab_size)
        layers = [layer.mlp for layer in model.layers if hasattr(layer.mlp, "gate")]
        logits: list[list[Tensor]] = [[] for _ in layers]
        for router, outputs in zip(layers, logits, strict=True):

            def keep(gate: torch.nn.Module, inputs: tuple[Tensor], _: object, outputs: list[Tensor] = outputs) -> None:
                outputs.append(torch.nn.functional.linear(inputs[0].flatten(0, -2), gate.weight).double())

            router.gate.register_forward_hook(keep)
        for tokens, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
            model(tokens[None, :length])
        experts, experts_per_token = model.config.num_experts, model.config.num_experts_per_tok
        parts = []
        for outputs in logits:
            for group in outputs if is_alone else [torch.cat(outputs)]:
                probabilities = group.softmax(-1)
                chosen = torch.zeros_like(group).scatter(1, group.topk(experts_per_token).indices, 1.0)
                shares = chosen.mean(0) / experts_per_token
                parts.append(experts * (shares * probabilities.mean(0)).sum())
        torch.stack(parts).sum().backward()
        losses[is_alone] = float(torch.stack(parts).sum()) / len(layers)
        named = {f"model.{name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
        gradients[is_alone] = split_experts(named)
    return losses, gradients


def test_gradients_and_losses_are_those_of_the_formula_in_every_layout(tmp_path: Path) -> None:
    """In fp32, for policy and critic: the whole gradient, each tensor's, and the recorded loss. Protects from padding
    that counts, from micro-batches or ranks that count twice or not at all, and from an empty micro-batch that makes
    0 / 0. Without the loss the gradients are far off."""
    write_model(MODEL, tmp_path / MODEL, max_position_embeddings=2048)
    roles = ("policy", "critic")
    plain = {role: transformers_gradients(tmp_path / MODEL, role) for role in roles}
    losses, gradients = losses_and_gradients(tmp_path / MODEL)
    actual = {}
    for ranks in (1, 2):
        cases = {
            name: (MODEL, (*settings, *BALANCED)) for name, (size, _, settings) in LAYOUTS.items() if size == ranks
        }
        actual |= compute(tmp_path, ranks, cases, "fp32")
    for name, (_, count, settings) in LAYOUTS.items():
        is_alone = ALONE in settings
        added = {key: COEFFICIENT * gradient / count for key, gradient in gradients[is_alone].items()}
        expected = {
            role: {key: value + added[key].float() if key in added else value for key, value in plain[role].items()}
            for role in roles
        }
        shares = distances(actual[name], expected)
        assert max(shares.values()) < 1e-5, (name, shares)
        without = {role: {**plain[role], "norm": actual[name][role]["norm"]} for role in roles}
        assert min(distances(without, expected)[f"{role} gradient"] for role in roles) > 0.01
        for role in roles:
            mean_loss = losses[is_alone] / (ROWS if is_alone else 1)
            assert float(actual[name][role]["aux_loss"]) == pytest.approx(mean_loss, rel=1e-5)
