"""A vLLM engine that shares its processes, and on GPUs its memory, with the trainer."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from tempo_megatron.config import CheckWeights, GenerationConfig, RolloutPrecision
from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.generation import random_state, row_invariance, shared_memory
from tempo_megatron.generation.checksums import compare, expected_checksums
from tempo_megatron.generation.queue import RequestQueue, local_counter, shared_counter
from tempo_megatron.generation.requests import Completion, Request, on_every_rank
from tempo_megatron.generation.stopping import StopRequested
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

__all__ = ["Completion", "GenerationStopped", "Generator", "Request"]

Weights = Callable[[], Iterable[tuple[str, Tensor | TensorRows]]]
"""makes pairs of a Hugging Face name and its whole tensor, or rows of a vocabulary, layer by layer; collective where
making them is"""


class GenerationStopped(Exception):
    """`should_stop` said so; what had been generated is given up."""


class Generator:
    """vLLM replicas over the trainer's ranks: replica r is the ranks r T to r T + T - 1, T its tensor parallel size.

    The process group that Megatron made is reused (`external_launcher`), so that no process is started. Every rank
    makes every call, with the same arguments.

    With `weights` the engine starts from random numbers, and what it generates with comes from there, pulled by
    `load_weights`; asleep it then holds nothing (vLLM's level 2). Without, it generates with the weights of `hf_path`.
    """

    def __init__(
        self,
        hf_path: Path,
        config: GenerationConfig,
        *,
        tensor_parallel_size: int,
        max_model_len: int,
        dtype: torch.dtype,
        eos_token_ids: Sequence[int],
        seed: int,
        weights: Weights | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.eos_token_ids = list(eos_token_ids)
        self.weights = weights
        self.should_stop: Callable[[], bool] | None = None
        """asked while generating; set on every rank or on none"""
        self.rank = dist.get_rank()
        self.replica, self.replicas = self.rank // tensor_parallel_size, dist.get_world_size() // tensor_parallel_size
        self.tensor_rank, self.tensor_size = self.rank % tensor_parallel_size, tensor_parallel_size
        self._on_gpu = torch.cuda.is_available()
        self._sleeps = self._on_gpu and config.sleep and weights is not None
        self._asleep: set[str] = set()
        self._loaded = weights is None
        self._checks = weights is not None and config.check_weights is not CheckWeights.never
        self._figures: Counter[str] = Counter()
        self._requests_of_replicas = [0] * self.replicas
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about choices that are made here
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a run tells nobody of itself unless its user wants it
        if not self._on_gpu:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would replace generation.kv_cache_gib
            # vLLM compiles one small function there, for which each process would first try compilers, some 10 s.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            row_invariance.install()
        with random_state.preserved():
            self._llm = self._start(hf_path, max_model_len, seed + self.replica)
        self.sleep()

    def _start(self, hf_path: Path, max_model_len: int, seed: int) -> Any:
        """The engine. What is left to vLLM 0.26 is what rollouts want: chunked prefill of 16,384 tokens a step and
        asynchronous scheduling on GPUs, CUDA graphs up to 512 sequences, no statistics."""
        from vllm import LLM

        token = None if self._on_gpu else shared_memory.use_unique_names()
        llm = LLM(
            model=str(hf_path),
            load_format="auto" if self.weights is None else "dummy",
            skip_tokenizer_init=True,
            dtype=str(self.dtype).removeprefix("torch."),
            # Logits of 20 in bf16 are off by up to 0.06; the trainer's are in fp32 too (`log_probs.token_scores`).
            hf_overrides={"head_dtype": "float32"} if self._on_gpu else None,
            quantization="fp8" if self.config.precision is RolloutPrecision.fp8 else None,
            max_model_len=max_model_len,
            max_num_seqs=self.config.max_num_seqs,
            tensor_parallel_size=self.tensor_size,
            distributed_executor_backend="external_launcher",
            gpu_memory_utilization=self.config.gpu_memory_utilization if self._on_gpu else 0.1,
            kv_cache_memory_bytes=None if self._on_gpu else round(self.config.kv_cache_gib * 2**30),
            enforce_eager=self.config.enforce_eager or not self._on_gpu,
            enable_prefix_caching=self._on_gpu,  # the samples of a prompt share its prefill
            enable_sleep_mode=self._sleeps,
            logprobs_mode="processed_logprobs",
            use_tqdm_on_load=False,
            seed=seed,
        )
        if token:
            shared_memory.unlink(token)
            shared_memory.drop_queue()
        if self.weights is not None:
            llm.apply_model(_reset_attention_scales)
        return llm

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """A completion for each request, in their order, on every rank. Replicas draw them from one queue.

        Weights that a sleep threw away are pulled again first. Raises GenerationStopped, on every rank.
        """
        if not self._loaded:
            self.load_weights()
        self._wake("kv_cache")
        with random_state.preserved():
            mine, figures = self._complete(requests)
        counted: list[Mapping[str, int]] = [figures]
        if self.replicas > 1:
            mine, counted = on_every_rank(mine, figures, self.tensor_size)
        if any("stopped" in counts for counts in counted):
            raise GenerationStopped
        for replica, counts in enumerate(counted):
            self._figures.update(counts)
            self._requests_of_replicas[replica] += counts["requests"]
        return [mine[number] for number in range(len(requests))]

    @expect_pace(Pace.own)
    def _complete(self, requests: Sequence[Request]) -> tuple[dict[int, Completion], Counter[str]]:
        """What this replica draws from the queue, by the requests' numbers, and figures of it."""
        from vllm.inputs.engine import tokens_input

        engine = self._llm.llm_engine
        core = engine.engine_core.engine_core
        queue = RequestQueue(len(requests), self.replicas, self.config.max_num_seqs, self._counter())
        done: dict[int, Completion] = {}
        figures = Counter(requests=0, tokens=0, preemptions=0)
        tracked: dict[int, Any] = {}
        share = -(-len(requests) // self.replicas)
        bar = tqdm(total=share, desc="responses", disable=self.rank != 0 or not sys.stderr.isatty(), leave=False)
        question = self.should_stop and StopRequested(self.should_stop, self._of_first_tensor_rank)
        while True:
            tick()
            if question and question.answer():
                engine.abort_request([str(number) for number in tracked])
                figures["stopped"] = 1
                break
            for number in queue.claim(*core.scheduler.get_request_counts()):
                request = requests[number]
                name = engine.add_request(
                    str(number), tokens_input(list(request.prompt_ids)), self._sampling_params(request)
                )
                tracked[number] = core.scheduler.requests[name]
            if not engine.has_unfinished_requests():
                break
            for output in engine.step():
                number, (sampled,) = int(output.request_id), output.outputs
                done[number] = Completion(
                    tuple(sampled.token_ids), tuple(sampled.logprobs.logprobs), sampled.finish_reason
                )
                figures["requests"] += 1
                figures["tokens"] += len(sampled.token_ids)
                figures["preemptions"] += tracked.pop(number).num_preemptions
                bar.update()
        # Asynchronous scheduling is a step ahead of the last token: blocks that it holds would survive a cache reset.
        while core.scheduler.has_requests() or core.batch_queue:
            engine.step()
        bar.close()
        return done, figures

    def _of_first_tensor_rank(self, numbers: list[int]) -> list[int]:
        """The first tensor rank's numbers, on all of a replica's."""
        if self.tensor_size == 1:
            return numbers
        from vllm.distributed import get_tp_group

        group = get_tp_group().cpu_group
        told = torch.tensor(numbers)
        dist.broadcast(told, dist.get_global_rank(group, 0), group=group)
        return list(map(int, told))

    def _counter(self) -> Callable[[int], int]:
        if self.replicas == 1:
            return local_counter()
        from vllm.distributed import get_tp_group

        return shared_counter(get_tp_group().cpu_group)

    def _sampling_params(self, request: Request) -> Any:
        """Flat log-probs are lists of numbers; vLLM's default makes two objects a token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=1,
            seed=request.seed,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop_token_ids=self.eos_token_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def take_figures(self) -> dict[str, float]:
        """Figures of the calls of `generate` since this was last asked, summed over replicas; {} without a call.

        `requests`, `tokens` generated, `preemptions` (sequences that vLLM put back for want of KV cache, their tokens
        to be computed again), and the requests of the replicas that drew least and most.
        """
        figures: dict[str, float] = dict(self._figures)
        if figures:
            drawn = self._requests_of_replicas
            figures |= {"replica_requests_least": min(drawn), "replica_requests_most": max(drawn)}
        self._figures.clear()
        self._requests_of_replicas = [0] * self.replicas
        return figures

    def load_weights(self) -> None:
        """Pull every weight from `weights`, cast to the generator's dtype; the KV cache stays asleep if it is.

        As `check_weights` says, a tensor that the engine then holds differently is a RuntimeError naming it.
        """
        if self.weights is None:
            raise RuntimeError("this generator was made without a source of weights; it has those of its directory")
        self._wake("weights")
        expected: dict[str, Tensor] = {}
        live = self._on_gpu and self.config.precision is RolloutPrecision.same
        tensors = self._cast(self.weights(), expected if self._checks else None, copy=not live)
        if live:
            self._llm.apply_model(lambda model: _load(model, tensors))
        else:  # what vLLM packs or quantizes after loading has to go through its reload, layer by layer
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": assemble_tensors(tensors)})
            self._llm.apply_model(_pack_output_layer_again)
        if self._on_gpu:
            torch.cuda.synchronize()  # the trainer may move its weights away now
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of an earlier call still hold blocks")
        self._loaded = True
        if self._checks:
            self.check(expected)
            self._checks = self.config.check_weights is CheckWeights.always

    def _cast(
        self, tensors: Iterable[tuple[str, Tensor | TensorRows]], expected: dict[str, Tensor] | None, copy: bool
    ) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """The same tensors in the generator's dtype; what they should become goes into `expected`.

        `copy`: vLLM's reload keeps some until all have come, when the trainer's may have gone to rest.
        """
        for name, sent in tensors:
            if isinstance(sent, TensorRows):
                cast: Tensor | TensorRows = replace(
                    sent, rows=sent.rows.to(self.dtype)
                )  # put together, they are copied
            else:
                cast = sent.to(self.dtype, copy=copy)
            if expected is not None:
                digest = expected_checksums(name, cast, self.tensor_rank, self.tensor_size)
                expected[name] = expected[name] + digest if name in expected else digest
            yield name, cast

    def check(self, expected: dict[str, Tensor]) -> None:
        """Raise RuntimeError naming each tensor whose checksum is not `expected`'s, by Hugging Face name."""
        self._llm.apply_model(lambda model: compare(model, expected, self.tensor_size))

    def sleep(self) -> None:
        """Give GPU memory to the trainer until it is next used, weights and KV cache thrown away; nothing on CPUs,
        where vLLM has no sleep mode, and nothing between `load_weights` and the next `generate`."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}
            self._loaded = False

    def _wake(self, part: str) -> None:
        """Bring back memory that sleeps: `weights` (empty) or `kv_cache`."""
        if part in self._asleep:
            torch.cuda.empty_cache()  # vLLM maps memory beside torch's allocator, which keeps what it has
            self._llm.wake_up(tags=[part])
            self._asleep.remove(part)


def _load(model: Any, tensors: Iterable[tuple[str, Tensor | TensorRows]]) -> None:
    """Into the live parameters, where CUDA graphs read them.

    vLLM's `reload_weights` would first put the layers on the meta device, run every loader twice, make each layer anew
    and copy it over the old one.
    """
    in_rows = set()

    def whole_ones() -> Iterator[tuple[str, Tensor]]:
        for name, sent in tensors:
            if isinstance(sent, Tensor):
                yield name, sent
            else:
                _load_rows(model.get_submodule(name.rpartition(".")[0]), sent)
                in_rows.add(name)

    loaded = model.load_weights(whole_ones()) | in_rows
    missing = {name for name, _ in model.named_parameters()} - loaded
    if missing:
        raise RuntimeError(f"the trainer sent nothing for the generator's {', '.join(sorted(missing))}")


def _load_rows(vocabulary: Any, sent: TensorRows) -> None:
    """Those of the rows that this rank has, into vLLM's embedding or output layer: its own loader wants all rows."""
    mine = vocabulary.shard_indices
    weight = vocabulary.weight.detach()
    weight[mine.num_org_elements :] = 0
    begin = max(sent.first, mine.org_vocab_start_index)
    end = min(sent.first + len(sent.rows), mine.org_vocab_end_index)
    if begin < end:
        here, there = mine.org_vocab_start_index, sent.first
        weight[begin - here : end - here] = sent.rows[begin - there : end - there]


def _pack_output_layer_again(model: Any) -> None:
    """On CPUs vLLM multiplies by a packed copy of the output layer, which a reload leaves as it was where the layer is
    the embedding too: only the embedding is reloaded."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def _reset_attention_scales(model: Any) -> None:
    """Scales of an FP8 KV cache, which a start from random numbers leaves random, back to 1."""
    from vllm.model_executor.layers.attention.attention import set_default_quant_scales

    for module in model.modules():
        if hasattr(module, "_k_scale"):
            set_default_quant_scales(module)
