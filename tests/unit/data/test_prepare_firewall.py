"""No prompt depends on an answer, even when `tempo data prepare` reads rows whose answers are replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.config import DataConfig, PromptStyle, SourceConfig
from tempo_megatron.data.prepare import catalog
from tempo_megatron.data.prepare.question import SkippedRow
from tempo_megatron.data.questions import read_questions
from tests.unit.data.test_prepare import CASES, FIXTURES, tempo_data
from tests.unit.data.test_prepare_prompts import Letters, shown

Row = dict[str, Any]
OTHERS = ("(A)", "B", "dearth", "", None, "7", "True", "$x$")


def key(*path: str, of: tuple[Any, ...] = OTHERS) -> Callable[[Row], Iterator[Row]]:
    """Return a function that copies a row with each of these values at a path of keys."""

    def replaced(row: Row) -> Iterator[Row]:
        for value in of:
            copy = deepcopy(row)
            *parents, last = path
            holder = copy
            for parent in parents:
                holder = holder[parent]
            if last in holder:
                holder[last] = value
                yield copy

    return replaced


def swapped(row: Row) -> Iterator[Row]:
    """Yield rows with GPQA's right option in the place of each wrong one."""
    for number in (1, 2, 3):
        wrong = f"Incorrect Answer {number}"
        yield {**row, "Correct Answer": row[wrong], wrong: row["Correct Answer"]}


def scored(row: Row) -> Iterator[Row]:
    """Yield rows with other BIG-bench targets, or with the scores exchanged between options."""
    yield from key("target", of=(*OTHERS[:4], ["this", "that"]))(row)
    options = list(row.get("target_scores", ()))
    for right in [*options, None]:
        yield {**row, "target_scores": {option: int(option == right) for option in options}} if options else row


def filled(row: Row) -> Iterator[Row]:
    """Yield rows with other ZebraLogic cells: all filled, blank or empty, or no rows."""
    header = row["solution"]["header"]
    for cell in ("a", "___", ""):
        yield {**row, "solution": {"header": header, "rows": [[cell] * len(header)]}}
    yield {**row, "solution": {"header": header, "rows": []}}


ANSWERS: dict[str, list[Callable[[Row], Iterator[Row]]]] = {
    "dapo-math-17k": [key("reward_model", "ground_truth")],
    "aime-2024": [key("answer"), key("Answer")],
    "aime-2025": [key("answer")],
    "beyond-aime": [key("answer")],
    "aime-2026": [key("answer")],
    "olymmath": [key("answer")],
    "dolci-rl-zero-general": [key("ground_truth"), key("ground_truth", of=(["a"], ["a", "b"], []))],
    "big-bench-hard": [key("target")],
    "agieval": [key("label"), key("answer"), key("gold", of=([0], [1], [0, 1], None, 1))],
    "zebralogic": [filled],
    "gpqa-diamond": [swapped],
    "bigbench": [scored],
    "reasoning-gym": [key("answer", of=("1", "a", None))],
}
"""For each source, the functions that replace the answers of its rows."""

FILES = [(name, fixture) for name, fixture, *_ in CASES] + [
    ("gpqa-diamond", "gpqa_diamond.csv"),
    ("reasoning-gym", "mix.yaml"),
]


def visible(source: catalog.CatalogSource, row: Row, part: str) -> tuple[Any, ...]:
    """Return all of a question that a model, an order or a seed may depend on, or why there is no question."""
    try:
        question = source.question(row, part)
    except SkippedRow as reason:
        return (str(reason),)
    return question.prompt, question.messages, question.grader, question.source, question.id


@pytest.mark.parametrize(("name", "fixture"), FILES)
def test_another_answer_leaves_every_question_as_it_was(name: str, fixture: str) -> None:
    """Prompt, grader (whose instruction ends the prompt), source, id and whether a row becomes a question depend on the
    question alone, whatever the source's answer is."""
    source, compared = catalog.SOURCES[name], 0
    for _, part, row in source.rows(FIXTURES / fixture, []):
        before = visible(source, deepcopy(row), part)
        for replace in ANSWERS[name]:
            for changed in replace(row):
                assert visible(source, changed, part) == before, changed
                compared += changed != row
    assert compared


def test_every_source_s_answers_are_replaced() -> None:
    """A new source needs a function that replaces its answers."""
    assert set(ANSWERS) == {name for name, _ in FILES} == set(catalog.SOURCES)


@pytest.mark.parametrize("target", ["(A)", "dearth", "rearth", "(B)", "Yes", ""])
def test_the_instruction_of_a_big_bench_hard_question_follows_from_its_options(target: str, tmp_path: Path) -> None:
    """From the file to the prompt: options with letters ask for a letter, also where the target is another text."""
    question = "Which is a funny edit?\nOptions:\n(A) dearth\n(B) rearth"
    task = tmp_path / "ruin_names.json"
    task.write_text(json.dumps({"examples": [{"input": question, "target": target}]}))
    assert tempo_data("prepare", "big-bench-hard", "--from", task, "--out", tmp_path, "--keep-unanswered") == 0
    config = DataConfig(
        unlabeled=[SourceConfig(path=str(tmp_path / "big-bench-hard.jsonl"))], prompt_style=PromptStyle.completion
    )
    questions = read_questions(config, Letters())
    (prompt,) = questions.sets["unlabeled"].prompts
    assert prompt.grader == "choice" and "the letter of the option" in shown(prompt.token_ids)
    letters = {"(A)": "A", "dearth": "A", "rearth": "B", "(B)": "B"}
    assert [answer["answer"] for answer in questions.answers.values()] == [
        letter for text, letter in letters.items() if text == target
    ]


def test_options_without_letters_are_answered_in_words(tmp_path: Path) -> None:
    """Navigate, formal fallacies and causal judgment have options without letters."""
    task = tmp_path / "navigate.json"
    example = {"input": "Do you return to the starting point?\nOptions:\n- Yes\n- No", "target": "No"}
    task.write_text(json.dumps({"examples": [example]}))
    assert tempo_data("prepare", "big-bench-hard", "--from", task, "--out", tmp_path) == 0
    (line,) = (tmp_path / "big-bench-hard.jsonl").read_text().splitlines()
    assert (json.loads(line)["grader"], json.loads(line)["answer"]) == ("free", "No")
