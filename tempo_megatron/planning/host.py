"""Host memory of a rank and of a node, and the size of a checkpoint."""

from __future__ import annotations

from tempo_megatron.config import TOKEN_SAMPLE_RESPONSES, TOKEN_SAMPLE_TOKENS, ReplayedRoutes
from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.rollout_counts import RolloutCounts

_PROCESS_BYTES = int(3.2 * GIB)
"""The resident set of a rank without offloaded state. Measured."""


def pinned_memory(run: PlannedRun) -> Parts:
    """Return the bytes of offloaded state in a rank's pinned memory, by model and kind."""
    return {
        f"{name}'s {kind}": size
        for name in run.models
        for kind, size in run.state(name).items()
        if kind != "gradients" and run.is_offloaded(kind)
    }


def budgeted_memory(run: PlannedRun) -> Parts:
    """Return the bytes that count against a rank's budget: offloaded state, and its part of an asynchronous save."""
    copies = _save_copies(run) // run.machine.gpus_per_node
    return pinned_memory(run) | ({"an asynchronous save's copies": copies} if copies else {})


def budget_bytes(run: PlannedRun) -> float:
    """Return the bytes of host memory that a rank may take for these."""
    return run.config.memory.budget_gib(run.machine.host_gib, run.machine.gpus_per_node) * GIB


def node_memory(run: PlannedRun) -> Parts:
    """Return the bytes of host memory on the node that takes most, at the moment that takes most."""
    ranks = run.machine.gpus_per_node
    parts = {"processes": ranks * _PROCESS_BYTES, "pinned": ranks * total_bytes(pinned_memory(run))}
    moments = {"a model as it is saved": max(_saved_models(run).values())}  # models are saved one after the other
    if run.config.policy.router_replay is not ReplayedRoutes.none:
        parts["routes"] = ranks * route_bytes(run)
        moments["exchanged routes"] = ranks * route_exchange_bytes(run)
    highest = max(moments, key=lambda moment: moments[moment])
    return parts | {highest: moments[highest], "an asynchronous save's copies": _save_copies(run)}


def route_bytes(run: PlannedRun) -> int:
    """Return the bytes of the routes of an iteration's rollouts at most, all of which every rank has."""
    counts = RolloutCounts(run.config)
    if run.config.policy.router_replay is ReplayedRoutes.old_log_probs:
        return _routes_of_rollouts(run, counts.trained)
    return _routes_of_rollouts(run, counts.unlabeled + (counts.labeled if counts.labeled_per_step else 0))


def route_exchange_bytes(run: PlannedRun) -> int:
    """Return the bytes that a rank holds beside its result while ranks exchange routes.

    These are the parts of all ranks, and its own part twice: as an object's bytes and as the tensor that is sent.

    - All ranks exchange what an iteration's generate call returned (`generation/requests.py`). A rank holds the routes
      of its replica until then.
    - Routes of the old log-probs are exchanged for each mini-batch, over the pipeline stages and then over the
      data-parallel ranks (`megatron/route_recorder.py`).

    The parts are assumed to be equally large.
    """
    layout, config, gpus = run.layout, run.config, run.machine.gpus
    if config.policy.router_replay is ReplayedRoutes.old_log_probs:
        exchanged = _routes_of_rollouts(run, -(-RolloutCounts(config).trained // config.policy.mini_batches))
        ranks, held = layout.data if layout.data > 1 else layout.pipeline, 0
    else:
        exchanged = route_bytes(run)
        ranks, held = gpus if gpus > layout.replica else 1, exchanged * layout.replica // gpus
    return exchanged + 2 * exchanged // ranks + held if ranks > 1 else 0


def _routes_of_rollouts(run: PlannedRun, rollouts: int) -> int:
    """Return the bytes of the routes of so many of the longest rollouts.

    A token has a number of 1 or 2 bytes for each of its experts in each layer, dense layers included.
    """
    experts, config = run.settings.experts, run.config
    if experts is None:
        return 0
    tokens = rollouts * (config.data.max_prompt_tokens + config.generation.max_response_tokens)
    bytes_per_expert = 1 if experts.num_experts <= 256 else 2
    return tokens * run.settings.num_layers * experts.experts_per_token * bytes_per_expert


def _save_copies(run: PlannedRun) -> int:
    """Return the bytes of all models that an asynchronous save holds until they are written.

    The model that is being gathered comes on top.
    """
    return sum(_saved_models(run).values()) if run.config.checkpoint.asynchronous else 0


def _saved_models(run: PlannedRun) -> Parts:
    """Return the bytes of a node for each model that is saved.

    These are the weights, and the optimizer state that the first of the data-parallel ranks gathers.
    """
    layout, ranks = run.layout, run.machine.gpus_per_node
    dense_ranks = min(ranks, layout.tensor * layout.pipeline)
    expert_ranks = min(ranks, layout.expert * layout.pipeline)
    saved = {
        name: [run.models[name].saved_bytes(stage, learns="optimizer" in run.state(name)) for stage in _stages(run)]
        for name in run.models
        if name != "reference"
    }
    return {name: max(_total(dense_ranks, expert_ranks, *sizes) for sizes in stages) for name, stages in saved.items()}


def _stages(run: PlannedRun) -> range:
    return range(run.layout.pipeline)


def _total(dense_ranks: int, expert_ranks: int, dense_bytes: int, expert_bytes: int) -> int:
    """Return the bytes of all ranks, of which some hold different experts and some different parts of all else."""
    return dense_ranks * dense_bytes + expert_ranks * expert_bytes


_TOKEN_SAMPLE_BYTES = 80
"""A token of a token sample as JSON: its text and four numbers."""


def token_sample_bytes(run: PlannedRun) -> int:
    """Return about the most bytes that the token samples of all evaluations take (`logging.token_samples`)."""
    config = run.config
    tokens = min(TOKEN_SAMPLE_TOKENS, config.generation.max_response_tokens)
    response = tokens * _TOKEN_SAMPLE_BYTES + config.data.max_prompt_tokens * 4
    sets = sum(map(bool, (config.data.labeled, config.data.unlabeled, config.data.held_out)))
    evaluations = 2 + (max(0, config.loop.iterations - 1) // config.evaluation.every if config.evaluation.every else 0)
    return evaluations * sets * config.logging.token_samples * TOKEN_SAMPLE_RESPONSES * response


def checkpoint_bytes(run: PlannedRun) -> int:
    """Return the bytes of a checkpoint: weights of policy and critic, and optimizer state of what iterations train."""
    layout, learns = run.layout, {"policy": True, "critic": run.config.critic.training.learns}
    return sum(
        _total(layout.tensor, layout.expert, *run.models[name].saved_bytes(stage, learns=learns[name]))
        for name in learns
        if name in run.models
        for stage in _stages(run)
    )
