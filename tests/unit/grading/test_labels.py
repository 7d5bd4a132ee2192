"""Labels are graded against themselves before a run, an evaluation or a data command starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron import cli
from tempo_megatron.config import GradingConfig, SourceConfig, load_config
from tempo_megatron.data.sources import read_answered_rows
from tempo_megatron.grading import labels
from tempo_megatron.grading.graders import grader_functions
from tempo_megatron.launch import torchrun
from tempo_megatron.validation import recipe as recipe_validation
from tests.unit.data.test_prepare import in_this_process

GRADERS = "tests.fixtures.grading.user_graders"
GRID = {"header": ["House", "Name"], "rows": [["1", "Ada"], ["2", "Bo"]]}


def source_of(path: Path, *rows: dict[str, Any]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def problems(*sources: SourceConfig) -> list[str]:
    return labels.label_problems(read_answered_rows(sources))


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grades in this process, because workers take seconds to start."""
    monkeypatch.setattr(labels, "_run", in_this_process)


@pytest.mark.parametrize(
    ("grader", "label", "reason"),
    [
        ("exact", "", "the label is empty"),
        ("exact", "  ", "the label is empty"),
        ("exact", float("nan"), "the label is nan, not a number"),
        ("exact", {"value": 4}, "a label is a text or a number, not {'value': 4}"),
        ("exact", ["4"], "a label is a text or a number, not ['4']"),
        ("exact", "\frac{1}{2}", r"holds the control character '\x0c': JSON wants \\ for \ "),
        ("judge", "", "the label is empty"),
        ("judge", {"text": "a"}, "a label is a text or a number"),
        ("math", "", ""),
        ("math", float("nan"), ""),
        ("math", {"value": 4}, ""),
        ("math", "\frac{1}{2}", ""),
        ("math", r"\frac{1}{", ""),
        ("choice", "", ""),
        ("choice", "yes", ""),
        ("free", "", ""),
        ("free", {"a": 1}, ""),
        ("zebra", {"header": ["House", "Name"], "rows": [["1"]]}, ""),
        ("zebra", {"header": ["House", "Name"], "rows": []}, ""),
        ("zebra", "Ada", ""),
        ("reasoning_gym:chain_sum", "4", "a row needs `metadata`"),
        (f"{GRADERS}.in_words", "4", "the label is no word"),
    ],
)
def test_a_label_that_no_response_can_get_right_is_named(
    grader: str, label: Any, reason: str, tmp_path: Path, no_workers: None
) -> None:
    """The line names the file, row, grader and reason. The valid row before it is not listed."""
    source = source_of(
        tmp_path / "rows.jsonl",
        {"prompt": "fine", "answer": "4", "grader": "exact"},
        {"prompt": "a", "answer": label, "grader": grader},
    )
    (line,) = problems(source)
    assert line.startswith(f"{source.path}, line 2: grader {grader}: ") and reason.strip() in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("grader", "label"),
    [
        ("exact", "4"),
        ("exact", 4),
        ("exact", "two\nlines"),
        ("judge", "Because it rains."),
        ("math", "42"),
        ("math", 42),
        ("math", r"$\frac{1}{2}$"),
        ("math", r"\frac{3\sqrt{2}}{4}"),
        ("choice", "C"),
        ("choice", "(c)"),
        ("choice", 2),
        ("free", "True"),
        ("free", "( [ ] )"),
        ("zebra", GRID),
        (f"{GRADERS}.in_words", "four"),
        (f"{GRADERS}.starts_with", {"anything": [""]}),
    ],
)
def test_a_label_that_can_be_graded_passes(grader: str, label: Any, tmp_path: Path, no_workers: None) -> None:
    """Only a user's function knows what its labels must be."""
    assert problems(source_of(tmp_path / "rows.jsonl", {"prompt": "a", "answer": label, "grader": grader})) == []


@pytest.mark.parametrize(
    ("question", "label", "offered"),
    [
        ("Which?\n(A) one\n(B) two\n(C) three", "D", False),
        ("Which?\n(A) one\n(B) two\n(C) three", 3, False),
        ("Which? (A)one (B)two", "C", False),
        ("Which?\nA. one\nB. two", "E", False),
        ("Which?\na) one\nb) two", "c", False),
        ("Which?\n(A) one\n(B) two\n(C) three", "C", True),
        ("Which?\na) one\nb) two", "B", True),
        ("Which of these is the third letter?", "C", True),
        ("Say (a) x and (b) y hold. A - a alone, B - b alone, C - both, D - none", "C", True),
    ],
)
def test_a_letter_past_the_options_is_named(
    question: str, label: Any, offered: bool, tmp_path: Path, no_workers: None
) -> None:
    """The check needs options with letters. Other lists, or no list, give no problem."""
    lines = problems(source_of(tmp_path / "rows.jsonl", {"prompt": question, "answer": label, "grader": "choice"}))
    assert ["the question's options end with" in line for line in lines] == ([] if offered else [True])


