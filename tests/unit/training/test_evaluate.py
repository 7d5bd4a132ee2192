"""The evaluation phase: its figures, what it keeps, and grades that all ranks share."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.config import EvaluationConfig
from tempo_megatron.data.spread import spread_over_sources
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.training.phases.evaluate import Evaluator
from tempo_megatron.training.phases.grade import clustered, extracted, graded
from tests.disk import full_after

PROMPTS = [Prompt(f"p{number}", (number,), "here", "exact") for number in range(4)]
ANSWERS: dict[str, dict[str, Any]] = {"p0": {"answer": "a"}, "p1": {"answer": "b"}}


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def rollout(prompt: int, text: str, sample: int = 0, finish_reason: str = "stop") -> Rollout:
    return Rollout(PROMPTS[prompt], sample, tuple(map(ord, text)), (0.0,) * len(text), finish_reason)


class FakeGrader:
    """The grader's interface over whole texts. It keeps the texts that it graded, and fails on `?`."""

    def __init__(self) -> None:
        self.errors = self.timeouts = 0
        self.graded: list[str] = []

    def close(self) -> None:
        self.graded.append("closed")

    def grade(self, rollouts: Sequence[Rollout], answers: dict[str, dict[str, Any]]) -> list[float]:
        texts = [decode(rollout.response_ids) for rollout in rollouts]
        self.graded += texts
        self.errors += texts.count("?")
        self.timeouts += 2 * texts.count("?")
        expected = [answers[rollout.prompt.id]["answer"] for rollout in rollouts]
        return [
            float(text == answer and not rollout.truncated)
            for text, answer, rollout in zip(texts, expected, rollouts, strict=True)
        ]

    def extract(self, rollouts: Sequence[Rollout]) -> list[str]:
        return [decode(rollout.response_ids).strip() for rollout in rollouts]

    def cluster(self, rollouts: Sequence[Rollout]) -> list[int]:
        numbers: dict[object, int] = {}
        texts = self.extract(rollouts)
        keys = [
            (rollout.prompt.id, text or row) for row, (rollout, text) in enumerate(zip(rollouts, texts, strict=True))
        ]
        return [numbers.setdefault(key, len(numbers)) for key in keys]


class Scripted:
    """An engine that answers a prompt's samples with prepared texts; `!` at the end marks one that was cut."""

    def __init__(self, texts: dict[int, list[str]]) -> None:
        self.texts = texts
        self.prompts: list[int] = []
        """The prompt of each request."""
        self.expected_tokens: list[float | None] = []
        """The expected length of each request."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.prompts += [request.prompt_ids[0] for request in requests]
        self.expected_tokens += [request.expected_tokens for request in requests]
        remaining = {prompt: iter(texts) for prompt, texts in self.texts.items()}
        texts = [next(remaining[request.prompt_ids[0]]) for request in requests]
        return [
            Completion(tuple(map(ord, text)), (0.0,) * len(text), "length" if text.endswith("!") else "stop")
            for text in texts
        ]


def evaluator(samples_directory: Path | None = None, **settings: int) -> Evaluator:
    sets = {"unlabeled": PROMPTS[:2]}
    config = EvaluationConfig(samples=4, k=2, **settings)  # type: ignore[arg-type]
    return Evaluator(sets, ANSWERS, FakeGrader(), decode, config, 9, samples_directory)  # type: ignore[arg-type]


@pytest.mark.parametrize(("at_an_end", "prompts"), [(False, [1] * 4), (True, [0] * 3 + [1] * 3)])
def test_between_the_ends_some_questions_are_evaluated_and_at_them_all(at_an_end: bool, prompts: list[int]) -> None:
    """With as many samples as there are set for each; 0 leaves it at `samples`."""
    engine = Scripted({0: ["a"] * 4, 1: ["b"] * 4})
    evaluator(questions=1, final_samples=3).evaluate(engine, 3, at_an_end)
    assert engine.prompts == prompts


@pytest.mark.parametrize("at_an_end", [False, True])
def test_the_same_questions_are_followed_token_by_token_in_every_evaluation(at_an_end: bool) -> None:
    """Evaluations between the ends have a part of the questions, which contains them."""
    sets = {"unlabeled": mixed(a=6, b=3), "held_out": [Prompt("z0", (9,), "z", "exact")]}
    answers: dict[str, dict[str, Any]] = {prompt.id: {"answer": "x"} for group in sets.values() for prompt in group}
    config = EvaluationConfig(samples=2, k=1, questions=4)
    followed = Evaluator(sets, answers, FakeGrader(), decode, config, 9, None, 2)  # type: ignore[arg-type]
    followed.evaluate(Scripted({number: ["x", "y"] for number in range(10)}), 3, at_an_end)
    chosen = {prompt.id for prompt in spread_over_sources(sets["unlabeled"], "evaluation")[:2]}
    questions = {question.rollouts[0].prompt.id: question for question in followed.sampled_questions}
    assert questions.keys() == chosen | {"z0"}
    assert all(question.correct == [1.0, 0.0] for question in questions.values())
    assert questions["z0"].question_set == "held_out"


def test_an_evaluation_expects_the_lengths_of_earlier_evaluations_alone() -> None:
    """Lengths that training expects decide which of its responses pause. They must not depend on what is evaluated,
    because only questions with answers are; so an evaluator has expectations of its own."""
    engine, evaluator_of_run = Scripted({0: ["aaa"] * 4, 1: ["b"] * 4}), evaluator()
    for iteration in (1, 2):
        evaluator_of_run.evaluate(engine, iteration, at_an_end=True)
    assert engine.expected_tokens == [None] * 8 + [3.0] * 4 + [1.0] * 4
    another = Scripted({0: ["aaa"] * 4, 1: ["b"] * 4})
    evaluator().evaluate(another, 1, at_an_end=True)
    assert another.expected_tokens == [None] * 8


def mixed(**sizes: int) -> list[Prompt]:
    """Prompts of several sources, one source after the other."""
    names = [(source, number) for source, size in sizes.items() for number in range(size)]
    return [Prompt(f"{source}{number}", (index,), source, "exact") for index, (source, number) in enumerate(names)]


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 1, 0]), (3, [1, 1, 1]), (20, [10, 8, 2]), (50, [25, 20, 5])])
def test_a_part_has_of_every_source_in_proportion(count: int, expected: list[int]) -> None:
    """The first ones of a file of three sources would be one source's alone. A smaller part is within a larger one."""
    prompts = mixed(a=50, b=40, c=10)
    chosen = spread_over_sources(prompts, "evaluation")
    assert sorted(prompt.id for prompt in chosen) == sorted(prompt.id for prompt in prompts)
    counts = Counter(prompt.source for prompt in chosen[:count])
    assert [counts[source] for source in "abc"] == pytest.approx(expected, abs=1)
    assert count < 3 or (min(counts.values()) > 0 and len(counts) == 3)
    assert [prompt.id for prompt in chosen if prompt.source == "a"] != [f"a{number}" for number in range(50)]
    assert chosen == spread_over_sources(prompts[::-1], "evaluation")


