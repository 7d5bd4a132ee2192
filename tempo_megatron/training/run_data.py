"""The questions of a run: what it learns from, what it is measured by, and what it evaluates."""

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
    """`set_aside`: labeled questions that nothing learns from. `learned`: keys of those that train with answers."""

    questions: Questions
    set_aside: list[Prompt]
    labeled: Stream[Prompt]
    unlabeled: Stream[Prompt]
    examples: Stream[Example]
    learned: frozenset[str]

    def lines(self) -> Iterator[str]:
        """A line for each stream: its prompts, and what was left out."""
        evaluated = self.questions.with_answers()
        for name, prompts in self.questions.sets.items():
            known = f", {len(evaluated.get(name, ()))} evaluated" if name in ("unlabeled", "held_out") else ""
            yield f"data.{name}: {len(prompts.prompts)} prompts{known} ({prompts.left_out()})"


def load_run_data(config: Config, tokenizer: Any) -> RunData:
    """The data that the recipe names. What the run directory says that it has learned stays out of what it is measured
    by, whatever the files are now. Raises DataError."""
    learned_before = fingerprint.learned_questions(config.run_dir)
    questions = read_questions(config.data, tokenizer, learned_before)
    sets, seed = questions.sets, config.seed
    measured = reserve_labeled_questions(sets["labeled"], config.calibration.questions, learned_before)
    labeled, taught = (sets[name].without(measured) for name in ("labeled", "warm_start"))
    from_labels = config.policy.learns_from is not LearnsFrom.unlabeled or config.critic.training.learns
    from_labels = from_labels or config.stages.critic_start.iterations > 0
    trains = [
        *(labeled.prompts if from_labels else ()),
        *(taught.prompts if config.stages.warm_start.steps else ()),
    ]
    return RunData(
        questions,
        measured,
        Stream(labeled.prompts, seed, "labeled", labeled.weights),
        Stream(sets["unlabeled"].prompts, seed, "unlabeled", sets["unlabeled"].weights),
        Stream([example(prompt, tokenizer) for prompt in taught.prompts], seed, "warm_start", taught.weights),
        frozenset(prompt.question for prompt in trains),
    )
