"""Groups of responses that pause and go on, with an engine whose lengths are hashed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.config import LoopConfig
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.training.build import forget_changed_questions
from tempo_megatron.training.phases.advantages import group_numbers, stale_mask
from tempo_megatron.training.phases.generate import Draft, complete, new_drafts
from tempo_megatron.training.phases.partial_rollouts import (
    Group,
    PartialStep,
    sample_groups,
    staleness_metrics,
)
from tempo_megatron.training.state import RunState
from tools.killing.recorded import pause_unfinished

LONGEST = 64


class Engine:
    """Samples responses of heavy-tailed lengths. A token and its log-prob are those of the present policy's number."""

    def __init__(self) -> None:
        self.policy = 0
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.requests = list(requests)
        completions = []
        for request in requests:
            share = (request.seed + 1) / 2**31
            length = min(request.max_tokens, 1 + int(-8 * math.log(share)))
            reason = "length" if length == request.max_tokens else "stop"
            completions.append(Completion((self.policy,) * length, (-float(self.policy),) * length, reason))
        return pause_unfinished(requests, completions, enough_groups)

    def load_weights(self) -> None: ...

    def sleep(self) -> None: ...

    def take_figures(self) -> dict[str, float]:
        return {}


def loop_of(prompts: int, share: float, staleness: int) -> LoopConfig:
    return LoopConfig(unlabeled_prompts=prompts, partial_rollouts=share, staleness=staleness)


def prompt(name: str) -> Prompt:
    return Prompt(name, (1, 2), "here", "exact", None, f"question {name}")


def run(
    loop: LoopConfig, iterations: int, samples: int = 4, labeled: int = 0, questions: int = 50
) -> tuple[list[PartialStep], list[list[Request]], list[str]]:
    """Samples as a run does; returns each iteration's step and requests, and the ids of the prompts taken."""
    engine, carried, steps, requests = Engine(), [], [], []
    stream = Stream([prompt(f"p{number}") for number in range(questions)], 0, "unlabeled")
    taken: list[str] = []
    for iteration in range(1, iterations + 1):
        engine.policy = iteration
        prompts = stream.take(loop.prompts_in_flight - len(carried))
        taken += [each.id for each in prompts]

        def complete_drafts(drafts: Sequence[Draft], enough: int) -> list[Rollout]:
            return complete(engine, drafts, max_tokens=LONGEST, temperature=1.0, top_p=1.0, enough_groups=enough)

        new = new_drafts([("unlabeled", each) for each in prompts], seed=0, iteration=iteration, samples=samples)
        others = new_drafts([("labeled", prompt("l"))], seed=0, iteration=iteration, samples=labeled)
        step = sample_groups(
            complete_drafts, others, new, carried, samples=samples, loop=loop, seed=0, iteration=iteration
        )
        carried = step.carried
        steps.append(step)
        requests.append(engine.requests)
    return steps, requests, taken


@pytest.mark.parametrize("staleness", [1, 2, 3])
@pytest.mark.parametrize(("prompts", "share"), [(8, 0.5), (8, 0.8), (7, 0.7), (1, 0.9)])
def test_every_group_trains_once_whole_and_in_time_and_steps_are_equally_large(
    prompts: int, share: float, staleness: int
) -> None:
    """Nothing is thrown away, trained twice or trained in part; no token is older than the bound; some do pause."""
    steps, _, taken = run(loop_of(prompts, share, staleness), 40)
    trained = [group for step in steps for group in step.trained]
    assert all(len(step.trained) == prompts for step in steps)
    assert all(group.is_whole and len(group.rollouts) == 4 for group in trained)
    prompts_of = [group.rollouts[0].prompt.id for group in [*trained, *steps[-1].carried]]
    assert Counter(prompts_of) == Counter(taken)
    identities = [(group.started, r.prompt.id, r.sample) for group in trained for r in group.rollouts]
    assert len(set(identities)) == len(identities)
    assert max(group.staleness for group in trained) <= staleness
    assert sum(step.paused for step in steps) > 0 < sum(step.resumed for step in steps)


