"""The rank of test_expert_generation: an engine with experts gets the trainer's weights, twice.

The prompts have two whole blocks of the prefix cache, which later samples find there.

usage: expert_generation_worker.py MODEL
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tempo_megatron.config import load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.generation.checksums import expected_checksums
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.experts import LiveExperts, is_expert
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.weights import export_hf_weights
from tests.models import split_experts
from tests.parallel.prefix_cache_worker import BLOCK, cached_blocks, make_engines_with_prefix_cache, start_engine


class Routed:
    """Transformers' model, with the experts that it chooses for the tokens of the last forward pass."""

    def __init__(self, hf_model: PreTrainedModel, sparse_layers: Sequence[bool]) -> None:
        self.hf_model = hf_model
        self._sparse_layers = sparse_layers

    @torch.no_grad()
    def log_probs_and_routes(self, request: Request, response: Completion) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns log-probs [response] and, by layer, the chosen experts [tokens, experts per token], sorted."""
        ids = torch.tensor([[*request.prompt_ids, *response.response_ids]])
        output = self.hf_model(ids, output_router_logits=True)
        log_probs = output.logits[0].log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        chosen = torch.tensor(response.response_ids)[:, None]
        layers = [layer for layer, is_sparse in enumerate(self._sparse_layers) if is_sparse]
        top_k = self.hf_model.config.num_experts_per_tok
        routes = {
            layer: logits.topk(top_k).indices.sort(-1).values
            for layer, logits in zip(layers, output.router_logits, strict=True)
        }
        return log_probs.gather(1, chosen)[:, 0], routes


def check(reference: Routed, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
    """Log-probs are those of transformers with a mean difference below 1e-5, and tokens are routed alike."""
    differences, alike = [], []
    for request, completion in zip(requests, completions, strict=True):
        log_probs, routes = reference.log_probs_and_routes(request, completion)
        differences.append((log_probs - torch.tensor(completion.log_probs)).abs())
        assert completion.routes is not None
        tokens = len(request.prompt_ids) + len(completion.response_ids)
        assert len(completion.routes) == tokens - 1 and completion.routes.dtype == np.uint8
        for layer, expected in routes.items():
            returned = torch.from_numpy(completion.routes[:, layer].astype(np.int64)).sort(-1).values
            alike.append((returned == expected[:-1]).all(-1))
    mean = torch.cat(differences).mean()
    assert mean < 1e-5, mean
    assert torch.cat(alike).float().mean() > 0.999, torch.cat(alike).float().mean()


def main(path: str) -> None:
    torch.set_num_threads(1)
    config = load_config(None, ["model.precision=fp32"])
    place = topology.initialize(config.parallel, seed=0)
    settings = hf_config.backbone_settings(hf_files.read_config(Path(path)))
    assert settings.experts
    entries = decoder.policy_mappings(settings)
    policy = model.build_model("policy", settings, config, place)
    weights.BUCKET_BYTES = 2**15
    make_engines_with_prefix_cache()
    reader = hf_files.HfReader(Path(path))
    weights.load_hf_weights(policy, entries, reader, place, critic=False)
    source = partial(export_hf_weights, policy, entries, place)
    generator = start_engine(Path(path), source, returns_routes=True)
    prompts = [tuple(3 + (7 * i + n) % 50 for i in range(2 * BLOCK + 3 + n)) for n in range(4)]
    requests = [Request(prompts[n % 4], 1000 + n, 8, 1.0, 1.0, needs_routes=True) for n in range(12)]
    reference = Routed(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), settings.sparse_layers)

    completions = generator.generate(requests)
    check(reference, requests, completions)
    assert cached_blocks(generator) >= 8
    cached = generator.generate(requests[::-1])[::-1]  # their prompts are in the prefix cache
    assert cached == completions
    for first, again in zip(completions, cached, strict=True):
        assert first.routes is not None and again.routes is not None
        assert np.array_equal(np.sort(first.routes), np.sort(again.routes))
    assert generator.generate(requests[5:6]) == completions[5:6]

    noise = torch.Generator().manual_seed(1)
    changed = {}
    with torch.no_grad():
        for name, tensor in reference.hf_model.named_parameters():
            tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=noise))
            changed[name] = tensor.data
    changed = split_experts(changed)
    weights.load_hf_weights(policy, entries, lambda name: changed[name], place, critic=False)
    generator.load_weights()
    others = generator.generate(requests)
    assert others != completions
    check(reference, requests, others)

    expected = {name: expected_checksums(name, tensor, 0, 1) for name, tensor in changed.items()}
    generator.check(expected)
    layer = settings.sparse_layers.index(True)
    for projection in ("gate", "up", "down"):
        name = f"model.layers.{layer}.mlp.experts.3.{projection}_proj.weight"
        other = changed[name].clone()
        other[1, 2] += 1e-3
        try:
            generator.check({**expected, name: expected_checksums(name, other, 0, 1)})
        except RuntimeError as error:
            assert str(error).endswith(f": {name}"), error
        else:
            raise AssertionError("a changed element of an expert was not noticed")
    receives_experts_in_live_parameters(generator, {name: tensor * 0.5 for name, tensor in changed.items()}, expected)
    topology.shutdown()


def receives_experts_in_live_parameters(
    generator: Generator, halved: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Checks what GPUs do: experts are written into the live parameters, and a layer is complete with its last one."""
    experts = [name for name in halved if is_expert(name)]

    def load(llm_model: Any) -> None:
        live = LiveExperts(llm_model, 0, 1)
        for name in experts[:-1]:
            live.load(name, halved[name])
        incomplete = live.complete_parameters()
        live.load(experts[-1], halved[experts[-1]])
        held = {name for name, _ in llm_model.named_parameters() if ".experts." in name and "gate" not in name}
        assert live.complete_parameters() == held and len(held - incomplete) == 2

    generator._llm.apply_model(load)
    generator.check(expected | {name: expected_checksums(name, halved[name], 0, 1) for name in experts})


if __name__ == "__main__":
    main(*sys.argv[1:])
