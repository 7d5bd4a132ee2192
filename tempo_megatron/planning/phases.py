"""What lies on a GPU in each phase, after the table of `turns.py`: who works is there, all else rests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tempo_megatron.config import Config, CriticTraining
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.generator import EngineMemory
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import GIB, Model, Parts

_PROCESS = int(3.7 * GIB)
"""contexts of CUDA and NCCL, kernels, and what vLLM keeps while it sleeps, CUDA graphs above all; measured in a sync"""
_SLACK = int(1.3 * GIB)
"""what torch's allocator holds beyond its tensors while a model works: measured beside `_PROCESS`"""
_BESIDE_ENGINE = int(1.1 * GIB)
"""contexts and CUDA graphs beside what vLLM counts as its share: measured"""
BUCKETS = 896 * 2**20
"""a sync's three buckets and the shards of one (`megatron/weights.py`)"""

WORKERS: dict[str, dict[str, tuple[str, ...]]] = {
    "generate": {},
    "sync": {"policy": ("weights",)},
    "e_step": {"critic": ("weights", "gradients", "optimizer")},
    "advantages": {"policy": ("weights",), "critic": ("weights",), "reference": ("weights",)},
    "m_step": {"policy": ("weights", "gradients", "optimizer")},
    "save": {},
}
"""Kinds of each model's state that a phase works with; the generator works in the first two"""


@dataclass(frozen=True)
class PlannedRun:
    """A recipe on a machine."""

    settings: BackboneSettings
    config: Config
    machine: Machine

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.config, self.machine.gpus)

    @cached_property
    def engine(self) -> EngineMemory:
        return EngineMemory(self.settings, self.config, self.layout, self.machine)

    @cached_property
    def models(self) -> dict[str, Model]:
        """By the names of `turns.py`."""
        config = self.config
        found = {"policy": self._model("policy", config.policy.micro_batch_tokens)}
        if config.critic.training is not CriticTraining.none:
            found["critic"] = self._model("critic", config.critic.micro_batch_tokens)
        if config.policy.kl_coefficient:
            found["reference"] = found["policy"]
        return found

    @property
    def critic_learns(self) -> bool:
        """Whether there is a critic that has an optimizer, be it in the critic start alone."""
        learns = self.config.critic.training.learns or self.config.stages.critic_start.iterations > 0
        return "critic" in self.models and learns

    def _model(self, role: Role, tokens: int) -> Model:
        longest = self.config.data.max_prompt_tokens + self.config.generation.max_response_tokens
        return Model(self.settings, role, self.config, self.layout, tokens or longest, self.layout.pipeline)

    def phases(self) -> dict[str, Parts]:
        """Bytes on the GPU that takes most, part by part, at the highest moment of each phase."""
        found = {
            "generate": self.engine.parts() | {"contexts": _BESIDE_ENGINE},
            "sync": self._sync(),
        }
        if self.critic_learns:
            found["e_step"] = self._working(self.models["critic"].learning())
        found["advantages"] = self._working(self._estimate())
        found["m_step"] = self._working(self.models["policy"].learning())
        found["save"] = self._working(max(map(self._saved, self.models), key=total))
        for name, parts in found.items():
            staying = self._staying(name)
            if staying:
                parts["state of resting models"] = staying
        return found

    def _working(self, parts: Parts) -> Parts:
        return parts | {"contexts": _PROCESS, "allocator": _SLACK}

    def _sync(self) -> Parts:
        """Under TP or PP the tensors on their way are there too."""
        weights = max(self.models["policy"].state(stage)["weights"] for stage in range(self.layout.pipeline))
        spread = self.layout.tensor * self.layout.pipeline > 1
        parts = {"weights": weights, "weights of the generator": self.engine.weights}
        return parts | {"buckets": BUCKETS if spread else 0, "contexts": _PROCESS}

    def _estimate(self) -> Parts:
        """The policy's pass is the higher one; the others' weights stay beside it."""
        parts = dict(self.models["policy"].reading())
        for name, model in self.models.items():
            if name != "policy":
                parts[f"weights of the {name}"] = model.reading()["weights"]
        return parts

    def _saved(self, name: str) -> Parts:
        return {kind: size for kind, size in self.state(name).items() if kind != "gradients"}

    def _staying(self, phase: str) -> int:
        """State that `memory.offload_*` leaves on the GPU though its model rests."""
        return sum(
            size
            for name in self.models
            for kind, size in self.state(name).items()
            if not self.moves(kind) and kind not in WORKERS[phase].get(name, ())
        )

    def state(self, name: str) -> Parts:
        """What the model `name` keeps from step to step, on the stage that holds most."""
        stages = range(self.layout.pipeline)
        return max((self.state_of_stage(name, stage) for stage in stages), key=total)

    def state_of_stage(self, name: str, stage: int) -> Parts:
        """The same of one pipeline stage: weights, and of a model that learns gradients and optimizer state."""
        state = self.models[name].state(stage)
        learns = name == "policy" or (name == "critic" and self.critic_learns)
        return state if learns else {"weights": state["weights"]}

    def moves(self, kind: str) -> bool:
        memory = self.config.memory
        moves = {
            "weights": memory.offload_weights,
            "gradients": memory.offload_gradients,
            "optimizer": memory.offload_optimizer,
        }
        return moves[kind]


def total(parts: Parts) -> int:
    return sum(parts.values())