@pytest.mark.parametrize("staleness", [1, 3])
def test_a_continued_response_keeps_its_tokens_with_the_log_probs_of_their_time(staleness: int) -> None:
    """A token and its log-prob name the policy that sampled them, so that age and share of old tokens can be read from
    the response itself. The whole response obeys the limit of tokens."""
    steps, _, _ = run(loop_of(6, 0.5, staleness), 30)
    for iteration, step in enumerate(steps, 1):
        for rollout in (rollout for group in step.trained for rollout in group.rollouts):
            policies = list(rollout.response_ids)
            assert policies == sorted(policies) and rollout.generator_log_probs == tuple(-float(p) for p in policies)
            assert rollout.stale_tokens == sum(policy < iteration for policy in policies)
            assert iteration - policies[0] == rollout.staleness
            assert len(policies) <= LONGEST and (len(policies) == LONGEST) == rollout.truncated
    assert any(0 < r.stale_tokens < len(r.response_ids) for step in steps for g in step.trained for r in g.rollouts)


def test_a_continuation_is_the_prompt_with_the_prefix_and_a_seed_of_its_own() -> None:
    """The old seed would draw the first tokens' random numbers again, and a prompt that is taken anew while its group
    is carried must not share a seed with it."""
    _, requests, _ = run(loop_of(6, 0.5, 2), 30, questions=3)
    resumed = 0
    for of_iteration in requests:
        assert len({request.seed for request in of_iteration}) == len(of_iteration)
        for request in of_iteration:
            prefix = len(request.prompt_ids) - 2
            assert request.max_tokens == LONGEST - prefix > 0
            resumed += prefix > 0
    seeds = [request.seed for of_iteration in requests for request in of_iteration]
    assert resumed > 50 and len(set(seeds)) == len(seeds)


def test_labeled_rollouts_always_finish_and_groups_of_the_largest_age_are_waited_for() -> None:
    """The E-step is on-policy. The bound on age holds because nothing pauses before."""
    steps, requests, _ = run(loop_of(6, 0.5, 1), 20, labeled=5)
    for step, of_iteration in zip(steps, requests, strict=True):
        assert len(step.others) == 5 and not any(rollout.paused or rollout.stale_tokens for rollout in step.others)
        assert [request.group for request in of_iteration[:5]] == [None] * 5
        assert not any(request.must_finish for request in of_iteration[:5])
        assert all(request.must_finish for request in of_iteration if len(request.prompt_ids) > 2)
        assert all(request.group is not None for request in of_iteration[5:])


def test_new_requests_are_those_of_a_run_in_which_nothing_pauses() -> None:
    """The first iteration samples the same responses, and more of them."""
    _, requests, taken = run(loop_of(6, 0.5, 1), 1)
    pairs = [("unlabeled", prompt(name)) for name in taken]
    expected = [draft.seed for draft in new_drafts(pairs, seed=0, iteration=1, samples=4)]
    assert [request.seed for request in requests[0]] == expected and len(taken) == 12


def test_whole_groups_that_are_left_over_train_first_and_are_stale() -> None:
    """Several groups may end in the same step, or before all replicas have noticed."""
    whole = Rollout(prompt("a"), 0, (1, 1), (-1.0, -1.0), "stop")
    empty = Rollout(prompt("b"), 0, (), (), PAUSED)
    old, waiting = Group((whole,)).aged(), Group((empty,)).aged()
    assert (old.staleness, old.rollouts[0].stale_tokens, waiting.staleness) == (1, 2, 0)
    calls = []

    def finish(drafts: Sequence[Draft], enough: int) -> list[Rollout]:
        calls.append((len(drafts), enough))
        return [replace(draft.rollout, response_ids=(4,), finish_reason="stop") for draft in drafts]

    new = new_drafts([("unlabeled", prompt("c"))], seed=0, iteration=4, samples=1)
    step = sample_groups(finish, [], new, [waiting, old], samples=1, loop=loop_of(2, 0.6, 1), seed=0, iteration=4)
    assert calls == [(2, 1)]  # one group is whole already, so that one more is enough
    assert [group.rollouts[0].prompt.id for group in step.trained] == ["a", "b"]
    assert [group.rollouts[0].prompt.id for group in step.carried] == ["c"]
    assert step.resumed == step.paused == 0


