"""What a run leaves as its result, and what it needs to go on: its own directory and its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_recipe
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("results_worker.py")


@pytest.fixture(scope="module")
def results(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the worker reports of each of its steps."""
    directory = tmp_path_factory.mktemp("results")
    recipe = write_recipe(directory, demo_model)
    settings = yaml.safe_load(recipe.read_text())
    settings["parallel"] = {"processes_per_node": 1, "tensor_model_parallel_size": 1}
    settings["stages"]["warm_start"]["steps"] = 2
    settings["loop"] |= {"labeled_prompts": 2, "unlabeled_prompts": 2, "samples_per_prompt": 2}
    settings["checkpoint"] |= {"selection_prompts": 4, "selection_samples": 2}
    settings["logging"] = {"tensorboard": False}
    recipe.write_text(yaml.safe_dump(settings))
    model, out = shutil.copytree(demo_model, directory / "model"), directory / "results.json"
    run_ranks(WORKER, 1, recipe, model, out, timeout=500)
    read: dict[str, Any] = json.loads(out.read_text())
    return read


def test_what_is_exported_is_what_was_chosen(results: dict[str, Any]) -> None:
    """Of equal candidates the earliest is best. The export holds it and not the last policy, whoever asks for the
    export. `tempo export` refuses a directory that is no run."""
    choice = results["choice"]
    assert choice["exports_the_best"] and not choice["exports_the_last"]
    summary = choice["summary"]
    assert (summary["best_iteration"], summary["chosen_iteration"], summary["iterations"]) == (0, 0, 2)
    assert "highest critic value" in summary["chosen_because"] and summary["hf_export"].endswith("run/hf")
    assert choice["export"] == [0, True] and choice["no_run"] == 2


def test_a_critic_without_a_checkpoint_starts_from_what_the_policy_starts_from(results: dict[str, Any]) -> None:
    """Its backbone has the bits of the policy's checkpoint, not those of another model or of that critic."""
    starts = results["critic_from_policy"]
    assert starts["policy_of_the_start"] and starts["tensors"] > 10
    assert not starts["critic_of_the_start"] and not starts["earlier_policy"]


def test_an_iteration_that_turns_out_to_be_the_last_is_evaluated_and_exported(results: dict[str, Any]) -> None:
    """Only an interruption saved that iteration. The run's result is its policy, not its predecessor's checkpoint."""
    outcome = results["fewer_iterations"]
    assert outcome["interim"] == ["interim-iteration-000001", "iteration-000000"] and outcome["exports_it"]
    summary = outcome["summary"]
    assert (summary["iterations"], summary["chosen_iteration"]) == (1, 1)
    assert summary["chosen_because"].startswith("the last one") and outcome["evaluated"] == [0, 1]


def test_a_run_with_partial_rollouts_goes_on_bit_for_bit(results: dict[str, Any]) -> None:
    """It is interrupted while it generates; it resumes from an older checkpoint with the responses that it has
    recorded; it is replayed without a generator. Paused responses are in its checkpoints, and every M-step has as many
    rollouts."""
    outcome = results["partial_rollouts"]
    assert outcome["interim"] == ["interim-iteration-000001", "iteration-000000"]
    assert outcome["same_weights"] == outcome["same_metrics"] == [True] * 3
    assert sum(row["rollouts/paused"] for row in outcome["train"]) > 0
    assert sum(row["rollouts/resumed"] for row in outcome["train"]) > 0
    assert max(row["rollouts/off_policy_tokens"] for row in outcome["train"]) > 0
    assert outcome["carried"] == 2


def test_recording_tokens_changes_no_weight_and_no_metric(results: dict[str, Any]) -> None:
    """Bit for bit: a run that records them is the run that does not. A run that goes on records what it would have
    recorded. Every evaluation has two questions of both evaluated sets, and those after E-steps two labeled ones."""
    outcome = results["partial_rollouts"]
    assert outcome["same_without_them"] == [True] * 3
    assert outcome["same_token_samples"] == [True] * 3
    evaluated, labeled = ("evaluated-{:06d}.jsonl".format, "labeled-{:06d}.jsonl".format)
    assert outcome["token_samples"].keys() == {*map(evaluated, (0, 2, 4)), *map(labeled, (2, 4))}
    rows = [json.loads(line) for line in outcome["token_samples"]["evaluated-000004.jsonl"].splitlines()]
    assert sorted((row["set"], row["sample"]) for row in rows) == sorted(
        (name, sample) for name in ("unlabeled", "held_out") for _ in range(2) for sample in range(2)
    )
    assert all(len(row["texts"]) == len(row["values"]) == len(row["advantages"]) == row["tokens"] for row in rows)


def test_a_run_that_has_a_checkpoint_needs_nothing_that_it_started_from(results: dict[str, Any]) -> None:
    """The start run and the model's directory are deleted. The same command resumes the run, with its reference model,
    and reaches the weights of a run that lost nothing. New checkpoints still describe the model."""
    outcome = results["without_origins"]
    assert outcome["problems"] == [] and outcome["same_weights"]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(outcome["describes"])


def test_foreign_names_among_checkpoints_are_ignored_and_named(results: dict[str, Any]) -> None:
    """A copy by hand and an export stay where they are."""
    assert results["without_origins"]["foreign"] == {"iteration-000002.bak": True, "iteration-000002-hf": True}


def test_changed_data_are_refused_with_what_differs(results: dict[str, Any]) -> None:
    """The error names each file with its changed rows and gives the remedy once."""
    change = results["changed_data"]
    labeled, held_out, remedy = change["refusal"]
    assert f"{change['removed']} rows removed, 2 added, 1 changed" in labeled and "labeled.jsonl" in labeled
    assert "0 rows removed, 1 added, 0 changed" in held_out and "held-out.jsonl" in held_out
    assert "data.changed=accept" in remedy


def test_accepted_data_keep_what_was_learned_out_of_what_is_measured(results: dict[str, Any]) -> None:
    """Questions that were set aside stay set aside, and new ones join them. A question whose answer the run has learned
    is neither set aside nor evaluated. The run says what it accepts and keeps the new contents as its own.
    Candidates from before the change had other questions and are no longer compared."""
    change = results["changed_data"]
    assert change["accepted"] == change["afterwards"] == []
    assert sum(line.startswith("data.changed=accept: ") for line in change["said"]) == 2
    assert any("data.held_out: 4 prompts" in line and "1 learned with" in line for line in change["said"])
    assert change["measured_was_learned"] == change["held_out_was_learned"] == []
    assert change["still_measured"] and change["measured"] == 3
    assert change["candidates"] == 4