@pytest.mark.parametrize("at_an_end", [False, True])
def test_figures_are_given_for_each_source_of_a_set(at_an_end: bool) -> None:
    """A mean over a set hides a source that fell; a set of one source has nothing to add."""
    sets = {"unlabeled": mixed(a=6, b=3), "held_out": [Prompt("z0", (9,), "z", "exact")]}
    answers = {
        prompt.id: {"answer": "x" if prompt.source == "a" else "y"} for prompts in sets.values() for prompt in prompts
    }
    config = EvaluationConfig(samples=2, k=1, questions=3)
    mixed_evaluator = Evaluator(sets, answers, FakeGrader(), decode, config, 9, None)  # type: ignore[arg-type]
    engine = Scripted({number: ["x", "x"] for number in range(10)})
    figures = mixed_evaluator.evaluate(engine, 3, at_an_end)
    assert figures.keys() == {"unlabeled", "unlabeled/a", "unlabeled/b", "held_out"}
    assert (figures["unlabeled/a"]["avg@1"], figures["unlabeled/b"]["avg@1"]) == (1.0, 0.0)
    assert figures["unlabeled"]["avg@1"] == pytest.approx(2 / 3)
    assert len(set(engine.prompts)) == (10 if at_an_end else 4)


def test_questions_are_kept_for_the_report_without_their_answers(tmp_path: Path) -> None:
    """All of them, though an evaluation between the ends has a part; the report may be sent to anybody."""
    evaluator(tmp_path, questions=1).evaluate(Scripted({1: ["a"] * 4}), 3, at_an_end=False)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert rows == [{"set": "unlabeled", "prompt": f"p{number}", "question": chr(number)} for number in range(2)]


