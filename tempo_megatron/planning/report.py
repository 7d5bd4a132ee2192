"""Formats a plan as text with Markdown tables, which can be pasted into a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from tempo_megatron.planning import host, rates
from tempo_megatron.planning.decoding import TAIL_SEQUENCES
from tempo_megatron.planning.fit import HEADROOM, format_parts
from tempo_megatron.planning.layout_search import EQUAL_SPEED_MARGIN, GeneratorChoice, LayoutChoice
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.partial_rollouts import typical_calls
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload

_LISTED_LAYOUTS = 5
_TRAINING = ("e_step", "advantages", "m_step")


def format_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def format_plan(
    run: PlannedRun, workload: Workload, choices: Sequence[LayoutChoice], generators: Sequence[GeneratorChoice]
) -> str:
    """Return the plan of one run on one number of nodes."""
    machine = run.machine
    parts = [
        f"{machine.nodes} x {machine.gpus_per_node} GPUs of {machine.gpu_gb:g} GB, {run.layout}, "
        f"recompute {run.config.model.recompute}, fp8 {run.config.model.fp8}, generator TP{run.layout.replica}",
        _state_table(run),
        _device_table(run),
        _host_table(run),
        _time_table(run, workload),
        _layout_table(run, choices),
        _generator_table(run, generators),
    ]
    return "\n\n".join(parts)


def _state_table(run: PlannedRun) -> str:
    """Return the state on the pipeline stage that holds most, by kind of parameter."""
    rows: list[list[object]] = []
    for name in ("policy", "critic"):
        if name not in run.models:
            continue
        model = run.models[name]
        stage = max(range(run.layout.pipeline), key=lambda stage: model.parameters(stage).total)
        kept, counts = run.stage_state(name, stage), model.parameters(stage).by_kind
        for kind, state in model.state_by_kind(stage).items():
            sizes = [f"{size / GIB if part in kept else 0:.2f}" for part, size in state.items()]
            rows.append([name, kind, f"{counts[kind] / 1e6:,.1f}", *sizes])
    heads = ["model", "parameters", "million per GPU", "weights, GiB", "gradients, GiB", "optimizer, GiB"]
    return "State of each model on a GPU, by kind of parameter:\n\n" + format_table(heads, rows)


def _device_table(run: PlannedRun) -> str:
    limit = run.machine.usable_gib
    rows = [
        [phase, f"{total_bytes(parts) / GIB:.1f}", format_parts(parts)] for phase, parts in run.phase_memory().items()
    ]
    text = format_table(["phase", "GiB", "parts"], rows)
    title = f"Peak memory of a GPU in each phase ({limit:.1f} GiB usable, {HEADROOM:.0%} must stay free):"
    return f"{title}\n\n{text}"


def _host_table(run: PlannedRun) -> str:
    rows = [
        [
            "pinned, per rank",
            f"{total_bytes(host.pinned_memory(run)) / GIB:.1f}",
            format_parts(host.pinned_memory(run)),
        ],
        ["per node", f"{total_bytes(host.node_memory(run)) / GIB:.0f}", format_parts(host.node_memory(run))],
        [
            "per checkpoint",
            f"{host.checkpoint_bytes(run) / GIB:.0f}",
            "weights; fp32 weights and two moments of each trained model",
        ],
        [
            "token samples, per run",
            f"{host.token_sample_bytes(run) / GIB:.2f}",
            f"about the most; logging.token_samples {run.config.logging.token_samples}",
        ],
    ]
    return "Host memory and storage:\n\n" + format_table(["memory", "GiB", "parts"], rows)


def _time_table(run: PlannedRun, workload: Workload) -> str:
    schedule = Schedule(run, workload)
    rows = [[phase, f"{seconds:,.0f}"] for phase, seconds in schedule.phase_seconds().items()]
    rows.append(["one iteration", f"{schedule.iteration_seconds():,.0f}"])
    rows.append(["one checkpoint", f"{schedule.save_seconds():,.0f}"])
    run_seconds = schedule.run_seconds()
    days = sum(run_seconds.values()) / 86400
    activities = ", ".join(f"{activity} {seconds / 3600:.1f} h" for activity, seconds in run_seconds.items())
    assumptions = dict(rates.ASSUMED)
    if run.config.loop.drop_uniform_prompts:
        assumptions["labeled prompts that a round replaces"] = f"{workload.uniform_share:.0%}"
    assumed = ", ".join(f"{name}: {value}" for name, value in assumptions.items())
    return (
        f"Time, with responses of {workload.mean:,.0f} tokens on average:\n\n"
        + format_table(["phase", "seconds"], rows)
        + f"\n\nThe run: {days:.1f} days, {days * 24 * run.machine.gpus:,.0f} GPU-hours ({activities}).\n"
        + f"Assumed, not measured: {assumed}; storage takes {workload.storage_gbs:g} GB/s."
        + (_partial_rollouts(schedule) if run.config.loop.partial_rollouts else "")
    )


def _partial_rollouts(schedule: Schedule) -> str:
    """Return what partial rollouts are expected to save."""
    waiting, pausing = schedule.generate_seconds(schedule.rollouts.unlabeled), schedule.partial_generate_seconds()
    last_steps = [call.steps for call in typical_calls(schedule.run.config.loop, schedule.workload)]
    return (
        f"\n\nPartial rollouts, simulated: {schedule.run.config.loop.prompts_in_flight} prompts are in flight, and "
        f"generation without labeled rollouts ends after {fmean(last_steps):,.0f} steps of at most "
        f"{max(schedule.workload.lengths):,}: {pausing:,.0f} s instead of {waiting:,.0f} s. A call with labeled "
        "rollouts waits for the longest of them."
    )


def _layout_table(run: PlannedRun, choices: Sequence[LayoutChoice]) -> str:
    if not choices:
        return "No layout of this model fits these GPUs."
    recipes_own = [choice for choice in choices[_LISTED_LAYOUTS:] if _is_recipes_own(choice, run)]
    rows = []
    for choice in (*choices[:_LISTED_LAYOUTS], *recipes_own):
        reason = _reason(choice, choices) + (" (the recipe's own)" if _is_recipes_own(choice, run) else "")
        rows.append([choice, f"{choice.seconds:,.0f}", f"{choice.peak_gib:.1f}", reason])
    heads = ["layout", "seconds per iteration", "GiB per GPU", "reason"]
    return f"The best of the {len(choices)} layouts that fit:\n\n" + format_table(heads, rows)


def _generator_table(run: PlannedRun, generators: Sequence[GeneratorChoice]) -> str:
    if not generators:
        return "No size of the generator fits these GPUs."
    rows = []
    for choice in generators:
        size = f"TP{choice.tensor_size}" + (" (the recipe's own)" if choice.tensor_size == run.layout.replica else "")
        rows.append([size, f"{choice.time.seconds:,.1f}", f"{choice.time.tail_seconds:,.1f}"])
    tail = f"of them with at most {TAIL_SEQUENCES} live sequences a replica"
    heads = ["generator", "seconds of a generate call", tail]
    return "Sizes of the generator in this layout, the best first:\n\n" + format_table(heads, rows)


def _is_recipes_own(choice: LayoutChoice, run: PlannedRun) -> bool:
    return choice.run.layout == run.layout and choice.run.config.model.recompute is run.config.model.recompute


def _reason(choice: LayoutChoice, choices: Sequence[LayoutChoice]) -> str:
    slower = choice.seconds / min(other.seconds for other in choices) - 1
    layout = choice.run.layout
    reason = f"{slower:.0%} slower than the fastest" if slower else "the fastest"
    if slower <= EQUAL_SPEED_MARGIN and layout.pipeline * layout.context == 1:
        return f"without pipeline or context parallelism, {reason}"
    return reason


def format_node_table(
    planned: Sequence[tuple[PlannedRun, Sequence[str], Sequence[LayoutChoice]]], workload: Workload
) -> str:
    """Return a table with one row per number of nodes: the recipe's own layout, and the best one.

    `planned` has for each number of nodes the run, why it does not fit, and the layouts that do.
    """
    rows: list[list[object]] = []
    for run, problems, choices in planned:
        best = f"{choices[0]}: {choices[0].seconds:,.0f} s" if choices else "none fits"
        figures = ["does not fit", *["-"] * 6] if problems else _figures(run, workload)
        rows.append([run.machine.nodes, run.layout, *figures, best])
    heads = ["nodes", "layout", "GPU training, GiB", "host per node, GiB", "generation, s", "training, s"]
    return format_table([*heads, "iteration, s", "days", "GPU-hours", "best layout"], rows)


def _figures(run: PlannedRun, workload: Workload) -> list[object]:
    schedule = Schedule(run, workload)
    phases, days = schedule.phase_seconds(), sum(schedule.run_seconds().values()) / 86400
    training = sum(phases.get(name, 0.0) for name in _TRAINING)
    training_peak = max(total_bytes(parts) for name, parts in run.phase_memory().items() if name in _TRAINING)
    return [
        f"{training_peak / GIB:.1f}",
        f"{total_bytes(host.node_memory(run)) / GIB:.0f}",
        f"{phases['generate']:,.0f}",
        f"{training:,.0f}",
        f"{schedule.iteration_seconds():,.0f}",
        f"{days:.1f}",
        f"{days * 24 * run.machine.gpus:,.0f}",
    ]
