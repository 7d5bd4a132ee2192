"""Router replay: tokens go to the experts that they are told, in every layout, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.megatron.batch import Batch
from tests.models import split_experts, write_model
from tests.parallel.family_worker import random_routes, rollouts
from tests.parallel.launcher import run_ranks
from tests.parallel.test_family_gradients import ALONE, PACKED, compute, distances

REPLAY = "policy.router_replay=generator"
OLD_LOG_PROBS = "policy.router_replay=old_log_probs"
CASES = {
    "packed": (PACKED, REPLAY),
    "micro-batches": ("policy.micro_batch_tokens=400", REPLAY),
    "alone": (ALONE, REPLAY),
    "recompute full": ("policy.micro_batch_tokens=400", "model.recompute=full", REPLAY),
    "own routes": (PACKED,),
}
SMALL = "policy.micro_batch_tokens=800"
EP2 = "parallel.expert_model_parallel_size=2"
TP2 = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
LAYOUTS = {
    "EP2 recompute mlp": (SMALL, EP2, "model.recompute=mlp", REPLAY),
    "TP2 with SP x EP2": (SMALL, EP2, *TP2, REPLAY),
    "CP2 x EP2": (SMALL, EP2, "parallel.context_parallel_size=2", REPLAY),
    "PP2": (SMALL, "parallel.pipeline_model_parallel_size=2", "model.recompute=full", REPLAY),
    "EP2 with an empty micro-batch": (ALONE, EP2, REPLAY),
    "PP2 x VPP2 with an empty micro-batch": (
        ALONE,
        "parallel.pipeline_model_parallel_size=2",
        "parallel.virtual_pipeline_model_parallel_size=2",
        "model.recompute=full",
        REPLAY,
    ),
}
"""On two ranks."""


@contextmanager
def forced_routes(model: Any) -> Iterator[list[Tensor]]:
    """Lets the routers of transformers' model take, layer by layer, the experts of a list: [tokens, experts per token]
    each."""
    routes: list[Tensor] = []
    hooks = []
    for number, layer in enumerate(model.model.layers):
        if not hasattr(layer.mlp, "gate"):
            continue

        def forced(router: Any, inputs: tuple[Tensor], _: Any, number: int = number) -> tuple[Tensor, ...]:
            logits = torch.nn.functional.linear(inputs[0].flatten(0, -2), router.weight)
            weights = logits.softmax(-1).gather(1, routes[number])
            if router.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, routes[number]

        hooks.append(layer.mlp.gate.register_forward_hook(forced))
    yield routes
    for hook in hooks:
        hook.remove()


def old_routes(model: Any, batch: Batch, layers: int) -> tuple[Tensor, ...]:
    """Returns the experts that the routers of transformers' model choose: [length - 1, layers, experts per token]."""
    chosen: list[Tensor] = []
    hooks = []
    for number, layer in enumerate(model.model.layers):
        if not hasattr(layer.mlp, "gate"):
            continue

        def keep(router: Any, inputs: tuple[Tensor], _: Any, number: int = number) -> None:
            logits = torch.nn.functional.linear(inputs[0].flatten(0, -2), router.weight)
            chosen[number] = logits.topk(router.top_k).indices

        hooks.append(layer.mlp.gate.register_forward_hook(keep))
    routes = []
    for tokens, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
        chosen[:] = [torch.zeros(length, model.config.num_experts_per_tok, dtype=torch.int64)] * layers
        with torch.no_grad():
            model(tokens[None, :length])
        routes.append(torch.stack(chosen, 1)[:-1])
    for hook in hooks:
        hook.remove()
    return tuple(routes)


