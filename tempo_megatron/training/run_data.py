"""The data of a run: the questions that it learns from, sets aside for measurement, and evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tempo_megatron.config import Config, LearnsFrom
from tempo_megatron.data import fingerprint
from tempo_megatron.data.questions import Questions, read_questions, reserve_labeled_questions
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt
from tempo_megatron.training.phases.warm_start import Example, example


@dataclass(frozen=True)
class RunData:
    """The questions of a run, and streams over those that it learns from."""

    questions: Questions
    set_aside: list[Prompt]
    """Labeled questions that nothing learns from. They measure the critic and candidates for the best checkpoint."""
    labeled: Stream[Prompt]
    unlabeled: Stream[Prompt]
    examples: Stream[Example]
    """The warm start's questions with their answers."""
    learned: frozenset[str]
    """Keys of the questions that train with their answers."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each set: the number of its prompts, and what was left out."""
        evaluated = self.questions.with_answers()
        for name, prompts in self.questions.sets.items():
            count = f", {len(evaluated.get(name, ()))} evaluated" if name in ("unlabeled", "held_out") else ""
            yield f"data.{name}: {len(prompts.prompts)} prompts{count} ({prompts.left_out()})"


def load_run_data(config: Config, tokenizer: Any) -> RunData:
    """Return the data that the recipe names. Raises DataError.

    A question that the run has learned from, by its directory's record, takes no part in measurement, whatever the
    files say now.
    """
    learned_before = fingerprint.learned_questions(config.run_dir)
    questions = read_questions(config.data, tokenizer, learned_before)
    sets, seed = questions.sets, config.seed
    measured = reserve_labeled_questions(sets["labeled"], config.calibration.questions, learned_before)
    labeled, warm_start = (sets[name].without(measured) for name in ("labeled", "warm_start"))
    learns_from_labels = (
        config.policy.learns_from is not LearnsFrom.unlabeled
        or config.critic.training.learns
        or config.stages.critic_start.iterations > 0
    )
    learned = [
        *(labeled.prompts if learns_from_labels else ()),
        *(warm_start.prompts if config.stages.warm_start.steps else ()),
    ]
    return RunData(
        questions,
        measured,
        Stream(labeled.prompts, seed, "labeled", labeled.weights),
        Stream(sets["unlabeled"].prompts, seed, "unlabeled", sets["unlabeled"].weights),
        Stream([example(prompt, tokenizer) for prompt in warm_start.prompts], seed, "warm_start", warm_start.weights),
        frozenset(prompt.question for prompt in learned),
    )
