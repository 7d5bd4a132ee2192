"""tools/reproduce.py: what its pages say, and what becomes of a run that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reproduce
from comparison.results import compare, critic_at_start, references_of
from comparison.studies import STUDIES, Study
from comparison.tables import summary_tables

from tests.unit.tools.finished_runs import write_lines, write_responses

AUROC = "evaluation/unlabeled_rollouts/reward_auroc_within_prompts"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the results of two methods over two seeds: two questions, four responses to each.

    TEMPO of seed 1 has the better critic and gains more.
    """
    directory = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        for name, final in (("tempo", [1, 1, 1, seed]), ("ttrl", [1, 0, 0, 0])):
            run = directory / f"{name}-{seed}"
            write_responses(run, 0, {"unlabeled.jsonl:a": [1, 0, 0, 0], "unlabeled.jsonl:b": [0, 0, 0, 0]})
            write_responses(run, 5, {"unlabeled.jsonl:a": final, "unlabeled.jsonl:b": [0, 0, 0, seed]})
            metrics = {f"evaluation/{measure}": 0.5 for measure in ("unlabeled/avg@2", "unlabeled/pass@2")}
            lines = [
                {"iteration": 0, "evaluation/held_out/avg@2": 0.5, **metrics},
                {"iteration": 1, AUROC: 0.6 + 0.2 * seed},
                {"iteration": 2, AUROC: 0.1},
                {"iteration": 5, **metrics},
            ]
            write_lines(run / "metrics.jsonl", lines)
            facts = {"device": f"GPU {name}", "commit": "abc", "versions": "torch 2", "model": "m"}
            (run / "environment.json").write_text(json.dumps(facts))
    runs = Study("Which?", {"tempo": (), "ttrl": ()}, compares_critics=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "draw", lambda *_: [])  # tests/end_to_end/test_reproduce.py draws the panels
        reproduce.write_results(directory, "which", runs, [0, 1], 2)
    return directory


def test_differences_are_paired_over_questions_and_seeds(study: Path) -> None:
    """Means, gains and leads by hand, for the unlabeled file alone."""
    results = json.loads((study / "which.json").read_text())
    tempo, ttrl = (results[name]["unlabeled"]["avg@4"] for name in ("tempo", "ttrl"))
    assert tempo["value"]["seeds"] == [0.375, 0.625] and tempo["value"]["mean"] == 0.5
    assert tempo["gain"]["mean"] == pytest.approx(0.5 - 0.125)
    assert ttrl["lead"]["seeds"] == [0.25, 0.375] and "lead" not in tempo
    assert results["start"]["unlabeled"]["pass@2"]["value"]["mean"] == pytest.approx(0.25)
    assert ttrl["lead"]["low"] <= ttrl["lead"]["mean"] <= ttrl["lead"]["high"]


def test_a_page_has_question_table_verdicts_and_stops_and_figures_lie_beside_it(study: Path) -> None:
    """Each run has a line that says of gain and lead whether the interval excludes 0."""
    page = (study / "which.md").read_text()
    question, _, about, _, *table = page.splitlines()
    assert (question, table[0]) == ("## Which?", "| % | unlabeled avg@4 | unlabeled pass@2 |")
    assert about == "Seeds 0, 1. Device: GPU tempo, GPU ttrl; commit: abc; versions: torch 2."
    assert table[2].startswith("| start | 12.5 [")
    tempo, ttrl = [line for line in page.splitlines() if line.startswith("- **")]
    assert tempo.startswith("- **tempo**, `unlabeled`, from the start: avg@4 +37.5 [") and "Lead" not in tempo
    assert "Lead of tempo: avg@4 +31.2 [" in ttrl and ttrl.count("includes 0") + ttrl.count("excludes 0") == 4
    assert "| ttrl | 50.0 | 0, 0 | 50.0 | 88%, 75% | never | 0.0 | 0.0 | not selected |" in page
    assert {path.name for path in (study / "figures" / "which").iterdir()} == {
        "trajectories.svg",
        "critic-at-start.svg",
    }