def transformers_gradients(directory: Path, *, replays_old: bool = False) -> dict[str, Tensor]:
    """Returns losses and gradients of the worker's policy, computed by transformers one sequence at a time.

    The experts are random, or with `replays_old` those that the routers chose before their weights were negated.
    """
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.embed_tokens.padding_idx = None  # It would drop the gradient of token 0, which the rollouts contain.
    settings = hf_config.backbone_settings(hf_files.read_config(directory))
    batch = rollouts(settings.vocab_size)
    routes = old_routes(model, batch, settings.num_layers) if replays_old else random_routes(settings, batch)
    if replays_old:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.data.neg_()
    losses = []
    with forced_routes(model) as forced:
        for row, (length, route) in enumerate(zip(batch.lengths.tolist(), routes, strict=True)):
            tokens, mask = batch.tokens[row, :length], batch.response_mask[row, :length]
            whole = torch.cat([route, route[-1:]]).long()  # The last token's experts change no loss.
            forced[:] = whole.unbind(1)
            log_probs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            chosen = log_probs.gather(1, tokens[1:, None])[:, 0]
            weighted = -chosen * batch.columns["advantages"][row, 1:length] - 0.01 * entropy
            losses.append((weighted * mask[1:]).sum())
    loss = torch.stack(losses) / batch.response_mask.sum()
    loss.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **split_experts(gradients)}


@pytest.mark.parametrize("model", ["qwen3-moe", "olmoe"])
def test_gradients_under_replay_are_those_of_a_reference_with_the_same_routes(model: str, tmp_path: Path) -> None:
    """In fp32: losses, the whole gradient, and that of every expert and router agree with transformers, whose tokens
    are sent to the same random experts. So they do in several micro-batches, and with recomputation, whose backward
    pass must not take the experts of another micro-batch. Without replay they are far off."""
    write_model(model, tmp_path / model, max_position_embeddings=2048)
    cases = {name: (model, settings) for name, settings in CASES.items()}
    actual = compute(tmp_path, 1, cases, "fp32")
    expected = {"policy": transformers_gradients(tmp_path / model)}
    shares = {name: max(distances(measured, expected).values()) for name, measured in actual.items()}
    own = shares.pop("own routes")
    assert own > 0.1
    assert max(shares.values()) < 1e-5, shares


def test_gradients_under_replay_are_the_same_in_every_layout(tmp_path: Path) -> None:
    """Each rank takes the experts of its own tokens: its pieces of sequences under context parallelism, its part of
    them under sequence parallelism, and its layers under pipeline parallelism, whose stages go back and forth in
    turn. Here one layer of four is dense."""
    name = "qwen3-moe"
    write_model(name, tmp_path / name, max_position_embeddings=2048)
    actual = compute(tmp_path, 2, {layout: (name, settings) for layout, settings in LAYOUTS.items()}, "fp32")
    expected = {"policy": transformers_gradients(tmp_path / name)}
    shares = {layout: max(distances(measured, expected).values()) for layout, measured in actual.items()}
    assert max(shares.values()) < 1e-5, shares


def test_updates_replay_the_routes_of_the_old_log_probs(tmp_path: Path) -> None:
    """The policy scores the rollouts, its routers are negated, and it makes a step: in every layout the gradients are
    those of transformers with the negated routers and the old experts. Protects from routes of another token, layer,
    row or rank. Without replay the tokens would go to their worst experts."""
    name = "qwen3-moe"
    write_model(name, tmp_path / name, max_position_embeddings=2048)
    expected = {"policy": transformers_gradients(tmp_path / name, replays_old=True)}
    shares = {}
    for ranks, layouts in ((1, {"micro-batches": CASES["micro-batches"]}), (2, LAYOUTS)):
        cases = {
            layout: (name, tuple(OLD_LOG_PROBS if each == REPLAY else each for each in settings))
            for layout, settings in layouts.items()
        }
        actual = compute(tmp_path, ranks, cases, "fp32")
        shares |= {layout: max(distances(measured, expected).values()) for layout, measured in actual.items()}
    assert max(shares.values()) < 1e-5, shares


def test_a_deleted_model_is_freed_after_a_step(tmp_path: Path) -> None:
    """Token dispatchers keep tensors of the last pass, whose autograd graph refers to the model. Protects from a model
    that stays in memory once it is deleted."""
    write_model("qwen3-moe", tmp_path / "model", max_position_embeddings=2048)
    run_ranks(Path(__file__).with_name("released_worker.py"), 1, tmp_path / "model")
