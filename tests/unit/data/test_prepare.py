"""`tempo data prepare` turns every source, from files in its own schema, into rows that a run reads."""

from __future__ import annotations

import json
import shutil
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tempo_megatron import cli
from tempo_megatron.config import GradingConfig, SourceConfig
from tempo_megatron.data.prepare import catalog, files
from tempo_megatron.data.prepare.question import hashed_order
from tempo_megatron.data.sources import Row, read_rows
from tempo_megatron.grading import labels
from tempo_megatron.grading.pool import GradingTask, Outcome

FIXTURES = Path(__file__).parents[2] / "fixtures" / "data"


def tempo_data(*arguments: object) -> int:
    return cli.main(["data", *map(str, arguments)])


@pytest.fixture(autouse=True)
def labels_are_graded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grade without workers, whose start takes seconds; `test_labels.py` has those."""
    monkeypatch.setattr(labels, "_run", in_this_process)


def in_this_process(tasks: Sequence[GradingTask], config: GradingConfig) -> list[Outcome]:
    """Return the outcomes of calling the graders directly."""
    outcomes = []
    for task in tasks:
        try:
            outcomes.append(Outcome(getattr(labels.grader_functions(task.grader), task.method)(*task.arguments)))
        except Exception as error:
            outcomes.append(Outcome(failure=f"{type(error).__name__}: {error}"))
    return outcomes


def as_parquet(path: Path, directory: Path) -> Path:
    """Write a JSONL fixture as a Parquet file, as the hub has it."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    target = directory / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    return target


def prepared(name: str, path: Path, out: Path, *options: object) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return what the command writes: the rows of the file, and the rows as a run reads them."""
    assert tempo_data("prepare", name, "--from", path, "--out", out, *options) == 0
    written = out / f"{name}.jsonl"
    assert [file.name for file in out.iterdir()] == [written.name]
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    read = read_rows([SourceConfig(path=str(written))], labeled="--keep-unanswered" not in options)
    assert [row.id for row in read] == [f"{name}.jsonl:{row['id']}" for row in rows]
    assert [(row.source, row.grader) for row in read] == [(row["source"], row["grader"]) for row in rows]
    return rows, read


GRID = {"header": ["House", "Name", "Drink"], "rows": [["1", "Ada", "tea"], ["2", "Bo", "milk"]]}


CASES: list[tuple[str, str, bool, list[tuple[str, Any]]]] = [
    ("dapo-math-17k", "dapo-math-17k.jsonl", True, [("math", "42"), ("math", "10")]),
    ("aime-2024", "aime-2024.jsonl", True, [("math", "013"), ("math", "014")]),
    ("aime-2024", "aime-2024-columns.jsonl", False, [("math", "13")]),
    ("aime-2025", "aime-2025", False, [("math", "6"), ("math", "14")]),
    ("aime-2026", "aime-2026.jsonl", True, [("math", "75"), ("math", "8")]),
    ("beyond-aime", "beyond-aime.jsonl", True, [("math", "512"), ("math", "120")]),
    ("olymmath", "olymmath.jsonl", False, [("math", "$9$"), ("math", "$6$")]),
    (
        "dolci-rl-zero-general",
        "dolci-rl-zero-general.jsonl",
        True,
        [
            ("judge", "The Weft is the one river of Orlo."),
            ("judge", "Fold a sheet in half, fold the corners in, and open it out."),
        ],
    ),
    ("big-bench-hard", "big-bench-hard", False, [("free", "True"), ("free", "False"), ("choice", "B")]),
    ("agieval", "agieval", False, [("choice", "B"), ("math", "4")]),
    ("agieval", "agieval-hub", False, [("choice", "C"), ("math", "7"), ("choice", "A")]),
    ("zebralogic", "zebralogic.jsonl", True, [("zebra", GRID)]),
    ("bigbench", "bigbench", False, [("free", "lamp"), ("free", "oar"), ("choice", "A")]),
]
"""The name, the fixture, whether the hub has it as Parquet, and the expected graders and answers."""


@pytest.mark.parametrize(("name", "fixture", "parquet", "expected"), CASES)
def test_a_source_in_its_own_schema_becomes_rows_that_a_run_reads(
    name: str, fixture: str, parquet: bool, expected: list[tuple[str, Any]], tmp_path: Path
) -> None:
    """Graders and answers are right in the file, and after a labeled stream has read it."""
    path = as_parquet(FIXTURES / fixture, tmp_path) if parquet else FIXTURES / fixture
    rows, read = prepared(name, path, tmp_path / "out")
    graded = [(row["grader"], row["answer"]) for row in rows]
    assert graded == expected
    assert [row.answer for row in read] == [{"answer": row["answer"]} for row in rows]
    assert "canary" not in json.dumps(rows)


def test_every_source_has_a_test() -> None:
    """A new source needs a file in its schema."""
    assert {name for name, *_ in CASES} | {"gpqa-diamond", "reasoning-gym"} == set(catalog.SOURCES)


def test_dapo_is_unwrapped_and_its_copies_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published file holds each problem about a hundred times, in an instruction that contradicts ours."""
    rows, _ = prepared("dapo-math-17k", FIXTURES / "dapo-math-17k.jsonl", tmp_path / "out")
    assert rows[0]["prompt"] == "A crate holds $3$ rows of $14$ pears. How many pears is that?"
    assert rows[0]["id"] == "9a9b6eb4-0001"
    counted = capsys.readouterr().out
    assert "5 rows read, 3 dropped" in counted and "2 kept" in counted
    for reason in ("1 duplicate", "1 no answer", "1 not in the instruction"):
        assert reason in counted


