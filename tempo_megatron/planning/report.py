"""A plan as Markdown text: its tables can be pasted into a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tempo_megatron.planning import host, rates
from tempo_megatron.planning.choose import ALIKE, Choice
from tempo_megatron.planning.fit import HEADROOM, listed
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total
from tempo_megatron.planning.schedule import Load, Schedule

_MAXIMUM_LAYOUTS = 5
"""The table of layouts has so many rows, and those of the recipe's own layout."""
_TRAINING = ("e_step", "advantages", "m_step")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plan(run: PlannedRun, load: Load, choices: Sequence[Choice]) -> str:
    """Returns the memory, the time and the possible layouts of one run on one number of nodes."""
    machine = run.machine
    parts = [
        f"{machine.nodes} x {machine.gpus_per_node} GPUs of {machine.gpu_gb:g} GB, {run.layout}, "
        f"recompute {run.config.model.recompute}, fp8 {run.config.model.fp8}, generator TP{run.layout.replica}",
        _parameters(run),
        _device(run),
        _host(run),
        _times(run, load),
        _layouts(run, choices),
    ]
    return "\n\n".join(parts)


def _parameters(run: PlannedRun) -> str:
    """Returns the table of each model's state by kind of parameter, on the pipeline stage with the most parameters."""
    rows: list[list[object]] = []
    for name in ("policy", "critic"):
        if name not in run.models:
            continue
        model = run.models[name]
        stage = max(range(run.layout.pipeline), key=lambda stage: model.held(stage).total)
        state, parameters = run.state_of_stage(name, stage), model.held(stage)
        for kind, count in parameters.by_kind.items():
            share = count / parameters.total / GIB
            sizes = [f"{state.get(part, 0) * share:.2f}" for part in ("weights", "gradients", "optimizer")]
            rows.append([name, kind, f"{count / 1e6:,.1f}", *sizes])
    heads = ["model", "parameters", "million per GPU", "weights, GiB", "gradients, GiB", "optimizer, GiB"]
    return "State of each model on a GPU, by kind of parameter:\n\n" + table(heads, rows)


def _device(run: PlannedRun) -> str:
    limit = run.machine.usable_gib
    rows = [[phase, f"{total(parts) / GIB:.1f}", listed(parts)] for phase, parts in run.phases().items()]
    text = table(["phase", "GiB", "parts"], rows)
    title = f"Peak memory of a GPU in each phase ({limit:.1f} GiB usable, {HEADROOM:.0%} must stay free):"
    return f"{title}\n\n{text}"


def _host(run: PlannedRun) -> str:
    rows = [
        ["pinned, per rank", f"{total(host.pinned(run)) / GIB:.1f}", listed(host.pinned(run))],
        ["per node", f"{total(host.node(run)) / GIB:.0f}", listed(host.node(run))],
        [
            "per checkpoint",
            f"{host.checkpoint(run) / GIB:.0f}",
            "weights; fp32 weights and two moments of each trained model",
        ],
    ]
    return "Host memory and storage:\n\n" + table(["memory", "GiB", "parts"], rows)


def _times(run: PlannedRun, load: Load) -> str:
    schedule = Schedule(run, load)
    rows = [[phase, f"{seconds:,.0f}"] for phase, seconds in schedule.phases().items()]
    rows.append(["one iteration", f"{schedule.iteration():,.0f}"])
    rows.append(["one checkpoint", f"{schedule.saving():,.0f}"])
    run_seconds = schedule.whole()
    days = sum(run_seconds.values()) / 86400
    hours = ", ".join(f"{part} {seconds / 3600:.1f} h" for part, seconds in run_seconds.items())
    assumptions = dict(rates.ASSUMED)
    if run.config.loop.drop_uniform_prompts:
        assumptions["labeled prompts that a round replaces"] = f"{load.uniform_share:.0%}"
    assumed = ", ".join(f"{quantity}: {value}" for quantity, value in assumptions.items())
    return (
        f"Time, with responses of {load.mean:,.0f} tokens on average:\n\n"
        + table(["phase", "seconds"], rows)
        + f"\n\nThe run: {days:.1f} days, {days * 24 * run.machine.gpus:,.0f} GPU-hours ({hours}).\n"
        + f"Assumed, not measured: {assumed}; storage takes {load.storage_gbs:g} GB/s."
    )


def _layouts(run: PlannedRun, choices: Sequence[Choice]) -> str:
    if not choices:
        return "No layout of this model fits these GPUs."
    own = [choice for choice in choices[_MAXIMUM_LAYOUTS:] if _is_own(choice, run)]
    rows = []
    for choice in (*choices[:_MAXIMUM_LAYOUTS], *own):
        reason = _reason(choice, choices) + (" (the recipe's own)" if _is_own(choice, run) else "")
        rows.append([choice, f"{choice.seconds:,.0f}", f"{choice.peak_gib:.1f}", reason])
    heads = ["layout", "seconds per iteration", "GiB per GPU", "reason"]
    return f"The best of the {len(choices)} layouts that fit:\n\n" + table(heads, rows)


def _is_own(choice: Choice, run: PlannedRun) -> bool:
    return choice.run.layout == run.layout and choice.run.config.model.recompute is run.config.model.recompute


def _reason(choice: Choice, choices: Sequence[Choice]) -> str:
    slower = choice.seconds / min(other.seconds for other in choices) - 1
    layout = choice.run.layout
    reason = f"{slower:.0%} slower than the fastest" if slower else "the fastest"
    if slower <= ALIKE and layout.pipeline * layout.context == 1:
        return f"without pipeline or context parallelism, {reason}"
    return reason


def growth(planned: Sequence[tuple[PlannedRun, Sequence[str], Sequence[Choice]]], load: Load) -> str:
    """Returns a table with a row for each number of nodes: the recipe's own layout and the best one. `planned` has, for
    each run, the reasons why it does not fit, and the layouts that fit."""
    rows: list[list[object]] = []
    for run, problems, choices in planned:
        best = f"{choices[0]}: {choices[0].seconds:,.0f} s" if choices else "none fits"
        cells = ["does not fit", *["-"] * 6] if problems else _growth_cells(run, load)
        rows.append([run.machine.nodes, run.layout, *cells, best])
    heads = [
        "nodes",
        "layout",
        "GPU training, GiB",
        "host per node, GiB",
        "generation, s",
        "training, s",
        "iteration, s",
    ]
    return table([*heads, "days", "GPU-hours", "best layout"], rows)


def _growth_cells(run: PlannedRun, load: Load) -> list[object]:
    schedule = Schedule(run, load)
    phases, days = schedule.phases(), sum(schedule.whole().values()) / 86400
    training = sum(phases.get(name, 0.0) for name in _TRAINING)
    training_peak = max(total(parts) for name, parts in run.phases().items() if name in _TRAINING)
    return [
        f"{training_peak / GIB:.1f}",
        f"{total(host.node(run)) / GIB:.0f}",
        f"{phases['generate']:,.0f}",
        f"{training:,.0f}",
        f"{schedule.iteration():,.0f}",
        f"{days:.1f}",
        f"{days * 24 * run.machine.gpus:,.0f}",
    ]
