"""Token samples: the scores of each token, texts of split characters, and answers that stay hidden."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods import METHODS, Method
from tempo_megatron.config import TOKEN_SAMPLE_TOKENS, Config
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.metrics.calibration import CalibrationBin
from tempo_megatron.training.phases.critic_metrics import mean_final_values
from tempo_megatron.training.phases.scoring import to_batch
from tempo_megatron.training.phases.token_samples import questions_of, token_texts
from tempo_megatron.training.recording import Recorder
from tests.unit.training.fake_run import FakeGrader


def decode_bytes(ids: Sequence[int]) -> str:
    """Decode as a byte-level tokenizer does, whose tokens are single bytes."""
    return bytes(ids).decode(errors="replace")


class LinearModel:
    """As a critic its value at position p is p / 10. As a policy its log-probs are -p, and its generator's -p - 1/4."""

    def score(self, batch: Batch, score: Any) -> dict[str, torch.Tensor]:
        positions = torch.arange(batch.width).float().expand(batch.tokens.shape)
        return {"values": positions / 10, "log_probs": -positions, "entropy": positions}


def rollout(prompt: str, text: str, sample: int = 0) -> Rollout:
    ids = tuple(text.encode())
    log_probs = tuple(-position - 0.25 for position in range(2, 2 + len(ids)))
    return Rollout(Prompt(prompt, (80, 81), "here", "exact"), sample, ids, log_probs, "stop")


