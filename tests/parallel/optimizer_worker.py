"""A rank of test_optimizer: weight decay, a critic that freezes, and values that are not finite.

usage: optimizer_worker.py MODEL RECIPE OUT; MODEL is a directory of a model with biases
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import OptimizerConfig, load_config
from tempo_megatron.conversion import decoder, hf_files
from tempo_megatron.conversion.families import family_of
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing.saver import checkpoint_directories
from tempo_megatron.megatron.offload import StateKind
from tempo_megatron.megatron.trainer import MegatronModel, NamedTensors, Score, Trainer
from tempo_megatron.training import loop
from tempo_megatron.training.phases.scoring import VALUES
from tempo_megatron.training.run import Run
from tests.parallel.layout_worker import leave_groups
from tests.parallel.residency_worker import OFFLOADS, advance, device_bytes, started

ALONE = "parallel.tensor_model_parallel_size=1"
FROZEN = ("method=frozen_critic", "stages.warm_start.steps=0", ALONE, OFFLOADS)


def decayed(hf_path: Path) -> dict[str, tuple[int, float, float]]:
    """Of each of a critic's parameters its dimensions, and the least and largest share that a step leaves whose
    gradients are 0, at a step size of 0.1 and a weight decay of 1."""
    config = load_config(None, ["model.precision=fp32"])
    place = topology.initialize(config.parallel, seed=0)
    described = hf_files.read_config(hf_path)
    settings = family_of(described).settings(described)
    chunks = model.build_model("critic", settings, config, place, head_bias=True)
    (module,) = chunks
    weights.load_hf_weights(chunks, decoder.policy_mappings(settings), hf_files.HfReader(hf_path), place, critic=True)
    with torch.no_grad():
        module.output_layer.bias.fill_(1.0)
    trainer = Trainer(chunks, OptimizerConfig(learning_rate=0.1, weight_decay=1.0), config, place, 64)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def nothing(scores: NamedTensors, rows: Batch) -> tuple[Tensor, NamedTensors]:
        return 0 * scores["values"].sum(), {}

    assert trainer.step(from_sequences([[1, 2]] * 2, [[3, 4]] * 2), VALUES, nothing)
    with trainer.onloaded(StateKind.weights):
        shares = {name: parameter.detach() / before[name] for name, parameter in module.named_parameters()}
    leave_groups()
    nonzero = {name: share[before[name] != 0] for name, share in shares.items()}
    return {
        name: (before[name].dim(), float(share.min()), float(share.max()))
        for name, share in nonzero.items()
        if len(share)
    }


def critic_state(run: Run) -> dict[str, Any]:
    """What a run has of its critic beside weights: in `trainers`, on the device, in host memory, in its checkpoints."""
    critic: Any = run.models.critic
    saved = {path.name: path for path in checkpoint_directories(run.lifecycle.saver.directory)}
    return {
        "learns": "critic" in run.models.trainers,
        "optimizer": critic.optimizer is not None,
        "device": device_bytes(critic, StateKind.gradients, StateKind.optimizer),
        "host": critic.offloader._host[StateKind.optimizer].bytes.nbytes,
        "saved": {
            name: any(
                key.startswith("optimizer.") for key in checkpoint_format.CheckpointReader(path, "critic").descriptions
            )
            for name, path in saved.items()
        },
    }


def frozen(recipe: Path) -> dict[str, Any]:
    """A critic that learns in the critic start and is frozen then, resumed in that stage and after it; and one that
    starts from its checkpoint and never learns."""
    run, _ = started((recipe, FROZEN), "frozen")
    loop.start_critic(run)
    critics = {"frozen": critic_state(run)}
    leave_groups()

    run, _ = started((recipe, FROZEN), "frozen")
    critics["resumed in the stage"] = critic_state(run)
    loop.start_critic(run)
    run.save()
    (first,) = advance(run, 1)
    leave_groups()

    run, _ = started((recipe, FROZEN), "frozen")
    critics["resumed"] = critic_state(run)
    (resumed_metrics,) = advance(run, 1)
    critics["differ"] = {name for name in first if first[name] != resumed_metrics[name]}
    start = run.lifecycle.saver.directory / "iteration-000000"
    leave_groups()

    never = (*FROZEN, f"critic.checkpoint={start}", "stages.critic_start.iterations=0", "policy.kl_coefficient=0.1")
    run, _ = started((recipe, never), "never")
    list(advance(run, 1))
    run.save()
    critics["never"] = critic_state(run) | {"scorer": type(run.models.critic) is MegatronModel}
    leave_groups()
    return critics


def with_nan_value(recipe: Path) -> dict[str, Any]:
    """An E-step, and an M-step that whitens its advantages, each on rollouts of which the critic gave one a NaN."""
    run, _ = started((recipe, (ALONE, "policy.whiten_advantages=true")), "with-nan")
    run.state.iteration = 1
    collected = run.collector.collect(1, labeled=4, unlabeled=4)
    critic, score = run.models.needed_critic, run.models.needed_critic.score

    def one_nan(batch: Batch, read: Score) -> NamedTensors:
        rows = score(batch, read)
        rows["values"][1, int(batch.lengths[1]) - 1] = float("nan")
        return rows

    critic.score = one_nan  # type: ignore[method-assign]
    metrics = loop.run_e_step(run, collected.labeled, collected.correct, 1)
    metrics |= loop.run_m_step(run, loop.policy_rollouts(run, collected))
    kept_files = sorted(path.name for path in (run.directory / "non_finite").iterdir())
    leave_groups()
    return {"metrics": metrics, "kept": kept_files}


def main(hf_path: str, recipe: str, out: str) -> None:
    torch.set_num_threads(1)
    report = {
        "decayed": decayed(Path(hf_path)),
        "frozen": frozen(Path(recipe)),
        "with_nan_value": with_nan_value(Path(recipe)),
    }
    if torch.distributed.get_rank() == 0:
        torch.save(report, Path(out))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
