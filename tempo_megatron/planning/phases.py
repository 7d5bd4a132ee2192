"""Memory of a GPU in each phase. State that a phase does not use is offloaded, as in `training/residency.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tempo_megatron.config import Config, CriticTraining
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.generator import EngineMemory
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import GIB, ModelMemory, Parts

_PROCESS_BYTES = int(3.7 * GIB)
"""CUDA and NCCL contexts, kernels, and what vLLM keeps while it sleeps, mainly CUDA graphs. Measured in a sync."""
_EXPERT_PARALLEL_BYTES = int(2.4 * GIB)
"""What expert parallelism adds to `_PROCESS_BYTES`: 6.1 GiB were measured, with experts at EP2.

One run (docs/results/2026-11-30-experts.md). Communicators, kernels and memory that torch cannot return would each be a
reason, and which of them it is was not measured. It comes with the first training, so vLLM does not count it.
"""
_ALLOCATOR_BYTES = int(1.3 * GIB)
"""What torch's allocator holds beyond its tensors while a model works. Measured together with `_PROCESS_BYTES`."""
_BESIDE_ENGINE_BYTES = int(3.2 * GIB)
"""What of `_PROCESS_BYTES` vLLM does not count in its share of the GPU.

vLLM counts what a process takes while its engine starts. What came before, and what training adds later, is beside
the share: 1.1 GiB in the first iteration of a dense run, 3.0 to 3.5 GiB in later iterations of five.
"""
SYNC_BUCKET_BYTES = 896 * 2**20
"""A sync's three buckets and the shards of one bucket (`megatron/weights.py`)."""

PHASE_STATE: dict[str, dict[str, tuple[str, ...]]] = {
    "generate": {},
    "sync": {"policy": ("weights",)},
    "e_step": {"critic": ("weights", "gradients", "optimizer")},
    "advantages": {"policy": ("weights",), "critic": ("weights",), "reference": ("weights",)},
    "m_step": {"policy": ("weights", "gradients", "optimizer")},
    "save": {},
}
"""The kinds of each model's state that a phase uses. The first two phases also use the generator."""


@dataclass(frozen=True)
class PlannedRun:
    """A recipe on a machine."""

    settings: BackboneSettings
    config: Config
    machine: Machine

    @cached_property
    def layout(self) -> Layout:
        return Layout.from_config(self.config, self.machine.gpus)

    @cached_property
    def engine(self) -> EngineMemory:
        return EngineMemory(self.settings, self.config, self.layout, self.machine)

    @cached_property
    def models(self) -> dict[str, ModelMemory]:
        """The models of the run, by the names of `training/residency.py`."""
        config = self.config
        models = {"policy": self._model("policy", config.policy.micro_batch_tokens)}
        if config.critic.training is not CriticTraining.none:
            models["critic"] = self._model("critic", config.critic.micro_batch_tokens)
        if config.policy.kl_coefficient:
            models["reference"] = models["policy"]
        return models

    @property
    def critic_learns(self) -> bool:
        """Whether the run has a critic with an optimizer, even if only in the critic start."""
        learns = self.config.critic.training.learns or self.config.stages.critic_start.iterations > 0
        return "critic" in self.models and learns

    def _model(self, role: Role, tokens: int) -> ModelMemory:
        longest = self.config.data.max_prompt_tokens + self.config.generation.max_response_tokens
        enough = 2 * self.layout.pipeline  # More micro-batches keep no more activations.
        return ModelMemory(self.settings, role, self.config, self.layout, tokens or longest, enough)

    def phase_memory(self) -> dict[str, Parts]:
        """Return the bytes of each part at the peak of each phase, on the GPU with the highest peak."""
        phases = {
            "generate": self.engine.parts() | {"contexts": self._beside_engine_bytes},
            "sync": self._sync(),
        }
        if self.critic_learns:
            phases["e_step"] = self._with_process(self.models["critic"].step_peak())
        phases["advantages"] = self._with_process(self._advantages())
        phases["m_step"] = self._with_process(self.models["policy"].step_peak())
        phases["save"] = self._with_process(max(map(self._saved_state, self.models), key=total_bytes))
        for phase, parts in phases.items():
            not_offloaded = self._not_offloaded(phase)
            if not_offloaded:
                parts["state of resting models"] = not_offloaded
        return phases

    @property
    def _beside_engine_bytes(self) -> int:
        """The bytes of contexts beside the engine. With `generation.kv_cache_gib` vLLM counts none of them."""
        beside = _PROCESS_BYTES if self.config.generation.kv_cache_gib else _BESIDE_ENGINE_BYTES
        return beside + self._expert_parallel_bytes

    @property
    def _process_bytes(self) -> int:
        return _PROCESS_BYTES + self._expert_parallel_bytes

    @property
    def _expert_parallel_bytes(self) -> int:
        return _EXPERT_PARALLEL_BYTES if self.layout.expert > 1 else 0

    def _with_process(self, parts: Parts) -> Parts:
        return parts | {"contexts": self._process_bytes, "allocator": _ALLOCATOR_BYTES}

    def _sync(self) -> Parts:
        """Return the parts of a weight sync. Under TP, PP or EP these include the tensors in transfer."""
        weights = max(self.models["policy"].state(stage)["weights"] for stage in range(self.layout.pipeline))
        is_sharded = self.layout.tensor * self.layout.pipeline * self.layout.expert > 1
        parts = {"weights": weights, "weights of the generator": self.engine.weight_bytes}
        return parts | {"buckets": SYNC_BUCKET_BYTES if is_sharded else 0, "contexts": self._process_bytes}

    def _advantages(self) -> Parts:
        """Return the parts of the policy's pass, which is the highest, and the weights of the other models."""
        parts = dict(self.models["policy"].pass_peak())
        for name, model in self.models.items():
            if name != "policy":
                parts[f"weights of the {name}"] = model.pass_peak()["weights"]
        return parts

    def _saved_state(self, name: str) -> Parts:
        return {kind: size for kind, size in self.state(name).items() if kind != "gradients"}

    def _not_offloaded(self, phase: str) -> int:
        """Return the bytes of state that `memory.offload_*` leaves on the GPU although the phase does not use it."""
        return sum(
            size
            for name in self.models
            for kind, size in self.state(name).items()
            if not self.is_offloaded(kind) and kind not in PHASE_STATE[phase].get(name, ())
        )

    def state(self, name: str) -> Parts:
        """Return the state that the model `name` keeps from step to step, on the stage that holds most."""
        stages = range(self.layout.pipeline)
        return max((self.stage_state(name, stage) for stage in stages), key=total_bytes)

    def stage_state(self, name: str, stage: int) -> Parts:
        """Return the state of one pipeline stage: weights, and for a model that learns gradients and optimizer."""
        state = self.models[name].state(stage)
        learns = name == "policy" or (name == "critic" and self.critic_learns)
        return state if learns else {"weights": state["weights"]}

    def is_offloaded(self, kind: str) -> bool:
        """Return whether this kind of state moves to host memory while its model is not used."""
        memory = self.config.memory
        offloaded = {
            "weights": memory.offload_weights,
            "gradients": memory.offload_gradients,
            "optimizer": memory.offload_optimizer,
        }
        return offloaded[kind]


def total_bytes(parts: Parts) -> int:
    return sum(parts.values())
