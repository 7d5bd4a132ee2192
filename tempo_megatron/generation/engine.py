"""A vLLM engine in the trainer's processes, which on GPUs shares the device memory with the trainer."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from tempo_megatron.config import CheckWeights, GenerationConfig, Numerics
from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.generation import random_state
from tempo_megatron.generation.checksums import compare
from tempo_megatron.generation.figures import FigureSums
from tempo_megatron.generation.pausing import NOT_STARTED, pause_poll, pause_requests
from tempo_megatron.generation.queue import CounterDraw, RequestQueue, local_counter, longest_first, shared_counter
from tempo_megatron.generation.requests import (
    Completion,
    Request,
    finished_completion,
    gather_completions,
    sampling_params,
)
from tempo_megatron.generation.routes import check_routes
from tempo_megatron.generation.startup import prepare_process, start_engine
from tempo_megatron.generation.stopping import StopPoll
from tempo_megatron.generation.weight_receiver import WeightReceiver
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick
from tempo_megatron.utils.logs import shows_progress

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
    `hf_path` and does not sleep. With exact `numerics` it calls the trainer's kernels (`shared_kernels`). With
    `returns_routes` requests may ask for the experts of their tokens (`routes`). Raises MissingRoutes if the engine
    does not return them.
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
        numerics: Numerics,
        weights: WeightSource | None = None,
        returns_routes: bool = False,
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
        self._figures = FigureSums(self.replicas)
        self._experts = hf_config.backbone_settings(hf_files.read_config(hf_path)).experts if returns_routes else None
        prepare_process(self._on_gpu, numerics)
        with random_state.preserved():
            self._llm = start_engine(
                hf_path,
                config,
                numerics,
                tensor_parallel_size=tensor_parallel_size,
                max_model_len=max_model_len,
                dtype=dtype,
                seed=seed + self.replica,
                random_weights=weights is not None,
                sleeps=self._sleeps,
                returns_routes=returns_routes,
                on_gpu=self._on_gpu,
            )
            if self._experts:
                check_routes(self._llm, self._experts)
        self._receiver = WeightReceiver(self._llm, config.precision, dtype, self.tensor_rank, tensor_parallel_size)
        self.sleep()

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        """Returns a completion for each request, in order, on every rank. Replicas share one queue of requests.

        Requests without an expected length come first, then those that expect the most tokens (`queue.longest_first`).
        The order changes no finished completion. With `enough_groups`, requests that have a group may come back
        `PAUSED` (`pausing.PausePoll`), and the order changes which of them do.
        If `sleep` discarded the weights, they are loaded again first. Raises GenerationStopped on every rank if
        `should_stop` returned true in any replica.
        """
        if not self._loaded:
            self.load_weights()
        self._wake("kv_cache")
        start = time.monotonic_ns()
        with random_state.preserved():
            completions, figures = self._complete(requests, enough_groups)
        figures["nanoseconds"] = time.monotonic_ns() - start
        replica_figures: list[Mapping[str, int]] = [figures]
        if self.replicas > 1:
            completions, replica_figures = gather_completions(completions, figures, self.tensor_size)
        if any("stopped" in counts for counts in replica_figures):
            raise GenerationStopped
        self._figures.add(replica_figures)
        return [completions[number] for number in range(len(requests))]

    @expect_pace(Pace.independent)
    def _complete(
        self, requests: Sequence[Request], enough_groups: int | None
    ) -> tuple[dict[int, Completion], Counter[str]]:
        """Generates the requests that this replica claims; returns completions by request number, and figures."""
        from vllm.inputs.engine import tokens_input

        engine = self._llm.llm_engine
        core = engine.engine_core.engine_core
        queue = RequestQueue(len(requests), self.replicas, self.config.max_num_seqs, _request_counter(self.replicas))
        order = longest_first([request.expected_tokens for request in requests], self.replicas, queue.first_claim)
        completions: dict[int, Completion] = {}
        figures = Counter(requests=0, tokens=0, preemptions=0)
        tracked: dict[int, Any] = {}
        bar = _progress_bar(-(-len(requests) // self.replicas), is_shown=self.rank == 0)
        poll = self.should_stop and StopPoll(self.should_stop, self._of_first_tensor_rank)
        pause = pause_poll(requests, enough_groups, self.replicas, self.tensor_rank, self._of_first_tensor_rank)
        while True:
            tick()
            if poll and poll.must_stop():
                engine.abort_request([str(number) for number in tracked])
                figures["stopped"] = 1
                break
            if pause and pause.comes_now():
                paused = {number: tracked.pop(number) for number in list(tracked) if pause.may_pause(number)}
                completions |= pause_requests(engine, paused)
                figures["requests"] += len(paused)
                figures["preemptions"] += sum(each.num_preemptions for each in paused.values())
            claimed = queue.claim(*core.scheduler.get_request_counts())
            for position in claimed:
                number = order[position]
                request = requests[number]
                if pause and pause.has_come and pause.may_pause(number):
                    completions[number] = NOT_STARTED
                    continue
                name = engine.add_request(
                    str(number), tokens_input(list(request.prompt_ids)), sampling_params(request, self.eos_token_ids)
                )
                tracked[number] = core.scheduler.requests[name]
            if not engine.has_unfinished_requests():
                if claimed:
                    continue
                break
            for output in engine.step():
                number, (sampled,) = int(output.request_id), output.outputs
                completions[number] = finished_completion(requests[number], sampled, self._experts)
                figures["requests"] += 1
                figures["preemptions"] += tracked.pop(number).num_preemptions
                if pause:
                    pause.count(number)
                bar.update()
        # Asynchronous scheduling runs one step past the last token. Blocks that it holds would survive a cache reset.
        while core.scheduler.has_requests() or core.batch_queue:
            engine.step()
        figures["tokens"] = sum(len(completion.response_ids) for completion in completions.values())
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

    def take_figures(self) -> dict[str, float]:
        """Returns figures of the `generate` calls since the last call (`FigureSums.take`); {} without a `generate`."""
        return self._figures.take()

    def load_weights(self) -> None:
        """Copies every weight from `weights`, cast to the generator's dtype. A sleeping KV cache stays asleep.

        If `check_weights` asks for a check, raises RuntimeError with the names of the tensors that differ afterwards.
        """
        if self.weights is None:
            raise RuntimeError("this generator has no source of weights; it uses those of its directory")
        self._wake("weights")
        expected = self._receiver.receive(self.weights(), with_checksums=self._checks)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of an earlier call still hold blocks")
        self._loaded = True
        if self._checks:
            self.check(expected)
            self._checks = self.config.check_weights is CheckWeights.always

    def check(self, expected: dict[str, Tensor]) -> None:
        """Raises RuntimeError with the Hugging Face names of the tensors whose checksums differ from `expected`."""
        self._llm.apply_model(lambda model: compare(model, expected, self.tensor_size))

    def apply(self, function: Callable[[Any], None]) -> None:
        """Calls a function with vLLM's model, this rank's part of it."""
        self._llm.apply_model(function)

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


def _request_counter(replicas: int) -> CounterDraw:
    """Returns the counter from which replicas claim requests; several replicas share one."""
    if replicas == 1:
        return local_counter()
    from vllm.distributed import get_tp_group

    return shared_counter(get_tp_group().cpu_group)


def _progress_bar(responses: int, *, is_shown: bool) -> Any:
    is_shown = is_shown and sys.stderr.isatty() and shows_progress()
    return tqdm(total=responses, desc="responses", disable=not is_shown, leave=False)
