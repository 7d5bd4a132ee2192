"""One Megatron model: forward passes that score a batch, and optimizer steps."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import Config, OptimizerConfig
from tempo_megatron.megatron import cpu, offload
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.expert_load import ExpertLoad
from tempo_megatron.megatron.gathering import gather_over_context, gather_rows
from tempo_megatron.megatron.learning_rate import learning_rate
from tempo_megatron.megatron.non_finite import NonFiniteGuard
from tempo_megatron.megatron.offload import Offloader, StateKind
from tempo_megatron.megatron.packing import DealtRows, MicroBatch, pack, packed_sequences, packing_rule, pad_columns
from tempo_megatron.megatron.router_replay import ReplayedRouters
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.utils.heartbeat import tick

NamedTensors = dict[str, Tensor]
LossFunction = Callable[[NamedTensors, Batch], tuple[Tensor, NamedTensors]]
"""(scores of a micro-batch, its rows) -> (its share of the global loss [], tensors [rows, ...] to report)

Micro-batches differ in width, so a tensor to report has no axis of tokens.
"""


@dataclass(frozen=True)
class Score:
    """How to read scores from a model's output.

    `read(output [tokens, ...], next_tokens [tokens], weight)` returns named columns [tokens, ...]. `weight` is the
    weight of the output layer: the policy leaves the product with it to `read` (`model.policy_head`). With `about_next`
    the entry of a token describes the token that follows it.
    """

    read: Callable[[Tensor, Tensor, Tensor], NamedTensors]
    about_next: bool


class MegatronModel:
    """One Megatron model spread over the topology. It runs forward passes and does not learn.

    `chunks` are this rank's bare HybridModels, one for each chunk of its pipeline stage (`model.build_model`).
    `wrapped_chunks` are what forward passes call: `chunks`, or DistributedDataParallel around each. `offload` moves the
    model's state to host memory while other models use the device. `score` and `step` onload the state that they need.
    All other code touches `chunks` or `optimizer` inside `onloaded`. `micro_batch_tokens` is the token budget of one
    forward pass (`PolicyConfig.micro_batch_tokens`).
    """

    optimizer: Any = None
    name = "model"
    """The name of the model in the run, for messages and files."""
    is_saved_elsewhere = False
    """Whether the weights have a directory of their own. Checkpoints then hold the extra states alone: FP8 scales."""

    def __init__(self, chunks: list[Any], config: Config, topology: Topology, micro_batch_tokens: int) -> None:
        self.chunks = chunks
        self.wrapped_chunks = chunks
        self.topology = topology
        self.rule = packing_rule(chunks[0].config, config, topology, micro_batch_tokens)
        self._routers = ReplayedRouters(chunks, topology)
        self.offloader = Offloader(
            lambda kind: offload.state_tensors(kind, self.wrapped_chunks, self.optimizer),
            offload.offloaded_kinds(config.memory, topology.device),
            topology.device,
        )

    def offload(self, *, keep: Collection[StateKind] = ()) -> bool:
        """Frees the device memory of all kinds of state except those in `keep`; returns whether it freed any."""
        self._gather_weights()
        if StateKind.weights not in keep:
            offload.drop_quantized_copies(self.chunks)
        if StateKind.gradients not in keep and self.optimizer is not None:
            self.optimizer.zero_grad()  # The optimizer may have fp32 gradients of its own, outside DDP's buffers.
        return self.offloader.offload(*(kind for kind in StateKind if kind not in keep))

    @contextlib.contextmanager
    def onloaded(self, *kinds: StateKind, changes: bool = False) -> Iterator[None]:
        """Holds these kinds of state on the device, or all kinds where none is named.

        Kinds that were offloaded before the block are offloaded again after it. With `changes` the block writes to the
        state.
        """
        needed = kinds or tuple(StateKind)
        previously_offloaded = self.offloader.offloaded.intersection(needed)
        self.offloader.onload(*needed)
        self._gather_weights()
        try:
            yield
        finally:
            if changes:
                self.offloader.invalidate_host_copies()
            self.offloader.offload(*previously_offloaded)

    def _gather_weights(self) -> None:
        """Does nothing here. A trainer gathers its updated weights, for readers other than a forward pass."""

    def score(self, batch: Batch, score: Score) -> NamedTensors:
        """Returns named columns [rows, sequence, ...] fp32 in host memory, the same on every rank.

        An entry is 0 where a row has no token. No gradient is computed.
        """
        self.offloader.onload(StateKind.weights)

        def report_scores(scores: NamedTensors, rows: Batch) -> tuple[Tensor, NamedTensors]:
            padded = {name: pad_columns(column, batch.width) for name, column in scores.items()}
            return torch.zeros((), device=self.topology.device), padded

        with torch.no_grad():
            return self._run(batch, self._deal(batch), score, report_scores, forward_only=True)

    def score_with_routes(self, batch: Batch, score: Score) -> tuple[NamedTensors, tuple[Tensor, ...]]:
        """Returns what `score` returns, and the experts that the routers themselves chose, as `Batch.routes` has them.

        The model was built to replay routes.
        """
        with self._routers.recording() as recorder:
            return self.score(replace(batch, routes=None), score), recorder.routes(batch.rows)

    def _deal(self, batch: Batch) -> DealtRows:
        return self.rule.deal(batch.lengths.tolist(), self.topology.data_size)

    def _run(
        self, batch: Batch, dealt_rows: DealtRows, score: Score, loss: LossFunction, forward_only: bool
    ) -> NamedTensors:
        """Runs forward passes over the batch in its micro-batches, and backward passes unless `forward_only`.

        Returns the tensors that `loss` reports, of all rows in the order of the batch, fp32 in host memory, on every
        rank.
        """
        topology = self.topology
        if not self._routers.is_active:
            batch = replace(batch, routes=None)
        row_groups = dealt_rows[topology.data_rank]
        micro_batches = (
            pack(batch, rows, self.rule, topology.context_rank, topology.context_size).to(topology.device)
            for rows in row_groups
        )
        # Megatron divides a loss by the number of micro-batches and averages gradients over data-parallel ranks.
        unaveraged = len(row_groups) * topology.data_size

        def forward_step(remaining: Iterator[MicroBatch], chunk: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            tick()
            micro = next(remaining)

            def scaled(output: Tensor) -> tuple[Tensor, tuple[Tensor, NamedTensors]]:
                columns = score.read(output.squeeze(0), micro.next_tokens, self._output_weight())
                columns = dict(sorted(columns.items()))  # Ranks exchange column by column and need the same order.
                gathered = {name: gather_over_context(column, topology) for name, column in columns.items()}
                scores = {name: micro.to_rows(column, score.about_next) for name, column in gathered.items()}
                share, reported = loss(scores, micro.rows)
                return share * unaveraged, (micro.indices, reported)

            positions = torch.zeros_like(micro.tokens)  # RoPE reads the boundaries instead.
            with self._routers.replaying(self.wrapped_chunks.index(chunk), micro.routes):
                output = chunk(
                    micro.tokens[None],
                    positions[None],
                    None,
                    packed_seq_params=packed_sequences(micro),
                    padding_mask=self._routers.padding_mask(micro.padding),
                )
            self._routers.record(micro)
            return output, scaled

        with cpu.accelerator_names(), self._routers.cleared_after():
            from megatron.core.pipeline_parallel import get_forward_backward_func

            reports = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=list(itertools.tee(micro_batches, len(self.chunks))),
                model=self.wrapped_chunks,
                num_microbatches=len(row_groups),
                seq_length=self.rule.budget,  # Unused: pipeline stages send each other the shapes.
                micro_batch_size=1,
                forward_only=forward_only,
            )
        columns = gather_rows(reports, batch.rows, topology)
        tick()
        return columns

    def _output_weight(self) -> Tensor:
        """Returns the weight [vocabulary / TP, hidden], or the critic's [1, hidden]. Exists on the last stage alone."""
        untied: Tensor | None = self.chunks[-1].output_layer.weight
        return self.chunks[-1].shared_embedding_or_output_weight() if untied is None else untied


