"""Whole runs of `tempo train` on the real stack: Megatron Core, vLLM, two tensor-parallel ranks."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tempo_megatron.config import load_config
from tempo_megatron.data.sources import read_rows
from tests.metrics_page import undocumented
from tests.parallel.launcher import start_ranks

LIMIT = 400
RANKS = 2
UNREPEATABLE = ("seconds/", "memory/")


def train_by_command(recipe: Path, *overrides: str) -> Path:
    """Run `tempo train` as a user does, with torchrun, to its end; returns the run directory."""
    command = [sys.executable, "-m", "tempo_megatron.cli", "train", str(recipe), *overrides]
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.wait(timeout=LIMIT) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Path(load_config(recipe, overrides).run_dir)


def start(recipe: Path, *overrides: str) -> list[subprocess.Popen[bytes]]:
    """The ranks of `tempo train`, as forks of the warm server."""
    return start_ranks(RANKS, sys.__stderr__.fileno(), "-m", "tempo_megatron.cli", "train", recipe, *overrides)


def kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.wait()


def train(recipe: Path, *overrides: str) -> Path:
    """Run the ranks of `tempo train` to their end; returns the run directory."""
    ranks = start(recipe, *overrides)
    try:
        assert [rank.wait(timeout=LIMIT) for rank in ranks] == [0] * RANKS
    finally:
        kill(ranks)
    return Path(load_config(recipe, overrides).run_dir)


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(UNREPEATABLE)} for row in rows]


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hf" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    left, right = exported(one), exported(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.timeout(3 * LIMIT)
def test_a_run_ends_with_everything_and_resumes_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    """One run goes through. Another replays its rollouts, is killed, and goes on with a generator of its own. Weights
    and log agree bit for bit; a reference model, a decaying step size and the choice of the best checkpoint are
    carried on. Weights are checked after every sync."""
    questions = tmp_path / "unlabeled.jsonl"
    rows = read_rows(load_config(recipe).data.unlabeled, labeled=False)
    easy = [f"{sign} {row.question[-3:]}" for row in rows for sign in "-."]
    learned = tmp_path / "learned.jsonl"
    words = [row.question[-4:] for row in read_rows(load_config(recipe).data.warm_start, labeled=True)]
    learned.write_text(
        "\n".join(json.dumps({"prompt": f"{sign} {word}", "answer": sign}) for word in words for sign in "-.")
    )

    def write(answers: list[str]) -> None:
        prompts = [row.question for row in rows] + easy
        lines = [json.dumps({"prompt": text, "answer": answer}) for text, answer in zip(prompts, answers, strict=True)]
        questions.write_text("\n".join(lines))

    answers = [str((row.answer or {})["answer"]) for row in rows] + [text[0] for text in easy]
    write(answers)
    sources = (
        f"data.unlabeled=[{{path: {questions}}}]",
        f"data.warm_start=[{{path: {learned}}}]",
        "policy.kl_coefficient=0.1",
        "policy.optimizer.schedule=cosine",
        "policy.optimizer.schedule_unit=batch",
        "policy.optimizer.warmup_steps=1",
        "policy.optimizer.decay_steps=5",
        "calibration.questions=4",
        "checkpoint.select_best=true",
        "checkpoint.selection_prompts=4",
        "checkpoint.keep=3",
        "stages.warm_start.steps=8",
        "evaluation.samples=2",
        "evaluation.k=2",
    )
    whole = train_by_command(recipe, *sources, "generation.keep_rollouts=true")

    summary = json.loads((whole / "summary.json").read_text())
    assert summary["iterations"] == 4
    assert summary["initial"].keys() == summary["final"].keys() == {"unlabeled", "held_out"}
    assert {"avg@2", "pass@2"} <= summary["final"]["unlabeled"].keys()
    assert "The run finished 4 iterations" in (whole / "report.html").read_text()
    assert json.loads((whole / "environment.json").read_text())["layout"].startswith("TP ")
    assert undocumented(key for row in metrics(whole) for key in row) == []
    last = [row for row in metrics(whole) if row["stage"] == "train"][-1]
    assert last["generation/log_prob_difference_mean"] < 1e-5
    assert last["generation/log_prob_difference_max"] < 1e-3
    eighth = 0.5 * (1 + math.cos(math.pi * 5 / 8))  # of ten optimizer steps, two of them warm-up: two a batch
    assert last["policy/kl_to_reference"] > 0
    assert last["policy/learning_rate"] == pytest.approx(1e-4 * eighth)
    assert last["selection/best"] == summary["best_iteration"] and last["selection/reason"]
    assert (whole / "checkpoints" / "best" / "state.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(whole / "hf")
    tokenizer = AutoTokenizer.from_pretrained(whole / "hf")
    assert torch.equal(model.lm_head.weight, exported(whole)["lm_head.weight"])
    assert tokenizer.decode(tokenizer.encode(rows[0].question)) == rows[0].question

    killed = f"run_dir={tmp_path / 'killed'}"
    ranks = start(recipe, *sources, killed, f"generation.replay={whole / 'rollouts'}")
    try:
        wait_for(tmp_path / "killed" / "checkpoints" / "iteration-000002" / "state.json", ranks)
    finally:
        kill(ranks)
    resumed = train(recipe, *sources, killed)
    assert metrics(resumed) == metrics(whole)
    recorded = {path.name: path.read_text() for path in (whole / "token_samples").iterdir()}
    assert {path.name: path.read_text() for path in (resumed / "token_samples").iterdir()} == recorded
    tokens = [json.loads(line) for text in recorded.values() for line in text.splitlines()]
    assert {row["set"] for row in tokens} == {"labeled", "unlabeled", "held_out"}
    assert max(abs(number) for row in tokens for number in row["differences"]) < 1e-3
    assert same_weights(resumed, whole)


def training_log(run: Path) -> list[dict[str, Any]]:
    """The metrics without those about unlabeled answers, which only evaluation knows."""
    return [{n: v for n, v in row.items() if not n.startswith("evaluation/unlabeled")} for row in metrics(run)]


def wait_for(path: Path, ranks: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)
