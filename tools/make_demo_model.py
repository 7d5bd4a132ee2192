"""Make the demo's model: a Qwen3 of a million parameters with random weights, and a tokenizer that spells words.

usage: python tools/make_demo_model.py DIRECTORY [--seed N]

The tokenizer has one token for each letter and one for the fixed text of reasoning-gym's `spell_backward` question, so
that a prompt is as long as its word.
"""

from __future__ import annotations

import argparse
import re
import shutil
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

QUESTION = "Spell this word backward (example: sun -> nus): "
PAD, END = "<pad>", "<eos>"
CHARACTERS = string.ascii_letters + string.digits + "'-. "
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""The demo's model, by the names of a Qwen3Config."""


def make_character_tokenizer(characters: str, phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each character and each phrase.

    Decoding joins tokens without spaces, so that a word survives the round trip.
    """
    words = [PAD, END, *phrases, *characters]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=PAD))
    pieces = "|".join([*map(re.escape, phrases), "."])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def make_config(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> Qwen3Config:
    """Return the config of a model for this tokenizer. `shape` has settings of a config.json; they replace defaults."""
    defaults = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "dtype": "float32",
    }
    return Qwen3Config(**{**defaults, **shape})


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any], seed: int) -> Qwen3ForCausalLM:
    """Return a model of this shape, with random weights from `seed`."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(make_config(tokenizer, shape))


def write_model(directory: Path, tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any], seed: int) -> None:
    """Write the model directory, whole or not at all."""
    aside = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    model = make_model(tokenizer, shape, seed)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)
    print(f"{directory}: {model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens")


def write_demo_model(directory: Path, seed: int = 0) -> None:
    """Write the demo's model directory."""
    write_model(directory, make_character_tokenizer(CHARACTERS, [QUESTION]), SHAPE, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_demo_model(arguments.directory, arguments.seed)


if __name__ == "__main__":
    main()
