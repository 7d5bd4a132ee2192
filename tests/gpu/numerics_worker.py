"""A rank of test_numerics: log-probs of generator and policy under exact numerics, in the cases that part them first.

usage: numerics_worker.py DIRECTORY key=value ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.requests import Request
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.training.phases.scoring import policy_scores, to_batch

PROMPTS, LONGEST_PROMPT, LONGEST_RESPONSE = 256, 1500, 2048
CACHE_BYTES = 2**27
"""The bytes of KV cache of all ranks together. So few preempt requests."""
TOKENS_PER_STEP = 512
"""The longest prompts are read in three steps."""


def main(directory: str, *overrides: str) -> None:
    hf_path = Path(directory)
    config = load_config(
        None,
        [
            f"run_dir={directory}/run",
            f"model.hf_path={directory}",
            "model.precision=bf16",
            "numerics=exact",
            f"data.max_prompt_tokens={LONGEST_PROMPT}",
            f"generation.max_response_tokens={LONGEST_RESPONSE}",
            f"generation.max_num_seqs={PROMPTS}",
            "policy.micro_batch_tokens=8192",
            "policy.optimizer.learning_rate=1e-3",
            "generation.gpu_memory_utilization=0.1",
            *overrides,
        ],
    )
    ranks = topology.initialize(config.parallel, config.seed)
    settings = hf_config.backbone_settings(hf_files.read_config(hf_path))
    entries = decoder.policy_mappings(settings)
    chunks = model.build_model("policy", settings, config, ranks)
    weights.load_hf_weights(chunks, entries, hf_files.HfReader(hf_path), ranks, critic=False)
    policy = Trainer(chunks, config.policy.optimizer, config, ranks, config.policy.micro_batch_tokens)
    set_engine(kv_cache_memory_bytes=CACHE_BYTES // ranks.world_size, max_num_batched_tokens=TOKENS_PER_STEP)
    generator = Generator(
        hf_path,
        config.generation,
        tensor_parallel_size=ranks.tensor_size,
        max_model_len=LONGEST_PROMPT + LONGEST_RESPONSE,
        dtype=torch.bfloat16,
        eos_token_ids=[],
        seed=0,
        numerics=config.numerics,
        weights=lambda: weights.export_hf_weights(chunks, entries, ranks),
    )
    score = policy_scores(settings.vocab_size, 1.0, ranks, config.numerics)()
    prompts = draw_prompts(settings.vocab_size)

    def generate(seed: int) -> list[Rollout]:
        """Returns a response to each prompt. A few are long, so that the batch shrinks slowly."""
        requests = [
            Request(prompt, seed + number, LONGEST_RESPONSE if number % 32 == 0 else 8 + number, 1.0, 1.0)
            for number, prompt in enumerate(prompts)
        ]
        completions = generator.generate(requests)
        return [
            Rollout(Prompt(str(number), prompt, "test", "exact"), 0, each.response_ids, each.log_probs, "length")
            for number, (prompt, each) in enumerate(zip(prompts, completions, strict=True))
        ]

    def scored(rollouts: Sequence[Rollout], case: str) -> tuple[Batch, Tensor]:
        """Returns the batch and the policy's log-probs, which equal the generator's."""
        batch = to_batch(rollouts)
        log_probs = policy.score(batch, score)["log_probs"]
        generated = torch.tensor([log_prob for rollout in rollouts for log_prob in rollout.generator_log_probs])
        differing = int((log_probs[batch.response_mask] != generated).sum())
        if ranks.rank == 0:
            print(f"{case}: {differing} of {len(generated)} log-probs differ", flush=True)
        assert not differing, case
        return batch, log_probs

    rollouts = generate(1000)
    assert generator.take_figures()["preemptions"] > 0
    batch, log_probs = scored(rollouts, "first weights, preemption, chunked prefill")
    scored(generate(2000), "prompts in the prefix cache")
    batch = batch.with_columns(old_log_probs=log_probs)

    def loss(scores: dict[str, Tensor], rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = (scores["log_probs"] - rows.columns["old_log_probs"]).exp()
        deviation = torch.where(rows.response_mask, (ratio.detach() - 1).abs(), 0.0).amax(1)
        return torch.where(rows.response_mask, ratio, 0.0).sum() / batch.response_mask.sum(), {"deviation": deviation}

    reported, norm = policy.step(batch, score, loss)
    if ranks.rank == 0:
        print(f"gradient norm {norm:.9g}", flush=True)  # Recomputation changes only its rounding.
    assert reported["deviation"].max() == 0  # The first ratios are exactly 1.
    generator.sleep()
    generator.load_weights()
    updated = generate(1000)
    assert [rollout.response_ids for rollout in updated] != [rollout.response_ids for rollout in rollouts]
    scored(updated, "after a step, sleep and sync")


def draw_prompts(vocab_size: int) -> list[tuple[int, ...]]:
    """Returns prompts of 3 to 1,500 tokens. Half of them begin alike, as the samples of a prompt do."""
    random = torch.Generator().manual_seed(0)
    begin = torch.randint(vocab_size, (700,), generator=random).tolist()
    prompts = []
    for number in range(PROMPTS):
        length = 3 + (LONGEST_PROMPT - 3) * (number % 8) // 7 if number % 16 == 7 else 3 + 7 * (number % 60)
        tokens = torch.randint(vocab_size, (length,), generator=random).tolist()
        prompts.append(tuple((begin + tokens if number % 2 else tokens)[:LONGEST_PROMPT]))
    return prompts


def set_engine(**settings: Any) -> None:
    """Gives every engine that starts in this process these settings, which recipes do not have."""
    import vllm

    original = vllm.LLM
    vllm.LLM = lambda **others: original(**{**others, **settings})


if __name__ == "__main__":
    main(*sys.argv[1:])
