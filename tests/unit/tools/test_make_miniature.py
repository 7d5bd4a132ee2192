"""tools/make_miniature.py: questions have exactly one answer, and sets grow without changing."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import make_miniature
import pytest
import yaml


def solutions(question: str) -> list[str]:
    """Return the running sums of every subset that reaches the target, by brute force."""
    digits, target = question.rstrip(":").split(">")
    results = []
    for taken in product((False, True), repeat=len(digits)):
        sums = [sum(int(d, 16) for d, t in zip(digits[:end], taken, strict=False) if t) % 16 for end in range(1, 8)]
        steps = "".join(f"{value:x}" for value in sums[: len(digits)])
        results += [steps] if steps[-1] == target else []
    return results


def test_the_example_of_the_docstring_is_right() -> None:
    assert make_miniature.running_sums([5, 12, 3], [1, 0, 1]) == "558"
    assert solutions("5c3>8:") == ["558"]


def test_a_question_has_exactly_one_answer() -> None:
    """A second subset with the same sum would be graded wrong, and the majority would split."""
    rows = list(make_miniature.question_rows(seed=1, size=60, lengths={3: 1, 6: 1}))
    assert all(solutions(row["prompt"]) == [row["answer"]] for row in rows)
    assert {len(row["answer"]) for row in rows} == {3, 6}
    assert len({row["prompt"] for row in rows}) == 60


def test_guesses_are_valid_steps_that_mostly_miss_the_target() -> None:
    rows = list(make_miniature.question_rows(seed=1, size=80, lengths={5: 1}, guesses=1.0))
    assert all(
        (int(now, 16) - int(before, 16)) % 16 in (0, int(digit, 16))
        for row in rows
        for before, now, digit in zip("0" + row["answer"], row["answer"], row["prompt"], strict=False)
    )
    assert sum(solutions(row["prompt"]) == [row["answer"]] for row in rows) < 20


def test_guesses_contradict_no_other_set(tmp_path: Path) -> None:
    """A run refuses a labeled question that has another answer in the warm start. There are few short questions."""
    sets = {
        "warm_start": {"seed": 1, "size": 900, "lengths": {3: 1}, "guesses": 0.5},
        "labeled": {"seed": 2, "size": 300, "lengths": {3: 1}},
    }
    make_miniature.write_questions(tmp_path, sets)
    rows = {
        name: {json.loads(line)["prompt"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()}
        for name in sets
    }
    assert rows["warm_start"].isdisjoint(rows["labeled"])
    assert (len(rows["warm_start"]), len(rows["labeled"])) == (900, 300)
    drawn_alone = {row["prompt"] for row in make_miniature.question_rows(seed=1, size=900, lengths={3: 1})}
    assert not drawn_alone.isdisjoint(rows["labeled"])


def test_a_set_that_is_too_large_is_refused() -> None:
    """One digit has 15 questions for each of the targets 0 and itself. The draw would go on forever."""
    with pytest.raises(ValueError, match="fewer than 31 questions"):
        list(make_miniature.question_rows(seed=0, size=31, lengths={1: 1}))


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    """The study `labels` compares the first questions with all of them."""
    sets = yaml.safe_load(make_miniature.QUESTIONS.read_text())
    small, whole = ({**sets[name], "size": size} for name, size in (("labeled_64", 20), ("labeled", 40)))
    make_miniature.write_questions(tmp_path, {"small": small, "whole": whole})
    first, second = ((tmp_path / f"{name}.jsonl").read_text() for name in ("small", "whole"))
    assert second.startswith(first) and len(second.splitlines()) == 40
    assert json.loads(first.splitlines()[0]).keys() == {"prompt", "answer"}
