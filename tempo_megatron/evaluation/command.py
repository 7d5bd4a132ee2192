"""`tempo eval` from its arguments to its results."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tempo_megatron.config import ConfigError, ParallelConfig, Precision
from tempo_megatron.data.templates import end_token_ids
from tempo_megatron.evaluation.arguments import parse
from tempo_megatron.evaluation.benchmarks import Benchmark
from tempo_megatron.evaluation.plan import Plan, make_plan
from tempo_megatron.evaluation.report import write_results
from tempo_megatron.evaluation.store import Record, SampleFile, open_directory
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import Grader
from tempo_megatron.launch import slurm, torchrun
from tempo_megatron.megatron import topology
from tempo_megatron.training.phases.evaluate import Decode, response_record
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import graded_answers
from tempo_megatron.utils.distributed import from_first, rank_and_ranks

_BAD_INPUT = 2
_BATCHES_AT_ONCE = 4
"""requests of a generate call, in batches of the engine, which runs dry at its end; an interruption costs one call"""


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad input (nothing was started or written)."""
    given = parse(arguments)
    try:
        slurm.join_step()
        plan = make_plan(given)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            lines = "\n".join(f"  {line}" for line in str(error).splitlines())
            print(f"tempo eval: this cannot run:\n{lines}", file=sys.stderr)
        return _BAD_INPUT
    if not torchrun.is_rank():
        return torchrun.launch_ranks(["eval", *arguments], plan.config.parallel.processes_per_node)
    topology.initialize(ParallelConfig(), plan.config.seed)
    evaluate(plan, _generator(plan))
    topology.shutdown()
    return 0


def evaluate(plan: Plan, engine: Engine) -> None:
    """Sample what the directory does not hold yet, then write the results. Collective; the first rank writes."""

    def decode(ids: Sequence[int]) -> str:
        text: str = plan.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    first = rank_and_ranks()[0] == 0
    if first:
        open_directory(plan.out, plan.settings())
    with contextlib.closing(Grader(decode, plan.config.grading)) as grader:
        samples = {made.name: _sample(made, plan, engine, grader, decode, first) for made in plan.benchmarks}
    if first:
        if grader.errors or grader.timeouts:
            _say(f"graders failed on {grader.errors} responses and timed out on {grader.timeouts}: they count as wrong")
        _say(f"\n{write_results(plan, samples)}\n{plan.out / 'results.json'}")


def _sample(
    benchmark: Benchmark, plan: Plan, engine: Engine, grader: Grader, decode: Decode, first: bool
) -> dict[str, list[Record]]:
    """The samples of each question, by prompt id; those of other ranks than the first are not kept."""
    protocol = benchmark.protocol
    file = SampleFile(plan.out, benchmark.name, protocol.samples)
    samples = file.resume() if first else {}
    done = from_first(set(samples))
    missing = [prompt for prompt in benchmark.prompts if prompt.id not in done]
    at_once = _questions_at_once(plan, protocol.samples)
    for start in range(0, len(missing), at_once):
        prompts = missing[start : start + at_once]
        rollouts = generate(
            engine,
            [(f"eval/{benchmark.name}", prompt) for prompt in prompts],
            seed=plan.config.seed,
            iteration=0,
            samples=protocol.samples,
            max_tokens=plan.config.generation.max_response_tokens,
            temperature=protocol.temperature,
            top_p=protocol.top_p,
        )
        judged = graded_answers(grader, rollouts, benchmark.answers)
        if first:
            records = [response_record(*pair, decode) for pair in zip(rollouts, judged, strict=True)]
            file.append(records)
            for made in records:
                samples.setdefault(made["prompt"], []).append(made)
            _say(f"{benchmark.name}: {len(samples)} of {len(benchmark.prompts)} questions")
    return samples


def _questions_at_once(plan: Plan, samples: int) -> int:
    replicas = rank_and_ranks()[1] // plan.tensor_parallel_size
    return max(1, _BATCHES_AT_ONCE * plan.config.generation.max_num_seqs * replicas // samples)


def _generator(plan: Plan) -> Generator:
    config = plan.config
    return Generator(
        Path(config.model.hf_path),
        config.generation,
        tensor_parallel_size=plan.tensor_parallel_size,
        max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
        dtype=torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32,
        eos_token_ids=end_token_ids(plan.config.data, plan.tokenizer),
        seed=config.seed,
    )


def _say(text: str) -> None:
    print(text, flush=True)
