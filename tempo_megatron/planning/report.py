"""A plan as text: tables in Markdown, so that they can go into a document as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tempo_megatron.planning import host, rates
from tempo_megatron.planning.choose import ALIKE, Choice
from tempo_megatron.planning.fit import HEADROOM, listed
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total
from tempo_megatron.planning.schedule import Load, Schedule

_SHOWN_LAYOUTS = 5
_TRAINING = ("e_step", "advantages", "m_step")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plan(run: PlannedRun, load: Load, choices: Sequence[Choice]) -> str:
    """Everything about one run on one number of nodes."""
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
    """State on the pipeline stage that holds most, by kind of parameter."""
    rows: list[list[object]] = []
    for name in ("policy", "critic"):
        if name not in run.models:
            continue
        model = run.models[name]
        stage = max(range(run.layout.pipeline), key=lambda stage: model.held(stage).total)
        state, held = run.state_of_stage(name, stage), model.held(stage)
        for kind, count in held.by_kind.items():
            share = count / held.total / GIB
            sizes = [f"{state.get(part, 0) * share:.2f}" for part in ("weights", "gradients", "optimizer")]
            rows.append([name, kind, f"{count / 1e6:,.1f}", *sizes])
    heads = ["model", "kind", "million on a GPU", "weights, GiB", "gradients, GiB", "optimizer, GiB"]
    return "State of each model on a GPU, parameter by parameter kind:\n\n" + table(heads, rows)


def _device(run: PlannedRun) -> str:
    limit = run.machine.usable_gib
    rows = [[phase, f"{total(parts) / GIB:.1f}", listed(parts)] for phase, parts in run.phases().items()]
    text = table(["phase", "GiB", "of it"], rows)
    title = f"Memory of a GPU at each phase's highest moment ({limit:.1f} GiB usable, {HEADROOM:.0%} to stay free):"
    return f"{title}\n\n{text}"


def _host(run: PlannedRun) -> str:
    rows = [
        ["pinned, a rank", f"{total(host.pinned(run)) / GIB:.1f}", listed(host.pinned(run))],
        ["a node", f"{total(host.node(run)) / GIB:.0f}", listed(host.node(run))],
        ["a checkpoint", f"{host.checkpoint(run) / GIB:.0f}", "weights; of what learns fp32 weights and two moments"],
    ]
    return "Host memory and storage:\n\n" + table(["what", "GiB", "of it"], rows)


def _times(run: PlannedRun, load: Load) -> str:
    schedule = Schedule(run, load)
    rows = [[phase, f"{seconds:,.0f}"] for phase, seconds in schedule.phases().items()]
    rows.append(["an iteration", f"{schedule.iteration():,.0f}"])
    rows.append(["a checkpoint", f"{schedule.saving():,.0f}"])
    whole = schedule.whole()
    days = sum(whole.values()) / 86400
    spent = ", ".join(f"{what} {seconds / 3600:.1f} h" for what, seconds in whole.items())
    assumptions = dict(rates.ASSUMED)
    if run.config.loop.drop_uniform_prompts:
        assumptions["labeled prompts that a round replaces"] = f"{load.uniform_share:.0%}"
    assumed = ", ".join(f"{what}: {value}" for what, value in assumptions.items())
    return (
        f"Time, with responses of {load.mean:,.0f} tokens on average:\n\n"
        + table(["phase", "seconds"], rows)
        + f"\n\nThe run: {days:.1f} days, {days * 24 * run.machine.gpus:,.0f} GPU-hours ({spent}).\n"
        + f"Assumed, not measured: {assumed}; storage takes {load.storage_gbs:g} GB/s."
    )


def _layouts(run: PlannedRun, choices: Sequence[Choice]) -> str:
    if not choices:
        return "No layout of this model fits these GPUs."
    own = [choice for choice in choices[_SHOWN_LAYOUTS:] if _is_own(choice, run)]
    rows = []
    for choice in (*choices[:_SHOWN_LAYOUTS], *own):
        reason = _reason(choice, choices) + (" (the recipe's own)" if _is_own(choice, run) else "")
        rows.append([choice, f"{choice.seconds:,.0f}", f"{choice.peak_gib:.1f}", reason])
    heads = ["layout", "seconds an iteration", "GiB of a GPU", "why here"]
    return f"To choose, of {len(choices)} that fit:\n\n" + table(heads, rows)


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
    """A row for each number of nodes: the recipe's own layout, and the one to choose. `planned`: runs, why they do not
    fit, and the layouts that do."""
    rows: list[list[object]] = []
    for run, wrong, choices in planned:
        best = f"{choices[0]}: {choices[0].seconds:,.0f} s" if choices else "none fits"
        figures = ["does not fit", *["-"] * 6] if wrong else _figures(run, load)
        rows.append([run.machine.nodes, run.layout, *figures, best])
    heads = ["nodes", "layout", "GPU learning, GiB", "node's host, GiB", "generating, s", "training, s", "iteration, s"]
    return table([*heads, "days", "GPU-hours", "first choice"], rows)


def _figures(run: PlannedRun, load: Load) -> list[object]:
    schedule = Schedule(run, load)
    phases, days = schedule.phases(), sum(schedule.whole().values()) / 86400
    training = sum(phases.get(name, 0.0) for name in _TRAINING)
    learning = max(total(parts) for name, parts in run.phases().items() if name in _TRAINING)
    return [
        f"{learning / GIB:.1f}",
        f"{total(host.node(run)) / GIB:.0f}",
        f"{phases['generate']:,.0f}",
        f"{training:,.0f}",
        f"{schedule.iteration():,.0f}",
        f"{days:.1f}",
        f"{days * 24 * run.machine.gpus:,.0f}",
    ]
