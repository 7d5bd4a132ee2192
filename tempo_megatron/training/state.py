"""The state of a run: all that a checkpoint holds beside models, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tempo_megatron.megatron.checkpointing.saver import ITERATION, Position
from tempo_megatron.metrics.question_metrics import Metrics
from tempo_megatron.training.phases.partial_rollouts import Group
from tempo_megatron.training.phases.pass_rates import PassRateHistory
from tempo_megatron.training.phases.select_checkpoint import Selection


@dataclass
class RunState:
    """All that a checkpoint holds of a run beside its models. The defaults describe a run that has done nothing.

    `Run.snapshot` fills it in, `Lifecycle` adds the last four fields, and `state.json` holds it.
    """

    iteration: int = 0
    """The number of the current iteration."""
    log_lines: int = 0
    """The number of lines in metrics.jsonl. A run that resumes cuts the log back to them."""
    labeled_position: int = 0
    """The number of prompts taken from the labeled stream."""
    unlabeled_position: int = 0
    """The number of prompts taken from the unlabeled stream."""
    carried: tuple[Group, ...] = ()
    """The unlabeled rollouts that the next iteration goes on with (`phases/partial_rollouts.py`)."""
    examples_position: int = 0
    """The number of examples taken from the warm start's stream."""
    grading_errors: int = 0
    grading_timeouts: int = 0
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    """The number of optimizer steps of each model that learns, by the model's name."""
    gate_value: float | None = None
    """The figure that `loop.gate` is compared with, as it was last measured. It is None while it is undefined."""
    selection: Selection = field(default_factory=Selection)
    data_contents: str | None = None
    """A hash of the data files' contents."""
    generation_figures: Metrics = field(default_factory=dict)
    """The generator's figures that no line of the log has yet."""
    expected_tokens: dict[str, float] = field(default_factory=dict)
    """The expected response length of the questions sampled last, by prompt id (`phases/length_history.py`)."""
    pass_rates: PassRateHistory = field(default_factory=PassRateHistory)
    """The pass rates of the questions that policy steps had, for methods that need them (`phases/pass_rates.py`)."""
    initial_evaluation: dict[str, Metrics] | None = None
    """The figures of each evaluation set before iteration 1. They are None until that evaluation is over."""
    final_evaluation: dict[str, Metrics] | None = None
    """The figures of each evaluation set after the last iteration."""
    final_iteration: int = 0
    """The iteration after which the run was last evaluated as complete."""
    seconds: float = 0.0
    """The time that the run has taken, over all its starts."""
    save_seconds: float = 0.0
    """The duration of the last save. It is 0 until a save has ended."""
    longest_stretch_seconds: float = 0.0
    """The longest time during which the run could not be interrupted."""
    stage: Position | None = None
    """The position in a stage before iteration 1. It is None once the stages are over."""
    unconcluded: dict[str, float] | None = None
    """Metrics of an iteration in which the models have learned, but which is not evaluated and logged yet."""

    @property
    def position(self) -> Position:
        return self.stage or Position(ITERATION, self.iteration)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON can write it."""
        groups = [group.to_json() for group in self.carried]
        return asdict(replace(self, carried=())) | {"carried": groups}  # asdict would copy every token

    @classmethod
    def from_json(cls, json_fields: Mapping[str, Any]) -> RunState:
        """Return the state that `to_json` wrote. Raises ValueError or TypeError for a state of another version."""
        unmatched = json_fields.keys() ^ {field.name for field in fields(cls)}
        if unmatched:
            raise ValueError(f"fields that are missing or unknown: {', '.join(sorted(unmatched))}")
        stage = json_fields["stage"]
        nested = {
            "carried": tuple(map(Group.from_json, json_fields["carried"])),
            "pass_rates": PassRateHistory.from_json(json_fields["pass_rates"]),
            "selection": Selection.from_json(json_fields["selection"]),
            "stage": Position(**stage) if stage else None,
        }
        return cls(**{**json_fields, **nested})
