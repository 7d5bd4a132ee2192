"""The models of a run, the weights they start from, and the weights that pass between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import Config, CriticTraining, Fp8, Numerics, TargetRange
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, Role
from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.megatron import model, weights
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing.saver import CRITIC_START, ITERATION, Position
from tempo_megatron.megatron.learning_rate import schedule_in_optimizer_steps
from tempo_megatron.megatron.offload import StateKind, check_host_memory
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import MegatronModel, Trainer
from tempo_megatron.training.phases.scoring import policy_scores
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.utils.heartbeat import Pace, expect_pace


class Models:
    """The policy, and the critic and the reference where the recipe has them. All methods are collective.

    Each model moves to host memory as soon as it is built. `checkpoint` is a checkpoint of the run, if it has one:
    models are then built without weights, because the run loads them later from that checkpoint or another.
    """

    reference: MegatronModel | None = None
    """The policy as it started. The M-step's KL term compares the policy with it."""
    critic: MegatronModel | None = None

    def __init__(
        self, config: Config, topology: Topology, residency: DeviceResidency, checkpoint: Path | None = None
    ) -> None:
        self._config, self._topology, self._residency, self._checkpoint = config, topology, residency, checkpoint
        self._hf_path = checkpoint / checkpoint_format.HUGGING_FACE if checkpoint else Path(config.model.hf_path)
        self.settings = hf_config.backbone_settings(hf_files.read_config(self._hf_path))
        self.entries = decoder.policy_mappings(self.settings)
        """The conversion map of the policy."""
        policy = self.build("policy", config.policy.checkpoint)
        schedule = schedule_in_optimizer_steps(config.policy)
        self.policy = Trainer(policy, schedule, config, topology, config.policy.micro_batch_tokens)
        self.trainers = {"policy": self.policy}
        """The models that learn, by name. A frozen critic is not among them."""
        self._register("policy", self.policy)
        if config.critic.training is not CriticTraining.none:
            self.critic = self._build_critic()
            self._register("critic", self.critic)
        if config.policy.kl_coefficient:
            reference = self.build("policy", config.policy.checkpoint)
            self.reference = MegatronModel(reference, config, topology, config.policy.micro_batch_tokens)
            self.reference.is_saved_elsewhere = True
            self._register("reference", self.reference)
        self.scores = policy_scores(self.settings.vocab_size, config.generation.temperature, topology, config.numerics)
        """Makes the functions that read log-probs and statistics from the policy's output."""
        temperature = config.evaluation.temperature or 1.0  # the generator does not scale logits for greedy responses
        numerics = config.numerics if temperature == 1 else Numerics.default
        self.evaluation_scores = policy_scores(self.settings.vocab_size, temperature, topology, numerics)
        """The same for responses of an evaluation, which has a temperature of its own."""

    def build(self, role: Role, start: str) -> list[Any]:
        """Return a model's chunks with the weights that the run starts from: checkpoint `start`, or model.hf_path.

        For a run that resumes, return them without weights. A critic that was trained toward another range of
        targets is rescaled to the run's.
        """
        source = self._checkpoint or (Path(start) if start else None)
        bias = source is not None and OUTPUT_BIAS in checkpoint_format.CheckpointReader(source, role).descriptions
        chunks = model.build_model(role, self.settings, self._config, self._topology, head_bias=bias)
        if self._checkpoint:
            with torch.no_grad():  # a parameter that the checkpoint does not fill must not look like a weight
                for parameter in itertools.chain(*(chunk.parameters() for chunk in chunks)):
                    parameter.fill_(math.nan)
            return chunks
        if start:
            dist_checkpoint.load_weights(Path(start), role, chunks)
            if role == "critic" and self._topology.is_last_stage:
                trained_range = checkpoint_format.read_target_range(Path(start))
                target_range = self._config.critic.target_range
                if trained_range != target_range:
                    chunks[-1].output_layer.rescale(*TargetRange(trained_range).to(target_range))
        else:
            reader = hf_files.HfReader(self._hf_path)
            weights.load_hf_weights(chunks, self.entries, reader, self._topology, critic=role == "critic")
        return chunks

    def _build_critic(self) -> MegatronModel:
        """Return the critic, with an optimizer if it learns in any stage of the run."""
        config, critic = self._config, self._critic_chunks()
        if not (config.critic.training.learns or config.stages.critic_start.iterations):
            return MegatronModel(critic, config, self._topology, config.critic.micro_batch_tokens)
        schedule = schedule_in_optimizer_steps(config.critic)
        trainer = Trainer(critic, schedule, config, self._topology, config.critic.micro_batch_tokens)
        self.trainers["critic"] = trainer
        return trainer

    def _critic_chunks(self) -> list[Any]:
        """Return the critic's chunks. A critic without a checkpoint starts from what the policy starts from.

        A policy of RLVR tells right from wrong steps better than model.hf_path does.
        """
        policy, critic = self._config.policy.checkpoint, self._config.critic.checkpoint
        if self._checkpoint or critic or not policy:
            return self.build("critic", critic)
        chunks = model.build_model("critic", self.settings, self._config, self._topology)
        with self.policy.onloaded(StateKind.weights):
            weights.copy_backbone(self.policy.chunks, chunks, self.entries, self._topology)
        return chunks

    def _register(self, name: str, scoring_model: MegatronModel) -> None:
        """Name a model, check host memory for it, and move it there at once so that the next model finds room."""
        scoring_model.name = name
        self._residency.models[name] = scoring_model
        asynchronous = self._config.checkpoint.asynchronous
        copies = sum(map(dist_checkpoint.host_copy_bytes, self.saved.values())) if asynchronous else 0
        offloaders = {key: registered.offloader for key, registered in self._residency.models.items()}
        check_host_memory(offloaders, copies, self._config.memory)
        scoring_model.offload()

    @property
    def saved(self) -> dict[str, MegatronModel]:
        """The models that a checkpoint holds, by name.

        The reference's weights never change. Its scales do under delayed scaling, in each training step of another
        model, because Transformer Engine updates the scales of all modules of the process together.
        """
        models = {"policy": self.policy, "critic": self.critic}
        if self._config.model.fp8 is Fp8.delayed:
            models["reference"] = self.reference
        return {name: model for name, model in models.items() if model}

    @property
    def needed_critic(self) -> Trainer:
        """The critic of a run that trains it. Raises RuntimeError where there is none."""
        if "critic" not in self.trainers:
            raise RuntimeError(f"critic.training {self._config.critic.training} has no critic that learns")
        return self.trainers["critic"]

    def freeze_at(self, position: Position) -> None:
        """Drop the optimizer of a frozen critic if its critic start is over at that position of the run."""
        start = self._config.stages.critic_start.iterations
        is_over = position.stage == ITERATION or position == Position(CRITIC_START, start)
        if is_over and not self._config.critic.training.learns and "critic" in self.trainers:
            self.trainers.pop("critic").freeze()

    def policy_tensors(self) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Yield the policy's current weights by their Hugging Face names, as the generator loads them."""
        with self.policy.onloaded(StateKind.weights):
            yield from self._policy_exporter.export()

    @cached_property
    def _policy_exporter(self) -> weights.WeightExporter:
        return weights.WeightExporter(self.policy.chunks, self.entries, self._topology)

    def begin_warm_start(self) -> None:
        """Give the policy the warm start's optimizer."""
        self.policy.reset_optimizer(self._config.stages.warm_start.optimizer)
        self.policy.offload()

    def end_warm_start(self) -> None:
        """Give policy and critic new optimizers, and copy the policy's weights to critic and reference."""
        self.policy.reset_optimizer(schedule_in_optimizer_steps(self._config.policy))
        with self._residency.phase("copy"), self.policy.onloaded(StateKind.weights):
            if self.critic:
                with self.critic.onloaded(StateKind.weights, changes=True):
                    weights.copy_backbone(self.policy.chunks, self.critic.chunks, self.entries, self._topology)
                    if "critic" in self.trainers:
                        self.trainers["critic"].reset_optimizer(schedule_in_optimizer_steps(self._config.critic))
            if self.reference:
                with self.reference.onloaded(changes=True):
                    for source, target in zip(self.policy.chunks, self.reference.chunks, strict=True):
                        dist_checkpoint.load_chunk(target, source.state_dict())

    def keep_reference(self, directory: Path) -> None:
        """Save the reference, if there is one, for later starts of the run: its source may change or disappear."""
        if self.reference:
            with self._residency.phase("save"), expect_pace(Pace.untimed), self.reference.onloaded():
                dist_checkpoint.save_weights(directory, "policy", self.reference.chunks)

    def load_reference(self, directory: Path) -> None:
        """Load the reference, if there is one, as `keep_reference` saved it."""
        if self.reference:
            with self.reference.onloaded(changes=True):
                dist_checkpoint.load_weights(directory, "policy", self.reference.chunks)
