"""Vocabularies that arrive as blocks of rows are assembled, loaded and compared as if they had arrived at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.generation.checksums import checksum, expected_checksums
from tempo_megatron.generation.loading import load_rows

ROWS, WIDTH = 150, 8
_BLOCK_STARTS = (0, 30, 64, 70, 128, 140)


@pytest.fixture
def vocabulary() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def in_rows(tensor: Tensor) -> list[TensorRows]:
    """Return the tensor's blocks out of order, because ranks take turns."""
    ends = (*_BLOCK_STARTS[1:], len(tensor))
    starts = zip(_BLOCK_STARTS, ends, strict=True)
    blocks = [TensorRows(tensor[start:end], start, len(tensor)) for start, end in starts]
    return blocks[::2] + blocks[1::2]


def test_blocks_are_assembled_and_full_tensors_pass(vocabulary: Tensor) -> None:
    norm = torch.ones(WIDTH)
    embedding = [("embed", block) for block in in_rows(vocabulary)]
    head = [("head", block) for block in in_rows(2 * vocabulary)]
    names, tensors = zip(*assemble_tensors([*embedding, ("norm", norm), *head]), strict=True)
    assert names == ("embed", "norm", "head")
    assert torch.equal(tensors[0], vocabulary) and tensors[1] is norm and torch.equal(tensors[2], 2 * vocabulary)


def test_missing_rows_are_an_error(vocabulary: Tensor) -> None:
    """Protects exports: a directory with rows of uninitialized memory would pass for a model."""
    with pytest.raises(ValueError, match=r"missing rows: 58 of embed"):
        list(assemble_tensors([("embed", block) for block in in_rows(vocabulary) if block.first != 70]))


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_of_the_generator_takes_its_rows(ranks: int, vocabulary: Tensor) -> None:
    """vLLM pads a vocabulary to a multiple of 64 rows and splits it. Padding becomes 0, as by vLLM's own loader."""
    padded = torch.cat([vocabulary, torch.zeros(192 - ROWS, WIDTH)])
    for rank in range(ranks):
        begin, end = (number * 192 // ranks for number in (rank, rank + 1))
        real_rows = range(ROWS)[begin:end]
        indices = SimpleNamespace(
            org_vocab_start_index=real_rows.start,
            org_vocab_end_index=real_rows.stop,
            num_org_elements=len(real_rows),
        )
        module = SimpleNamespace(weight=torch.full((end - begin, WIDTH), torch.nan), shard_indices=indices)
        for block in in_rows(vocabulary):
            load_rows(module, block)
        assert torch.equal(module.weight, padded[begin:end])


@pytest.mark.parametrize("ranks", [1, 2])
def test_checksums_of_blocks_add_up_to_that_of_the_full_tensor(
    ranks: int, vocabulary: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum holds across the ends of a checksum's own chunks too. Rows in another order have another sum."""
    monkeypatch.setattr("tempo_megatron.generation.checksums._CHUNK", 100)
    for rank in range(ranks):
        name = "model.embed_tokens.weight"
        sums = [expected_checksums(name, block, rank, ranks) for block in in_rows(vocabulary)]
        shard = vocabulary[rank * 192 // ranks : (rank + 1) * 192 // ranks]
        assert torch.stack(sums).sum() == expected_checksums(name, vocabulary, rank, ranks) == checksum(shard)
        assert checksum(shard.flip(0)) != checksum(shard)


def test_other_tensors_do_not_arrive_in_blocks(vocabulary: Tensor) -> None:
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.down_proj.weight came in rows"):
        expected_checksums("model.layers.0.mlp.down_proj.weight", in_rows(vocabulary)[0], 0, 1)
