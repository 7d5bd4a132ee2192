"""Expected lengths: what a history learns from rollouts, what requests get, and what a resumed run has of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.training.phases import length_history
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.training.phases.length_history import LengthHistory, rank_correlation
from tempo_megatron.training.state import RunState
from tests.unit.training.fake_run import FakeEngine, build_fake, restore, steps


def rollouts(lengths: dict[str, list[int]], finish_reason: str = "stop") -> list[Rollout]:
    prompts = {name: Prompt(name, (1,), "here", "exact") for name in lengths}
    return [
        Rollout(prompts[name], sample, (5,) * tokens, (0.0,) * tokens, finish_reason)
        for name, sampled in lengths.items()
        for sample, tokens in enumerate(sampled)
    ]


def test_an_expectation_is_the_weighted_mean_of_a_questions_mean_lengths() -> None:
    """The first mean counts whole, each later one half. A truncated response counts with its length."""
    history = LengthHistory()
    history.observe(rollouts({"a": [2, 4], "b": [10]}))
    assert history.expected_tokens == {"a": 3.0, "b": 10.0}
    history.observe(rollouts({"a": [9, 9, 9]}, "length"))
    assert history.expected_tokens == {"b": 10.0, "a": 6.0}


def test_the_questions_that_were_sampled_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of questions that come once neither grows the state nor displaces those that come back."""
    monkeypatch.setattr(length_history, "MAX_QUESTIONS", 3)
    history = LengthHistory()
    for number in range(6):
        history.observe(rollouts({"returns": [4], f"once {number}": [7]}))
    assert list(history.expected_tokens) == ["once 4", "returns", "once 5"]


def test_the_order_of_expected_lengths_is_compared_with_that_of_sampled_ones() -> None:
    """A monotone relation has correlation 1, whatever its scale. Questions without an expectation do not count."""
    sampled = rollouts({"a": [1], "b": [2], "c": [30], "new": [9]})
    assert rank_correlation({"a": 5.0, "b": 6.0, "c": 7.0}, sampled) == pytest.approx(1.0)
    assert rank_correlation({"a": 7.0, "b": 6.0, "c": 5.0}, sampled) == pytest.approx(-1.0)
    assert rank_correlation({"a": 5.0, "b": 5.0}, sampled) is None
    assert rank_correlation({}, sampled) is None


class LongAnswers:
    """Completes the prompt (n,) with n tokens, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: Sequence[Request] = ()

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.requests = requests
        return [Completion((5,) * r.prompt_ids[0], (0.0,) * r.prompt_ids[0], "stop") for r in requests]


def test_requests_have_the_expected_lengths_of_their_questions() -> None:
    """In the first call none has; in the second those of the first call."""
    engine, history = LongAnswers(), LengthHistory()
    prompts = [("unlabeled", Prompt(f"p{tokens}", (tokens,), "here", "exact")) for tokens in (3, 8, 2)]
    settings: dict[str, Any] = {"seed": 0, "samples": 2, "max_tokens": 9, "temperature": 1.0, "top_p": 1.0}
    for pairs, expected in ((prompts[:2], [None] * 4), (prompts, [3, 3, 8, 8, None, None])):
        generate(engine, pairs, iteration=1, history=history, **settings)  # type: ignore[arg-type]
        assert [request.expected_tokens for request in engine.requests] == expected


class UnevenEngine(FakeEngine):
    """Its responses have lengths that depend on the request; it notes the expected lengths."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        super().generate(requests)
        self.events.append(repr([request.expected_tokens for request in requests]))
        return [
            Completion((7,) * (1 + request.seed % 9), (0.0,) * (1 + request.seed % 9), "stop") for request in requests
        ]


def test_a_resumed_run_expects_what_the_uninterrupted_one_expects() -> None:
    """Its requests have the same expectations bit for bit, and so has its state, in the same order."""

    def build() -> tuple[Any, list[str]]:
        run, events = build_fake()
        run.collector.generator = UnevenEngine(events)
        return run, events

    run, events = build()
    for iteration in range(1, 6):
        steps(run, events, iteration)
    saved = json.dumps(run.snapshot().to_json())
    uninterrupted = [steps(run, events, iteration) for iteration in range(6, 10)]

    state = RunState.from_json(json.loads(saved))
    resumed, resumed_events = build()
    restore(resumed, state)
    assert [steps(resumed, resumed_events, iteration) for iteration in range(6, 10)] == uninterrupted
    assert "None" not in uninterrupted[-1][1]
    assert list(resumed.snapshot().expected_tokens.items()) == list(run.snapshot().expected_tokens.items())


def test_a_snapshot_does_not_change_with_the_run() -> None:
    """A run that is interrupted saves an earlier snapshot."""
    run, events = build_fake()
    steps(run, events)
    snapshot = run.snapshot()
    before = dict(snapshot.expected_tokens)
    run.collector.history.observe(rollouts({"1-0": [50]}))
    assert snapshot.expected_tokens == before != run.snapshot().expected_tokens
