"""A rank of test_residency: a run that offloads its models between phases, and a run that keeps them on the device.

usage: residency_worker.py RECIPE OUT [key=value ...]
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import load_config
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.megatron import offload, topology
from tempo_megatron.megatron.offload import HostMemoryError, StateKind
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.training.loop import iterate, warm_start
from tempo_megatron.training.run import Run
from tests.parallel.layout_worker import leave_groups
from tests.runs import build_recorded
from tools.killing.recorded import Recorded

OFFLOADS = "memory.offload_on_cpu=true"
KEEPS = [f"memory.offload_{kind}=false" for kind in StateKind]
ITERATIONS = 2


def device_bytes(model: MegatronModel, *kinds: StateKind) -> int:
    """The bytes that storages of these kinds take on the device, counted without the offloader's own account."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for kind in kinds or tuple(StateKind)
        for tensor in offload.state_tensors(kind, model.wrapped_chunks, model.optimizer)
    }
    return sum(storages.values())


def eight_bit_bytes() -> int:
    """The bytes of the GPU that 8-bit matrices take, whoever holds them: Transformer Engine's copies of FP8 weights."""
    gc.collect()
    alive = [held for held in gc.get_objects() if isinstance(held, Tensor) and held.is_cuda and held.dim() == 2]
    storages = {held.untyped_storage()._cdata: held.nbytes for held in alive if held.dtype is torch.uint8}
    return sum(storages.values())


class Watching(Recorded):
    """A generator that notes what the models take of the device whenever vLLM would take its own memory."""

    def __init__(self) -> None:
        self.models: dict[str, MegatronModel] = {}
        self.while_generating: list[int] = []
        self.while_syncing: list[int] = []
        self.eight_bit_bytes: dict[str, list[int]] = {"generating": [], "syncing": []}

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.while_generating.append(sum(device_bytes(model) for model in self.models.values()))
        self.eight_bit_bytes["generating"].append(eight_bit_bytes())
        return super().generate(requests, enough_groups)

    def load_weights(self) -> None:
        everything = sum(device_bytes(model) for model in self.models.values())
        if self.models:
            self.while_syncing.append(everything - device_bytes(self.models["policy"], StateKind.weights))
            self.eight_bit_bytes["syncing"].append(eight_bit_bytes())
        super().load_weights()


def started(recipe: tuple[Path, Sequence[str]], name: str, *more: str) -> tuple[Run, Watching]:
    generator: Any = Watching()
    path, overrides = recipe
    config = load_config(path, [*overrides, f"run_dir={path.parent / name}", *more])
    run = build_recorded(config, generator)
    generator.models = run.residency.models
    return run, generator


def advance(run: Run, iterations: int) -> Iterator[dict[str, Any]]:
    for _ in range(iterations):
        run.state.iteration += 1
        yield iterate(run)
        run.sync()


def state(run: Run) -> dict[str, list[Tensor]]:
    """Every weight and every tensor of an optimizer that this rank holds."""
    tensors = {}
    for name, trainer in run.models.trainers.items():
        with trainer.onloaded():
            kinds = (StateKind.weights, StateKind.optimizer)
            tensors[name] = [
                tensor.detach().clone()
                for kind in kinds
                for tensor in offload.state_tensors(kind, trainer.wrapped_chunks, trainer.optimizer)
            ]
    return tensors


def same(state_a: dict[str, list[Tensor]], state_b: dict[str, list[Tensor]]) -> bool:
    """Whether two states are equal on every rank."""
    assert state_a.keys() == state_b.keys() and all(len(state_a[name]) == len(state_b[name]) > 0 for name in state_a)
    equal_here = all(torch.equal(*pair) for name in state_a for pair in zip(state_a[name], state_b[name], strict=True))
    equal_by_rank = [False] * dist.get_world_size()
    dist.all_gather_object(equal_by_rank, equal_here)
    return all(equal_by_rank)


def bytes_of_reading(policy: MegatronModel) -> tuple[int, int]:
    """The bytes that an offloaded model copies to be read once, and the size of its weights."""
    before = policy.offloader.bytes
    with policy.onloaded(StateKind.weights):
        size = device_bytes(policy, StateKind.weights)
    return policy.offloader.bytes - before, size


def main(path: str, out: str, *overrides: str) -> None:
    recipe = (Path(path), overrides)
    torch.set_num_threads(1)
    run, watched = started(recipe, "keeps", *KEEPS)
    warm_start(run)
    kept = {"metrics": list(advance(run, ITERATIONS)), "state": state(run), "bytes": watched.while_generating}
    leave_groups()

    run, watched = started(recipe, "offloads", OFFLOADS)
    warm_start(run)
    run.lifecycle.keep_reference()
    metrics = list(advance(run, ITERATIONS - 1))
    run.save()
    offloaded = {name: sorted(map(str, model.offloader.offloaded)) for name, model in run.residency.models.items()}
    read_only = bytes_of_reading(run.models.policy)
    leave_groups()

    run, again = started(recipe, "offloads", OFFLOADS)
    metrics += list(advance(run, 1))
    comparison = {
        "metrics_differ": [
            offloading for offloading, keeping in zip(metrics, kept["metrics"], strict=True) if offloading != keeping
        ],
        "same_state": same(state(run), kept["state"]),
        "kept_bytes": kept["bytes"],
        "offloaded_bytes": watched.while_generating + again.while_generating,
        "eight_bit_bytes": watched.eight_bit_bytes,
        "sync_bytes": watched.while_syncing + again.while_syncing,
        "offloaded_after_save": offloaded,
        "read_only_bytes": read_only,
    }
    leave_groups()

    try:
        started(recipe, "refused", OFFLOADS, "memory.host_gib=0.000001")
        comparison["refusal"] = ""
    except HostMemoryError as error:
        comparison["refusal"] = str(error)
    if dist.get_rank() == 0:
        torch.save(comparison, Path(out))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