def test_a_reasoning_gym_row_is_graded_by_its_scorer(tmp_path: Path, no_workers: None) -> None:
    """The entry's answer is accepted, another refused. A task that a recipe draws from needs no check."""
    from reasoning_gym import create_dataset

    (entry,) = create_dataset("countdown", seed=1, size=1)
    row = {"prompt": entry["question"], "metadata": entry["metadata"], "grader": "reasoning_gym:countdown"}
    assert problems(source_of(tmp_path / "a.jsonl", row | {"answer": entry["answer"]})) == []
    (line,) = problems(source_of(tmp_path / "b.jsonl", row | {"answer": "many"}))
    assert "line 1: grader reasoning_gym:countdown: the task's scorer does not accept 'many' itself" in line
    assert read_answered_rows([SourceConfig(task="countdown", size=3)]) == []


def test_repeats_with_another_answer_are_listed_across_files(tmp_path: Path, no_workers: None) -> None:
    """Answers compare by value: 1/2 and 0.5 agree. A reasoning-gym question may have several answers."""
    first = source_of(
        tmp_path / "one.jsonl",
        {"prompt": "What is  2+2?", "answer": "4", "grader": "math"},
        {"prompt": "half", "answer": r"\frac{1}{2}", "grader": "math"},
        {"prompt": "half", "answer": "0.5", "grader": "math"},
        {"prompt": "letter", "answer": "C", "grader": "choice"},
        {"prompt": "letter", "answer": 2, "grader": "choice"},
        {"prompt": "several", "answer": "1", "metadata": {}, "grader": "reasoning_gym:no_such"},
        {"prompt": "several", "answer": "2", "metadata": {}, "grader": "reasoning_gym:no_such"},
    )
    second = source_of(
        tmp_path / "two.jsonl",
        {"prompt": "what is 2+2?", "answer": "5", "grader": "math"},
        {"prompt": "unanswered"},
        {"prompt": "What is 2+2?", "answer": "4.0", "grader": "math"},
        {"prompt": "What is 2+2?", "answer": "", "grader": "math"},
    )
    empty, contradicted = problems(first, second)
    assert empty.startswith(f"{second.path}, line 4: grader math: ")
    assert contradicted == (
        f"{first.path}, line 1: the question has the answer '4' here and '5' in {second.path}, line 1: "
        "keep the right one"
    )


def test_a_label_whose_grading_does_not_end_is_named_after_the_time_limit(tmp_path: Path) -> None:
    """A worker grades it. Only that label fails, and the start continues."""
    rows = [{"prompt": str(n), "answer": "word", "grader": f"{GRADERS}.in_words"} for n in range(3)]
    hangs = {"prompt": "hangs", "answer": "word", "grader": f"{GRADERS}.never_checked"}
    source = source_of(tmp_path / "rows.jsonl", *rows, hangs)
    config = GradingConfig(time_limit_seconds=0.5, workers=1)
    assert labels.label_problems(read_answered_rows([source]), config) == [
        f"{source.path}, line 4: grader {GRADERS}.never_checked: to grade the label against itself takes over 0.5 s"
    ]


def test_equal_labels_are_graded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventeen thousand questions may share few answers, and a start waits for their grading."""
    sizes: list[int] = []

    def counted(tasks: Any, config: GradingConfig) -> Any:
        sizes.append(len(tasks))
        return in_this_process(tasks, config)

    monkeypatch.setattr(labels, "_run", counted)
    rows = [{"prompt": f"question {n}", "answer": str(n % 7), "grader": "exact"} for n in range(500)]
    assert problems(source_of(tmp_path / "rows.jsonl", *rows)) == [] and sizes == [7, 0]


def test_ranks_do_not_grade_again_what_the_command_has_graded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has checked the labels before it starts its ranks. Ranks of srun check them themselves."""
    source = source_of(tmp_path / "rows.jsonl", {"prompt": "abc", "answer": "4"})
    config = load_config(recipe, [f"data.held_out=[{{path: {source.path}}}]"])
    graded: list[int] = []
    monkeypatch.setattr(labels, "label_problems", lambda rows, config: graded.append(len(rows)) or [])
    for checked in (None, torchrun.environment_of_ranks()["TEMPO_CHECKED"]):
        if checked:
            monkeypatch.setenv("TEMPO_CHECKED", checked)
        assert recipe_validation.recipe_problems(config) == []
    assert graded == [1]


