"""The command line of the benchmark: reads options, starts the ranks, and measures one section after the other."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking.lengths import Lengths
from benchmarking.settings import benchmark_config, with_fp8
from tempo_megatron.launch import torchrun
from tempo_megatron.planning import shapes

if TYPE_CHECKING:
    from tempo_megatron.planning.phases import PlannedRun
    from tempo_megatron.planning.workload import Workload

_TRAINING, _ENGINE, _RUN = (
    ("train", "packed", "scores", "kernels", "host"),
    ("rollout", "order", "partial", "tail", "sync"),
    ("switch", "iteration"),
)
SECTIONS = (*_TRAINING, *_ENGINE, *_RUN)
_PLANNED_LENGTHS = 1024
"""The random lengths that stand for the distribution in a prediction."""
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
    "order_prompts": 64,
    "order_samples": 16,
    "order_lengths": "mean:1060:4096",
    "partial_prompts": 32,
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
    "order_prompts": 4,
    "order_samples": 2,
    "order_lengths": "mean:6:16",
    "partial_prompts": 3,
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
    parser.add_argument("--sections", default=",".join(_TRAINING), help="separated by commas, or `all`")
    parser.add_argument("--gpus", type=int, default=1, help="ranks to start; ignored under torchrun")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--vocabulary", type=int, help="instead of the shape's")
    sizes = {"tp": "tensor", "pp": "pipeline", "vpp": "virtual pipeline", "cp": "context", "ep": "expert"}
    for short, name in sizes.items():
        parser.add_argument(f"--{short}", type=int, help=f"{name} parallel size, by default the recipe's, or 1")
    parser.add_argument(
        "--fp8", help="FP8 recipes, separated by commas, by default the recipe's; rollout and later use the last"
    )
    parser.add_argument("--method", help="method of the iteration, by default the recipe's, or tempo")
    parser.add_argument("--learning-rate", type=float, help="by default the recipe's, or 1e-6")
    parser.add_argument("--steps", type=int, default=3, help="timed repetitions of each measurement")
    parser.add_argument("--sequence", type=int, help="tokens of a sequence of equal length")
    parser.add_argument("--sequences", type=int, help="those of a step, on each data-parallel rank")
    parser.add_argument("--packed-lengths", help=Lengths.__doc__)
    parser.add_argument("--packed-tokens", type=int, help="tokens of a packed step, on each data-parallel rank")
    parser.add_argument("--packed-budget", type=int, help="tokens of a packed micro-batch")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--rollout-prompts", type=int, help="prompts of the section rollout, 8 responses each")
    parser.add_argument("--rollout-lengths", help="as --packed-lengths")
    parser.add_argument("--order-prompts", type=int, help="prompts of the section order")
    parser.add_argument("--order-samples", type=int, help="responses to each of them, and of each group of partial")
    parser.add_argument(
        "--order-lengths", help="as --packed-lengths; in the section order half of the variance is the prompt's"
    )
    parser.add_argument("--partial-prompts", type=int, help="whole groups that a call of the section partial yields")
    parser.add_argument("--partial-share", type=float, default=0.75, help="loop.partial_rollouts of the section")
    parser.add_argument("--iteration-lengths", help="as --packed-lengths")
    parser.add_argument("--tail-live", help="numbers of live sequences in the section tail, with commas")
    parser.add_argument("--tail-context", type=int, help="tokens that each of them has before it")
    parser.add_argument("--tail-steps", type=int, help="steps that are timed, three times as many are made")
    parser.add_argument(
        "--directory", type=Path, default=Path("/tmp/tempo-benchmark"), help="working directory; it is emptied first"
    )
    parser.add_argument(
        "--plan", type=float, metavar="GB", help="predict the iteration on --gpus of so many GB, and measure nothing"
    )
    parser.add_argument("--json", type=Path, help="file for figures, command and versions")
    parser.add_argument("--commit", help="commit to record if git does not know it")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipes (.yaml) and settings, as `tempo train` takes"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or the exit code of the ranks."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_intermixed_args(arguments)
    if options.plan:
        _predict(options)
        return 0
    if torchrun.is_rank():
        _measure(options)
        return 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}"]
    # torchrun takes this process's place: whoever ends it and waits for it then waits for the ranks too.
    os.execve(command[0], [*command, str(_SCRIPT), *arguments], {**torchrun.RANK_ENVIRONMENT, **os.environ})


def _set_sizes(options: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _refuse(problems: Sequence[str]) -> None:
    """Ends the command if there is a problem. The first rank says which."""
    if problems:
        raise SystemExit("\n".join(problems) if os.environ.get("RANK", "0") == "0" else 1)


def planned_iteration(options: argparse.Namespace) -> tuple[PlannedRun, Workload]:
    """Returns the run of the section iteration as `tempo plan` sees it, on `--gpus` of `--plan` GB.

    Raises SystemExit with every reason why the layout cannot be.
    """
    from tempo_megatron.planning.fit import layout_problems
    from tempo_megatron.planning.layout import Machine
    from tempo_megatron.planning.phases import PlannedRun
    from tempo_megatron.planning.workload import Workload

    _set_sizes(options, _ON_GPUS)
    settings = shapes.backbone_shape(shapes.shape_config(options.shape, options.layers, options.vocabulary))
    lengths = Lengths.parse(options.iteration_lengths)
    fp8 = options.fp8.split(",")[-1] if options.fp8 else None
    config = benchmark_config(options, fp8, lengths.maximum, on_gpus=True)
    run = PlannedRun(settings, config, Machine(1, options.gpus, options.plan, 0.0))
    _refuse(layout_problems(run))
    return run, Workload(tuple(map(lengths.draw, range(_PLANNED_LENGTHS))), prompt=options.prompt_tokens)


def _predict(options: argparse.Namespace) -> None:
    """Prints what `tempo plan` predicts for the section iteration."""
    from benchmarking.phases import predicted_iteration
    from benchmarking.report import table

    run, workload = planned_iteration(options)
    print(table(f"{options.shape}, {run.layout}", predicted_iteration(run, workload)))


def _measure(options: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from benchmarking.report import Report
    from benchmarking.setup import Setup, write_directory
    from tempo_megatron.megatron.topology import initialize, shutdown
    from tempo_megatron.planning.fit import layout_problems
    from tempo_megatron.planning.layout import Machine
    from tempo_megatron.planning.phases import PlannedRun

    on_gpus = torch.cuda.is_available()
    _set_sizes(options, _ON_GPUS if on_gpus else _ON_CPUS)
    sections = SECTIONS if options.sections == "all" else options.sections.split(",")
    unknown = set(sections).difference(SECTIONS)
    if unknown:
        raise SystemExit(f"--sections: unknown: {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    hf_config = shapes.shape_config(options.shape, options.layers, options.vocabulary)
    fp8_recipes = options.fp8.split(",") if options.fp8 else [None]
    config = benchmark_config(options, fp8_recipes[0], _longest(options, _TRAINING, sections), on_gpus=on_gpus)
    settings = shapes.backbone_shape(hf_config)
    machine = Machine(1, int(os.environ["WORLD_SIZE"]), gpu_gb=0.0, host_gib=0.0)
    configs = [with_fp8(config, fp8) for fp8 in fp8_recipes]
    _refuse([line for each in configs for line in layout_problems(PlannedRun(settings, each, machine))])
    topology = initialize(config.parallel, config.seed)
    if topology.rank == 0:
        write_directory(options.directory, hf_config, options.prompt_tokens, questions=4096)
    dist.barrier()
    shape = {"name": options.shape, "layers": hf_config["num_hidden_layers"], "vocabulary": hf_config["vocab_size"]}
    layout = {
        "TP": topology.tensor_size,
        "PP": topology.pipeline_size,
        "CP": topology.context_size,
        "EP": topology.expert_size,
        "DP": topology.data_size,
    }
    report = Report(options.json, options.commit, shape | layout)
    if set(sections).intersection(_TRAINING):
        for each in configs:
            _measure_training(Setup(settings, each, topology), options, sections, report)
    engine_sections = [name for name in sections if name not in _TRAINING]
    if engine_sections:
        longest = _longest(options, engine_sections, sections)
        config = benchmark_config(options, fp8_recipes[-1], longest, on_gpus=on_gpus)
        _measure_generation(Setup(settings, config, topology), options, engine_sections, report)
    dist.barrier()
    shutdown()


def _longest(options: argparse.Namespace, group: Sequence[str], sections: Sequence[str]) -> int:
    """Tokens of the longest response in those of the requested `sections` that belong to `group`."""
    from benchmarking import tail

    longest = {
        "train": options.sequence,
        "scores": options.sequence,
        "kernels": options.sequence,
        "host": options.sequence,
        "packed": Lengths.parse(options.packed_lengths).maximum,
        "rollout": Lengths.parse(options.rollout_lengths).maximum,
        "order": Lengths.parse(options.order_lengths).maximum,
        "partial": Lengths.parse(options.order_lengths).maximum,
        "iteration": Lengths.parse(options.iteration_lengths).maximum,
        "tail": options.tail_context + tail.response_tokens(options.tail_steps),
    }
    return max([longest[name] for name in sections if name in group and name in longest], default=options.prompt_tokens)


def _measure_training(setup: Any, options: argparse.Namespace, sections: Sequence[str], report: Any) -> None:
    from benchmarking import training

    config = setup.config
    for model in (config.policy, config.critic):
        model.mini_batches, model.micro_batch_tokens = 1, model.micro_batch_tokens or options.sequence
    workload = training.TrainingWorkload(
        options.sequence,
        options.sequences,
        Lengths.parse(options.packed_lengths),
        options.packed_tokens,
        options.packed_budget,
        options.prompt_tokens,
        options.steps,
    )
    figures_by_name = {}
    label = f"fp8 {config.model.fp8}"
    for name, figures in training.measure(setup, workload, sections):
        figures_by_name[name] = figures
        report.add(f"{name}, {label}", figures)
    shares = training.ratios(figures_by_name)
    if shares:
        report.add(f"shares of raw Megatron, {label}", shares)


def _measure_generation(setup: Any, options: argparse.Namespace, sections: Sequence[str], report: Any) -> None:
    from megatron.core import parallel_state

    from benchmarking import generation, order, partial, tail
    from benchmarking import run as full_run

    lengths = Lengths.parse(options.iteration_lengths)
    run = None
    if set(sections).intersection(_RUN):
        parallel_state.destroy_model_parallel()  # a Run creates its own groups
        run = full_run.build_benchmark_run(setup.config, lengths)
        generator = full_run.seeded_lengths(run).generator
        run.sync()
    else:
        generator = generation.start(setup)
    if "sync" in sections:
        with full_run.weights_awake(run) if run else contextlib.nullcontext():
            report.add("sync", generation.measure_sync(generator, options.steps))
    if "rollout" in sections:
        workload = generation.RolloutWorkload(
            options.rollout_prompts, 8, options.prompt_tokens, Lengths.parse(options.rollout_lengths), options.steps
        )
        with run.phase("generate") if run else contextlib.nullcontext():
            report.add("rollout", generation.measure_rollout(setup, generator, workload))
    if "order" in sections:
        workload = generation.RolloutWorkload(
            options.order_prompts,
            options.order_samples,
            options.prompt_tokens,
            Lengths.parse(options.order_lengths),
            options.steps,
        )
        with run.phase("generate") if run else contextlib.nullcontext():
            report.add("order", order.measure_order(setup, generator, workload))
    if "partial" in sections:
        workload = generation.RolloutWorkload(
            options.partial_prompts,
            options.order_samples,
            options.prompt_tokens,
            Lengths.parse(options.order_lengths),
            options.steps,
        )
        with run.phase("generate") if run else contextlib.nullcontext():
            report.add("partial", partial.measure_partial(setup, generator, workload, options.partial_share))
    if "tail" in sections:
        live_counts = list(map(int, options.tail_live.split(",")))
        with run.phase("generate") if run else contextlib.nullcontext():
            figures = tail.measure_tail(setup, generator, live_counts, options.tail_context, options.tail_steps)
        report.add("tail", figures)
    if run and "switch" in sections:
        report.add("switch", full_run.measure_switch(run, options.steps))
    if run and "iteration" in sections:
        report.add("iteration", full_run.measure_iteration(run, options.steps))
    if run:
        run.grader.close()