def test_a_study_of_critics_sets_gains_against_the_first_auroc(study: Path) -> None:
    """One point a run, from its first M-step. A worse critic and no gain are at 0.6, so that all gain from 0.8 on."""
    critic = json.loads((study / "which.json").read_text())["critic_at_start"]
    assert [list(point.values()) for point in critic["points"]] == [
        ["tempo", "tempo-0", 0.6, 0.25],
        ["tempo", "tempo-1", 0.8, 0.5],
        ["ttrl", "ttrl-0", 0.6, 0.0],
        ["ttrl", "ttrl-1", 0.8, 0.125],
    ]
    assert critic["rank_correlation"] == pytest.approx(0.447, abs=1e-3)
    assert critic["gains_from"] == 0.8 and "All runs from 0.80 on gain." in (study / "which.md").read_text()


def test_two_directories_agree_where_metrics_do_and_time_does_not_count(tmp_path: Path) -> None:
    """A difference names run, line and metric. A run that one directory lacks is a difference too."""
    study, first, second = Study("Which?", {"tempo": ()}), tmp_path / "first", tmp_path / "second"
    for directory, seconds in ((first, 1.0), (second, 2.0)):
        for run in ("start-0", "tempo-0"):
            write_lines(
                directory / run / "metrics.jsonl", [{"iteration": 1, "critic/loss": 0.5, "seconds/save": seconds}]
            )
            (directory / run / "summary.json").write_text("{}")
    assert reproduce.differences(first, second, [study], [0]) == []
    write_lines(second / "tempo-0" / "metrics.jsonl", [{"iteration": 1, "critic/loss": 0.25}])
    assert reproduce.differences(first, second, [study], [0]) == ["tempo-0: line 1: critic/loss: 0.25 -> 0.5"]
    (second / "start-0" / "summary.json").unlink()
    assert reproduce.differences(first, second, [study], [0])[0] == f"{second / 'start-0'}: the run is not complete"


def test_seeds_with_other_questions_are_refused(tmp_path: Path) -> None:
    for seed, prompt in enumerate(("a", "b")):
        for iteration in (0, 1):
            write_responses(tmp_path / f"tempo-{seed}", iteration, {f"unlabeled.jsonl:{prompt}": [1, 0]})
    with pytest.raises(ValueError, match="different questions"):
        compare({"tempo": [tmp_path / "tempo-0", tmp_path / "tempo-1"]}, "tempo", 2)


def test_runs_with_other_numbers_of_responses_are_refused(tmp_path: Path) -> None:
    """A stopped run has not had its final evaluation, which takes more responses than the others."""
    for name, last in (("tempo", [1, 0, 1, 0]), ("ttrl", [1, 0])):
        for iteration, grades in ((0, [1, 0]), (1, last)):
            write_responses(tmp_path / f"{name}-0", iteration, {"unlabeled.jsonl:a": grades})
    with pytest.raises(ValueError, match=r"responses to a question: {'tempo': 4, 'ttrl': 2}"):
        compare({name: [tmp_path / f"{name}-0"] for name in ("tempo", "ttrl")}, "tempo", 2)


def test_runs_with_other_questions_have_a_reference_of_their_own(tmp_path: Path) -> None:
    """The shifts have their own questions: PPO there is compared with TEMPO there, in a table of their own."""
    sources = {"tempo": ["u"], "shift_none": ["n"], "ppo": ["u"], "ppo_shift_none": ["n"]}
    assert references_of(sources, "tempo") == {
        "tempo": "tempo",
        "ppo": "tempo",
        "shift_none": "shift_none",
        "ppo_shift_none": "shift_none",
    }
    study = Study("How far?", {"ppo": (), "tempo": (), "shift": (), "ppo_shift": ()})
    for name in study.runs:
        source = "none_unlabeled" if "shift" in name else "unlabeled"
        run = tmp_path / f"{name}-0"
        for iteration in (0, 1):
            grades = [1, iteration] if "ppo" not in name else [0, iteration]
            write_responses(run, iteration, {f"{source}.jsonl:{question}": grades for question in "ab"})
    results = compare({name: [tmp_path / f"{name}-0"] for name in study.runs}, "tempo", 2)
    assert results["ppo_shift"]["none_unlabeled"]["avg@2"]["lead"]["mean"] == 0.5
    assert results["ppo"]["unlabeled"]["avg@2"]["lead"]["mean"] == 0.5
    assert results["start"].keys() == {"unlabeled", "none_unlabeled"}
    tables = summary_tables(results).split("\n\n")
    assert [table.splitlines()[0] for table in tables] == [
        "| % | unlabeled avg@2 | unlabeled pass@2 |",
        "| % | none_unlabeled avg@2 | none_unlabeled pass@2 |",
    ]
    assert [line.split(" | ")[0] for line in tables[1].splitlines()[2:]] == ["| start", "| shift", "| ppo_shift"]