class Trainer(MegatronModel):
    """A model that learns, its chunks inside DistributedDataParallel, with one DistributedOptimizer.

    `steps` counts the optimizer steps, which the learning rate depends on. After `freeze` the model only scores.
    """

    def __init__(
        self, chunks: list[Any], optimizer: OptimizerConfig, config: Config, topology: Topology, micro_batch_tokens: int
    ) -> None:
        super().__init__(chunks, config, topology, micro_batch_tokens)
        with cpu.accelerator_names():
            from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

            # Gradients are reduced during the backward pass, updated weights gathered during the next forward pass.
            overlap = topology.data_size * topology.context_size > 1
            data_parallel = DistributedDataParallelConfig(
                use_distributed_optimizer=True,
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=overlap,
                overlap_param_gather=overlap,
            )
            transformer = chunks[0].config
            self.wrapped_chunks = [
                # A stage's first chunk has the last backward pass. The others have time to reduce all at once.
                DistributedDataParallel(transformer, data_parallel, chunk, disable_bucketing=number > 0)
                for number, chunk in enumerate(chunks)
            ]
            if overlap:
                transformer.no_sync_func = self._no_sync
        self._overlaps = overlap
        self.expert_load = ExpertLoad(chunks, topology.device)
        self._weights_are_sharded = False
        self._guard = NonFiniteGuard(config.faults.non_finite_updates, Path(config.run_dir) / "non_finite")
        self.reset_optimizer(optimizer)

    def reset_optimizer(self, settings: OptimizerConfig) -> None:
        """Creates a new Adam optimizer for the present weights."""
        self.settings = settings
        self.steps = 0
        self.expert_load.reset()
        self.offloader.onload(StateKind.weights)
        self.offloader.forget(StateKind.optimizer)
        self.optimizer = None  # The old optimizer is freed before the new one allocates as much memory.
        with cpu.accelerator_names():
            from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
            from megatron.core.optimizer import get_megatron_optimizer

            transformer = self.chunks[0].config
            self.optimizer = get_megatron_optimizer(
                MegatronOptimizerConfig(
                    optimizer="adam",
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    adam_beta1=settings.beta1,
                    adam_beta2=settings.beta2,
                    adam_eps=settings.epsilon,
                    clip_grad=settings.gradient_clip,
                    bf16=transformer.bf16,
                    params_dtype=transformer.params_dtype,
                    use_distributed_optimizer=True,
                    overlap_param_gather=self._overlaps,
                ),
                self.wrapped_chunks,
            )
            for part in self.optimizer.chained_optimizers:  # A checkpoint before the first step has all state then.
                if not part.is_stub_optimizer:
                    part.init_state_fn(part.optimizer, part.config)

    def freeze(self) -> None:
        """Frees gradients, optimizer and DistributedDataParallel for good. The weights stay."""
        self.offloader.onload(StateKind.weights)
        self._gather_weights()
        for kind in (StateKind.gradients, StateKind.optimizer):
            self.offloader.free(kind)
        for chunk in self.wrapped_chunks:
            if chunk.use_forward_hook:
                chunk.disable_forward_pre_hook(param_sync=False)
        self.chunks[0].config.no_sync_func = None
        self.wrapped_chunks, self.optimizer = self.chunks, None

    def step(self, batch: Batch, score: Score, loss: LossFunction) -> tuple[NamedTensors, float] | None:
        """Makes one optimizer step on the whole batch.

        Returns the tensors that the loss reports, for every row, and the gradient norm before clipping. `loss` returns
        a micro-batch's part of the batch's loss, divided by the batch's one count. The parts are summed over
        micro-batches and data-parallel ranks, whatever the layout.

        If a reported tensor or the norm is not finite, nothing is updated and the result is None. Raises
        NonFiniteUpdates after too many such steps in a row.
        """
        self.offloader.prefetch(*StateKind)
        self.offloader.onload(StateKind.weights, StateKind.gradients)
        self.offloader.invalidate_host_copies()
        with cpu.accelerator_names():
            for chunk in self.wrapped_chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        dealt_rows = self._deal(batch)
        self.expert_load.weigh_loss(dealt_rows)
        rows = self._run(batch, dealt_rows, score, loss, forward_only=False)
        with cpu.accelerator_names():
            self.optimizer.prepare_grads()
            norm = float(self.optimizer.get_grad_norm())
        if not self._guard.passes(self.name, batch, rows, norm):
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.steps)
            # wd_mult is 0 for norms and biases. megatron-core leaves this product to its own scheduler.
            group["weight_decay"] = self.settings.weight_decay * group["wd_mult"]
        self.offloader.onload(StateKind.optimizer)
        self._apply_gradients(norm)
        self._weights_are_sharded = self._overlaps
        self.steps += 1
        return rows, norm

    def _apply_gradients(self, norm: float) -> None:
        """Clips the prepared gradients, which have this global norm, and updates the weights.

        megatron-core's `step` would prepare the gradients and compute their norm a second time, one parameter after the
        other.
        """
        with cpu.accelerator_names():
            from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

            for part in self.optimizer.chained_optimizers:
                parameters = part.get_parameters()
                if parameters:
                    clip_grad_by_total_norm_fp32(parameters, self.settings.gradient_clip, norm)
            self.optimizer.step_with_ready_grads()

    def _gather_weights(self) -> None:
        if self._weights_are_sharded:
            with cpu.accelerator_names():
                for chunk in self.wrapped_chunks:
                    chunk.start_param_sync(force_sync=True)
            self._weights_are_sharded = False

    @contextlib.contextmanager
    def _no_sync(self) -> Iterator[None]:
        """Lets no chunk reduce its gradients during backward passes in the block."""
        with contextlib.ExitStack() as stack:
            for chunk in self.wrapped_chunks:
                stack.enter_context(chunk.no_sync())
            yield
