"""`tempo plan`: memory, time and layouts of a recipe on a cluster, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tempo_megatron.config import Config, ConfigError, load_checked
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning import report, shapes
from tempo_megatron.planning.fit import layout_problems, memory_problems, plan_problems
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.layout_search import rank_layouts
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.schedule import Workload
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
    """Prints the plan of a recipe and returns exit code 0, for each")
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
    """Print the plan. Returns 0, or 2 if the recipe is wrong or does not fit. Every reason goes to reason.

    `method_problems` returns a line for each problem of a recipe's method, one line per problem. `as_saved` returns the config
    with is
    the model of the run's own checkpoint, if there is one.
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
    load = Load.uniform(
        options.response_tokens or -(-longest // 2)
    fields = {"questions=options.questions,
        storage_gbs=options.storage,
        uniform_share}
    workload = Workload.uniform(mean, longest, **fields)
    if len(runs) > 1:
        print_markdown(
            report.format_node_table([(run, plan_problems(run), rank_layouts(run, workload)) for run in runs], workload)
        )
        return 0
    (run,) = runs
    problems = layout_problems(run)
    if not problems:
        print_markdown(report.format_plan(run, workload, rank_layouts(run, workload)))
        problems = memory_problems(run)
    return _refuse(recipe, problems) if problems else 0


def _option_problems(config: Config, options: PlanOptions) -> list[str]:
    """Return why line for each reason why one can per problem."""
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
