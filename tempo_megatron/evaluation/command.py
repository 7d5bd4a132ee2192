"""`tempo eval` from its request to its results."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from tempo_megatron.config import ConfigError, Numerics, ParallelConfig, Precision
from tempo_megatron.data.templates import end_token_ids
from tempo_megatron.evaluation.benchmarks import Benchmark
from tempo_megatron.evaluation.plan import Plan, make_plan
from tempo_megatron.evaluation.report import write_results
from tempo_megatron.evaluation.request import EvaluationRequest
from tempo_megatron.evaluation.store import Record, SampleFile, open_directory
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.launch import slurm, torchrun
from tempo_megatron.megatron import topology
from tempo_megatron.training.phases.evaluate import response_record
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.grade import graded_answers
from tempo_megatron.training.phases.token_samples import Decode
from tempo_megatron.utils.distributed import broadcast_from_first, rank_and_ranks
from tempo_megatron.utils.logs import get_logger
from tempo_megatron.utils.terminal import print_markdown, refuse

logger = get_logger(__name__)

_BATCHES_PER_CALL = 4
"""One generate call has the requests of so many engine batches. The engine idles at a call's end, and an interruption
loses one call."""


def evaluate_model(request: EvaluationRequest, arguments: Sequence[str]) -> int:
    """Evaluates a model and returns the exit code: 0 success, 1 failure, 2 bad input (nothing was written).

    A process that is no rank starts the ranks, with `arguments` as their command line.
    """
    try:
        slurm.join_step()
        plan = make_plan(request)
    except ConfigError as error:
        return refuse("tempo eval: this cannot run", error)
    if not torchrun.is_rank():
        return torchrun.launch_ranks(arguments, plan.config.parallel.processes_per_node)
    topology.initialize(ParallelConfig(), plan.config.seed)
    evaluate(plan, _generator(plan))
    topology.shutdown()
    return 0


def evaluate(plan: Plan, engine: Engine) -> None:
    """Samples the questions that the directory has no samples of, then writes the results. Collective; the first rank
    writes."""

    def decode(ids: Sequence[int]) -> str:
        text: str = plan.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    is_first = rank_and_ranks()[0] == 0
    if is_first:
        open_directory(plan.out, plan.settings())
    with contextlib.closing(RolloutGrader(decode, plan.config.grading)) as grader:
        samples = {
            benchmark.name: _sample(benchmark, plan, engine, grader, decode, is_first) for benchmark in plan.benchmarks
        }
    if is_first:
        if grader.errors or grader.timeouts:
            logger.warning(
                f"graders failed on {grader.errors} responses and timed out on {grader.timeouts}: they count as wrong"
            )
        print_markdown(f"\n{write_results(plan, samples)}\n{plan.out / 'results.json'}")


def _sample(
    benchmark: Benchmark, plan: Plan, engine: Engine, grader: RolloutGrader, decode: Decode, is_first: bool
) -> dict[str, list[Record]]:
    """Returns the samples of each question by prompt id. Ranks other than the first do not keep those that they
    sample."""
    protocol = benchmark.protocol
    file = SampleFile(plan.out, benchmark.name, protocol.samples)
    samples = file.resume() if is_first else {}
    sampled_ids = broadcast_from_first(set(samples))
    missing = [prompt for prompt in benchmark.prompts if prompt.id not in sampled_ids]
    questions_per_call = _questions_per_call(plan, protocol.samples)
    for start in range(0, len(missing), questions_per_call):
        prompts = missing[start : start + questions_per_call]
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
        graded = graded_answers(grader, rollouts, benchmark.answers)
        if is_first:
            records = [response_record(*pair, decode) for pair in zip(rollouts, graded, strict=True)]
            file.append(records)
            for sample in records:
                samples.setdefault(sample["prompt"], []).append(sample)
            logger.info(f"{benchmark.name}: {len(samples)} of {len(benchmark.prompts)} questions")
    return samples


def _questions_per_call(plan: Plan, samples: int) -> int:
    replicas = rank_and_ranks()[1] // plan.tensor_parallel_size
    return max(1, _BATCHES_PER_CALL * plan.config.generation.max_num_seqs * replicas // samples)


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
        numerics=Numerics.default,  # Exact numerics are for the comparison with a trainer, which is not here.
    )
