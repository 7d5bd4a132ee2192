"""The tokenizer of a model directory, and whether the model has an entry for each token that it will meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tempo_megatron.config import DataConfig
from tempo_megatron.data.templates import Tokenizer, end_token_ids
from tempo_megatron.data.types import Prompt

_SHOWN = 3


def load_tokenizer(directory: Path) -> Any:
    """Raises ValueError with one line where the directory's files make no tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises whatever a broken file makes its parsers raise
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"no tokenizer can be loaded: {reason}") from None


def taught_ids(prompt: Prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of a labeled question's answer, end of sequence included."""
    answer = str((prompt.answer or {})["answer"])
    return (*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id)


def end_problems(config: DataConfig, tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """Why responses could not end with these tokens, a line a cause."""
    if tokenizer.eos_token_id is None:
        yield "the tokenizer has no eos_token, so that no response could end; tokenizer_config.json names it"
        return
    if beyond := _beyond(end_token_ids(config, tokenizer), vocab_size):
        yield f"what ends a response is past the model's {vocab_size} tokens: {_spelled(beyond, tokenizer)}"


def token_problems(sequences: Mapping[str, Sequence[int]], tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """A line where sequences, by the ids of their prompts, have tokens that the model lacks."""
    beyond = {name: ids for name, sequence in sequences.items() if (ids := _beyond(sequence, vocab_size))}
    if beyond:
        ids = sorted({id_ for ids in beyond.values() for id_ in ids})
        (first, *_), tokens = beyond, _spelled(ids, tokenizer)
        yield f"{len(beyond)} prompts, {first} first, have tokens past the model's {vocab_size}: {tokens}"


def _beyond(sequence: Sequence[int], vocab_size: int) -> list[int]:
    return sorted({id_ for id_ in sequence if id_ >= vocab_size})


def _spelled(ids: Sequence[int], tokenizer: Any) -> str:
    shown = ", ".join(f"{id_} ({tokenizer.convert_ids_to_tokens(id_)})" for id_ in ids[:_SHOWN])
    return shown + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
