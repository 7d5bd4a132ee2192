"""Reads and checks the questions of a run's four streams together."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tempo_megatron.config import DataConfig
from tempo_megatron.data import templates
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.sources import Answers, PromptSet, read_rows, to_prompts
from tempo_megatron.data.templates import Tokenizer
from tempo_megatron.data.types import Prompt

_HIDDEN = ("unlabeled", "held_out")
"""The streams whose answers are split off."""
_LABELED = ("labeled", "warm_start")


@dataclass(frozen=True)
class Questions:
    """The questions of a run."""

    sets: dict[str, PromptSet]
    """The prompts by stream: labeled, unlabeled, held_out, warm_start."""
    answers: Answers
    """The answers of the unlabeled and held-out streams, for evaluation only."""

    def with_answers(self) -> dict[str, list[Prompt]]:
        """Return the prompts that can be evaluated, by stream: unlabeled and held_out, each unless it has none."""
        evaluated = {name: [p for p in self.sets[name].prompts if p.id in self.answers] for name in _HIDDEN}
        return {name: prompts for name, prompts in evaluated.items() if prompts}

    def grader_locations(self) -> dict[str, str]:
        """Return the graders of all prompts, each with the stream and the place that name it first."""
        locations: dict[str, str] = {}
        for stream, prompt_set in self.sets.items():
            for grader, location in prompt_set.grader_locations.items():
                locations.setdefault(grader, f"data.{stream}: {location}")
        return locations


def read_questions(config: DataConfig, tokenizer: Tokenizer, learned: Set[str] = frozenset()) -> Questions:
    """Read every stream. The evaluated streams come first: the labeled ones must not contain their questions.

    `learned` has the keys of questions that the run has learned with their answers before its data changed. They are
    excluded from the evaluated streams. Raises DataError listing every problem of every stream, one a line, each after
    the stream's config key.
    """
    template_problems = templates.template_problems(config, tokenizer)
    if template_problems:
        raise DataError("\n".join([*template_problems, *data_file_problems(config)]))
    answers: Answers = {}
    withheld: set[str] = set()
    sets: dict[str, PromptSet] = {}
    problems: list[str] = []
    for name in (*_HIDDEN, *_LABELED):
        sources, labeled = getattr(config, name), name in _LABELED
        try:
            rows, firewall = read_rows(sources, labeled), None if labeled else answers
            prompt_set = to_prompts(rows, config, tokenizer, firewall, withheld, frozenset() if labeled else learned)
        except DataError as error:
            problems += [f"data.{name}: {line}" for line in str(error).splitlines()]
            continue
        if sources and not prompt_set.prompts:
            problems.append(f"data.{name}: no prompt is left ({prompt_set.left_out()})")
        if not labeled:
            withheld |= prompt_set.questions
        sets[name] = prompt_set
    problems += _missing_answers(sets) + _shared_ids(sets)
    if problems:
        raise DataError("\n".join(problems))
    return Questions(sets, answers)


def data_file_problems(config: DataConfig) -> list[str]:
    """Return the problems of all streams' files, one a line, each after the stream's config key. Needs no tokenizer."""
    problems: list[str] = []
    for name in (*_HIDDEN, *_LABELED):
        files = [source for source in getattr(config, name) if source.path]
        try:
            read_rows(files, labeled=name in _LABELED)
        except DataError as error:
            problems += [f"data.{name}: {line}" for line in str(error).splitlines()]
    return problems


def reserve_labeled_questions(labeled: PromptSet, count: int, learned: Set[str] = frozenset()) -> list[Prompt]:
    """Return `count` labeled questions, or fewer, that the run measures with and never trains on.
    Questions with a key in `learned` are excluded, because the run has trained on them. The order is hashed, so that it
    does not depend on the files. It does not depend on the run's seed either: a run that starts from another run's
    checkpoint measures with the questions that the other run did not learn.
    """
    unseen = [prompt for prompt in labeled.prompts if prompt.question not in learned]
    return sorted(unseen, key=lambda prompt: derive_seed("set aside", prompt.id))[:count]


def _missing_answers(sets: dict[str, PromptSet]) -> list[str]:
    """Return the sources of the warm start with questions that have a grader but no answer, one a line."""
    prompts = sets["warm_start"].prompts if "warm_start" in sets else []
    sources = {prompt.source for prompt in prompts if prompt.answer is None or prompt.answer["answer"] is None}
    return [f"data.warm_start: {source} has questions without an answer to learn" for source in sorted(sources)]


def _shared_ids(sets: dict[str, PromptSet]) -> list[str]:
    """Return the ids of more than one question, one a line. One answer would grade both questions."""
    tokens_by_id: dict[str, tuple[int, ...]] = {}
    shared = {
        prompt.id
        for prompt_set in sets.values()
        for prompt in prompt_set.prompts
        if tokens_by_id.setdefault(prompt.id, prompt.token_ids) != prompt.token_ids
    }
    return [f"data: two different questions have the id {id_}" for id_ in sorted(shared)]
