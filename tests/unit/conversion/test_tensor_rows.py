"""Vocabularies that come in rows: put together, loaded and compared as if they had come whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.generation.checksums import checksum, expected_checksums
from tempo_megatron.generation.engine import _load_rows

ROWS, WIDTH = 150, 8
_CUTS = (0, 30, 64, 70, 128, 140)


@pytest.fixture
def vocabulary() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def in_rows(tensor: Tensor) -> list[TensorRows]:
    """Not in their order: ranks take turns."""
    ends = (*_CUTS[1:], len(tensor))
    parts = [TensorRows(tensor[start:end], start, len(tensor)) for start, end in zip(_CUTS, ends, strict=True)]
    return parts[::2] + parts[1::2]


def test_rows_are_put_together_and_whole_tensors_pass(vocabulary: Tensor) -> None:
    norm = torch.ones(WIDTH)
    sent = [("embed", part) for part in in_rows(vocabulary)]
    found = list(assemble_tensors([*sent, ("norm", norm), *(("head", part) for part in in_rows(2 * vocabulary))]))
    assert [name for name, _ in found] == ["embed", "norm", "head"]
    assert torch.equal(found[0][1], vocabulary) and found[1][1] is norm and torch.equal(found[2][1], 2 * vocabulary)


def test_rows_that_do_not_come_are_an_error(vocabulary: Tensor) -> None:
    """Protects exports: a directory with rows of whatever memory held before would pass for a model."""
    with pytest.raises(ValueError, match=r"missing rows: 58 of embed"):
        list(assemble_tensors([("embed", part) for part in in_rows(vocabulary) if part.first != 70]))


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_of_the_generator_takes_its_rows(ranks: int, vocabulary: Tensor) -> None:
    """vLLM pads a vocabulary to 64 rows and cuts that; what is padding becomes 0, as its own loader leaves it."""
    padded = torch.cat([vocabulary, torch.zeros(192 - ROWS, WIDTH)])
    for rank in range(ranks):
        begin, end = (number * 192 // ranks for number in (rank, rank + 1))
        real = range(ROWS)[begin:end]
        indices = SimpleNamespace(
            org_vocab_start_index=real.start, org_vocab_end_index=real.stop, num_org_elements=len(real)
        )
        module = SimpleNamespace(weight=torch.full((end - begin, WIDTH), torch.nan), shard_indices=indices)
        for part in in_rows(vocabulary):
            _load_rows(module, part)
        assert torch.equal(module.weight, padded[begin:end])


@pytest.mark.parametrize("ranks", [1, 2])
def test_checksums_of_rows_add_up_to_that_of_the_whole(
    ranks: int, vocabulary: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the ends of a checksum's own chunks too; rows in another order have another sum."""
    monkeypatch.setattr("tempo_megatron.generation.checksums._CHUNK", 100)
    for rank in range(ranks):
        name = "model.embed_tokens.weight"
        sums = [expected_checksums(name, part, rank, ranks) for part in in_rows(vocabulary)]
        mine = vocabulary[rank * 192 // ranks : (rank + 1) * 192 // ranks]
        assert torch.stack(sums).sum() == expected_checksums(name, vocabulary, rank, ranks) == checksum(mine)
        assert checksum(mine.flip(0)) != checksum(mine)


def test_other_tensors_do_not_come_in_rows(vocabulary: Tensor) -> None:
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.down_proj.weight came in rows"):
        expected_checksums("model.layers.0.mlp.down_proj.weight", in_rows(vocabulary)[0], 0, 1)
