"""How many GPUs there are, and how a run's models are spread over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tempo_megatron.config import Config, ParallelConfig
from tempo_megatron.conversion.mapping import BackboneSettings

_USABLE = 0.989
"""GiB that CUDA reports for each GB that a GPU is sold with: 79.1 of an H100's 80"""


@dataclass(frozen=True)
class Machine:
    """`gpu_gb` are the GB that a GPU is sold with (80, 141), `host_gib` is a node's memory."""

    nodes: int
    gpus_per_node: int
    gpu_gb: float
    host_gib: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable_gib(self) -> float:
        """GiB of a GPU that CUDA reports."""
        return self.gpu_gb * _USABLE


@dataclass(frozen=True)
class Layout:
    """Parallel sizes; `replica` is the generator's TP."""

    tensor: int
    pipeline: int
    context: int
    data: int
    sequence_parallel: bool
    replica: int

    @classmethod
    def of(cls, config: Config, gpus: int) -> Layout:
        parallel = config.parallel
        tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        context = parallel.context_parallel_size
        return cls(
            tensor=tensor,
            pipeline=pipeline,
            context=context,
            data=gpus // (tensor * pipeline * context),
            sequence_parallel=parallel.sequence_parallel,
            replica=config.generation.tensor_parallel_size or tensor,
        )

    @property
    def optimizer_ranks(self) -> int:
        """Ranks that the optimizer's state of one shard of the model is spread over."""
        return self.data * self.context

    def __str__(self) -> str:
        sizes = {"TP": self.tensor, "PP": self.pipeline, "CP": self.context}
        return " ".join([f"{name}{size}" for name, size in sizes.items() if size > 1] + [f"DP{self.data}"])


def divisible(parallel: ParallelConfig, settings: BackboneSettings) -> Iterator[str]:
    """What the parallel sizes do not divide, a line a size."""
    parts = {
        "tensor_model_parallel_size": {
            "attention heads": settings.num_attention_heads,
            "KV heads": settings.num_query_groups,
            "MLP channels": settings.ffn_hidden_size,
            "padded vocabulary entries": settings.padded_vocab_size,
        },
        "pipeline_model_parallel_size": {"layers": settings.num_layers},
    }
    for key, counts in parts.items():
        size = getattr(parallel, key)
        undivided = [f"{count} {what}" for what, count in counts.items() if size > 0 and count % size]
        if undivided:
            yield f"parallel.{key}: {size} does not divide the model's {', '.join(undivided)}"


def shareable(replica: int, settings: BackboneSettings) -> Iterator[str]:
    """What the ranks of one vLLM replica cannot share. It would copy KV heads to more ranks than there are heads, and
    the check of synced weights knows no copies."""
    heads = (("attention", settings.num_attention_heads), ("KV", settings.num_query_groups))
    undivided = [f"{count} {what} heads" for what, count in heads if replica > 0 and count % replica]
    if undivided:
        yield f"generation.tensor_parallel_size: {replica} does not divide the model's {', '.join(undivided)}"


def windows(parallel: ParallelConfig, settings: BackboneSettings) -> Iterator[str]:
    """Context parallelism deals the heads of layers with a window out to its ranks."""
    ranks = max(1, parallel.tensor_model_parallel_size) * max(1, parallel.context_parallel_size)
    if parallel.context_parallel_size < 2 or not any(layer.window for layer in settings.attention):
        return
    for what, count in (("attention", settings.num_attention_heads), ("KV", settings.num_query_groups)):
        if count % ranks:
            yield (
                f"parallel.context_parallel_size: layers with a sliding window need TP x CP = {ranks} to divide the "
                f"model's {count} {what} heads"
            )