def test_a_conversation_stays_one_and_a_single_turn_becomes_a_prompt(tmp_path: Path) -> None:
    """Dolci has both. The mark of the user's turn is not part of the question."""
    rows, read = prepared("dolci-rl-zero-general", FIXTURES / "dolci-rl-zero-general.jsonl", tmp_path / "out")
    assert rows[0]["prompt"] == "Name a river of the imaginary land of Orlo."
    assert "prompt" not in rows[1] and [turn["role"] for turn in rows[1]["messages"]] == ["user", "assistant", "user"]
    assert read[0].messages is None and read[1].messages == tuple(rows[1]["messages"])


def test_choices_are_listed_with_their_letters_after_passage_and_question(tmp_path: Path) -> None:
    """Both published forms of AGIEval give the same layout."""
    rows, _ = prepared("agieval", FIXTURES / "agieval", tmp_path / "raw")
    passage, question, options = rows[0]["prompt"].split("\n\n")
    assert passage.startswith("Three clerks") and question.startswith("If R works")
    assert options.splitlines()[:2] == ["(A) P", "(B) Q"]
    hub, _ = prepared("agieval", FIXTURES / "agieval-hub", tmp_path / "hub")
    question = "The lighthouse of Orlo was lit for the first time in spring.\n\nWhen was it lit?"
    assert hub[1]["prompt"] == "What is the slope of $y=7x-1$?"
    assert hub[2]["prompt"] == f"{question}\n\n(A) in spring\n(B) in autumn"


def test_blanked_solutions_are_explained_and_kept_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The public copy of ZebraLogic has no answers: enough for an unlabeled stream, not for evaluation."""
    rows, _ = prepared("zebralogic", FIXTURES / "zebralogic.jsonl", tmp_path / "out")
    assert rows[0]["prompt"].endswith("with the columns: House | Name | Drink")
    assert "WildEval/ZebraLogic" in capsys.readouterr().out
    rows_with_unanswered, read = prepared(
        "zebralogic", FIXTURES / "zebralogic.jsonl", tmp_path / "all", "--keep-unanswered"
    )
    assert [row["answer"] for row in rows_with_unanswered] == [GRID, None] and read[1].answer is None
    blank = tmp_path / "blank.jsonl"
    blank.write_text((FIXTURES / "zebralogic.jsonl").read_text().splitlines()[1])
    assert tempo_data("prepare", "zebralogic", "--from", blank, "--out", tmp_path / "none") == 2
    assert "WildEval/ZebraLogic" in capsys.readouterr().err and not list((tmp_path / "none").iterdir())


def test_gpqa_s_letter_points_at_the_right_option_wherever_the_order_put_it(tmp_path: Path) -> None:
    """Only the questions and options of the gated file are copied."""
    rows, _ = prepared("gpqa-diamond", FIXTURES / "gpqa_diamond.csv", tmp_path / "out")
    right = {"recInvented1": "one unit of twist", "recInvented2": "green"}
    for row in rows:
        assert f"({row['answer']}) {right[row['id']]}" in row["prompt"].splitlines()
        assert row["grader"] == "choice" and set(row) == {"id", "prompt", "answer", "grader", "source"}
    text = (tmp_path / "out" / "gpqa-diamond.jsonl").read_text()
    assert "canary" not in text and "By definition" not in text


def test_neither_order_nor_id_tells_which_option_is_right(tmp_path: Path) -> None:
    """The label firewall includes preparation: after right and wrong are swapped, the model sees the same prompt."""
    source = (FIXTURES / "gpqa_diamond.csv").read_text()
    swapped = tmp_path / "gpqa_diamond.csv"
    swapped.write_text(source.replace("green,red", "red,green"))
    before, _ = prepared("gpqa-diamond", FIXTURES / "gpqa_diamond.csv", tmp_path / "before")
    after, _ = prepared("gpqa-diamond", swapped, tmp_path / "after")
    assert (before[1]["id"], before[1]["prompt"]) == (after[1]["id"], after[1]["prompt"])
    assert before[1]["answer"] != after[1]["answer"]
    places = Counter(hashed_order(f"question {n}", ["right", "w1", "w2", "w3"]).index("right") for n in range(400))
    assert min(places.values()) > 60
    options = list(string.ascii_lowercase)
    assert hashed_order("q", options) == hashed_order("q", options[::-1]) != options


def test_big_bench_options_are_reordered_and_ambiguous_examples_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks often list the right option first, and two options may have the same score."""
    rows, _ = prepared("bigbench", FIXTURES / "bigbench", tmp_path / "out")
    (chosen,) = (row for row in rows if row["grader"] == "choice")
    assert chosen["prompt"].startswith("Choose the odd one out.\n\nFruit or tool?\n\n(A) ")
    assert f"({chosen['answer']}) hammer" in chosen["prompt"]
    counted = capsys.readouterr().out
    assert "1 several answers" in counted and "1 no single right option" in counted
    one_task = FIXTURES / "bigbench" / "parts" / "echo" / "task.json"
    assert [row["answer"] for row in prepared("bigbench", one_task, tmp_path / "one")[0]] == ["lamp", "oar"]