def recorded(tmp_path: Path, name: str = "tempo", critic: bool = True, **settings: Any) -> Recorder:
    config = Config(method=name)
    config.loop.samples_per_prompt = 2
    config.loop.iterations, config.evaluation.every = 7, 3
    for key, value in settings.items():
        setattr(config.evaluation, key, value)
    model: Any = LinearModel()
    models: Any = SimpleNamespace(
        policy=model,
        critic=model if critic else None,
        scores=lambda *statistics: None,
        evaluation_scores=lambda *statistics: None,
    )
    grader: Any = FakeGrader()
    return Recorder(config, models, grader, decode_bytes, lambda _: contextlib.nullcontext(), tmp_path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_response_has_the_scores_of_each_of_its_tokens(tmp_path: Path) -> None:
    """By hand: TEMPO's reward is the value after the last token, and its baseline the value before each token."""
    questions = questions_of("unlabeled", [rollout("q", "abc"), rollout("q", "z", 1)], [1.0, 0.0])
    recorded(tmp_path).record_evaluated(4, questions)
    first, second = rows(tmp_path / "token_samples" / "evaluated-000004.jsonl")
    assert first == {
        "set": "unlabeled",
        "correct": 1.0,
        "prompt": "q",
        "question": "PQ",
        "sample": 0,
        "finish_reason": "stop",
        "tokens": 3,
        "first": 3,
        "left_out": 0,
        "texts": ["a", "b", "c"],
        "value_before": pytest.approx(0.1),
        "values": [0.2, 0.3, 0.4],
        "advantages": [0.3, 0.2, 0.1],
        "log_probs": [-2.0, -3.0, -4.0],
        "differences": [0.25] * 3,
    }
    assert (second["texts"], second["sample"], second["correct"]) == (["z"], 1, 0.0)


@pytest.mark.parametrize("name", METHODS)
def test_the_grade_of_a_hidden_answer_reaches_no_score(name: str, tmp_path: Path) -> None:
    """Every method: with the other grades only `correct` differs. A labeled response's grade may move its advantage."""
    rollouts = [rollout("q", "abc"), rollout("q", "z", 1)]
    for directory, grades in (("right", [1.0, 0.0]), ("swapped", [0.0, 1.0])):
        recorder = recorded(tmp_path / directory, name, critic="values" in METHODS[name].needs)
        recorder.record_evaluated(1, questions_of("unlabeled", rollouts, grades))
        collected: Any = SimpleNamespace(labeled=rollouts, correct=grades, measured=[])
        recorder.record_labeled(1, collected)
    right, swapped = (
        rows(tmp_path / directory / "token_samples" / "evaluated-000001.jsonl") for directory in ("right", "swapped")
    )
    assert [row.pop("correct") for row in right] == [1.0, 0.0]
    assert [row.pop("correct") for row in swapped] == [0.0, 1.0]
    assert right == swapped
    reads_grades = "correct" in METHODS[name].needs
    assert all((row["advantages"] is None) == reads_grades for row in right)
    labeled = rows(tmp_path / "right" / "token_samples" / "labeled-000001.jsonl")
    assert all(row["advantages"] is not None and row["set"] == "labeled" for row in labeled)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_method_that_reads_grades_is_not_called_where_answers_are_hidden(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was promised labeled rows, and may fail on others. Log-probs and values are recorded all the same."""
    calls: list[Experience] = []

    def refuse(self: Method, experience: Experience, settings: Any) -> Any:
        calls.append(experience)
        raise ValueError

    monkeypatch.setattr(METHODS[name], "rewards", refuse)
    recorder = recorded(tmp_path, name)
    rollouts = [rollout("q", "abc"), rollout("q", "z", 1)]
    recorder.record_evaluated(1, questions_of("held_out", rollouts, [1.0, 0.0]))
    (row, _) = rows(tmp_path / "token_samples" / "evaluated-000001.jsonl")
    assert calls == [] and row["advantages"] is None
    assert row["log_probs"] == [-2.0, -3.0, -4.0] and row["values"] == [0.2, 0.3, 0.4]
    collected: Any = SimpleNamespace(labeled=rollouts, correct=[1.0, 0.0], measured=[])
    with pytest.raises(ValueError):
        recorder.record_labeled(1, collected)
    assert len(calls) == 1


def test_a_token_without_a_number_leaves_the_others_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log-prob of -inf is null in its place, and a column without any number is null."""

    def score(self: LinearModel, batch: Batch, score: Any) -> dict[str, torch.Tensor]:
        log_probs = -torch.arange(batch.width).float().expand(batch.tokens.shape).clone()
        log_probs[:, 3] = -torch.inf
        return {"values": torch.full_like(log_probs, torch.nan), "log_probs": log_probs, "entropy": log_probs}

    monkeypatch.setattr(LinearModel, "score", score)
    recorded(tmp_path).record_evaluated(1, questions_of("held_out", [rollout("q", "abc")], [1.0]))
    (row,) = rows(tmp_path / "token_samples" / "evaluated-000001.jsonl")
    assert row["log_probs"] == [-2.0, None, -4.0] and row["differences"] == [0.25, None, 0.25]
    assert row["values"] is None and row["value_before"] is None


def test_files_that_cannot_be_written_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk must not end a run for the sake of its report."""
    recorder = recorded(tmp_path)
    (tmp_path / "token_samples").write_text("no directory")
    (tmp_path / "critic.jsonl").mkdir()
    recorder.record_evaluated(1, questions_of("held_out", [rollout("q", "ab")], [1.0]))
    recorder.note_values({"q": 0.5})
    recorder.write_critic_line(1)
    warnings = capsys.readouterr().err
    assert "WARNING token_samples/evaluated-000001.jsonl is not written" in warnings
    assert "WARNING critic.jsonl is not written" in warnings


def test_a_line_that_a_killed_run_began_is_cut_off(tmp_path: Path) -> None:
    """The next line would continue it, and both would be lost."""
    path = tmp_path / "critic.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2, "bi')
    recorder = recorded(tmp_path)
    recorder.note_values({"q": 0.5})
    recorder.write_critic_line(2)
    assert [row["iteration"] for row in rows(path)] == [1, 2]


def test_a_method_without_a_critic_has_no_values(tmp_path: Path) -> None:
    recorded(tmp_path, "ttrl", critic=False).record_evaluated(1, questions_of("held_out", [rollout("q", "ab")], [1.0]))
    (row,) = rows(tmp_path / "token_samples" / "evaluated-000001.jsonl")
    assert row["values"] is None and row["value_before"] is None and row["log_probs"] == [-2.0, -3.0]
    assert row["advantages"] is None  # a response alone cannot be compared


def test_log_probs_of_other_distributions_are_not_compared(tmp_path: Path) -> None:
    """Nucleus sampling: the generator's log-probs are those of the nucleus."""
    recorder = recorded(tmp_path, top_p=0.9)
    recorder.record_evaluated(1, questions_of("held_out", [rollout("q", "ab")], [1.0]))
    assert rows(tmp_path / "token_samples" / "evaluated-000001.jsonl")[0]["differences"] is None


def test_a_long_response_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    """The size of a record is bounded, whatever a model generates."""
    text = "".join(chr(97 + number % 26) for number in range(TOKEN_SAMPLE_TOKENS + 11))
    recorded(tmp_path).record_evaluated(1, questions_of("held_out", [rollout("q", text)], [0.0]))
    (row,) = rows(tmp_path / "token_samples" / "evaluated-000001.jsonl")
    half = TOKEN_SAMPLE_TOKENS // 2
    assert (row["tokens"], row["first"], row["left_out"]) == (len(text), half, 11)
    assert "".join(row["texts"]) == text[:half] + text[-half:]
    assert len(row["texts"]) == len(row["values"]) == len(row["log_probs"]) == TOKEN_SAMPLE_TOKENS
    assert row["values"][half] == pytest.approx((2 + half + 11) / 10, rel=1e-3)


def test_labeled_responses_are_those_set_aside_where_there_are_any(tmp_path: Path) -> None:
    """They are the same questions in each iteration, so that a reader can follow them."""
    aside, learned = [rollout("aside", "x")], [rollout("learned", "y")]
    collected: Any = SimpleNamespace(labeled=learned, correct=[0.0], measured=aside, measured_correct=[1.0])
    recorder = recorded(tmp_path)
    recorder.record_labeled(3, collected)
    assert [row["prompt"] for row in rows(tmp_path / "token_samples" / "labeled-000003.jsonl")] == ["aside"]
    collected.measured = []
    recorder.record_labeled(3, collected)
    assert [row["prompt"] for row in rows(tmp_path / "token_samples" / "labeled-000003.jsonl")] == ["learned"]
    assert [iteration for iteration in range(1, 8) if recorder.is_due(iteration)] == [3, 6, 7]
    recorder.config.logging.token_samples = 0
    assert not any(map(recorder.is_due, range(8)))


def test_the_critics_calibration_is_a_line_of_each_iteration(tmp_path: Path) -> None:
    """Its calibration before and after it learns, and its mean value of each unlabeled question, which has no label."""
    recorder = recorded(tmp_path)
    recorder.write_critic_line(0)  # nothing was noted
    recorder.note_bins("before", [CalibrationBin(3, 0.14444, 1 / 3)])
    recorder.note_bins("after", [])
    rollouts = [rollout("q", "ab"), rollout("q", "abcd", 1), rollout("labeled", "z")]
    experience = SimpleNamespace(
        labeled=torch.tensor([False, False, True]),
        response_mask=to_batch(rollouts).response_mask,
        needed_values=lambda: torch.tensor([[0, 0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0, -0.5], [0, 0, 1, 0, 0, 0]]),
        wrong=-1.0,
    )
    step: Any = SimpleNamespace(experience=experience)
    recorder.note_values(mean_final_values(rollouts, step))
    recorder.write_critic_line(1)
    recorder.write_critic_line(2)
    assert rows(tmp_path / "critic.jsonl") == [
        {"iteration": 1, "bins": {"before": [[3, 0.1444, 0.3333]], "after": []}, "values": {"q": 0.5}}
    ]


def test_characters_split_over_tokens_are_whole() -> None:
    """The last token of a character has it; nothing is lost, invalid bytes included."""
    text = "aé😀\u202e!"
    texts = token_texts(tuple(text.encode()), decode_bytes)
    assert texts == ["a", "", "é", "", "", "", "😀", "", "", "\u202e", "!"]
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.choice([97, 0x80, 0xC3, 0xA9, 0xF0, 0x9F]) for _ in range(20)]
        texts = token_texts(ids, decode_bytes)
        assert len(texts) == 20 and "".join(texts) == decode_bytes(ids)
    assert len(token_texts([0x80] * 500, decode_bytes)) == 500


def test_a_token_has_the_space_that_its_neighbor_gives_it() -> None:
    """Sentencepiece drops the space of a text's first word."""
    words = {1: "one", 2: " two", 3: " three"}
    texts = token_texts([1, 2, 3], lambda ids: "".join(words[token] for token in ids).lstrip())
    assert texts == ["one", " two", " three"]
