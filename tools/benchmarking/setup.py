"""What is measured: a run's config over a synthetic model directory, models with random weights, random rollouts."""

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
"""rollouts of one prompt"""


@dataclass(frozen=True)
class Setup:
    """One shape under one config on this rank's place."""

    settings: BackboneSettings
    config: Config
    place: Topology

    def work(self, role: Role) -> ModelFlops:
        return ModelFlops(self.settings, role)


def write_directory(directory: Path, described: dict[str, Any], prompt_tokens: int, questions: int) -> None:
    """A model directory without weights (`model`) and questions with answers (`labeled.jsonl`, `unlabeled.jsonl`) of
    `prompt_tokens` words each, a word being a token. What lay there before is deleted."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(2, described["vocab_size"]))]
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
def randomize(module: torch.nn.Module, place: Topology, std: float = 0.02) -> None:
    """Random matrices, the same whatever ranks hold copies of them; norms of one, biases of zero. A critic keeps its
    own value head."""
    for name, parameter in canonical_parameters(module).items():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif parameter.shape[0] > 1:
            tied = name == OUTPUT_LAYER and getattr(module, "share_embeddings_and_output_weights", False)
            seed = derive_seed("benchmark", _EMBEDDING if tied else name, place.tensor_rank)
            parameter.normal_(0.0, std, generator=torch.Generator(parameter.device).manual_seed(seed))


def build(setup: Setup, role: Role) -> Any:
    """A policy or a critic with random weights."""
    module = model.build(role, setup.settings, setup.config, setup.place)
    randomize(module, setup.place)
    return module


@contextlib.contextmanager
def trainer(setup: Setup, role: Role) -> Iterator[Trainer]:
    """A trainer, whose memory is given back afterwards."""
    settings = setup.config.policy if role == "policy" else setup.config.critic
    made = Trainer(build(setup, role), settings.optimizer, setup.config, setup.place, settings.micro_batch_tokens)
    yield made
    made.model = made.module = made.optimizer = None
    release()


def release() -> None:
    """Memory that nothing uses any more back to the device. Collective."""
    # Megatron's cache of angles keeps the embedding, whose hooks keep DistributedDataParallel and all that it holds.
    RotaryEmbedding.forward.cache_clear()
    if torch.cuda.is_available():
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reset()  # delayed scaling would go on with the histories of models that are gone
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    dist.barrier()


def rollouts(lengths: Sequence[int], prompt_tokens: int, vocabulary: int) -> list[Rollout]:
    """Random tokens, so many of prompt and response together in each rollout; prompts have GROUP rollouts each."""
    random = torch.Generator().manual_seed(derive_seed("benchmark", "rollouts"))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (count,), generator=random).tolist())

    made = []
    for number, length in enumerate(lengths):
        if number % GROUP == 0:
            prompt = Prompt(f"prompt-{number // GROUP}", tokens(prompt_tokens), "benchmark", "exact")
        count = max(1, length - prompt_tokens)
        made.append(Rollout(prompt, number % GROUP, tokens(count), (0.0,) * count, "stop"))
    return made
