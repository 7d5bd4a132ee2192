"""`tempo eval` on the real stack: torchrun, vLLM, and a model whose every probability is known."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models import write_model
from tests.parallel.launcher import run_ranks

LIMIT = 280
CHANCES = {"a": 0.5, "b": 0.25, "c": 0.25}
"""These are the probabilities of the first token. The end follows `a` and `b`; `c` follows `c` until the limit."""


@pytest.fixture
def known_model(demo_model: Path, tmp_path: Path) -> Path:
    """The demo's model with silenced layers: the next token depends on the last one alone, by CHANCES."""
    directory = tmp_path / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(demo_model), AutoTokenizer.from_pretrained(demo_model)
    size = model.config.hidden_size

    def token(text: str) -> int:
        (id_,) = tokenizer.encode(text)
        return int(id_)

    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(model.config.vocab_size, size))
        model.model.norm.weight.fill_(size**-0.5)  # after it a token is its row of the identity
        head = model.lm_head.weight.fill_(-50.0)
        for letter, chance in CHANCES.items():
            head[token(letter), token("z")] = math.log(chance)
            head[token("c") if letter == "c" else tokenizer.eos_token_id, token(letter)] = 0.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def evaluate_by_command(*arguments: object) -> str:
    """What `tempo eval` prints when it is started as a user starts it."""
    command = [sys.executable, "-m", "tempo_megatron.cli", "eval", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    return output


def test_figures_are_the_models_and_a_torn_evaluation_resumes_bit_for_bit(known_model: Path, tmp_path: Path) -> None:
    """AIME's protocol draws sixteen samples of each of twelve questions. Every figure lies within five standard errors
    of what the model's probabilities give. The test then cuts the file of samples in the middle of a line, as a kill
    does. The evaluation draws the missing samples again, in calls of other sizes: file and results are the same
    bytes."""
    questions = tmp_path / "aime_2024.jsonl"
    texts = [f"{letter}z" for letter in "abcdefghijkl"]
    questions.write_text("".join(json.dumps({"prompt": text, "answer": "a"}) + "\n" for text in texts))
    out = tmp_path / "out"
    arguments = ("--model", known_model, "--data", questions, "--out", out, "--precision", "fp32")
    limits = ("--max-response-tokens", 5, "data.max_prompt_tokens=4")
    printed = evaluate_by_command(*arguments, *limits, "generation.max_num_seqs=20")
    assert (out / "results.md").read_text().partition("\n\n")[2] in printed

    figures = results(out)
    samples = out / "samples" / "aime_2024.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 12 * 16 and len({row["prompt"] for row in rows}) == 12
    assert all(row["tokens"] == (5 if row["response"] == "ccccc" else 2) for row in rows)
    close(figures["avg@16"], 0.5, math.sqrt(0.25 / 192))
    close(figures["pass@8"], 1 - 0.5**8, 0.02)
    close(figures["cons@8"], plurality(8), 0.06)
    close(figures["truncated"], 0.25, math.sqrt(0.1875 / 192))
    close(figures["length"], 0.75 * 2 + 0.25 * 5, 3 * math.sqrt(0.1875 / 192))
    assert figures["distinct_answers"]["value"] == pytest.approx(2 / 16, abs=0.01)
    assert 0.4 < figures["answer_entropy"]["value"] < math.log(2)

    all_samples = samples.read_bytes()
    samples.write_bytes(all_samples[: len(all_samples) // 2 + 10])
    (out / "results.json").unlink()
    run_ranks("-m", 1, "tempo_megatron.cli", "eval", *arguments, *limits, "generation.max_num_seqs=9")
    assert samples.read_bytes() == all_samples
    assert results(out) == figures


def close(figure: dict[str, Any], expected: float, error: float) -> None:
    assert abs(figure["value"] - expected) < 5 * error, (figure, expected)
    assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]


def plurality(k: int) -> float:
    """The probability that `a` wins a vote of k responses. `c` is no answer, and a tie is shared."""
    total = 0.0
    for a in range(k + 1):
        for b in range(k + 1 - a):
            ways = math.comb(k, a) * math.comb(k - a, b)
            chance = ways * CHANCES["a"] ** a * CHANCES["b"] ** b * CHANCES["c"] ** (k - a - b)
            total += chance * (1.0 if a > b else 0.5 if a == b > 0 else 0.0)
    return total


def results(out: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((out / "results.json").read_text())["benchmarks"]["aime_2024"]["figures"]
    return figures


def test_a_model_with_experts_gives_the_greedy_answers_of_transformers(
    demo_model: Path, tmp_path: Path, warm_torchrun: None
) -> None:
    """Two replicas answer twelve questions. Protects from an engine with other experts than the files have."""
    directory = tmp_path / "hf"
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    write_model("qwen3-moe", directory, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(directory)
    questions = tmp_path / "letters.jsonl"
    texts = [f"{letter}z" for letter in "abcdefghijkl"]
    questions.write_text("".join(json.dumps({"prompt": text, "answer": "a"}) + "\n" for text in texts))
    out = tmp_path / "out"
    sampled = ("--samples", 1, "--k", 1, "--temperature", 0, "--max-response-tokens", 6, "data.max_prompt_tokens=8")
    options = ("--data", questions, "--out", out, "--precision", "fp32", "--processes", 2, *sampled)
    evaluate_by_command("--model", directory, *options)
    rows = [json.loads(line) for line in (out / "samples" / "letters.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        response = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(response, skip_special_tokens=True))
    assert len(set(answers)) > 6
    assert sorted(row["response"] for row in rows) == sorted(answers)
