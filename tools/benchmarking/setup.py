"""Creates what is measured: a model directory without weights, models with random weights, random rollouts."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tempo_megatron.config import Config
from tempo_megatron.conversion.mapping import OUTPUT_LAYER, BackboneSettings, Role
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.megatron import model
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.megatron.weights import canonical_parameters
from tempo_megatron.planning.flops import ModelFlops

_EMBEDDING = "embedding.word_embeddings.weight"
GROUP = 4
"""The number of rollouts of one prompt."""


@dataclass(frozen=True)
class Setup:
    """A model shape, a config, and this rank's place in the parallel layout."""

    settings: BackboneSettings
    config: Config
    topology: Topology

    def work(self, role: Role) -> ModelFlops:
        return ModelFlops(self.settings, role)


def write_directory(directory: Path, hf_config: dict[str, Any], prompt_tokens: int, questions: int) -> None:
    """Writes a model directory without weights (`model`), and questions (`labeled.jsonl`, `unlabeled.jsonl`).

    A question has `prompt_tokens` words and an answer; a word is one token. Existing contents are deleted.
    """
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")
    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(2, hf_config["vocab_size"]))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[1], pad_token=words[0]).save_pretrained(
        directory / "model"
    )
    for name in ("labeled", "unlabeled"):
        random = torch.Generator().manual_seed(derive_seed("benchmark", name))
        ids = torch.randint(2, len(words), (questions, prompt_tokens), generator=random).tolist()
        rows = [{"prompt": " ".join(words[i] for i in row), "answer": words[row[0]]} for row in ids]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def randomize(chunks: Sequence[Any], topology: Topology, std: float = 0.02) -> None:
    """Fills matrices with random numbers, norms with one and biases with zero.

    As in Megatron's own initialization, the last matrix of each sub-layer has std / sqrt(2 sub-layers). Models of one
    shape get the same numbers, ours and raw Megatron's. Ranks that hold copies of a matrix do too. A critic keeps its
    value head.
    """
    for name, parameter in canonical_parameters(chunks).items():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif parameter.shape[0] > 1:
            tied = name == OUTPUT_LAYER and getattr(chunks[0], "share_embeddings_and_output_weights", False)
            is_copied = ".mlp.experts." in name or ".mlp.router." in name
            shard = 0 if is_copied else topology.tensor_rank
            seed = derive_seed("benchmark", _EMBEDDING if tied else name, shard)
            is_output = name.endswith((".linear_proj.weight", ".linear_fc2.weight"))
            scale = (
                (2 * chunks[0].config.num_layers) ** -0.5 if is_output else 1.0
            )  # A HybridModel's layer is a sub-layer.
            parameter.normal_(0.0, scale * std, generator=torch.Generator(parameter.device).manual_seed(seed))


def build(setup: Setup, role: Role) -> list[Any]:
    """The chunks of a policy or a critic with random weights."""
    chunks = model.build_model(role, setup.settings, setup.config, setup.topology)
    randomize(chunks, setup.topology)
    return chunks


@contextlib.contextmanager
def trainer(setup: Setup, role: Role) -> Iterator[Trainer]:
    """Yields a trainer, and releases its memory afterwards."""
    settings = setup.config.policy if role == "policy" else setup.config.critic
    built = Trainer(build(setup, role), settings.optimizer, setup.config, setup.topology, settings.micro_batch_tokens)
    yield built
    built.wrapped_chunks = built.chunks = built.optimizer = None  # type: ignore[assignment]
    release()


def release() -> None:
    """Returns unused memory to the device. Collective."""
    # Megatron's cache of angles refers to the embedding, whose hooks refer to DistributedDataParallel and its buffers.
    RotaryEmbedding.forward.cache_clear()
    if torch.cuda.is_available():
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reset()  # else delayed scaling continues with the histories of deleted models
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    dist.barrier()


def random_rollouts(lengths: Sequence[int], prompt_tokens: int, vocabulary: int) -> list[Rollout]:
    """Rollouts of random tokens, GROUP for each prompt; `lengths` count prompt and response together."""
    random = torch.Generator().manual_seed(derive_seed("benchmark", "rollouts"))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (count,), generator=random).tolist())

    rollouts = []
    for number, length in enumerate(lengths):
        if number % GROUP == 0:
            prompt = Prompt(f"prompt-{number // GROUP}", tokens(prompt_tokens), "benchmark", "exact")
        count = max(1, length - prompt_tokens)
        rollouts.append(Rollout(prompt, number % GROUP, tokens(count), (0.0,) * count, "stop"))
    return rollouts
