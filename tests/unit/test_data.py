"""Streams, seeds and batches."""

from __future__ import annotations

import torch

from tempo_megatron.config import DataConfig
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.sources import Answers, Row, to_prompts
from tempo_megatron.data.streams import Stream
from tempo_megatron.megatron.batch import from_sequences


def test_a_stream_resumes_from_its_position_alone() -> None:
    """Checkpoints hold one number: the same prompts must follow, over the end of a pass too."""
    whole = Stream(range(10), 0, "labelled")
    expected = [whole.take(7) for _ in range(5)]
    resumed = Stream(range(10), 0, "labelled")
    resumed.position = 21
    assert [resumed.take(7), resumed.take(7)] == expected[3:]
    assert whole.passes == 3.5


def test_a_pass_takes_every_item_once_in_an_order_of_its_own() -> None:
    """No prompt is seen twice before all have been seen once."""
    stream = Stream(range(50), 0, "unlabelled")
    first, second = stream.take(50), stream.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != Stream(range(50), 1, "unlabelled").take(50)


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


def test_dealt_rows_are_each_sequence_once_and_fillers_count_nothing() -> None:
    """Data parallelism: sums over ranks must be sums over rows, whatever the number of ranks."""
    batch = from_sequences([[n] for n in range(1, 8)], [[n, n] for n in range(1, 8)], length_multiple=4)
    assert batch.tokens.shape == (7, 4)
    dealt = [batch.deal(rank, 2, 3) for rank in range(2)]
    assert [part.rows for part in dealt] == [6, 6]
    counted = torch.cat([part.tokens[part.response_mask] for part in dealt])
    assert sorted(counted.tolist()) == sorted(n for n in range(1, 8) for _ in range(2))
    assert len(list(dealt[0].micro_batches(3))) == 2


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(map(ord, text))

    def apply_chat_template(self, conversation: object, **options: object) -> object:
        raise AssertionError("no chat template was asked for")


def test_evaluated_questions_are_withheld_from_labelled_streams() -> None:
    """A question that is adapted to or held out must not be learnt with its answer; the answers go elsewhere."""
    rows = [Row(text, {"answer": text}, f"id-{text}", "here", "exact") for text in ("a", "b", "b", "c")]
    answers: Answers = {}
    hidden = to_prompts(rows[:2], DataConfig(), Letters(), answers)
    assert [prompt.answer for prompt in hidden.prompts] == [None, None]
    assert answers == {"id-a": {"answer": "a"}, "id-b": {"answer": "b"}}
    labelled = to_prompts(rows, DataConfig(), Letters(), None, hidden.questions)
    assert [prompt.id for prompt in labelled.prompts] == ["id-c"]
    assert labelled.withheld == 3
