"""One Megatron model: forward passes that score, and, with an optimizer, steps that learn."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import Config, Fp8, OptimizerConfig
from tempo_megatron.megatron import cpu, offload
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.learning_rate import learning_rate
from tempo_megatron.megatron.non_finite import NonFiniteGuard
from tempo_megatron.megatron.offload import Kind, Offloader
from tempo_megatron.megatron.packing import MicroBatch, PackingRule, pack
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.utils.heartbeat import tick

RowTensors = dict[str, Tensor]
LossFunction = Callable[[RowTensors, Batch], tuple[Tensor, RowTensors]]
"""(a micro-batch's scores, its rows) -> (its share of the global loss [], tensors [rows, ...] to report)"""

_LONGEST_STEPS = 4
"""cuDNN plans an attention for every longest sequence it is told of: they are rounded up to so many an octave"""


@dataclass(frozen=True)
class Score:
    """What is read of a model's output: `read(output [tokens, ...], next_tokens [tokens], weight)` gives named columns
    [tokens, ...]; `weight` is the output layer's, whose product the policy leaves to its reader (`model.policy_head`).
    With `about_next` a token's entry is about the token that follows it."""

    read: Callable[[Tensor, Tensor, Tensor], RowTensors]
    about_next: bool


class ScoringModel:
    """One Megatron model spread over the topology, which reads and does not learn.

    It may `rest` while others work on its device. `score` and `step` wake what they need; whoever else touches `module`
    or `optimizer` does it while `awake`. `micro_batch_tokens` is the budget of one forward pass
    (`PolicyConfig.micro_batch_tokens`).
    """

    optimizer: Any = None
    name = "model"
    """what the run calls it"""

    def __init__(self, module: Any, config: Config, topology: Topology, micro_batch_tokens: int) -> None:
        self.module = module
        self.model = module
        self.topology = topology
        self.rule = packing_rule(module.config, config, topology, micro_batch_tokens)
        self.offloader = Offloader(
            lambda kind: offload.tensors(kind, self.model, self.optimizer),
            offload.moving(config.memory, topology.device),
            topology.device,
        )

    def rest(self, *, keep: Collection[Kind] = ()) -> bool:
        """Give the device memory of all kinds of state but those in `keep` to others; returns whether any was given."""
        self._gather_weights()
        if Kind.weights not in keep:
            offload.drop_quantized_copies(self.module)
        if Kind.gradients not in keep and self.optimizer is not None:
            self.optimizer.zero_grad()  # its own fp32 gradients, where they are no views into DDP's buffers
        return self.offloader.rest(*(kind for kind in Kind if kind not in keep))

    @contextlib.contextmanager
    def awake(self, *kinds: Kind, changes: bool = False) -> Iterator[None]:
        """These kinds of state on the device, all unless some are named; what rested before rests again afterwards.

        `changes`: they are written meanwhile.
        """
        wanted = kinds or tuple(Kind)
        rested = self.offloader.resting.intersection(wanted)
        self.offloader.wake(*wanted)
        self._gather_weights()
        try:
            yield
        finally:
            if changes:
                self.offloader.changed()
            self.offloader.rest(*rested)

    def _gather_weights(self) -> None:
        """Make the weights whole for whoever reads them other than by a forward pass."""

    def score(self, batch: Batch, score: Score) -> RowTensors:
        """Columns of every row, [rows, sequence, ...] fp32 on the host, on every rank; 0 where a row has no token. No
        gradient."""
        self.offloader.wake(Kind.weights)

        def keep(scores: RowTensors, rows: Batch) -> tuple[Tensor, RowTensors]:
            wide = {name: _widened(column, batch.width) for name, column in scores.items()}
            return torch.zeros((), device=self.topology.device), wide

        with torch.no_grad():
            return self._run(batch, score, keep, forward_only=True)

    def _run(self, batch: Batch, score: Score, loss: LossFunction, forward_only: bool) -> RowTensors:
        place = self.topology
        dealt = self.rule.deal(batch.lengths.tolist(), place.data_size)[place.data_rank]
        micro_batches = (
            pack(batch, rows, self.rule, place.context_rank, place.context_size).to(place.device) for rows in dealt
        )
        # Megatron divides a loss by the number of micro-batches and averages gradients over data-parallel ranks.
        unaveraged = len(dealt) * place.data_size

        def forward_step(remaining: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            tick()
            micro = next(remaining)

            def scaled(output: Tensor) -> tuple[Tensor, tuple[Tensor, RowTensors]]:
                columns = score.read(output.squeeze(0), micro.next_tokens, self._output_weight())
                columns = dict(sorted(columns.items()))  # ranks exchange one after the other, each from its own mapping
                scores = {n: micro.to_rows(self._over_context(c), score.about_next) for n, c in columns.items()}
                share, reported = loss(scores, micro.rows)
                return share * unaveraged, (micro.indices, reported)

            positions = torch.zeros_like(micro.tokens)  # RoPE reads the boundaries instead
            output = model(micro.tokens[None], positions[None], None, packed_seq_params=_packed(micro))
            return output, scaled

        with cpu.accelerator_names():
            from megatron.core.pipeline_parallel import get_forward_backward_func

            done = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=micro_batches,
                model=[self.model],
                num_microbatches=len(dealt),
                seq_length=self.rule.budget,  # unread: stages tell each other the shapes
                micro_batch_size=1,
                forward_only=forward_only,
            )
        columns = {name: column.cpu() for name, column in self._gather(done, batch.rows).items()}
        tick()
        return columns

    def _output_weight(self) -> Tensor:
        """[vocabulary / TP, hidden], or the critic's [1, hidden]; on the last stage."""
        own: Tensor | None = self.module.output_layer.weight
        return self.module.shared_embedding_or_output_weight() if own is None else own

    def _over_context(self, column: Tensor) -> Tensor:
        """The parts of all context-parallel ranks, one after the other: [tokens / CP, ...] -> [tokens, ...]. Every rank
        goes on with the same loss, so that the gradient of a part is its own rank's alone."""
        if self.topology.context_size == 1:
            return column
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        return gather_from_sequence_parallel_region(
            column, tensor_parallel_output_grad=False, group=self.topology.context_group
        )

    def _gather(self, done: Sequence[tuple[Tensor, RowTensors]], rows: int) -> RowTensors:
        """Tensors of all rows in the batch's order, on every rank of every stage: fp32."""
        place = self.topology
        found: RowTensors = {}
        if place.is_last_stage:
            indices = torch.cat([of for of, _ in done]).to(place.device)
            for name in sorted(done[0][1]):
                mine = torch.cat([part[name] for _, part in done]).float()
                found[name] = mine.new_zeros((rows, *mine.shape[1:])).index_copy_(0, indices, mine)
                if place.data_size > 1:
                    dist.all_reduce(found[name], group=place.data_group)  # each row is one rank's, and 0 elsewhere
        if place.pipeline_size > 1:
            shapes = [{name: tuple(column.shape) for name, column in found.items()}]
            dist.broadcast_object_list(shapes, place.last_stage_rank, group=place.pipeline_group)
            for name, shape in shapes[0].items():
                column = found.get(name, torch.empty(shape, device=place.device))
                dist.broadcast(column, place.last_stage_rank, group=place.pipeline_group)
                found[name] = column
        return found


def packing_rule(made: Any, config: Config, topology: Topology, micro_batch_tokens: int) -> PackingRule:
    """How this run's sequences are packed; `made` is the model's TransformerConfig."""
    # Products in 8 bits need whole tiles of tokens on every rank.
    tile = {Fp8.none: 1, Fp8.blockwise: 128}.get(config.model.fp8, 16)
    split = topology.tensor_size if made.sequence_parallel else 1
    pieces = 2 * topology.context_size if topology.context_size > 1 else 1
    multiple = math.lcm(tile * split * topology.context_size, pieces)
    longest = config.data.max_prompt_tokens + config.generation.max_response_tokens
    queries = made.kv_channels * made.num_attention_heads
    keys = 2 * made.kv_channels * made.num_query_groups
    weights_a_layer = made.hidden_size * (2 * queries + keys + 3 * made.ffn_hidden_size)
    return PackingRule(
        budget=-(-(micro_batch_tokens or longest) // multiple) * multiple,
        sequence_multiple=pieces,
        total_multiple=multiple,
        # A token's products with the weights take 2 FLOPs a weight; with the context before it, on average 2 a query
        # channel and token of the sequence.
        attention_cost=queries / weights_a_layer,
    )


def _packed(micro: MicroBatch) -> Any:
    """megatron-core's description of the sequences in a micro-batch. Padding counts as theirs."""
    from megatron.core.packed_seq_params import PackedSeqParams

    longest = micro.longest
    if micro.tokens.is_cuda:
        step = max(64, 2 ** (longest.bit_length() - 1) // _LONGEST_STEPS)
        longest = -(-longest // step) * step
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=micro.boundaries,
        cu_seqlens_kv=micro.boundaries,
        cu_seqlens_q_padded=micro.boundaries,
        cu_seqlens_kv_padded=micro.boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        pad_between_seqs=False,
    )


def _widened(column: Tensor, width: int) -> Tensor:
    """[rows, sequence, ...] with zeros up to `width` positions."""
    wide = column.new_zeros((column.shape[0], width, *column.shape[2:]))
    wide[:, : column.shape[1]] = column
    return wide


class Trainer(ScoringModel):
    """A policy or critic that learns: DistributedDataParallel and DistributedOptimizer around it. `steps` counts its
    optimizer's steps, which the learning rate follows. Once it is frozen it only reads."""

    def __init__(
        self, module: Any, optimizer: OptimizerConfig, config: Config, topology: Topology, micro_batch_tokens: int
    ) -> None:
        super().__init__(module, config, topology, micro_batch_tokens)
        with cpu.accelerator_names():
            from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

            # Gradients are reduced during the backward pass, updated weights gathered during the next forward pass.
            overlap = topology.data_size * topology.context_size > 1
            self.model = DistributedDataParallel(
                module.config,
                DistributedDataParallelConfig(
                    use_distributed_optimizer=True,
                    grad_reduce_in_fp32=True,
                    overlap_grad_reduce=overlap,
                    overlap_param_gather=overlap,
                ),
                module,
            )
            if overlap:
                module.config.no_sync_func = self.model.no_sync
        self._weights_are_parts = False
        self._guard = NonFiniteGuard(config.faults.non_finite_updates, Path(config.run_dir) / "non_finite")
        self.reset_optimizer(optimizer)

    def reset_optimizer(self, settings: OptimizerConfig) -> None:
        """A fresh Adam over the present weights."""
        self.settings = settings
        self.steps = 0
        self.offloader.wake(Kind.weights)
        self.offloader.forget(Kind.optimizer)
        self.optimizer = None  # before another takes as much memory
        with cpu.accelerator_names():
            from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
            from megatron.core.optimizer import get_megatron_optimizer

            made = self.module.config
            self.optimizer = get_megatron_optimizer(
                MegatronOptimizerConfig(
                    optimizer="adam",
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    adam_beta1=settings.beta1,
                    adam_beta2=settings.beta2,
                    adam_eps=settings.epsilon,
                    clip_grad=settings.gradient_clip,
                    bf16=made.bf16,
                    params_dtype=made.params_dtype,
                    use_distributed_optimizer=True,
                    overlap_param_gather=self.model.ddp_config.overlap_param_gather,
                ),
                [self.model],
            )
            for part in self.optimizer.chained_optimizers:  # so that a checkpoint before the first step has all state
                part.init_state_fn(part.optimizer, part.config)

    def freeze(self) -> None:
        """Learn no more: gradients, optimizer and DistributedDataParallel are given up, the weights stay."""
        self.offloader.wake(Kind.weights)
        self._gather_weights()
        for kind in (Kind.gradients, Kind.optimizer):
            self.offloader.give_up(kind)
        if self.model.use_forward_hook:
            self.model.disable_forward_pre_hook(param_sync=False)
        self.module.config.no_sync_func = None
        self.model, self.optimizer = self.module, None

    def step(self, batch: Batch, score: Score, loss: LossFunction) -> tuple[RowTensors, float] | None:
        """One optimizer step on the whole batch; returns what the loss reports, for every row, and the gradient norm
        before clipping.

        `loss` gives a micro-batch's share of a loss already divided by its one global count: shares are added over
        micro-batches and data-parallel ranks, whatever the layout. Where what it reports or the norm is not finite,
        nothing is updated and None is returned. Raises NonFiniteUpdates after too many of those in a row.
        """
        self.offloader.fetch(*Kind)
        self.offloader.wake(Kind.weights, Kind.gradients)
        self.offloader.changed()
        with cpu.accelerator_names():
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
        rows = self._run(batch, score, loss, forward_only=False)
        with cpu.accelerator_names():
            self.optimizer.prepare_grads()
            norm = float(self.optimizer.get_grad_norm())
        if not self._guard.passes(self.name, batch, rows, norm):
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.steps)
            # 0 for norms and biases: megatron-core groups them, and leaves the product to its scheduler.
            group["weight_decay"] = self.settings.weight_decay * group["wd_mult"]
        self.offloader.wake(Kind.optimizer)
        with cpu.accelerator_names():
            self.optimizer.step()
        self._weights_are_parts = self.model.ddp_config.overlap_param_gather
        self.steps += 1
        return rows, norm

    def _gather_weights(self) -> None:
        if self._weights_are_parts:
            with cpu.accelerator_names():
                self.model.start_param_sync(force_sync=True)
            self._weights_are_parts = False
