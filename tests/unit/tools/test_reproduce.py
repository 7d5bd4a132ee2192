"""tools/reproduce.py: which runs it makes, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reproduce
from comparison.studies import STUDIES, Study

from tempo_megatron.config import load_config

ROLLOUTS = "evaluation/unlabeled_rollouts"


def write_samples(run: Path, iteration: int, correct: dict[str, list[int]]) -> None:
    (run / "samples").mkdir(parents=True, exist_ok=True)
    rows = [
        {"set": prompt.partition(".")[0], "prompt": prompt, "correct": float(grade)}
        for prompt, grades in correct.items()
        for grade in grades
    ]
    (run / "samples" / f"iteration-{iteration:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_studies_share_runs_and_their_settings_load(tmp_path: Path) -> None:
    """One name with two settings would take another study's run for its own. A wrong key would fail after hours."""
    by_name: dict[str, tuple[str, ...]] = {}
    for study in STUDIES.values():
        assert study.reference in study.runs
        starts, runs = reproduce.pieces_of(tmp_path, study, [0], ["loop.iterations=60"], [])
        for piece in (*starts, *runs):
            config = load_config(piece.recipe, piece.overrides)
            paths = [source.path for source in config.data.sources()]
            assert not any("{" in path for path in (*paths, config.critic.checkpoint))
        for name, settings in study.runs.items():
            assert by_name.setdefault(name, settings) == settings
    assert len({*by_name.values()}) == len(by_name)


def test_runs_continue_from_the_end_of_their_seeds_start(tmp_path: Path) -> None:
    starts, runs = reproduce.pieces_of(
        tmp_path, STUDIES["methods"], [3, 4], ["loop.iterations=7"], ["loop.iterations=9"]
    )
    assert [piece.directory.name for piece in starts] == ["start-3", "start-4"]
    assert len(runs) == 2 * len(STUDIES["methods"].runs)
    for piece in runs:
        name, seed = piece.directory.name.rsplit("-", 1)
        config = load_config(piece.recipe, piece.overrides)
        end = str(tmp_path / f"start-{seed}" / "checkpoints" / "iteration-000007")
        assert (config.seed, config.policy.checkpoint, config.critic.checkpoint) == (int(seed), end, end)
        assert (config.loop.iterations, config.method) == (9, name)


def test_differences_are_paired_over_questions_and_seeds(tmp_path: Path) -> None:
    """Two questions, two seeds, four responses: means, gains and leads by hand, for the unlabeled file alone."""
    study = Study("Which?", {"tempo": (), "ttrl": ()})
    for seed in (0, 1):
        for name, final in (("tempo", [1, 1, 1, seed]), ("ttrl", [1, 0, 0, 0])):
            run = tmp_path / f"{name}-{seed}"
            write_samples(run, 0, {"unlabeled.jsonl:a": [1, 0, 0, 0], "unlabeled.jsonl:b": [0, 0, 0, 0]})
            write_samples(run, 5, {"unlabeled.jsonl:a": final, "unlabeled.jsonl:b": [0, 0, 0, seed]})
            metrics = {"iteration": 0, "evaluation/unlabeled/avg@2": 0.5, "evaluation/unlabeled/pass@2": 0.5}
            metrics |= {
                "evaluation/held_out/avg@2": 0.5,
                f"{ROLLOUTS}/reward_auroc_within_prompts": 0.5,
            }
            (run / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    text = reproduce.write_results(tmp_path, "which", study, [0, 1], 2)
    results = json.loads((tmp_path / "which.json").read_text())
    tempo, ttrl = (results[name]["unlabeled"]["avg@4"] for name in ("tempo", "ttrl"))
    assert tempo["value"]["seeds"] == [0.375, 0.625] and tempo["value"]["mean"] == 0.5
    assert tempo["gain"]["mean"] == pytest.approx(0.5 - 0.125)
    assert ttrl["lead"]["seeds"] == [0.25, 0.375] and "lead" not in tempo
    assert results["start"]["unlabeled"]["pass@2"]["value"]["mean"] == pytest.approx(0.25)
    assert ttrl["lead"]["low"] <= ttrl["lead"]["mean"] <= ttrl["lead"]["high"]
    assert "| tempo | 50.0 / 62.5 |" in text and "| start | 12.5 / 25.0 |" in text
    assert len(list((tmp_path / "figures" / "which").glob("*.png"))) == 4


def test_seeds_with_other_questions_are_refused(tmp_path: Path) -> None:
    for seed, prompt in enumerate(("a", "b")):
        for iteration in (0, 1):
            write_samples(tmp_path / f"tempo-{seed}", iteration, {f"unlabeled.jsonl:{prompt}": [1, 0]})
    with pytest.raises(ValueError, match="different questions"):
        reproduce.compare({"tempo": [tmp_path / "tempo-0", tmp_path / "tempo-1"]}, "tempo", 2)


def test_a_directory_with_runs_needs_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce.py", str(tmp_path)])
    assert reproduce.main() == reproduce.REFUSED
