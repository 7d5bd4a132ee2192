"""`tempo plan`: memory, time and layouts of a recipe on a cluster, and whether it fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from tempo_megatron.config import Config, ConfigError, load_checked
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning import HOST_GIB, report, shapes
from tempo_megatron.planning.fit import layout_problems, memory_problems, plan_problems
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.layout_search import rank_layouts
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.schedule import Workload

_CANNOT = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tempo plan",
        description="Memory of each phase, time, and layouts to choose from. Exit code 2 where the recipe cannot fit.",
    )
    parser.add_argument("recipe", help="YAML file, as `tempo train` takes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, or YAML files of them")
    parser.add_argument("--nodes", default="1", help="nodes; several with commas give a table with a row for each")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB that a GPU is sold with (default: 80)")
    parser.add_argument("--host-memory", type=float, default=HOST_GIB, help="GiB of a node (default: 1536)")
    parser.add_argument("--model", choices=shapes.SHAPES, help="the shape, instead of that of model.hf_path")
    parser.add_argument("--response-tokens", type=int, help="mean of a response (default: half of the longest)")
    parser.add_argument("--questions", type=int, default=300, help="questions of an evaluation (default: 300)")
    parser.add_argument(
        "--uniform-share",
        type=float,
        default=0.5,
        help="share of labeled prompts whose responses all score alike, for loop.drop_uniform_prompts (default: 0.5)",
    )
    parser.add_argument("--storage", type=float, default=2.0, help="GB/s of the shared storage (default: 2)")
    return parser


def main(
    arguments: Sequence[str],
    method_problems: Callable[[Config], list[str]],
    as_saved: Callable[[Config], Config],
) -> int:
    """Print the plan. Returns 0, or 2 if the recipe is wrong or does not fit. Every reason goes to stderr.

    `method_problems` returns what is wrong with a recipe's method, one line per problem. `as_saved` returns a config
    with the model of the run's own checkpoint, if there is one.
    """
    given = _parser().parse_intermixed_args(arguments)
    try:
        config = load_checked(
            given.recipe, given.overrides, lambda read: [*method_problems(read), *_problems(as_saved(read), given)]
        )
    except ConfigError as error:
        return _refuse(given.recipe, str(error).splitlines())
    settings = _settings(as_saved(config), given.model)
    runs = [PlannedRun(settings, config, machine) for machine in _machines(given)]
    longest = config.generation.max_response_tokens
    mean = given.response_tokens or -(-longest // 2)
    fields = {"questions": given.questions, "storage_gbs": given.storage, "uniform_share": given.uniform_share}
    workload = Workload.uniform(mean, longest, **fields)
    if len(runs) > 1:
        print(
            report.format_node_table([(run, plan_problems(run), rank_layouts(run, workload)) for run in runs], workload)
        )
        return 0
    (run,) = runs
    problems = layout_problems(run)
    if not problems:
        print(report.format_plan(run, workload, rank_layouts(run, workload)))
        problems = memory_problems(run)
    return _refuse(given.recipe, problems) if problems else 0


def _problems(config: Config, given: argparse.Namespace) -> list[str]:
    """Return why there is nothing to plan, one line per problem."""
    problems: list[str] = []
    for read in (lambda: _settings(config, given.model), lambda: _machines(given)):
        try:
            read()
        except (ConfigError, ConversionError) as error:
            problems += str(error).splitlines()
    return problems


def _machines(given: argparse.Namespace) -> list[Machine]:
    try:
        counts = [int(count) for count in given.nodes.split(",")]
    except ValueError as error:
        raise ConfigError(f"--nodes: numbers with commas between them, got {given.nodes!r}") from error
    if not 0 <= given.uniform_share <= 1:
        raise ConfigError(f"--uniform-share: from 0 to 1, got {given.uniform_share}")
    for option, least in (("--nodes", min(counts)), ("--gpus-per-node", given.gpus_per_node)):
        if least < 1:
            raise ConfigError(f"{option}: at least 1, got {least}")
    return [Machine(count, given.gpus_per_node, given.gpu_memory, given.host_memory) for count in counts]


def _settings(config: Config, model: str | None) -> BackboneSettings:
    if model:
        return shapes.backbone_shape(shapes.shape_config(model, None, None))
    try:
        return shapes.model_shape(config.model.hf_path)
    except ConversionError as error:
        lines = "\n".join(f"model.hf_path: {line}" for line in str(error).splitlines())
        raise ConfigError(f"{lines}; --model names a known shape") from error


def _refuse(recipe: str, reasons: Sequence[str]) -> int:
    lines = "\n".join(f"  {line}" for line in reasons)
    print(f"tempo: {recipe}: this cannot run:\n{lines}", file=sys.stderr)
    return _CANNOT
