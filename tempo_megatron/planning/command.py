"""`tempo plan`: the memory and time of a recipe on a cluster, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tempo_megatron.config import Config, ConfigError, load_checked
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning import report, shapes
from tempo_megatron.planning.fit import layout_problems, memory_problems, plan_problems
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.layout_search import rank_generator_sizes, rank_layouts
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.workload import Workload
from tempo_megatron.utils.terminal import print_markdown, refuse


@dataclass(frozen=True)
class PlanOptions:
    """The options of `tempo plan`, as `tempo plan --help` describes them."""

    nodes: str
    gpus_per_node: int
    gpu_memory: float
    host_memory: float
    model: str | None
    response_tokens: int | None
    questions: int
    uniform_share: float
    storage: float


def plan_recipe(
    recipe: str,
    overrides: Sequence[str],
    options: PlanOptions,
    *,
    method_problems: Callable[[Config], list[str]],
    as_saved: Callable[[Config], Config],
) -> int:
    """Prints the plan of a recipe and returns exit code 0, or 2 where the recipe is wrong or does not fit; standard
    error lists every reason.

    `method_problems` returns a line for each problem of a recipe's method. `as_saved` returns the config whose model is
    the one that the run's own checkpoint describes, where the run has one.
    """
    try:
        config = load_checked(
            recipe, overrides, lambda read: [*method_problems(read), *_option_problems(as_saved(read), options)]
        )
    except ConfigError as error:
        return _refuse(recipe, str(error).splitlines())
    backbone = _backbone(as_saved(config), options.model)
    runs = [PlannedRun(backbone, config, machine) for machine in _machines(options)]
    longest = config.generation.max_response_tokens
    workload = Workload.uniform(
        options.response_tokens or -(-longest // 2),
        longest,
        questions=options.questions,
        storage_gbs=options.storage,
        uniform_share=options.uniform_share,
    )
    if len(runs) > 1:
        print_markdown(
            report.format_node_table([(run, plan_problems(run), rank_layouts(run, workload)) for run in runs], workload)
        )
        return 0
    (run,) = runs
    problems = layout_problems(run)
    if not problems:
        choices, generators = rank_layouts(run, workload), rank_generator_sizes(run, workload)
        print_markdown(report.format_plan(run, workload, choices, generators))
        problems = memory_problems(run)
    return _refuse(recipe, problems) if problems else 0


def _option_problems(config: Config, options: PlanOptions) -> list[str]:
    """Returns a line for each reason why nothing can be planned."""
    problems: list[str] = []
    for read in (lambda: _backbone(config, options.model), lambda: _machines(options)):
        try:
            read()
        except (ConfigError, ConversionError) as error:
            problems += str(error).splitlines()
    return problems


def _machines(options: PlanOptions) -> list[Machine]:
    """Returns a machine for each number of nodes. Raises ConfigError."""
    try:
        node_counts = [int(count) for count in options.nodes.split(",")]
    except ValueError as error:
        raise ConfigError(f"--nodes: numbers with commas between them, got {options.nodes!r}") from error
    if not 0 <= options.uniform_share <= 1:
        raise ConfigError(f"--uniform-share: from 0 to 1, got {options.uniform_share}")
    for option, smallest in (("--nodes", min(node_counts)), ("--gpus-per-node", options.gpus_per_node)):
        if smallest < 1:
            raise ConfigError(f"{option}: at least 1, got {smallest}")
    return [Machine(count, options.gpus_per_node, options.gpu_memory, options.host_memory) for count in node_counts]


def _backbone(config: Config, model: str | None) -> BackboneSettings:
    """Returns the shape of the published model, or of the recipe's model where none is named. Raises ConfigError."""
    if model:
        if model not in shapes.SHAPES:
            raise ConfigError(f"--model: {model} is none of {', '.join(shapes.SHAPES)}")
        return shapes.backbone_shape(shapes.shape_config(model, None, None))
    try:
        return shapes.model_shape(config.model.hf_path)
    except ConversionError as error:
        lines = "\n".join(f"model.hf_path: {line}" for line in str(error).splitlines())
        raise ConfigError(f"{lines}; --model names a known shape") from error


def _refuse(recipe: str, reasons: Sequence[str]) -> int:
    return refuse(f"tempo: {recipe}: this cannot run", reasons)
