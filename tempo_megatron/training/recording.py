"""What a run records for its report beside metrics.

- `token_samples/`: the tokens of a few responses at each evaluation.
- `critic.jsonl`: the critic's calibration in each iteration, namely its calibration bins and its mean value of each
  unlabeled question. A resumed run repeats lines. The last one of an iteration counts.

None of these files may fail a run: one that cannot be written is a warning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import TOKEN_SAMPLE_RESPONSES, Config
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.metrics.calibration import CalibrationBin
from tempo_megatron.training.models import Models
from tempo_megatron.training.phases.collect import Collected
from tempo_megatron.training.phases.scoring import Scores
from tempo_megatron.training.phases.token_samples import (
    Decode,
    SampledQuestion,
    questions_of,
    score_tokens,
    token_records,
)
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Recorder:
    """Records the tokens of responses that the run has sampled anyway. Methods are collective.

    Recording changes no model and no metric.
    """

    config: Config
    models: Models
    grader: RolloutGrader
    """A grader whose errors do not count as the run's."""
    decode: Decode
    """Returns the text of token ids, special tokens included."""
    phase: Callable[[str], AbstractContextManager[None]]
    run_dir: Path | None
    """The run's directory. Only the rank that writes has it."""
    _critic_line: dict[str, dict[str, Any]] = field(default_factory=lambda: {"bins": {}, "values": {}}, init=False)

    def __post_init__(self) -> None:
        """Cut off the line that a killed run did not finish, since the next line would continue it."""
        if self.run_dir and (path := self.run_dir / "critic.jsonl").exists():
            with _warning_of_failure("critic.jsonl"), path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def is_due(self, iteration: int) -> bool:
        """Return whether the responses of this iteration's labeled questions are recorded."""
        every, last = self.config.evaluation.every, self.config.loop.iterations
        return bool(self.config.logging.token_samples) and (iteration == last or bool(every and iteration % every == 0))

    def record_evaluated(self, iteration: int, questions: Sequence[SampledQuestion]) -> None:
        """Record responses of an evaluation, as the present policy and critic see them."""
        sampling, scores = self.config.evaluation, self.models.evaluation_scores
        compares = sampling.temperature > 0 and sampling.top_p == 1
        self._record(f"evaluated-{iteration:06d}.jsonl", questions, scores, compares_log_probs=compares)

    def record_labeled(self, iteration: int, collected: Collected) -> None:
        """Record responses to labeled questions, before the models learn from them.

        They are those of the questions set aside, which are the same in each iteration, or else of the E-step's.
        """
        rollouts, correct = collected.labeled, collected.correct
        if collected.measured:
            rollouts, correct = collected.measured, collected.measured_correct
        questions = questions_of("labeled", rollouts, correct)[: self.config.logging.token_samples]
        name, compares = f"labeled-{iteration:06d}.jsonl", self.config.generation.top_p == 1
        self._record(name, questions, self.models.scores, compares_log_probs=compares)

    def note_bins(self, moment: str, bins: Sequence[CalibrationBin]) -> None:
        """Note the critic's calibration, of finer resolution than the metrics have.

        `moment` is `labeled` for the responses that an E-step is about to learn from, and `before` or `after` the
        E-step for those to the questions set aside.
        """
        rounded = [(count, round(score, 4), round(share, 4)) for count, score, share in bins]
        self._critic_line["bins"][moment] = rounded

    def note_values(self, mean_values: Mapping[str, float]) -> None:
        """Note the critic's mean value of the responses to each unlabeled question, by prompt id."""
        self._critic_line["values"] |= {prompt: round(value, 4) for prompt, value in mean_values.items()}

    def write_critic_line(self, iteration: int) -> None:
        """Write what was noted since the last call, if anything was, as a line of `critic.jsonl`."""
        line = json.dumps({"iteration": iteration, **self._critic_line}, ensure_ascii=False)
        if self.run_dir and any(self._critic_line.values()):
            path = self.run_dir / "critic.jsonl"
            with expect_pace(Pace.untimed), _warning_of_failure(path.name), path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._critic_line.update(bins={}, values={})

    def _record(
        self, name: str, questions: Sequence[SampledQuestion], scores: Scores, *, compares_log_probs: bool
    ) -> None:
        """Score the questions' responses and write the file `name`."""
        if not questions:
            return
        run_method, group_size = method(self.config.method), self.config.loop.samples_per_prompt
        count = max(TOKEN_SAMPLE_RESPONSES, group_size) if run_method.compares_responses else TOKEN_SAMPLE_RESPONSES
        shortened = [question.first(count) for question in questions]
        with self.phase("token_samples"):
            token_scores = score_tokens(
                shortened,
                run_method,
                self.models.policy,
                self.models.critic,
                scores,
                self.config.policy,
                grader=self.grader,
                wrong=self.config.critic.target_range.wrong,
                group_size=count,
            )
            if self.run_dir:
                with expect_pace(Pace.untimed):
                    records = token_records(shortened, token_scores, self.decode, compares_log_probs=compares_log_probs)
                    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
                    path = self.run_dir / "token_samples" / name
                    with _warning_of_failure(f"token_samples/{name}"):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_text_atomically(path, "".join(lines))


@contextmanager
def _warning_of_failure(name: str) -> Iterator[None]:
    """Let a file that cannot be written be a warning. Not for collective calls, which other ranks would wait for."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{name} is not written, and the report will lack it: {error!r}")
