"""Loads the tokenizer of a model directory, and checks that the model's vocabulary contains every token in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tempo_megatron.config import DataConfig
from tempo_megatron.conversion import hf_files
from tempo_megatron.data.templates import Tokenizer, end_token_ids
from tempo_megatron.data.types import Prompt

_TOKENS_SHOWN = 3


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of a directory. Raises ValueError of one line where it cannot be loaded or is empty."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # A broken file may make transformers' parsers raise anything.
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ValueError(_tokenizer_problem(directory, reason)) from None
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):  # transformers makes one of config.json alone
        raise ValueError(_tokenizer_problem(directory, "its vocabulary is empty"))
    return tokenizer


def _tokenizer_problem(directory: Path, reason: str) -> str:
    """Return why a directory has no usable tokenizer, and what to do. `reason` is why loading failed."""
    if hf_files.has_tokenizer(directory):
        return f"no tokenizer can be loaded from {directory}: {reason}"
    return (
        f"no tokenizer in {directory}: copy the tokenizer's files (tokenizer.json and tokenizer_config.json) there "
        "from the model that this one was made of"
    )


def answer_token_ids(prompt: Prompt, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids of a labeled question's answer, followed by the end of sequence."""
    answer = str((prompt.answer or {})["answer"])
    return (*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id)


def end_token_problems(config: DataConfig, tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """Yield why no response could end, one reason a line."""
    if tokenizer.eos_token_id is None:
        yield "the tokenizer has no eos_token, so that no response could end; tokenizer_config.json names it"
        return
    if outside := _outside_vocabulary(end_token_ids(config, tokenizer), vocab_size):
        tokens = _format_tokens(outside, tokenizer)
        yield f"an end token is past the model's {vocab_size} tokens: {tokens}"


def token_problems(sequences: Mapping[str, Sequence[int]], tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """Yield one line where token sequences, by the ids of their prompts, contain tokens that the model lacks."""
    outside = {
        prompt_id: token_ids
        for prompt_id, sequence in sequences.items()
        if (token_ids := _outside_vocabulary(sequence, vocab_size))
    }
    if outside:
        distinct = sorted({token_id for token_ids in outside.values() for token_id in token_ids})
        (first_prompt, *_), tokens = outside, _format_tokens(distinct, tokenizer)
        yield f"{len(outside)} prompts, {first_prompt} first, have tokens past the model's {vocab_size}: {tokens}"


def _outside_vocabulary(sequence: Sequence[int], vocab_size: int) -> list[int]:
    return sorted({token_id for token_id in sequence if token_id >= vocab_size})


def _format_tokens(token_ids: Sequence[int], tokenizer: Any) -> str:
    first_ids, remaining = token_ids[:_TOKENS_SHOWN], len(token_ids) - _TOKENS_SHOWN
    tokens = ", ".join(f"{token_id} ({tokenizer.convert_ids_to_tokens(token_id)})" for token_id in first_ids)
    return tokens + (f" and {remaining} more" if remaining > 0 else "")
