"""The models of a run, built from what it starts from, and the weights that pass between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints_convert import decoder, hf_config, hf_files
from checkpoints_convert.mapping import OUTPUT_BIAS, Role
from checkpoints_convert.rows import TensorRows
from tempo_megatron.config import Config, CriticTraining
from tempo_megatron.megatron import checkpoint, checkpoint_files, model, weights
from tempo_megatron.megatron.offload import Kind, check_host_memory
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.megatron.trainer import Scorer, Trainer
from tempo_megatron.phases.scoring import policy_scores
from tempo_megatron.progress import Pace, at
from tempo_megatron.turns import Turns


class Models:
    """The policy, and critic and reference where the recipe has them; each rests until its turn. All is collective.

    `trainers`: those that learn, by name. `settings` and `entries` describe the policy to converters, `scores` reads
    its output.
    """

    def __init__(self, config: Config, place: Topology, turns: Turns) -> None:
        self._config, self._place, self._turns = config, place, turns
        self._hf_path = Path(config.model.hf_path)
        self.settings = hf_config.settings(hf_files.read_config(self._hf_path))
        self.entries = decoder.policy(self.settings)
        policy = self.build("policy", config.policy.checkpoint)
        self.policy = Trainer(policy, config.policy.optimizer, config, place, config.policy.micro_batch_tokens)
        self.trainers = {"policy": self.policy}
        self._introduce("policy", self.policy)
        self.critic: Trainer | None = None
        if config.critic.training is not CriticTraining.none:
            critic = self.build("critic", config.critic.checkpoint)
            self.critic = Trainer(critic, config.critic.optimizer, config, place, config.critic.micro_batch_tokens)
            self.trainers["critic"] = self.critic
            self._introduce("critic", self.critic)
        self.reference: Scorer | None = None
        if config.policy.kl_coefficient:
            reference = self.build("policy", config.policy.checkpoint)
            self.reference = Scorer(reference, config, place, config.policy.micro_batch_tokens)
            self._introduce("reference", self.reference)
        self.scores = policy_scores(self.settings.vocab_size, config.generation.temperature, place)

    def build(self, role: Role, start: str) -> Any:
        """A model with the weights that the run starts from: those of a checkpoint, or of model.hf_path."""
        bias = bool(start) and OUTPUT_BIAS in checkpoint_files.Reader(Path(start), role).descriptions
        module = model.build(role, self.settings, self._config, self._place, head_bias=bias)
        if start:
            checkpoint.load_weights(Path(start), role, module)
        else:
            read = hf_files.Reader(self._hf_path)
            weights.load(module, self.entries, read, self._place, critic=role == "critic")
        return module

    def _introduce(self, name: str, made: Scorer) -> None:
        """Let a model take its turns; it rests at once, so that the next finds room."""
        made.name = name
        self._turns.models[name] = made
        asynchronous = self._config.checkpoint.asynchronous
        copies = sum(map(checkpoint.copied_bytes, self.trainers.values())) if asynchronous else 0
        offloaders = {name: one.offloader for name, one in self._turns.models.items()}
        check_host_memory(offloaders, copies, self._config.memory)
        made.rest()

    @property
    def needed_critic(self) -> Trainer:
        """The critic of a method that has one."""
        if self.critic is None:
            raise RuntimeError(f"method {self._config.method} with critic.training none has no critic")
        return self.critic

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
        self.policy.reset_optimizer(self._config.policy.optimizer)
        with self._turns.phase("copy"), self.policy.awake(Kind.weights):
            if self.critic:
                with self.critic.awake(Kind.weights, changes=True):
                    weights.copy_backbone(self.policy.module, self.critic.module)
                    self.critic.reset_optimizer(self._config.critic.optimizer)
            if self.reference:
                with self.reference.awake(changes=True):
                    self.reference.module.load_state_dict(self.policy.module.state_dict())

    def keep_reference(self, directory: Path) -> None:
        """Save the reference, if there is one, for the run to resume with: what it was made from may change or go."""
        if self.reference:
            with self._turns.phase("save"), at(Pace.untimed), self.reference.awake():
                checkpoint.save_weights(directory, "policy", self.reference.module)

    def load_reference(self, directory: Path) -> None:
        """The reference, if there is one, as it was kept."""
        if self.reference:
            with self.reference.awake(changes=True):
                checkpoint.load_weights(directory, "policy", self.reference.module)
