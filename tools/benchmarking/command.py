"""The command: what is asked for, the ranks that do it, the sections one after the other."""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarking.lengths import Lengths
from tempo_megatron.launch import torchrun
from tempo_megatron.planning import shapes

_TRAINING, _ENGINE, _RUN = (
    ("train", "packed", "scores", "kernels"),
    ("rollout", "tail", "sync"),
    ("switch", "iteration"),
)
SECTIONS = (*_TRAINING, *_ENGINE, *_RUN)
_SCRIPT = Path(__file__).parents[1] / "benchmark.py"

_ON_GPUS: dict[str, Any] = {
    "sequence": 8192,
    "sequences": 4,
    "packed_lengths": "median:2048:16384",
    "packed_tokens": 131072,
    "packed_budget": 16384,
    "prompt_tokens": 128,
    "rollout_prompts": 64,
    "rollout_lengths": "uniform:256:768",
    "iteration_lengths": "uniform:2048:4096",
    "tail_live": "1,8,16,32,128,256",
    "tail_context": 2048,
    "tail_steps": 200,
}
_ON_CPUS: dict[str, Any] = {
    "sequence": 64,
    "sequences": 4,
    "packed_lengths": "median:16:48",
    "packed_tokens": 256,
    "packed_budget": 64,
    "prompt_tokens": 8,
    "rollout_prompts": 4,
    "rollout_lengths": "uniform:4:16",
    "iteration_lengths": "uniform:8:16",
    "tail_live": "1,3",
    "tail_context": 8,
    "tail_steps": 2,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmark.py",
        description="Sections: " + ", ".join(SECTIONS) + ". Sizes are smaller without a GPU.",
    )
    parser.add_argument("shape", choices=shapes.SHAPES)
    parser.add_argument("--sections", default=",".join(_TRAINING), help="with commas, or `all`")
    parser.add_argument("--gpus", type=int, default=1, help="ranks to start; none are where torchrun has started them")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--vocabulary", type=int, help="instead of the shape's")
    for short, name in (("tp", "tensor"), ("pp", "pipeline"), ("cp", "context")):
        parser.add_argument(f"--{short}", type=int, default=1, help=f"{name} parallel size")
    parser.add_argument("--fp8", default="none", help="recipes, with commas; rollout and later sections take the last")
    parser.add_argument("--method", default="tempo", help="of the iteration")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--steps", type=int, default=3, help="timed repetitions of each measurement")
    parser.add_argument("--sequence", type=int, help="tokens of a sequence of equal length")
    parser.add_argument("--sequences", type=int, help="those of a step, on each data-parallel rank")
    parser.add_argument("--packed-lengths", help=Lengths.__doc__)
    parser.add_argument("--packed-tokens", type=int, help="tokens of a packed step, on each data-parallel rank")
    parser.add_argument("--packed-budget", type=int, help="tokens of a packed micro-batch")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--rollout-prompts", type=int, help="prompts of the section rollout, 8 responses each")
    parser.add_argument("--rollout-lengths", help="as --packed-lengths")
    parser.add_argument("--iteration-lengths", help="as --packed-lengths")
    parser.add_argument("--tail-live", help="numbers of live sequences in the section tail, with commas")
    parser.add_argument("--tail-context", type=int, help="tokens that each of them has before it")
    parser.add_argument("--tail-steps", type=int, help="steps that are timed, three times as many are made")
    parser.add_argument("--directory", type=Path, default=Path("/tmp/tempo-benchmark"), help="is emptied first")
    parser.add_argument("--json", type=Path, help="file for the figures, the command and the versions")
    parser.add_argument("--commit", help="for the record, where git does not know it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run, as `tempo train` takes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or what the ranks ended with."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_intermixed_args(arguments)
    if not torchrun.is_rank():
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.gpus}"]
        return subprocess.call([*command, str(_SCRIPT), *arguments], env={**torchrun.RANK_ENVIRONMENT, **os.environ})
    _measure(given)
    return 0


