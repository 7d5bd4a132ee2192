"""Questions, streams, seeds and batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron.config import DataConfig, SourceConfig
from tempo_megatron.data.identity import question_key
from tempo_megatron.data.questions import read_questions, reserve_labeled_questions
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.sources import Answers, Row, to_prompts
from tempo_megatron.data.streams import Stream


def test_a_stream_resumes_from_its_position_alone() -> None:
    """Checkpoints hold one number. The same prompts must follow it, also over the end of a pass."""
    stream = Stream(range(10), 0, "labeled")
    expected = [stream.take(7) for _ in range(5)]
    resumed = Stream(range(10), 0, "labeled")
    resumed.position = 21
    assert [resumed.take(7), resumed.take(7)] == expected[3:]
    assert stream.passes == 3.5


def test_a_pass_takes_every_item_once_in_an_order_of_its_own() -> None:
    """Every item occurs once before any occurs twice."""
    stream = Stream(range(50), 0, "unlabeled")
    first, second = stream.take(50), stream.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != Stream(range(50), 1, "unlabeled").take(50)


def test_seeds_differ_by_every_part_and_fit_a_request() -> None:
    """Consecutive seeds or prompts must not collide."""
    seeds = {
        derive_seed(run, 1, stream, f"p{n}", s)
        for run in range(3)
        for stream in "ab"
        for n in range(9)
        for s in range(8)
    }
    assert len(seeds) == 3 * 2 * 9 * 8
    assert all(0 <= seed < 2**31 for seed in seeds)


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(map(ord, text))

    def apply_chat_template(self, conversation: object, **options: object) -> object:
        raise AssertionError("no chat template was asked for")


def test_evaluated_questions_are_withheld_from_labeled_streams() -> None:
    """A question that is adapted to or held out must not be learned with its answer. Its answer goes to `answers`."""
    rows = [Row(text, {"answer": text}, f"id-{text}", "here", "exact") for text in ("a", "b", "b", "c")]
    answers: Answers = {}
    hidden = to_prompts(rows[:2], DataConfig(), Letters(), answers)
    assert [prompt.answer for prompt in hidden.prompts] == [None, None]
    assert answers == {"id-a": {"answer": "a"}, "id-b": {"answer": "b"}}
    labeled = to_prompts(rows, DataConfig(), Letters(), None, hidden.questions)
    assert [prompt.id for prompt in labeled.prompts] == ["id-c"]
    assert labeled.withheld == 3


def source(directory: Path, name: str, *rows: dict[str, object]) -> SourceConfig:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def test_questions_without_answers_are_learned_from_and_not_evaluated(tmp_path: Path) -> None:
    """This is the case that the method is made for: nobody has the answers."""
    config = DataConfig(
        labeled=[source(tmp_path, "known.jsonl", {"prompt": "k", "answer": "1"})],
        unlabeled=[source(tmp_path, "new.jsonl", {"prompt": "a"}, {"prompt": "b", "answer": "2"})],
        held_out=[source(tmp_path, "later.jsonl", {"prompt": "c"})],
    )
    questions = read_questions(config, Letters())
    assert len(questions.sets["unlabeled"].prompts) == 2
    assert {name: len(prompts) for name, prompts in questions.with_answers().items()} == {"unlabeled": 1}


def test_a_stream_with_no_prompt_left_and_two_questions_under_one_id_are_errors(tmp_path: Path) -> None:
    """Both are errors at start. A run would end in a division by zero, or grade with another question's answer."""
    config = DataConfig(
        labeled=[source(tmp_path, "known.jsonl", {"prompt": "a", "answer": "1"})],
        unlabeled=[
            source(tmp_path, "one/test.jsonl", {"prompt": "a", "id": 1}),
            source(tmp_path, "two/test.jsonl", {"prompt": "b", "id": 1}),
        ],
    )
    with pytest.raises(DataError) as raised:
        read_questions(config, Letters())
    assert str(raised.value).splitlines() == [
        "data.labeled: no prompt is left (left out: 0 overlong, 0 repeated, 1 also evaluated)",
        "data: two different questions have the id test.jsonl:1",
    ]


def test_a_template_may_hold_braces_of_its_own() -> None:
    """Most mathematical templates ask for `\\boxed{}`."""
    config = DataConfig(prompt_template="{question} Answer in \\boxed{}.")
    prompt_set = to_prompts([Row("1+1", None, "i", "here", "math")], config, Letters(), {})
    assert "".join(map(chr, prompt_set.prompts[0].token_ids)) == "1+1 Answer in \\boxed{}."


def test_reserved_questions_leave_every_stream_that_trains(tmp_path: Path) -> None:
    """Reserved questions measure the critic, open the gate and choose a checkpoint. A warm start on their answers would
    bias all three. Their choice depends on neither the run's seed nor the order of rows. Weights are kept."""
    rows: list[dict[str, object]] = [{"prompt": text, "answer": "1"} for text in "abcdefgh"]
    known, again = source(tmp_path, "known.jsonl", *rows), source(tmp_path, "known.jsonl", *rows)
    known.weight, again.weight = 2.0, 0.5
    sets = read_questions(DataConfig(labeled=[known], warm_start=[again]), Letters()).sets
    reserved = reserve_labeled_questions(sets["labeled"], 3)
    for name, weight in (("labeled", 2.0), ("warm_start", 0.5)):
        remaining = sets[name].without(reserved)
        assert len(remaining.prompts) == 5 and remaining.weights == [weight] * 5
        assert not {prompt.id for prompt in remaining.prompts} & {prompt.id for prompt in reserved}
    source(tmp_path, "known.jsonl", *reversed(rows))
    reordered = read_questions(DataConfig(labeled=[known]), Letters()).sets["labeled"]
    assert {prompt.id for prompt in reserve_labeled_questions(reordered, 3)} == {prompt.id for prompt in reserved}
    other_file = source(tmp_path, "copied.jsonl", *rows)
    copied = read_questions(DataConfig(warm_start=[other_file]), Letters()).sets["warm_start"]
    assert len(copied.without(reserved).prompts) == 5  # Ids differ, because they contain the file's name.


def test_learned_questions_measure_nothing_however_files_change(tmp_path: Path) -> None:
    """Learned questions are counted, and neither reserved nor evaluated. Fewer are reserved where none are left."""
    rows: list[dict[str, object]] = [{"prompt": text, "answer": "1"} for text in "abcdefgh"]
    known, later = source(tmp_path, "known.jsonl", *rows), source(tmp_path, "later.jsonl", *rows[:2], {"prompt": "z"})
    before = read_questions(DataConfig(labeled=[known]), Letters()).sets["labeled"]
    reserved = reserve_labeled_questions(before, 3)
    learned = {prompt.question for prompt in before.without(reserved).prompts}
    assert (
        reserve_labeled_questions(before, 3, learned) == reserved
        and reserve_labeled_questions(before, 8, learned) == reserved
    )
    learned |= {question_key("a"), question_key("B")}
    held_out = read_questions(DataConfig(held_out=[later]), Letters(), learned).sets["held_out"]
    assert [prompt.question for prompt in held_out.prompts] == [question_key("z")]
    assert held_out.left_out().endswith("0 also evaluated, 2 learned with their answers before the data changed")