@pytest.mark.parametrize(("prompts", "share", "expected"), [(128, 0.8, 160), (7, 0.7, 10), (5, 0.9, 6), (9, 0.5, 18)])
def test_prompts_in_flight_are_those_of_which_the_share_trains(prompts: int, share: float, expected: int) -> None:
    """0.7 is no binary fraction: 7 / 0.7 must not become 11."""
    assert loop_of(prompts, share, 1).prompts_in_flight == expected
    assert loop_of(prompts, 0.0, 1).prompts_in_flight == prompts


def test_a_group_is_the_same_after_it_was_written_and_read() -> None:
    """Bit for bit, empty and whole responses included: a resumed run computes what it would have computed."""
    random = torch.Generator().manual_seed(0)
    log_probs = tuple((-torch.rand(300, generator=random) * 9).tolist())
    ids = tuple(torch.randint(0, 200_000, (300,), generator=random).tolist())
    group = Group(
        (
            Rollout(prompt("a"), 2, ids, log_probs, PAUSED, 250, 2, 7),
            Rollout(prompt("a"), 3, (), (), PAUSED, started=7),
            Rollout(prompt("a"), 4, ids[:9], log_probs[:9], "length", 9, 1, 7),
        )
    )
    text = json.dumps(group.to_json())
    assert Group.from_json(json.loads(text)) == group
    assert len(text) < 309 * 8 * 4 / 3 + 1000


def test_a_carried_and_a_new_group_of_one_prompt_are_two_groups() -> None:
    """Each has its own baseline and votes: another policy began its responses. A pass over few questions ends often, so
    that a question comes back while its last group waits."""
    paused = Rollout(prompt("a"), 0, (1,), (-1.0,), PAUSED, started=3)
    new = new_drafts([("unlabeled", prompt("a"))], seed=0, iteration=4, samples=2)

    def finish(drafts: Sequence[Draft], enough: int) -> list[Rollout]:
        return [replace(draft.rollout, finish_reason="stop") for draft in drafts]

    carried = Group((paused, replace(paused, sample=1))).aged()
    step = sample_groups(finish, [], new, [carried], samples=2, loop=loop_of(2, 0.9, 1), seed=0, iteration=4)
    assert [group.started for group in step.trained] == [3, 4]
    rollouts = [rollout for group in step.trained for rollout in group.rollouts]
    assert group_numbers(rollouts).tolist() == [0, 0, 1, 1]
    assert group_numbers([replace(rollout, started=0) for rollout in rollouts]).tolist() == [0, 0, 0, 0]


def test_metrics_and_mask_of_old_tokens() -> None:
    """By hand: two of six tokens are old, and the mean age is that of three responses."""
    rollouts = [
        Rollout(prompt("a"), 0, (1, 2, 3), (0.0,) * 3, "stop", 2, 2),
        Rollout(prompt("a"), 1, (1,), (0.0,), "stop"),
        Rollout(prompt("b"), 0, (1, 2), (0.0,) * 2, "stop", 0, 1),
    ]
    assert staleness_metrics(rollouts) == {
        "rollouts/staleness_mean": 1.0,
        "rollouts/staleness_max": 2.0,
        "rollouts/off_policy_tokens": pytest.approx(2 / 6),
    }
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]).bool()
    assert stale_mask(mask, rollouts).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_paused_responses_to_questions_that_changed_are_dropped() -> None:
    """A question that was removed must not train. Where its text changed, old and new responses would be one group."""
    kept, removed, changed = (
        Group((Rollout(prompt(name), 0, (1,), (0.0,), PAUSED, started=1),)) for name in ("kept", "removed", "changed")
    )
    current = [prompt("kept"), replace(prompt("changed"), token_ids=(7, 7))]
    data: Any = SimpleNamespace(questions=SimpleNamespace(sets={"unlabeled": SimpleNamespace(prompts=current)}))
    state, lines = RunState(carried=(kept, removed, changed)), []
    console: Any = SimpleNamespace(say=lines.append)
    forget_changed_questions(state, data, console)
    assert state.carried == (kept,) and lines == ["dropped the paused responses to 2 questions that have changed"]
