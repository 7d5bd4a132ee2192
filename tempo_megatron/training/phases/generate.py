"""Samples rollouts of the current policy, from their beginning or from where they paused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.generation.requests import PAUSED, Request
from tempo_megatron.training.phases.length_history import LengthHistory


@dataclass(frozen=True)
class Draft:
    """A paused rollout that the engine shall continue. A new one has no tokens yet."""

    rollout: Rollout
    seed: int
    group: int | None = None
    """The number of its group, which may pause (`Request.group`)."""
    must_finish: bool = False
    """Whether nothing pauses before its group is whole."""
    is_carried: bool = False
    """Whether an earlier iteration left it to this one."""
    needs_routes: bool = False
    """Whether the rollout needs the experts that its tokens were routed to (`policy.router_replay`)."""


def generate(
    engine: Engine,
    prompts: Sequence[tuple[str, Prompt]],
    *,
    seed: int,
    iteration: int | str,
    samples: int | Mapping[str, int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    history: LengthHistory | None = None,
    routed_streams: Collection[str] = (),
) -> list[Rollout]:
    """Return `samples` rollouts of each (stream, prompt), in order, from one generate call.

    A mapping gives the number of samples by stream. A request's seed is hashed from run seed, iteration, stream, prompt
    and sample, so other requests of the same call do not change it. A prompt that occurs twice, as when a pass over the
    data ends, continues the numbering of its samples. Requests have the expected lengths of `history`, which then
    observes the rollouts. Rollouts of the `routed_streams` have routes.
    """
    drafts = new_drafts(prompts, seed=seed, iteration=iteration, samples=samples, routed_streams=routed_streams)
    rollouts = complete(engine, drafts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, history=history)
    if history:
        history.observe(rollouts)
    return rollouts


def new_drafts(
    prompts: Sequence[tuple[str, Prompt]],
    *,
    seed: int,
    iteration: int | str,
    samples: int | Mapping[str, int],
    routed_streams: Collection[str] = (),
) -> list[Draft]:
    """Return the drafts of `samples` new rollouts of each (stream, prompt), in order; see `generate`."""
    drafts: list[Draft] = []
    counts: dict[tuple[str, str], int] = {}
    for stream, prompt in prompts:
        count = samples if isinstance(samples, int) else samples[stream]
        first = counts.get((stream, prompt.id), 0)
        counts[stream, prompt.id] = first + count
        for sample in range(first, first + count):
            request_seed = derive_seed(seed, iteration, stream, prompt.id, sample)
            new_rollout = Rollout(prompt, sample, (), (), PAUSED)
            drafts.append(Draft(new_rollout, request_seed, needs_routes=stream in routed_streams))
    return drafts


def complete(
    engine: Engine,
    drafts: Sequence[Draft],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    history: LengthHistory | None = None,
    enough_groups: int | None = None,
) -> list[Rollout]:
    """Return the continued rollout of each draft, in order, from one generate call.

    A continued rollout keeps its tokens and their log-probs, and the response as a whole has at most `max_tokens`. With
    `enough_groups` drafts that have a group may pause again (`Generator.generate`). Those without a group then come
    first, because the call waits for them, and so do carried ones, which must not wait for ever.
    """
    expected = history.expected_tokens if history else {}

    def comes_first(draft: Draft) -> bool:
        """Return whether the request has no expected length: these are generated before all others."""
        return enough_groups is not None and (draft.is_carried or draft.group is None)

    requests = [
        Request(
            prompt_ids=draft.rollout.token_ids,
            seed=draft.seed,
            max_tokens=max_tokens - len(draft.rollout.response_ids),
            temperature=temperature,
            top_p=top_p,
            group=draft.group,
            must_finish=draft.must_finish,
            needs_routes=draft.needs_routes,
            expected_tokens=None if comes_first(draft) else expected.get(draft.rollout.prompt.id),
        )
        for draft in drafts
    ]
    completions = engine.generate(requests, enough_groups)
    return [
        replace(
            draft.rollout,
            response_ids=draft.rollout.response_ids + completion.response_ids,
            generator_log_probs=draft.rollout.generator_log_probs + completion.log_probs,
            finish_reason=completion.finish_reason,
            routes=completion.routes,
        )
        for draft, completion in zip(drafts, completions, strict=True)
    ]
