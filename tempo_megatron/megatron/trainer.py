"""One Megatron model: forward passes that score, and, with an optimizer, steps that learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import Config, OptimizerConfig
from tempo_megatron.megatron import cpu, offload
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.learning_rate import learning_rate
from tempo_megatron.megatron.offload import Kind, Offloader
from tempo_megatron.megatron.topology import Topology

Rows = dict[str, Tensor]
Score = Callable[[Tensor, Batch], Rows]
"""(model output [micro_batch, sequence, ...], micro-batch) -> named rows [micro_batch, ...]"""
Loss = Callable[[Tensor, Batch], tuple[Tensor, Rows]]
"""(model output, micro-batch) -> (this micro-batch's share of the global loss [], rows to report)"""


class NonFiniteGradient(RuntimeError):
    """The gradient norm is not finite; the optimizer has not stepped."""


class Scorer:
    """One Megatron model spread over the topology, which reads and does not learn.

    It may `rest` while others work on its device. `score` and `step` wake what they need; whoever else touches `module`
    or `optimizer` does it while `awake`.
    """

    optimizer: Any = None

    def __init__(self, module: Any, config: Config, topology: Topology, micro_batch: int) -> None:
        self.module = module
        self.model = module
        self.topology = topology
        self.micro_batch_size = micro_batch
        self.length_multiple = topology.tensor_size if config.parallel.sequence_parallel else 1
        self.offloader = Offloader(
            lambda kind: offload.tensors(kind, self.model, self.optimizer),
            offload.moving(config.memory, topology.device),
            topology.device,
        )

    def rest(self, *, keep: Collection[Kind] = ()) -> bool:
        """Give the device memory of all kinds of state but those in `keep` to others; returns whether any was given."""
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
        try:
            yield
        finally:
            if changes:
                self.offloader.changed()
            self.offloader.rest(*rested)

    def score(self, batch: Batch, score: Score) -> Rows:
        """`score` of the model's output for every row, on every rank. No gradient."""
        self.offloader.wake(Kind.weights)
        with torch.no_grad():
            return self._run(batch, lambda output, micro: (output.sum(), score(output, micro)), forward_only=True)

    def _run(self, batch: Batch, loss: Loss, forward_only: bool) -> Rows:
        place = self.topology
        dealt = batch.deal(place.data_rank, place.data_size, self.micro_batch_size).to(place.device)
        count = dealt.rows // self.micro_batch_size
        positions = torch.arange(dealt.tokens.shape[1], device=place.device).expand(self.micro_batch_size, -1)
        # Megatron divides a loss by the number of micro-batches and averages gradients over data-parallel ranks.
        unaveraged = count * place.data_size

        def forward_step(micro_batches: Iterator[Batch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            micro = next(micro_batches)

            def scaled(output: Tensor) -> tuple[Tensor, Rows]:
                share, rows = loss(output, micro)
                return share * unaveraged, rows

            return model(micro.tokens, positions, None), scaled

        with cpu.accelerator_names():
            from megatron.core.pipeline_parallel import get_forward_backward_func

            done = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=dealt.micro_batches(self.micro_batch_size),
                model=[self.model],
                num_microbatches=count,
                seq_length=dealt.tokens.shape[1],
                micro_batch_size=self.micro_batch_size,
                forward_only=forward_only,
            )
        rows = {name: torch.cat([part[name] for part in done]).float() for name in done[0]} if done else {}
        return {name: column[: batch.rows].cpu() for name, column in self._gather(rows).items()}

    def _gather(self, rows: Rows) -> Rows:
        """Rows of all data-parallel ranks in the batch's order, on every rank of every stage."""
        place = self.topology
        if place.data_size > 1 and place.is_last_stage:
            for name, column in rows.items():
                parts = [torch.empty_like(column) for _ in range(place.data_size)]
                dist.all_gather(parts, column.contiguous(), group=place.data_group)
                rows[name] = torch.stack(parts, 1).flatten(0, 1)
        if place.pipeline_size > 1:
            shapes = [{name: tuple(column.shape) for name, column in rows.items()}]
            dist.broadcast_object_list(shapes, place.last_stage_rank, group=place.pipeline_group)
            for name, shape in shapes[0].items():
                column = rows.get(name, torch.empty(shape, device=place.device)).contiguous()
                dist.broadcast(column, place.last_stage_rank, group=place.pipeline_group)
                rows[name] = column
        return rows


class Trainer(Scorer):
    """A policy or critic that learns: DistributedDataParallel and DistributedOptimizer around it. `steps` counts its
    optimizer's steps, which the learning rate follows."""

    def __init__(
        self, module: Any, optimizer: OptimizerConfig, config: Config, topology: Topology, micro_batch: int
    ) -> None:
        super().__init__(module, config, topology, micro_batch)
        with cpu.accelerator_names():
            from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

            # Without overlap_param_gather: weights that DDP has yet to gather may not rest.
            self.model = DistributedDataParallel(
                module.config,
                DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
                module,
            )
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
                ),
                [self.model],
            )
            for part in self.optimizer.chained_optimizers:  # so that a checkpoint before the first step has all state
                part.init_state_fn(part.optimizer, part.config)

    def step(self, batch: Batch, loss: Loss) -> tuple[Rows, float]:
        """One optimizer step on the whole batch; returns the loss's rows and the gradient norm before clipping.

        `loss` gives a micro-batch's share of a loss already divided by its one global count: shares are added over
        micro-batches and data-parallel ranks, whatever the layout. Raises NonFiniteGradient.
        """
        self.offloader.fetch(*Kind)
        self.offloader.wake(Kind.weights, Kind.gradients)
        self.offloader.changed()
        with cpu.accelerator_names():
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
        rows = self._run(batch, loss, forward_only=False)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.steps)
        self.offloader.wake(Kind.optimizer)
        with cpu.accelerator_names():
            stepped, norm, _ = self.optimizer.step()
        if not stepped or norm is None or not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteGradient(f"gradient norm {norm}")
        self.steps += 1
        return rows, float(norm)