def test_a_reasoning_gym_mix_is_scored_from_its_file(tmp_path: Path) -> None:
    """A row carries the full entry. Its task's own scorer accepts its answer and refuses another."""
    from reasoning_gym import get_score_answer_fn

    rows, read = prepared("reasoning-gym", FIXTURES / "mix.yaml", tmp_path / "out")
    assert Counter(row["source"] for row in rows) == {"chain_sum": 4, "spell_backward": 2}
    for row in read:
        assert row.answer is not None and row.grader == f"reasoning_gym:{row.source}"
        score = get_score_answer_fn(row.source)
        assert score(answer=row.answer["answer"], entry=row.answer) == 1.0
        assert score(answer="x", entry=row.answer) < 1.0
        assert row.answer["question"] == row.question


def test_the_hub_is_read_part_by_part_and_its_failure_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is downloaded. The test checks the calls of `datasets`, and the message to a user without network."""
    requests: list[tuple[object, ...]] = []

    def load_dataset(repository: str, config: str | None, split: str) -> list[dict[str, Any]]:
        requests.append((repository, config, split))
        return [{"question": f"What is {config}?", "answer": "1"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert tempo_data("prepare", "aime-2025", "--out", tmp_path) == 0
    assert requests == [("opencompass/AIME2025", "AIME2025-I", "test"), ("opencompass/AIME2025", "AIME2025-II", "test")]
    hub = files.HubDataset("one/{part}", "test", ("a", "b"))
    assert [(str(location), part) for location, part, _ in hub.read()] == [("one/a, row 1", "a"), ("one/b, row 1", "b")]
    assert requests[2:] == [
        ("one/a", None, "test"),
        ("one/b", None, "test"),
    ]

    def offline(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    assert tempo_data("prepare", "aime-2024", "--out", tmp_path / "none") == 2
    message = capsys.readouterr().err
    assert "no route to the hub" in message and "--from PATH" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("aime-2024", '{"text": "a"}\n', "line 1: a row needs `problem` or `question` or `Problem`; it has text"),
        ("aime-2024", "{broken\n", "rows.jsonl, line 1: not JSON"),
        ("aime-2024", "", "rows.jsonl: the data file is empty"),
        ("zebralogic", '{"puzzle": "p", "solution": {"rows": []}}\n', "needs `header`"),
        ("gpqa-diamond", '{"Question": "q"}\n', "needs `Correct Answer`"),
    ],
)
def test_what_is_not_in_the_schema_is_named_and_leaves_nothing(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names file, row and field. An earlier output stays as it was."""
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text(content)
    out.mkdir()
    (out / f"{name}.jsonl").write_text("earlier")
    assert tempo_data("prepare", name, "--from", path, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert [file.read_text() for file in out.iterdir()] == ["earlier"]


def test_sources_without_hub_limits_and_mixes_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are errors, and `--limit` keeps the first questions."""
    assert tempo_data("prepare", "bigbench", "--out", tmp_path) == 2
    assert tempo_data("prepare", "aime-2024", "--from", tmp_path / "nowhere") == 2
    mix = tmp_path / "mix.yaml"
    mix.write_text("- {task: chain_sum, weight: 2}\n")
    assert tempo_data("prepare", "reasoning-gym", "--from", mix, "--out", tmp_path) == 2
    mix.write_text("- {task: no_such_task, size: 2}\n")
    assert tempo_data("prepare", "reasoning-gym", "--from", mix, "--out", tmp_path) == 2
    message = capsys.readouterr().err
    for part in ("give --from PATH", "no such file or directory", "unknown weight", "no_such_task"):
        assert part in message
    rows, _ = prepared("aime-2024", FIXTURES / "aime-2024.jsonl", tmp_path / "out", "--limit", 1)
    assert len(rows) == 1


def test_list_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    """The list has every source and its hub address, and `tempo` has the command."""
    assert cli.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in catalog.SOURCES)
    assert "BytedTsinghua-SIA/DAPO-Math-17k; maths, labeled; grader math" in shown


def test_ids_that_parts_share_stay_apart(tmp_path: Path) -> None:
    """One answer would otherwise grade the rows with the same id in two files."""
    shutil.copy(FIXTURES / "aime-2024.jsonl", tmp_path / "one.jsonl")
    other = (FIXTURES / "aime-2024.jsonl").read_text().replace("Find", "Compute").replace("multiples", "powers")
    (tmp_path / "two.jsonl").write_text(other)
    rows, _ = prepared("aime-2024", tmp_path, tmp_path.parent / "out-ids")
    assert len(rows) == len({row["id"] for row in rows}) == 4
