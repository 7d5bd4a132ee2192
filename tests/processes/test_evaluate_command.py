"""`tempo eval` without its engine: protocols, what is refused, resuming, and the results."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron import cli
from tempo_megatron.config import EvaluationConfig
from tempo_megatron.evaluation import command
from tempo_megatron.evaluation.plan import Plan, make_plan, model_fingerprint
from tempo_megatron.evaluation.protocol import PROTOCOLS, Protocol, ProtocolOverrides, protocol_of
from tempo_megatron.evaluation.report import to_table
from tempo_megatron.evaluation.request import EvaluationRequest
from tempo_megatron.generation.requests import Completion, Request
from tests.unit.training.test_evaluate import FakeGrader as GraderOfText

LETTERS = "abcd"


@pytest.fixture(autouse=True)
def labels_count_as_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invented labels need no check, whose workers take a second to start."""
    monkeypatch.setenv("TEMPO_CHECKED", "1")


class FakeGrader(GraderOfText):
    """Grades the decoded text's first letter, so that the fake engine is right now and then."""

    def __init__(self, decode: Any, config: object) -> None:
        super().__init__()
        self._decode = decode

    def grade(self, rollouts: Sequence[Any], answers: dict[str, dict[str, Any]]) -> list[float]:
        texts = [self._decode(rollout.response_ids) for rollout in rollouts]
        labels = [answers[rollout.prompt.id]["answer"] for rollout in rollouts]
        return [float(text[0] == label) for text, label in zip(texts, labels, strict=True)]


class SeededEngine:
    """Responses that follow from a request's seed alone; stops the run at the start of call `last` + 1."""

    def __init__(self, plan: Plan, last: int = 99) -> None:
        self.ids = [plan.tokenizer.encode(letter)[0] for letter in LETTERS]
        self.calls: list[int] = []
        self._last = last

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        if len(self.calls) == self._last:
            raise KeyboardInterrupt
        self.calls.append(len(requests))
        completions = []
        for request in requests:
            random_ = random.Random(request.seed)
            ids = tuple(random_.choices(self.ids, k=random_.randint(1, 3)))
            completions.append(Completion(ids, (0.0,) * len(ids), random_.choice(["stop", "stop", "length"])))
        return completions


