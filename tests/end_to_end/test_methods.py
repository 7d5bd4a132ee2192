"""Every method by its key alone, on the real generator, with right and with wrong hidden answers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_convert.convert import to_hf
from tempo_megatron.algorithms.methods import METHODS
from tempo_megatron.config import load_config
from tempo_megatron.data.sources import read_rows
from tests.conftest import ROOT
from tests.end_to_end.test_train import metrics, same_weights, training_log
from tests.metrics_page import undocumented
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("methods_worker.py")
PARTIAL = (
    "method=frozen_critic",
    "loop.partial_rollouts=0.5",
    "loop.samples_per_prompt=1",
    "policy.rollout_correction.weight=token",
    "policy.rollout_correction.cap=2",
)
FEW_VOTES = ("method=scrl", "policy.scrl.positive_share=0.5", "policy.scrl.negative_share=0.5")
RUNS = {
    **{name: (f"method={name}",) for name in (*METHODS, "intuitor.Intuitor")},
    "scrl": FEW_VOTES,
    "trapo": ("method=trapo", "policy.trapo.warm_up_passes=1"),
    "partial_rollouts": PARTIAL,
}
"""The settings of each run that makes it what it is."""


def questions(path: Path, words: list[str], shift: int = 0) -> str:
    """Write a file of questions that are easy to learn, with answers shifted by `shift` rows; returns the setting for
    it."""
    prompts = [f"{sign} {word}" for word in words for sign in "-."]
    answers = [text[0] for text in prompts]
    answers = answers[shift:] + answers[:shift]
    rows = [{"prompt": text, "answer": answer} for text, answer in zip(prompts, answers, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"[{{path: {path}}}]"


@pytest.fixture
def runs(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Path, Path]]:
    """Each of `RUNS`, and a run on the same rollouts in which all hidden answers are wrong."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "docs" / "examples"))
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    words = {
        name: [row.question[-4:] for row in read_rows(getattr(load_config(recipe).data, name), labeled=False)]
        for name in ("labeled", "unlabeled", "warm_start")
    }
    shared = (
        "parallel.processes_per_node=1",
        "parallel.tensor_model_parallel_size=1",
        f"data.labeled={questions(tmp_path / 'labeled.jsonl', words['labeled'])}",
        f"data.warm_start={questions(tmp_path / 'learned.jsonl', words['warm_start'])}",
        "loop.iterations=3",
        "calibration.questions=4",
        "evaluation.every=3",
        "evaluation.samples=2",
        "evaluation.k=2",
        "checkpoint.every=2",
        "checkpoint.select_best=true",
        "checkpoint.selection_prompts=4",
        "checkpoint.patience=1",
        "checkpoint.keep=4",
        "grading.workers=1",
    )
    plans: list[list[list[str]]] = [[], []]
    starts = [tmp_path / name for name in list(RUNS)[:2]]  # These warm policies up from which the others start.
    pairs = {}
    for number, (name, settings) in enumerate(RUNS.items()):
        pair = (tmp_path / name, tmp_path / f"{name}-permuted")
        for shift, run in enumerate(pair):
            (tmp_path / f"hidden-{shift}").mkdir(exist_ok=True)
            hidden = questions(tmp_path / f"hidden-{shift}" / "unlabeled.jsonl", words["unlabeled"], shift)
            rollouts = f"generation.replay={pair[0] / 'rollouts'}" if shift else "generation.keep_rollouts=true"
            start = "stages.warm_start.steps=10"
            if starts[number % 2] not in pair:
                start = f"policy.checkpoint={starts[number % 2] / 'checkpoints' / 'iteration-000000'}"
            plans[number % 2].append(
                [*shared, *settings, start, f"run_dir={run}", f"data.unlabeled={hidden}", rollouts]
            )
        pairs[name] = pair
    with ThreadPoolExecutor() as executor:  # each on a core
        list(executor.map(lambda plan: run_ranks(WORKER, 1, recipe, json.dumps(plan), timeout=500), plans))
    return pairs


def chosen(run: Path) -> tuple[Any, ...]:
    summary = json.loads((run / "summary.json").read_text())
    best = (run / "checkpoints" / "best").resolve().name
    assert best == f"iteration-{summary['best_iteration']:06d}"
    return summary["iterations"], summary["stopped"], best


def learned(run: Path, out: Path) -> torch.Tensor:
    """A weight of the policy after the last iteration. A run exports its best policy, which may be the one at the
    start."""
    to_hf(max((run / "checkpoints").glob("iteration-*")), out, role="policy")
    return load_file(out / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]


def token_samples(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The token samples of a run without the grades of hidden answers, which only evaluation knows."""
    records = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run / "token_samples").iterdir()
    }
    for record in (record for rows in records.values() for record in rows if record["set"] != "labeled"):
        del record["correct"]
    return records


def test_every_method_learns_and_none_sees_a_hidden_answer(runs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Each method trains for at least two iterations, set by its key alone, and one of them with responses that pause.
    Shifted hidden answers leave weights, best checkpoint, stopping iteration and training log the same bit for bit.
    They change the evaluation. All metrics are on their page. Of the token samples they change the grades alone."""
    seen = {}
    for name, (run, permuted) in runs.items():
        rows = [row for row in metrics(run) if row["stage"] == "train" and row["iteration"]]
        assert undocumented(key for row in metrics(run) for key in row) == [], name
        assert len(rows) >= 2 and all(torch.isfinite(torch.tensor(row["policy/reward"])) for row in rows), name
        assert any(row.get("policy/gradient_norm", 0.0) > 0 for row in rows), name
        assert same_weights(run, permuted), name
        assert chosen(run) == chosen(permuted), name
        assert training_log(run) == training_log(permuted), name
        assert token_samples(run) == token_samples(permuted) and len(token_samples(run)) > 1, name
        evaluation_keys = [key for key in rows[-1] if key.startswith("evaluation/unlabeled")]
        assert evaluation_keys and any(rows[-1][key] != metrics(permuted)[-1].get(key) for key in evaluation_keys), name
        seen[name] = learned(run, tmp_path / "last" / name)
    assert not any(torch.equal(seen[name_a], seen[name_b]) for name_a in seen for name_b in seen if name_a < name_b), (
        "two methods did the same"
    )
    rows = [row for row in metrics(runs["partial_rollouts"][0]) if "rollouts/paused" in row]
    assert sum(row["rollouts/paused"] for row in rows) > 0 < sum(row["rollouts/resumed"] for row in rows)