def test_no_critic_is_good_enough_where_the_best_one_loses(tmp_path: Path) -> None:
    """The lowest AUROC from which on all runs gain, by hand; ties count as one quality."""
    gains = {"a": 0.1, "b": -0.1, "c": 0.2, "d": 0.3}
    aurocs = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8}
    for name, auroc in aurocs.items():
        write_lines(tmp_path / name / "metrics.jsonl", [{"iteration": 1, AUROC: auroc}])

    def of(names: str) -> dict[str, Any]:
        runs = {name: [tmp_path / name] for name in names}
        return critic_at_start(runs, {name: {"u": {"avg@2": {"gain": {"seeds": [gains[name]]}}}} for name in names})

    assert of("abcd")["gains_from"] == 0.7
    assert of("ab")["gains_from"] is None
    assert of("a")["rank_correlation"] is None


def test_a_directory_with_runs_needs_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce.py", str(tmp_path)])
    assert reproduce.main() == reproduce.REFUSED


def test_a_failed_run_keeps_back_the_pages_that_need_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page must not leave out a seed. The results of hours must not wait for one run either."""
    studies = {"good": {"tempo": (), "ttrl": ()}, "bad": {"tempo": (), "empo": ()}}
    failing, started, written = {"start-2", "empo-0"}, [], []
    for name, runs in studies.items():
        monkeypatch.setitem(STUDIES, name, Study("Which?", runs))

    def train(command: list[str], **_: Any) -> SimpleNamespace:
        run = Path(next(word for word in command if word.startswith("run_dir=")).removeprefix("run_dir="))
        started.append(run.name)
        if run.name not in failing:
            (run / "summary.json").write_text("{}")
        return SimpleNamespace(returncode=int(run.name in failing))

    def call(seeds: str) -> int:
        started.clear(), written.clear()
        command = ["reproduce.py", str(tmp_path), "--study", "good,bad", "--seeds", seeds, "--resume"]
        monkeypatch.setattr("sys.argv", command)
        return reproduce.main()

    monkeypatch.setattr("comparison.runs.subprocess.run", train)
    monkeypatch.setattr(reproduce, "differing_settings", lambda _: [])
    monkeypatch.setattr(reproduce, "write_miniature", lambda *_, **__: None)

    def write(_: Path, name: str, *__: Any) -> str:
        print("a page is written", file=sys.stderr)
        written.append(name)
        return name

    monkeypatch.setattr(reproduce, "write_results", write)

    assert call("0,1") == reproduce.FAILED
    assert written == ["good"] and {*started} == {
        f"{run}-{s}" for run in ("start", "tempo", "ttrl", "empo") for s in (0, 1)
    }
    message = capsys.readouterr().err
    assert "bad.md is not written, because runs are not complete: empo-0\n" in message
    assert f"see {tmp_path / 'empo-0' / 'output.log'}" in message and "--resume" in message
    assert message.index("output.log") < message.index("a page is written")  # A page that fails hides no run.

    assert call("0,1,2") == reproduce.FAILED
    assert written == [] and started == ["start-2", "empo-0"]
    message = capsys.readouterr().err
    assert "good.md is not written, because runs are not complete: tempo-2, ttrl-2\n" in message
    assert "tempo-2 was not started, because start-2 is not complete" in message

    failing.clear()
    assert call("0,1,2") == 0
    assert written == ["good", "bad"] and capsys.readouterr().err == "a page is written\n" * 2


def test_a_page_that_cannot_be_written_keeps_back_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is a line among the problems, so that it hides neither failed runs nor later pages."""
    written = []

    def write(_: Path, name: str, *__: Any) -> str:
        if name == "first":
            raise ValueError("no questions are shared")
        written.append(name)
        return name

    for name in ("first", "second"):
        monkeypatch.setitem(STUDIES, name, Study("Which?", {}))
    monkeypatch.setattr(reproduce, "write_results", write)
    (line,) = reproduce.write_complete(tmp_path, ["first", "second"], [0], 2)
    assert line == "first.md or its figures cannot be written: ValueError: no questions are shared"
    assert written == ["second"]