def write_questions(path: Path, count: int = 5, answer: str = "a") -> Path:
    rows = [{"prompt": f"{letter}bc", "answer": answer} for letter in "abcdefgh"[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def arguments(demo_model: Path, tmp_path: Path) -> list[str]:
    """Five questions, one a generate call: four samples are the four batches of one sequence that a call holds."""
    questions = write_questions(tmp_path / "words.jsonl")
    options = f"--model {demo_model} --data {questions} --out {tmp_path / 'out'} --samples 4 --k 2 --precision fp32"
    return [*options.split(), "--max-response-tokens", "8", "data.max_prompt_tokens=16", "generation.max_num_seqs=1"]


def parse(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> EvaluationRequest:
    """Returns what the command line asks for, without evaluating anything."""
    requests: list[EvaluationRequest] = []
    with monkeypatch.context() as patched:
        patched.setattr(command, "evaluate_model", lambda request, _: requests.append(request))
        assert cli.main(["eval", *arguments]) == 0
    return requests[0]


def run(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, last: int = 99) -> SeededEngine:
    monkeypatch.setattr(command, "RolloutGrader", FakeGrader)
    plan = make_plan(parse(arguments, monkeypatch))
    engine = SeededEngine(plan, last)
    command.evaluate(plan, engine)
    return engine


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())["benchmarks"]


@pytest.mark.parametrize("torn", [0, 1, 40, 700])
def test_an_interrupted_evaluation_resumes_to_the_same_bytes(
    torn: int, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two of five questions, `torn` bytes of the file lost as well: complete questions are kept, nothing
    complete is drawn again, and samples and figures are those of an evaluation that was never stopped."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run([*arguments, "--out", str(whole)], monkeypatch).calls == [4] * 5
    with pytest.raises(KeyboardInterrupt):
        run(arguments, monkeypatch, last=2)
    file = out / "samples" / "words.jsonl"
    text = file.read_text()
    file.write_text(text[: len(text) - torn])
    assert not (out / "results.json").exists()
    kept = {0: 2, 1: 1, 40: 1, 700: 0}[torn]
    assert run(arguments, monkeypatch).calls == [4] * (5 - kept)
    assert file.read_bytes() == (whole / "samples" / "words.jsonl").read_bytes()
    assert results(out) == results(whole)
    assert 0 < results(out)["words"]["figures"]["avg@4"]["value"] < 1
    assert run(arguments, monkeypatch).calls == []


def test_results_have_intervals_settings_and_versions(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader needs to use a figure: its interval, over how many questions, sampled how, with what."""
    run(arguments, monkeypatch)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    words = report["benchmarks"]["words"]
    assert (words["questions"], words["samples"], words["temperature"]) == (5, 4, 1.0)
    assert {"avg@4", "pass@2", "cons@2", "length", "truncated", "distinct_answers"} < words["figures"].keys()
    for figure in words["figures"].values():
        low, high = figure["interval"]
        assert low <= figure["value"] <= high
    assert report["settings"]["max_response_tokens"] == 8 and report["versions"]["torch"] and report["date"]
    table = (tmp_path / "out" / "results.md").read_text()
    assert f"| words | 5 | {100 * words['figures']['avg@4']['value']:.1f} [" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--temperature", "0.7"], "temperature was 1.0, is 0.7"),
        (["--samples", "5"], "samples was 4, is 5"),
        (["seed=1"], "seed was 0, is 1"),
        (["data.prompt_template=a{question}"], "questions_fingerprint"),
        (["--max-response-tokens", "9"], "max_response_tokens was 8, is 9"),
    ],
)
def test_a_directory_of_other_settings_is_refused(
    change: list[str],
    message: str,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples of two settings must not end in one figure; what changes no sample may change."""
    run(arguments, monkeypatch)
    assert cli.main(["eval", *arguments, *change]) == 2
    assert message in capsys.readouterr().err
    assert run([*arguments, "--k", "3", "generation.max_num_seqs=7", "--processes", "2"], monkeypatch).calls == []


def test_another_model_or_another_answer_is_refused(
    arguments: list[str], demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same paths with other contents: a trained model, a corrected answer."""
    run(arguments, monkeypatch)
    before = make_plan(parse(arguments, monkeypatch)).settings()
    write_questions(tmp_path / "words.jsonl", answer="b")
    monkeypatch.setattr("tempo_megatron.evaluation.store.differences", lambda out, settings: [])
    assert make_plan(parse(arguments, monkeypatch)).settings() != before
    weights = tmp_path / "model.safetensors"
    content = bytearray((demo_model / weights.name).read_bytes())
    weights.write_bytes(content)
    one = model_fingerprint(tmp_path)
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    weights.write_bytes(content)
    assert model_fingerprint(tmp_path) != one


def test_all_problems_are_listed_at_once_and_nothing_is_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One start says all that is wrong with numbers, layout, settings and data."""
    flags = ["--data", str(tmp_path / "words.jsonl"), "/nowhere.jsonl", "--tensor-parallel", "3", "--precision", "bf16"]
    assert cli.main(["eval", *arguments, *flags, "evaluation.samples=3", "--max-response-tokens", "500"]) == 2
    message = capsys.readouterr().err
    wanted = ["/nowhere.jsonl: no such data file", "3 does not divide 1", "4 attention heads", "needs a GPU"]
    wanted.append("neither 3 nor the model's 2 KV heads divides the other")
    assert all(part in message for part in (*wanted, "evaluation.samples=3", "context is 128"))
    assert (
        cli.main(["eval", *arguments, "--model", str(tmp_path), "--data", "/nowhere.jsonl", "sed=1", "--k", "5"]) == 2
    )
    message = capsys.readouterr().err
    assert all(part in message for part in ("sed: unknown", "no config.json", "no tokenizer", "no such data file"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--k", "5"], "5 is not between 1 and the 4 samples"),
        (["--top-p", "0"], "--top-p: above 0"),
        (["--model", "/nowhere"], "no config.json"),
        (["data.chat_template=true"], "the tokenizer has none"),
        (["data.max_prompt_tokns=3"], "did you mean 'max_prompt_tokens'"),
    ],
)
def test_a_wrong_argument_is_named(
    change: list[str], message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each on its own, exit code 2."""
    assert cli.main(["eval", *arguments, *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_questions_without_answers_are_counted_or_an_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unanswered question must not count as a wrong one; a file of none is a mistake."""
    path = tmp_path / "words.jsonl"
    path.write_text(path.read_text() + json.dumps({"prompt": "zz"}))
    (benchmark,) = make_plan(parse(arguments, monkeypatch)).benchmarks
    assert len(benchmark.prompts) == 5 and "1 without an answer" in benchmark.left_out
    path.write_text(json.dumps({"prompt": "zz"}))
    assert cli.main(["eval", *arguments]) == 2
    assert "no question has an answer" in capsys.readouterr().err


def test_the_papers_protocols_are_those_of_its_tables() -> None:
    """avg@16 and pass@8 for mathematics, avg@1 for the general sets, avg@8 and pass@8 for GPQA-Diamond; flags win."""
    mathematics = {name for name, protocol in PROTOCOLS.items() if (protocol.samples, protocol.k) == (16, (8,))}
    assert mathematics == {"aime_2024", "aime_2025", "aime_2026", "beyond_aime", "olymmath"}
    assert {name for name, protocol in PROTOCOLS.items() if protocol.samples == 1} == {"bbh", "agieval", "zebralogic"}
    assert PROTOCOLS["gpqa_diamond"] == Protocol(8, (8,), 1.0, 1.0)
    assert {protocol.temperature for protocol in PROTOCOLS.values()} == {1.0}
    default = EvaluationConfig(samples=3, k=2)
    assert protocol_of(["olymmath_hard"], ProtocolOverrides(), default) == PROTOCOLS["olymmath"]
    assert protocol_of(["aime_20245"], ProtocolOverrides(), default) == Protocol(3, (2,), 1.0, 1.0)
    assert protocol_of(["big_bench_hard", "bbh_snarks"], ProtocolOverrides(samples=4, k=(2, 4)), default) == Protocol(
        4, (2, 4), 1.0, 1.0
    )


def test_benchmarks_are_named_after_files_and_take_their_protocol(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AIME-2024.jsonl` is AIME 2024, whatever its writer's taste in names."""
    files = [write_questions(tmp_path / "AIME-2024.jsonl"), tmp_path / "words.jsonl"]
    plain = [part for part in arguments if part not in ("--samples", "4", "--k", "2")]
    benchmarks = make_plan(parse([*plain, "--data", *map(str, files)], monkeypatch)).benchmarks
    assert [benchmark.name for benchmark in benchmarks] == ["aime_2024", "words"]
    assert [benchmark.protocol.samples for benchmark in benchmarks] == [16, 16]
    (tmp_path / "other").mkdir()
    twice = ["--data", str(files[1]), str(write_questions(tmp_path / "other" / "words.jsonl"))]
    with pytest.raises(ValueError, match=r"words\.jsonl and .*words\.jsonl have one name"):
        make_plan(parse([*plain, *twice], monkeypatch))


def test_a_recipe_brings_its_settings_and_its_evaluated_sets(
    recipe: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hidden streams are benchmarks, told apart where they share a source; flags and overrides win."""
    arguments = (
        f"--model {demo_model} --recipe {recipe} --out {tmp_path / 'out'} generation.max_response_tokens=7 --samples 5"
    )
    plan = make_plan(parse(arguments.split(), monkeypatch))
    assert [benchmark.name for benchmark in plan.benchmarks] == ["unlabeled_spell_backward", "held_out_spell_backward"]
    assert [len(benchmark.prompts) for benchmark in plan.benchmarks] == [12, 8]
    assert {(benchmark.protocol.samples, benchmark.protocol.k) for benchmark in plan.benchmarks} == {(5, (4,))}
    assert plan.config.generation.max_response_tokens == 7
    assert plan.config.parallel.processes_per_node == plan.tensor_parallel_size == 2


def test_a_table_leaves_out_what_a_benchmark_does_not_report() -> None:
    """Benchmarks of different protocols stand in one table; one question has no interval."""
    benchmarks = {
        "one": {"questions": 30, "figures": {"avg@16": {"value": 0.5, "interval": [0.25, 0.75]}}},
        "two": {"questions": 1, "figures": {"length": {"value": 10.4, "interval": None}}},
    }
    assert to_table(benchmarks).splitlines()[:4] == [
        "| benchmark | questions | avg@16 | length |",
        "| --- | --- | --- | --- |",
        "| one | 30 | 50.0 [25.0, 75.0] |  |",
        "| two | 1 |  | 10 |",
    ]
