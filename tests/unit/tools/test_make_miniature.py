"""tools/make_miniature.py: questions have exactly one answer, and sets grow without changing."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import make_miniature
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


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    """The study `labels` compares the first questions with all of them."""
    sets = yaml.safe_load(make_miniature.QUESTIONS.read_text())
    small, whole = ({**sets[name], "size": size} for name, size in (("labeled_64", 20), ("labeled", 40)))
    make_miniature.write_questions(tmp_path, {"small": small, "whole": whole})
    first, second = ((tmp_path / f"{name}.jsonl").read_text() for name in ("small", "whole"))
    assert second.startswith(first) and len(second.splitlines()) == 40
    assert json.loads(first.splitlines()[0]).keys() == {"prompt", "answer"}