def test_an_evaluation_has_every_figure_and_keeps_its_texts(tmp_path: Path) -> None:
    """Two questions worked out by hand; a cut response neither is right nor votes, and counts as long as it is."""
    engine = Scripted({0: ["a", "a", "z", "a!"], 1: ["z", "b", " ", "y y y y y"]})
    figures = evaluator(tmp_path).evaluate(engine, 3, at_an_end=True)["unlabeled"]
    assert figures["avg@2"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert figures["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2)
    one = (1 + 2 * 0.5 + 2 * 1 + 0) / 6  # aa; az twice, a tie; a! twice; z!
    other = (0.5 + 0 + 0 + 1 + 0.5 + 0) / 6  # zb, z_, zy, b_, by, _y
    assert figures["cons@2"] == pytest.approx((one + other) / 2)
    assert figures["length"] == pytest.approx((5 + 12) / 8)
    assert figures["truncated"] == pytest.approx(1 / 8)
    assert figures["distinct_answers"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    entropies = (math.log(3) - 2 / 3 * math.log(2), math.log(3))
    assert figures["answer_entropy"] == pytest.approx(sum(entropies) / 2)
    assert figures["distinct_4grams"] == pytest.approx(1 / 2)
    assert {"avg@2_standard_error", "pass@2_standard_error", "cons@2_standard_error"} < figures.keys()
    rows = [json.loads(line) for line in (tmp_path / "iteration-000003.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == engine.texts[0] + engine.texts[1]
    assert [row["cluster"] for row in rows] == [0, 0, 1, None, 0, 1, None, 2]
    assert [row["answer"] for row in rows] == ["a", "a", "z", "", "z", "b", "", "y y y y y"]
    assert rows[3] == {
        "set": "unlabeled",
        "prompt": "p0",
        "sample": 3,
        "correct": 0.0,
        "answer": "",
        "cluster": None,
        "tokens": 2,
        "finish_reason": "length",
        "response": "a!",
    }


def test_texts_that_cannot_be_kept_leave_no_part_of_them(tmp_path: Path) -> None:
    """Half of them would look like an evaluation of fewer questions."""
    with pytest.raises(OSError), full_after(16):
        evaluator(tmp_path).evaluate(Scripted({0: ["a"] * 4, 1: ["b"] * 4}), 3, at_an_end=True)
    assert list(tmp_path.iterdir()) == []


def test_rollouts_of_the_m_step_are_observed_where_answers_are_known() -> None:
    """avg and drift over rollouts of known questions alone; p2 and p3 have no answers and change nothing."""
    rows = [rollout(0, "a"), rollout(0, "z"), rollout(1, "b"), rollout(1, "b"), rollout(2, "a"), rollout(3, "a")]
    figures = evaluator().observe(rows, [0.9, 0.8, 0.7, 0.6, 0.0, 1.0])
    assert figures == {
        "evaluation/unlabeled_rollouts/avg": pytest.approx(3 / 4),
        "evaluation/unlabeled_rollouts/pass@2": pytest.approx(1.0),
        "evaluation/unlabeled_rollouts/reward_minus_truth": pytest.approx(0.75 - 0.75),
        "evaluation/unlabeled_rollouts/reward_auroc": pytest.approx(1 / 3),
        "evaluation/unlabeled_rollouts/reward_auroc_within_prompts": pytest.approx(1.0),
    }


def test_an_observation_says_only_what_it_can() -> None:
    """No answers, no rewards, one rollout a prompt, all right: each leaves figures out rather than inventing them."""
    assert evaluator().observe([rollout(2, "a")], [0.5]) == {}
    alone = {"evaluation/unlabeled_rollouts/avg": 1.0}
    assert evaluator().observe([rollout(0, "a"), rollout(1, "b")], None) == alone
    drift = {"evaluation/unlabeled_rollouts/reward_minus_truth": -0.25}
    assert evaluator().observe([rollout(0, "a"), rollout(1, "b")], [1.0, 0.5]) == alone | drift


ROWS = [rollout(row % 3, text, row) for row, text in enumerate(["a", "z", "?", "a", "b", "a", " ", "b", " "])]
KNOWN = ANSWERS | {"p2": {"answer": "a"}}


def test_one_rank_grades_every_row() -> None:
    check_shared_grades(0, 1)


def check_shared_grades(rank: int, ranks: int) -> None:
    """Assert what each rank must see: grades and counts of all rows, of which it has graded its own alone."""
    grader = FakeGrader()
    assert graded(grader, ROWS, KNOWN) == [1, 0, 0, 1, 1, 1, 0, 1, 0]  # type: ignore[arg-type]
    assert grader.graded == [decode(row.response_ids) for row in ROWS[rank::ranks]]
    assert (grader.errors, grader.timeouts) == (1, 2)
    assert extracted(grader, ROWS) == ["a", "z", "?", "a", "b", "a", "", "b", ""]  # type: ignore[arg-type]
    numbers = clustered(grader, ROWS)  # type: ignore[arg-type]
    assert numbers[0] == numbers[3] != numbers[6]
    assert numbers[4] == numbers[7] != numbers[1]
    assert len({numbers[2], numbers[5], numbers[8]}) == 3
