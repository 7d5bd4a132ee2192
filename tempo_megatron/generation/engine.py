"""A vLLM engine in the trainer's processes, which on GPUs shares the device memory with the trainer."""

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
from tempo_megatron.generation.loading import load_live_weights, pack_output_layer, reset_attention_scales
from tempo_megatron.generation.queue import RequestQueue, local_counter, shared_counter
from tempo_megatron.generation.requests import Completion, Request, gather_completions
from tempo_megatron.generation.stopping import StopPoll
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

__all__ = ["Completion", "GenerationStopped", "Generator", "Request"]

WeightSource = Callable[[], Iterable[tuple[str, Tensor | TensorRows]]]
"""Returns pairs of a Hugging Face name and its whole tensor, or rows of a vocabulary, layer by layer."""


class GenerationStopped(Exception):
    """`should_stop` returned true. The completions of the call are lost."""


class Generator:
    """vLLM replicas over the trainer's ranks: replica r has the ranks r T to r T + T - 1, with tensor parallel size T.

    The engine uses Megatron's process group (`external_launcher`) and starts no process. Every rank makes every call
    with the same arguments.

    With `weights` the engine starts from random weights, and `load_weights` copies the source's weights into it. It
    then holds no device memory while it sleeps (vLLM's level 2). Without `weights` it generates with the weights of
    `hf_path` and does not sleep.
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
        weights: WeightSource | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.eos_token_ids = list(eos_token_ids)
        self.weights = weights
        self.should_stop: Callable[[], bool] | None = None
        """Polled during generation. Set it on every rank or on none."""
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
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # Its warnings concern choices that this file makes.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # A run reports no usage unless its user asks for it.
        if not self._on_gpu:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # It would override generation.kv_cache_gib.
            # vLLM compiles one small function there. Each process would first try compilers, for about 10 s.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            row_invariance.install()
        with random_state.preserved():
            self._llm = self._start(hf_path, max_model_len, seed + self.replica)
        self.sleep()

    def _start(self, hf_path: Path, max_model_len: int, seed: int) -> Any:
        """Starts the engine and returns it.

        vLLM 0.26's defaults suit rollouts in all other settings: chunked prefill of 16,384 tokens per step and
        asynchronous scheduling on GPUs, CUDA graphs up to 512 sequences, no statistics.
        """
        from vllm import LLM

        token = None if self._on_gpu else shared_memory.use_unique_names()
        llm = LLM(
            model=str(hf_path),
            load_format="auto" if self.weights is None else "dummy",
            skip_tokenizer_init=True,
            dtype=str(self.dtype).removeprefix("torch."),
            # A bf16 logit of 20 is off by up to 0.06. The trainer's are in fp32 too (`log_probs.token_scores`).
            hf_overrides={"head_dtype": "float32"} if self._on_gpu else None,
            quantization="fp8" if self.config.precision is RolloutPrecision.fp8 else None,
            max_model_len=max_model_len,
            max_num_seqs=self.config.max_num_seqs,
            tensor_parallel_size=self.tensor_size,
            distributed_executor_backend="external_launcher",
            gpu_memory_utilization=self.config.gpu_memory_utilization if self._on_gpu else 0.1,
            kv_cache_memory_bytes=None if self._on_gpu else round(self.config.kv_cache_gib * 2**30),
            enforce_eager=self.config.enforce_eager or not self._on_gpu,
            enable_prefix_caching=self._on_gpu,  # The samples of a prompt share its prefill.
            enable_sleep_mode=self._sleeps,
            logprobs_mode="processed_logprobs",
            use_tqdm_on_load=False,
            seed=seed,
        )
        if token:
            shared_memory.unlink(token)
            shared_memory.drop_queue()
        if self.weights is not None:
            llm.apply_model(reset_attention_scales)
        return llm

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Returns a completion for each request, in order, on every rank. Replicas share one queue of requests.

        If `sleep` discarded the weights, they are loaded again first. Raises GenerationStopped on every rank if
        `should_stop` returned true in any replica.
        """
        if not self._loaded:
            self.load_weights()
        self._wake("kv_cache")
        with random_state.preserved():
            completions, figures = self._complete(requests)
        replica_figures: list[Mapping[str, int]] = [figures]
        if self.replicas > 1:
            completions, replica_figures = gather_completions(completions, figures, self.tensor_size)
        if any("stopped" in counts for counts in replica_figures):
            raise GenerationStopped
        for replica, counts in enumerate(replica_figures):
            self._figures.update(counts)
            self._requests_of_replicas[replica] += counts["requests"]
        return [completions[number] for number in range(len(requests))]

    @expect_pace(Pace.independent)
    def _complete(self, requests: Sequence[Request]) -> tuple[dict[int, Completion], Counter[str]]:
        """Generates the requests that this replica claims; returns completions by request number, and figures."""
        from vllm.inputs.engine import tokens_input

        engine = self._llm.llm_engine
        core = engine.engine_core.engine_core
        queue = RequestQueue(len(requests), self.replicas, self.config.max_num_seqs, self._counter())
        completions: dict[int, Completion] = {}
        figures = Counter(requests=0, tokens=0, preemptions=0)
        tracked: dict[int, Any] = {}
        replica_share = -(-len(requests) // self.replicas)
        bar = tqdm(
            total=replica_share, desc="responses", disable=self.rank != 0 or not sys.stderr.isatty(), leave=False
        )
        poll = self.should_stop and StopPoll(self.should_stop, self._of_first_tensor_rank)
        while True:
            tick()
            if poll and poll.must_stop():
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
                completions[number] = Completion(
                    tuple(sampled.token_ids), tuple(sampled.logprobs.logprobs), sampled.finish_reason
                )
                figures["requests"] += 1
                figures["tokens"] += len(sampled.token_ids)
                figures["preemptions"] += tracked.pop(number).num_preemptions
                bar.update()
        # Asynchronous scheduling runs one step past the last token. Blocks that it holds would survive a cache reset.
        while core.scheduler.has_requests() or core.batch_queue:
            engine.step()
        bar.close()
        return completions, figures

    def _of_first_tensor_rank(self, numbers: list[int]) -> list[int]:
        """Returns the numbers of the first tensor-parallel rank on all ranks of its replica."""
        if self.tensor_size == 1:
            return numbers
        from vllm.distributed import get_tp_group

        group = get_tp_group().cpu_group
        shared = torch.tensor(numbers)
        dist.broadcast(shared, dist.get_global_rank(group, 0), group=group)
        return list(map(int, shared))

    def _counter(self) -> Callable[[int], int]:
        """Returns the counter from which replicas claim requests; replicas share one."""
        if self.replicas == 1:
            return local_counter()
        from vllm.distributed import get_tp_group

        return shared_counter(get_tp_group().cpu_group)

    def _sampling_params(self, request: Request) -> Any:
        """Returns vLLM's parameters of a request.

        Flat log-probs are lists of numbers, where vLLM's default creates two objects per token.
        """
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
        """Returns figures of the `generate` calls since the last call, summed over replicas; {} without a `generate`.

        They are `requests`, generated `tokens`, `preemptions` (sequences that vLLM evicted for lack of KV cache and
        computed again), and the least and the most requests of a replica.
        """
        figures: dict[str, float] = dict(self._figures)
        if figures:
            requests = self._requests_of_replicas
            figures |= {"replica_requests_least": min(requests), "replica_requests_most": max(requests)}
        self._figures.clear()
        self._requests_of_replicas = [0] * self.replicas
        return figures

    def load_weights(self) -> None:
        """Copies every weight from `weights`, cast to the generator's dtype. A sleeping KV cache stays asleep.

        If `check_weights` asks for a check, raises RuntimeError with the names of the tensors that differ afterwards.
        """
        if self.weights is None:
            raise RuntimeError("this generator has no source of weights; it uses those of its directory")
        self._wake("weights")
        expected: dict[str, Tensor] = {}
        live = self._on_gpu and self.config.precision is RolloutPrecision.same
        tensors = self._cast(self.weights(), expected if self._checks else None, copy=not live)
        if live:
            self._llm.apply_model(lambda model: load_live_weights(model, tensors))
        else:  # Weights that vLLM packs or quantizes after loading must pass through its reload, layer by layer.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": assemble_tensors(tensors)})
            self._llm.apply_model(pack_output_layer)
        if self._on_gpu:
            torch.cuda.synchronize()  # After this the trainer may offload its weights.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of an earlier call still hold blocks")
        self._loaded = True
        if self._checks:
            self.check(expected)
            self._checks = self.config.check_weights is CheckWeights.always

    def _cast(
        self, tensors: Iterable[tuple[str, Tensor | TensorRows]], expected: dict[str, Tensor] | None, copy: bool
    ) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Yields the same tensors in the generator's dtype, and stores their expected checksums in `expected`.

        Set `copy` for vLLM's reload. The reload keeps some tensors until all have arrived, and by then the trainer may
        have offloaded its own.
        """
        for name, sent in tensors:
            if isinstance(sent, TensorRows):
                # Rows need no copy of their own, since joining them copies them.
                cast: Tensor | TensorRows = replace(sent, rows=sent.rows.to(self.dtype))
            else:
                cast = sent.to(self.dtype, copy=copy)
            if expected is not None:
                digest = expected_checksums(name, cast, self.tensor_rank, self.tensor_size)
                expected[name] = expected[name] + digest if name in expected else digest
            yield name, cast

    def check(self, expected: dict[str, Tensor]) -> None:
        """Raises RuntimeError with the Hugging Face names of the tensors whose checksums differ from `expected`."""
        self._llm.apply_model(lambda model: compare(model, expected, self.tensor_size))

    def sleep(self) -> None:
        """Frees the GPU memory of weights and KV cache for the trainer, until the next use.

        Does nothing on CPUs, where vLLM has no sleep mode, nor between `load_weights` and the next `generate`.
        """
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}
            self._loaded = False

    def _wake(self, part: str) -> None:
        """Allocates the memory of a sleeping part again, uninitialized: `weights` or `kv_cache`."""
        if part in self._asleep:
            torch.cuda.empty_cache()  # vLLM allocates outside torch's allocator, which would keep its cached memory.
            self._llm.wake_up(tags=[part])
            self._asleep.remove(part)