def _measure(given: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from benchmarking.report import Report
    from benchmarking.setup import Setup, write_directory
    from tempo_megatron.megatron import topology

    for name, value in (_ON_GPUS if torch.cuda.is_available() else _ON_CPUS).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    sections = SECTIONS if given.sections == "all" else given.sections.split(",")
    unknown = set(sections).difference(SECTIONS)
    if unknown:
        raise SystemExit(f"--sections: {', '.join(sorted(unknown))}: unknown; there are {', '.join(SECTIONS)}")
    described = shapes.shape_config(given.shape, given.layers, given.vocabulary)
    recipes = given.fp8.split(",")
    config = _config(given, recipes[0], _longest(given, _TRAINING, sections))
    place = topology.initialize(config.parallel, config.seed)
    if place.rank == 0:
        write_directory(given.directory, described, given.prompt_tokens, questions=4096)
    dist.barrier()
    shape = {"name": given.shape, "layers": described["num_hidden_layers"], "vocabulary": described["vocab_size"]}
    layout = {"TP": place.tensor_size, "PP": place.pipeline_size, "CP": place.context_size, "DP": place.data_size}
    report = Report(given.json, given.commit, shape | layout)
    settings = shapes.backbone_shape(described)
    if set(sections).intersection(_TRAINING):
        for recipe in recipes:
            changed = copy.deepcopy(config)
            changed.model.fp8 = type(config.model.fp8)(recipe)
            _measure_training(Setup(settings, changed, place), given, sections, report)
    later = [name for name in sections if name not in _TRAINING]
    if later:
        config = _config(given, recipes[-1], _longest(given, later, sections))
        _measure_generation(Setup(settings, config, place), given, later, report)
    dist.barrier()
    topology.shutdown()


def _longest(given: argparse.Namespace, some: Sequence[str], sections: Sequence[str]) -> int:
    """Tokens of the longest response of the sections, of `some`, that are asked for."""
    from benchmarking import tail

    most = {
        "train": given.sequence,
        "scores": given.sequence,
        "kernels": given.sequence,
        "packed": Lengths.parse(given.packed_lengths).most,
        "rollout": Lengths.parse(given.rollout_lengths).most,
        "iteration": Lengths.parse(given.iteration_lengths).most,
        "tail": given.tail_context + tail.response_tokens(given.tail_steps),
    }
    return max([most[name] for name in sections if name in some and name in most], default=given.prompt_tokens)


def _config(given: argparse.Namespace, fp8: str, longest: int) -> Any:
    import torch

    from tempo_megatron.config import load_config

    directory: Path = given.directory
    settings = {
        "run_dir": directory / "run",
        "method": given.method,
        "model.hf_path": directory / "model",
        "model.precision": "bf16" if torch.cuda.is_available() else "fp32",
        "model.fp8": fp8,
        "parallel.tensor_model_parallel_size": given.tp,
        "parallel.pipeline_model_parallel_size": given.pp,
        "parallel.context_parallel_size": given.cp,
        "parallel.sequence_parallel": str(given.tp > 1).lower(),
        "data.labeled": f"[{{path: {directory / 'labeled.jsonl'}}}]",
        "data.unlabeled": f"[{{path: {directory / 'unlabeled.jsonl'}}}]",
        "data.max_prompt_tokens": given.prompt_tokens,
        "generation.max_response_tokens": longest,
        "policy.optimizer.learning_rate": given.learning_rate,
        "critic.optimizer.learning_rate": given.learning_rate,
    }
    return load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *given.overrides])


def _measure_training(setup: Any, given: argparse.Namespace, sections: Sequence[str], report: Any) -> None:
    from benchmarking import training

    config = setup.config
    for model in (config.policy, config.critic):
        model.mini_batches, model.micro_batch_tokens = 1, model.micro_batch_tokens or given.sequence
    load_config = training.Load(
        given.sequence,
        given.sequences,
        Lengths.parse(given.packed_lengths),
        given.packed_tokens,
        given.packed_budget,
        given.prompt_tokens,
        given.steps,
    )
    found = {}
    label = f"fp8 {config.model.fp8}"
    for name, figures in training.measure(setup, load_config, sections):
        found[name] = figures
        report.add(f"{name}, {label}", figures)
    shares = training.ratios(found)
    if shares:
        report.add(f"shares of raw Megatron, {label}", shares)


def _measure_generation(setup: Any, given: argparse.Namespace, sections: Sequence[str], report: Any) -> None:
    from megatron.core import parallel_state

    from benchmarking import generation, tail, whole

    lengths = Lengths.parse(given.iteration_lengths)
    run = None
    if set(sections).intersection(_RUN):
        parallel_state.destroy_model_parallel()  # a Run makes its own
        run = whole.BenchmarkRun(setup.config, lengths)
        generator = run.engine.within
        run.sync()
    else:
        generator = generation.start(setup)
    if "sync" in sections:
        with run.weights_awake() if run else contextlib.nullcontext():
            report.add("sync", generation.measure_sync(generator, given.steps))
    if "rollout" in sections:
        load_config = generation.Rollouts(
            given.rollout_prompts, 8, given.prompt_tokens, Lengths.parse(given.rollout_lengths), given.steps
        )
        with run.phase("generate") if run else contextlib.nullcontext():
            report.add("rollout", generation.measure_rollout(setup, generator, load_config))
    if "tail" in sections:
        live_counts = list(map(int, given.tail_live.split(",")))
        with run.phase("generate") if run else contextlib.nullcontext():
            figures = tail.measure_tail(setup, generator, live_counts, given.tail_context, given.tail_steps)
        report.add("tail", figures)
    if run and "switch" in sections:
        report.add("switch", whole.measure_switch(run, given.steps))
    if run and "iteration" in sections:
        report.add("iteration", whole.measure_iteration(run, given.steps))
    if run:
        run.grader.close()
