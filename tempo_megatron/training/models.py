"""The models of a run, built from what it starts from, and the weights that pass between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.config import Config, CriticTraining, TargetRange
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, Role
from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.megatron import model, weights
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing.saver import CRITIC_START, ITERATION, Position
from tempo_megatron.megatron.learning_rate import by_optimizer_steps
from tempo_megatron.megatron.offload import Kind, check_host_memory
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import ScoringModel, Trainer
from tempo_megatron.training.phases.scoring import policy_scores
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.utils.heartbeat import Pace, expect_pace


class Models:
    """The policy, and critic and reference where the recipe has them; each rests until its turn. All is collective.

    `saved_in`: a checkpoint of the run, which resumes from it or another. Weights then wait for that, and nothing of
    what the run started from is read. `trainers`: those that learn, by name; a frozen critic is none of them.
    `settings` and `entries` describe the policy to converters, `scores` reads its output.
    """

    def __init__(self, config: Config, place: Topology, turns: DeviceResidency, saved_in: Path | None = None) -> None:
        self._config, self._place, self._turns, self._saved_in = config, place, turns, saved_in
        self._hf_path = saved_in / checkpoint_format.HUGGING_FACE if saved_in else Path(config.model.hf_path)
        self.settings = hf_config.backbone_settings(hf_files.read_config(self._hf_path))
        self.entries = decoder.policy_mappings(self.settings)
        policy = self.build("policy", config.policy.checkpoint)
        self.policy = Trainer(
            policy, by_optimizer_steps(config.policy), config, place, config.policy.micro_batch_tokens
        )
        self.critic: ScoringModel | None = None
        self.trainers = {"policy": self.policy}
        self._introduce("policy", self.policy)
        if config.critic.training is not CriticTraining.none:
            self.critic = self._build_critic()
            self._introduce("critic", self.critic)
        self.reference: ScoringModel | None = None
        if config.policy.kl_coefficient:
            reference = self.build("policy", config.policy.checkpoint)
            self.reference = ScoringModel(reference, config, place, config.policy.micro_batch_tokens)
            self._introduce("reference", self.reference)
        self.scores = policy_scores(self.settings.vocab_size, config.generation.temperature, place)

    def build(self, role: Role, start: str) -> Any:
        """A model with the weights that the run starts from: those of a checkpoint, or of model.hf_path. Of a run that
        resumes, a model of the same form whose weights are still to be loaded.

        The values of a critic that was trained toward another range of targets are rescaled to the run's.
        """
        form = self._saved_in or (Path(start) if start else None)
        bias = form is not None and OUTPUT_BIAS in checkpoint_format.CheckpointReader(form, role).descriptions
        module = model.build(role, self.settings, self._config, self._place, head_bias=bias)
        if self._saved_in:
            with torch.no_grad():  # what a checkpoint did not fill must not pass for weights
                for parameter in module.parameters():
                    parameter.fill_(math.nan)
            return module
        if start:
            dist_checkpoint.load_weights(Path(start), role, module)
            if role == "critic" and self._place.is_last_stage:
                trained, wanted = checkpoint_format.read_target_range(Path(start)), self._config.critic.target_range
                if trained != wanted:
                    module.output_layer.rescale(*TargetRange(trained).to(wanted))
        else:
            read = hf_files.HfReader(self._hf_path)
            weights.load_weights(module, self.entries, read, self._place, critic=role == "critic")
        return module

    def _build_critic(self) -> ScoringModel:
        """The critic, with an optimizer if there is anything that it will learn."""
        config, critic = self._config, self.build("critic", self._config.critic.checkpoint)
        if not (config.critic.training.learns or config.stages.critic_start.iterations):
            return ScoringModel(critic, config, self._place, config.critic.micro_batch_tokens)
        optimizer = by_optimizer_steps(config.critic)
        trainer = Trainer(critic, optimizer, config, self._place, config.critic.micro_batch_tokens)
        self.trainers["critic"] = trainer
        return trainer

    def _introduce(self, name: str, made: ScoringModel) -> None:
        """Let a model take its turns; it rests at once, so that the next finds room."""
        made.name = name
        self._turns.models[name] = made
        asynchronous = self._config.checkpoint.asynchronous
        copies = sum(map(dist_checkpoint.copied_bytes, self.saved.values())) if asynchronous else 0
        offloaders = {name: one.offloader for name, one in self._turns.models.items()}
        check_host_memory(offloaders, copies, self._config.memory)
        made.rest()

    @property
    def saved(self) -> dict[str, ScoringModel]:
        """The models that a checkpoint holds, by name."""
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    @property
    def needed_critic(self) -> Trainer:
        """The critic of a run that teaches it."""
        if "critic" not in self.trainers:
            raise RuntimeError(f"critic.training {self._config.critic.training} has no critic that learns")
        return self.trainers["critic"]

    def freeze_at(self, position: Position) -> None:
        """Let a frozen critic give up its optimizer, if the critic start is over at that position of the run."""
        start = self._config.stages.critic_start.iterations
        over = position.stage == ITERATION or position == Position(CRITIC_START, start)
        if over and not self._config.critic.training.learns and "critic" in self.trainers:
            self.trainers.pop("critic").freeze()

    def policy_tensors(self) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """The policy's present weights by their Hugging Face names, as the generator takes them (`weights.export`)."""
        with self.policy.awake(Kind.weights):
            yield from weights.export(self.policy.module, self.entries, self._place)

    def begin_warm_start(self) -> None:
        """The policy takes the warm start's optimizer."""
        self.policy.reset_optimizer(self._config.stages.warm_start.optimizer)
        self.policy.rest()

    def end_warm_start(self) -> None:
        """The policy's and the critic's optimizers start afresh, critic and reference from the policy's weights."""
        self.policy.reset_optimizer(by_optimizer_steps(self._config.policy))
        with self._turns.phase("copy"), self.policy.awake(Kind.weights):
            if self.critic:
                with self.critic.awake(Kind.weights, changes=True):
                    weights.copy_backbone(self.policy.module, self.critic.module)
                    if "critic" in self.trainers:
                        self.trainers["critic"].reset_optimizer(by_optimizer_steps(self._config.critic))
            if self.reference:
                with self.reference.awake(changes=True):
                    self.reference.module.load_state_dict(self.policy.module.state_dict())

    def keep_reference(self, directory: Path) -> None:
        """Save the reference, if there is one, for the run to resume with: what it was made from may change or go."""
        if self.reference:
            with self._turns.phase("save"), expect_pace(Pace.untimed), self.reference.awake():
                dist_checkpoint.save_weights(directory, "policy", self.reference.module)

    def load_reference(self, directory: Path) -> None:
        """The reference, if there is one, as it was kept."""
        if self.reference:
            with self.reference.awake(changes=True):
                dist_checkpoint.load_weights(directory, "policy", self.reference.module)
