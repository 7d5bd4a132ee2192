"""`tempo doctor --numerics`: runs a few tokens through generator and policy and says where their bits first differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from tempo_megatron.config import Config, Precision
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.observed_outputs import OutputRecorder
from tempo_megatron.generation.requests import Request
from tempo_megatron.kernels.operations import ORDER, Outputs
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.observed_outputs import recorded_outputs
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.training.phases.scoring import policy_scores, to_batch

_PROMPT_TOKENS, _RESPONSE_TOKENS = (3, 40, 300), 16
"""Tokens of each prompt, and of each response, where the recipe allows as many."""
_GENERATOR_MEMORY = 0.4
"""The share of a GPU for the generator: the policy stays on it too."""


@dataclass(frozen=True)
class Difference:
    """The first operation whose outputs differ, and the first token for which they do."""

    layer: int
    operation: str
    token: int
    entries: int
    """The number of entries of this token's output that differ."""
    width: int
    generator: float
    """The first differing entry."""
    policy: float

    def __str__(self) -> str:
        return (
            f"token {self.token}, layer {self.layer}, {self.operation}: {self.entries} of {self.width} entries differ; "
            f"the first is {self.generator:.9g} in the generator and {self.policy:.9g} in the policy"
        )


def compare_numerics(config: Config) -> list[str]:
    """Returns a line for each prompt whose generator and policy differ, on every rank. Collective.

    The ranks are those of one tensor-parallel replica. The engine runs eagerly and one request at a time.
    """
    config = _for_comparison(config)
    ranks = topology.initialize(config.parallel, config.seed)
    hf_path = Path(config.model.hf_path)
    settings = hf_config.backbone_settings(hf_files.read_config(hf_path))
    chunks = model.build_model("policy", settings, config, ranks)
    entries = decoder.policy_mappings(settings)
    if config.policy.checkpoint:
        dist_checkpoint.load_weights(Path(config.policy.checkpoint), "policy", chunks)
    else:
        weights.load_hf_weights(chunks, entries, hf_files.HfReader(hf_path), ranks, critic=False)
    policy = MegatronModel(chunks, config, ranks, config.policy.micro_batch_tokens)
    generator = Generator(
        hf_path,
        config.generation,
        tensor_parallel_size=ranks.tensor_size,
        max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
        dtype=torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32,
        eos_token_ids=[],
        seed=config.seed,
        weights=lambda: weights.export_hf_weights(chunks, entries, ranks),
        numerics=config.numerics,
    )
    score = policy_scores(settings.vocab_size, config.generation.temperature, ranks, config.numerics)()
    lines = []
    for number, request in enumerate(_requests(config, settings.vocab_size)):
        generated, rollout = _generate(generator, request)
        with recorded_outputs(chunks[0], ranks) as computed:
            log_probs = policy.score(to_batch([rollout]), score)["log_probs"]
        prompt = len(request.prompt_ids)
        difference = first_difference(generated, computed, prompt + len(rollout.response_ids))
        trainer = log_probs[0, prompt : prompt + len(rollout.response_ids)]
        sampled = torch.tensor(rollout.generator_log_probs)
        line = str(difference) if difference else None
        if line is None and not torch.equal(trainer, sampled):
            token = int((trainer != sampled).nonzero()[0])
            line = (
                f"token {prompt + token}, output layer and log-softmax: log-prob {float(sampled[token]):.9g} in the "
                f"generator and {float(trainer[token]):.9g} in the policy"
            )
        if line := _first_of_ranks(line):
            lines.append(f"prompt {number} of {prompt} tokens: {line}")
    return lines


def first_difference(generator: Outputs, policy: Outputs, tokens: int) -> Difference | None:
    """Returns where the outputs of a sequence of `tokens` first differ, in the order of a forward pass, or None.

    Operations that only one of the two has are left out. The generator may have read the last token or not, and the
    policy has padding.
    """
    for layer, operation in sorted(generator.keys() & policy.keys(), key=lambda key: (key[0], ORDER[key[1]])):
        read = min(tokens, len(generator[layer, operation]))
        sampled, trained = generator[layer, operation][:read], policy[layer, operation][:read]
        differing = sampled != trained
        if differing.any():
            token = int(differing.any(1).nonzero()[0])
            entry = int(differing[token].nonzero()[0])
            return Difference(
                layer=layer,
                operation=operation.value,
                token=token,
                entries=int(differing[token].sum()),
                width=sampled.shape[1],
                generator=float(sampled[token, entry]),
                policy=float(trained[token, entry]),
            )
    return None


def _for_comparison(config: Config) -> Config:
    """Returns the config of one tensor-parallel replica whose engine runs eagerly."""
    parallel = dataclasses.replace(
        config.parallel,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=1,
        context_parallel_size=1,
    )
    share = min(_GENERATOR_MEMORY, config.generation.gpu_memory_utilization)
    generation = dataclasses.replace(config.generation, enforce_eager=True, gpu_memory_utilization=share, sleep=False)
    return dataclasses.replace(config, parallel=parallel, generation=generation)


def _requests(config: Config, vocab_size: int) -> Iterator[Request]:
    for length in dict.fromkeys(min(tokens, config.data.max_prompt_tokens) for tokens in _PROMPT_TOKENS):
        random = torch.Generator().manual_seed(derive_seed(config.seed, "numerics", length))
        prompt = torch.randint(vocab_size, (length,), generator=random).tolist()
        tokens = min(_RESPONSE_TOKENS, config.generation.max_response_tokens)
        yield Request(
            tuple(prompt), derive_seed(config.seed, "response", length), tokens, config.generation.temperature, 1.0
        )


def _generate(generator: Generator, request: Request) -> tuple[Outputs, Rollout]:
    recorder = OutputRecorder()
    generator.apply(recorder.start)
    (completion,) = generator.generate([request])
    prompt = Prompt("numerics", request.prompt_ids, "doctor", "exact")
    return recorder.stop(), Rollout(prompt, 0, completion.response_ids, completion.log_probs, completion.finish_reason)


def _first_of_ranks(line: str | None) -> str | None:
    lines: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    return next((f"rank {rank}, {each}" if len(lines) > 1 else each for rank, each in enumerate(lines) if each), None)
