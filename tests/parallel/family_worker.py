"""A rank of the tests of families' gradients: losses and gradients of policy and critic for each case.

The sequences have very different lengths. With replay of the generator's routes they have random ones. With
replay of those of the old log-probs the routers are negated after they have chosen.

usage: family_worker.py MODELS OUT CASES; MODELS is a directory of model directories, CASES is JSON:
{case: [model, [setting, ...]]}
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import Config, OptimizerConfig, ReplayedRoutes, load_config
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.conversion.rows import assemble_tensors
from tempo_megatron.megatron import model, topology, weights
from tempo_megatron.megatron.batch import Batch, from_sequences
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import NamedTensors, Trainer
from tempo_megatron.training.phases.scoring import VALUES, policy_scores

LENGTHS = (700, 33, 350, 5, 219)


def rollouts(vocab_size: int) -> Batch:
    """Returns prompts of a few tokens with responses of `LENGTHS`, and an advantage per token."""
    generator = random.Random(0)
    prompts = [[generator.randrange(vocab_size) for _ in range(3 + row)] for row in range(len(LENGTHS))]
    responses = [[generator.randrange(vocab_size) for _ in range(length)] for length in LENGTHS]
    batch = from_sequences(prompts, responses)
    return batch.with_columns(advantages=torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(0)))


def random_routes(settings: BackboneSettings, batch: Batch) -> tuple[Tensor, ...]:
    """Returns experts for each token but the last of each row, of layers without experts too: [length - 1, layers,
    experts per token] uint8."""
    experts = settings.experts
    assert experts
    generator = torch.Generator().manual_seed(1)
    shapes = [(length - 1, settings.num_layers, experts.num_experts) for length in batch.lengths.tolist()]
    scores = [torch.rand(shape, generator=generator) for shape in shapes]
    return tuple(each.topk(experts.experts_per_token).indices.to(torch.uint8) for each in scores)


def gradients(trainer: Trainer, entries: list) -> dict[str, Tensor]:
    """Returns the full gradient of the last step by Hugging Face name, from the shards of the optimizer."""
    for chunk in trainer.wrapped_chunks:
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                shard = bucket.grad_data.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()
                dist.all_gather_into_tensor(bucket.grad_data, shard, group=group)
        for parameter in chunk.parameters():
            parameter.data = parameter.main_grad.float()
    exported = assemble_tensors(weights.export_hf_weights(trainer.chunks, entries, trainer.topology))
    return {name: tensor.cpu().clone() for name, tensor in exported}


def measured(role: Role, hf_path: Path, config: Config, place: Topology) -> dict[str, Tensor]:
    """Returns the loss, the gradient norm, a load-balancing loss, and every gradient of a step that changes nothing."""
    described = hf_files.read_config(hf_path)
    settings = hf_config.backbone_settings(described)
    chunks = model.build_model(role, settings, config, place)
    assert len(chunks) == config.parallel.virtual_pipeline_model_parallel_size
    weights.load_hf_weights(
        chunks, decoder.policy_mappings(settings), hf_files.HfReader(hf_path), place, critic=role == "critic"
    )
    budget = config.policy.micro_batch_tokens
    trainer = Trainer(chunks, OptimizerConfig(), config, place, budget)
    batch = rollouts(settings.vocab_size)
    if config.policy.router_replay is ReplayedRoutes.generator:
        batch = replace(batch, routes=random_routes(settings, batch))
    count = int(batch.response_mask.sum())
    score = VALUES if role == "critic" else policy_scores(settings.vocab_size, 1.0, place, config.numerics)("entropy")

    if role == "policy" and config.policy.router_replay is ReplayedRoutes.old_log_probs:
        batch = replace(batch, routes=trainer.score_with_routes(batch, score)[1])
        for name, parameter in (named for chunk in chunks for named in chunk.named_parameters()):
            if name.endswith("mlp.router.weight"):
                parameter.data.neg_()

    def loss(scores: NamedTensors, rows: Batch) -> tuple[Tensor, NamedTensors]:
        if role == "critic":
            each = (scores["values"] - rows.columns["advantages"]).square()
        else:
            each = -scores["log_probs"] * rows.columns["advantages"] - 0.01 * scores["entropy"]
        total = (each * rows.response_mask).sum(1)
        return total.sum() / count, {"total": total.detach()}

    trainer._apply_gradients = lambda norm: None
    reported, norm = trainer.step(batch, score, loss)
    entries = (
        decoder.policy_mappings(settings)
        if role == "policy"
        else decoder.critic_mappings(settings, "score", bias=False)
    )
    balance = {name: torch.tensor(loss) for name, loss in trainer.expert_load.take_metrics().items() if "loss" in name}
    return {"loss": reported["total"] / count, "norm": torch.tensor(norm), **balance, **gradients(trainer, entries)}


def main(models: str, out: str, cases: str) -> None:
    torch.set_num_threads(1)
    roles: tuple[Role, ...] = ("policy", "critic")
    results: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, (family_name, overrides) in json.loads(cases).items():
        config = load_config(None, overrides)
        place = topology.initialize(config.parallel, seed=0)
        results[name] = {role: measured(role, Path(models) / family_name, config, place) for role in roles}
        leave_groups()
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.barrier()


def leave_groups() -> None:
    """Prepares for the next layout in the same process group. Resets the histories of delayed scaling."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if torch.cuda.is_available():
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reset()


if __name__ == "__main__":
    main(*sys.argv[1:])
