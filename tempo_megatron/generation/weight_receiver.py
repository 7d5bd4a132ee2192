"""Copies the trainer's weights into a running vLLM engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import RolloutPrecision
from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.generation.checksums import expected_checksums
from tempo_megatron.generation.loading import load_live_weights, pack_output_layer


class WeightReceiver:
    """Writes weights into the engine of one tensor-parallel rank, and computes their expected checksums."""

    def __init__(
        self, llm: Any, precision: RolloutPrecision, dtype: torch.dtype, tensor_rank: int, tensor_size: int
    ) -> None:
        self._llm = llm
        self._dtype = dtype
        self._tensor_rank, self._tensor_size = tensor_rank, tensor_size
        self._on_gpu = torch.cuda.is_available()
        self._live = self._on_gpu and precision is RolloutPrecision.same

    def receive(self, weights: Iterable[tuple[str, Tensor | TensorRows]], *, with_checksums: bool) -> dict[str, Tensor]:
        """Copies every weight, cast to the engine's dtype. The engine's memory of weights must be awake.

        Returns the expected checksums by Hugging Face name; {} unless `with_checksums`.
        """
        expected: dict[str, Tensor] = {}
        tensors = self._cast(weights, expected if with_checksums else None, copy=not self._live)
        if self._live:
            tensor_rank, tensor_size = self._tensor_rank, self._tensor_size
            self._llm.apply_model(lambda model: load_live_weights(model, tensors, tensor_rank, tensor_size))
        else:  # Weights that vLLM packs or quantizes after loading must pass through its reload, layer by layer.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": assemble_tensors(tensors)})
            self._llm.apply_model(pack_output_layer)
        if self._on_gpu:
            torch.cuda.synchronize()  # After this the trainer may offload its weights.
        return expected

    def _cast(
        self, tensors: Iterable[tuple[str, Tensor | TensorRows]], expected: dict[str, Tensor] | None, copy: bool
    ) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Yields the same tensors in the engine's dtype, and stores their expected checksums in `expected`.

        Set `copy` for vLLM's reload. It keeps some tensors until all have come, when the trainer's may be offloaded.
        """
        for name, sent in tensors:
            if isinstance(sent, TensorRows):
                # Rows need no copy of their own, since joining them copies them.
                cast: Tensor | TensorRows = replace(sent, rows=sent.rows.to(self._dtype))
            else:
                cast = sent.to(self._dtype, copy=copy)
            if expected is not None:
                digest = expected_checksums(name, cast, self._tensor_rank, self._tensor_size)
                expected[name] = expected[name] + digest if name in expected else digest
            yield name, cast
