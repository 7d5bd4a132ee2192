"""The questions of a run: what it learns from, what it is measured by, and what it evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tempo_megatron.config import Config, LearnsFrom
from tempo_megatron.data import fingerprint
from tempo_megatron.data.questions import Questions, read_questions, set_aside
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt
from tempo_megatron.training.phases.warm_start import Example, example


@dataclass(frozen=True)
class RunData:
    """`set_aside`: labelled questions that nothing learns from. `learnt`: keys of those that train with answers."""

    questions: Questions
    set_aside: list[Prompt]
    labelled: Stream[Prompt]
    unlabelled: Stream[Prompt]
    examples: Stream[Example]
    learnt: frozenset[str]

    def lines(self) -> Iterator[str]:
        """A line for each stream: its prompts, and what was left out."""
        evaluated = self.questions.with_answers()
        for name, prompts in self.questions.sets.items():
            known = f", {len(evaluated.get(name, ()))} evaluated" if name in ("unlabelled", "held_out") else ""
            yield f"data.{name}: {len(prompts.prompts)} prompts{known} ({prompts.left_out()})"


def load(config: Config, tokenizer: Any) -> RunData:
    """The data that the recipe names. What the run directory says that it has learnt stays out of what it is measured
    by, whatever the files are now. Raises DataError."""
    learnt_before = fingerprint.learnt_questions(config.run_dir)
    questions = read_questions(config.data, tokenizer, learnt_before)
    sets, seed = questions.sets, config.seed
    measured = set_aside(sets["labelled"], config.calibration.questions, learnt_before)
    labelled, taught = (sets[name].without(measured) for name in ("labelled", "warm_start"))
    from_labels = config.policy.learns_from is not LearnsFrom.unlabelled or config.critic.training.learns
    from_labels = from_labels or config.stages.critic_start.iterations > 0
    trains = [
        *(labelled.prompts if from_labels else ()),
        *(taught.prompts if config.stages.warm_start.steps else ()),
    ]
    return RunData(
        questions,
        measured,
        Stream(labelled.prompts, seed, "labelled", labelled.weights),
        Stream(sets["unlabelled"].prompts, seed, "unlabelled", sets["unlabelled"].weights),
        Stream([example(prompt, tokenizer) for prompt in taught.prompts], seed, "warm_start", taught.weights),
        frozenset(prompt.question for prompt in trains),
    )