def test_every_start_lists_bad_labels_with_its_other_problems(
    recipe: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_workers: None
) -> None:
    """A run, an evaluation and a check of files exit with code 2 and write nothing."""
    bad = source_of(
        tmp_path / "bad.jsonl",
        {"prompt": "q1", "answer": "4"},
        {"prompt": "q2", "answer": ""},
        {"prompt": "q3", "answer": "\x0crac"},
        {"prompt": "q1", "answer": "5"},
        {"answer": "no prompt"},
    ).path
    out = tmp_path / "out"
    for command in (
        ["train", str(recipe), f"data.held_out=[{{path: {bad}}}]", "evaluation.k=9"],
        ["train", str(recipe), f"data.labeled=[{{path: {bad}}}]", "evaluation.k=9"],
        ["eval", "--model", str(demo_model), "--data", bad, "--out", str(out), "--precision", "fp32", "--k", "99"],
        ["data", "check", "--labeled", bad, "--unlabeled", bad, "--clean", str(out)],
    ):
        assert cli.main(command) == 2, command
        errors = capsys.readouterr().err
        for part in (
            f"{bad}, line 2: grader exact: the label is empty",
            f"{bad}, line 3: grader exact: the label '\\x0crac' holds the control character",
            f"{bad}, line 1: the question has the answer '4' here and '5' in {bad}, line 4",
            f"{bad}, line 5: a row needs `prompt`",
        ):
            assert errors.count(part) == 1, (command, part, errors)
        assert ("evaluation.k" in errors) == (command[0] == "train")
        assert not out.exists() and not (tmp_path / "run").exists()


def test_prepare_lists_useless_answers_or_drops_them_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_workers: None
) -> None:
    """A user cannot repair a public file. Questions without an answer are enough for adaptation."""
    path = tmp_path / "lsat-ar.jsonl"
    row = {"passage": None, "question": "Which?", "options": ["(A)one", "(B)two"]}
    path.write_text("".join(json.dumps(row | {"question": f"q{n}", "label": a}) + "\n" for n, a in enumerate("AEB")))
    command = ["data", "prepare", "agieval", "--from", str(path), "--out"]
    assert cli.main([*command, str(tmp_path / "none")]) == 2
    assert f"{path}, line 2: grader choice: the label is E" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for options, answers in (([], ["A", "B"]), (["--keep-unanswered"], ["A", None, "B"])):
        assert cli.main([*command, str(tmp_path), "--drop-useless", *options]) == 0
        written = (tmp_path / "agieval.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in written] == answers
        assert ("1 answer that no response can get right" in capsys.readouterr().out) == (not options)


def test_prepare_reports_repeats_with_another_answer_and_keeps_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_workers: None
) -> None:
    """Nothing shows which answer is right. Repeats that agree in value count as duplicates."""
    path = tmp_path / "rows.jsonl"
    answers = [("a", "4"), ("b", "1/2"), ("A", "5"), ("b", "0.5"), ("a", "4")]
    path.write_text("".join(json.dumps({"problem": q, "answer": a}) + "\n" for q, a in answers))
    command = ["data", "prepare", "aime-2024", "--from", str(path), "--out", str(tmp_path)]
    written = tmp_path / "aime-2024.jsonl"
    assert cli.main(command) == 0
    assert [json.loads(line)["answer"] for line in written.read_text().splitlines()] == ["1/2"]
    output = capsys.readouterr().out
    assert "5 rows read, 4 dropped (3 duplicate, 1 repeated with another answer), 1 kept" in output
    assert f"{path}, line 1: the question has the answer '4' here and '5' in {path}, line 3" in output
    assert cli.main([*command, "--keep-unanswered"]) == 0
    assert [json.loads(line)["answer"] for line in written.read_text().splitlines()] == [None, "1/2"]


def test_every_grader_checks_its_labels() -> None:
    """A new grader must say what its labels must be."""
    for name in ("exact", "math", "choice", "free", "zebra", "judge", "reasoning_gym:chain_sum", f"{GRADERS}.raises"):
        assert callable(grader_functions(name).check_label)
