"""The four streams' questions of a run, read and checked together."""

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
_LABELED = ("labeled", "warm_start")


@dataclass(frozen=True)
class Questions:
    """`sets` by stream: labeled, unlabeled, held_out, warm_start. `answers` of the hidden streams, for evaluation."""

    sets: dict[str, PromptSet]
    answers: Answers

    def with_answers(self) -> dict[str, list[Prompt]]:
        """The prompts of each hidden stream that can be evaluated; a stream that has none is left out."""
        known = {name: [p for p in self.sets[name].prompts if p.id in self.answers] for name in _HIDDEN}
        return {name: prompts for name, prompts in known.items() if prompts}

    def graders(self) -> dict[str, str]:
        """The graders of all prompts, each with where it is named first: stream, file, line."""
        found: dict[str, str] = {}
        for stream, made in self.sets.items():
            for grader, where in made.graders.items():
                found.setdefault(grader, f"data.{stream}: {where}")
        return found


def read_questions(config: DataConfig, tokenizer: Tokenizer, learned: Set[str] = frozenset()) -> Questions:
    """Read every stream, the evaluated ones first: their questions are withheld from the streams that show answers.

    `learned`: keys of questions that a run has learned with their answers, which are left out of the evaluated streams:
    its data have changed since. Raises DataError listing every problem of every stream, one a line, each with its key
    in front.
    """
    unusable = templates.template_problems(config, tokenizer)
    if unusable:
        raise DataError("\n".join(unusable))
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
    problems += _without_text(sets) + _shared_ids(sets)
    if problems:
        raise DataError("\n".join(problems))
    return Questions(sets, answers)


def unreadable(config: DataConfig) -> list[str]:
    """What is wrong with the files of all streams, one line each with its key in front. Needs no tokenizer."""
    problems: list[str] = []
    for name in (*_HIDDEN, *_LABELED):
        files = [source for source in getattr(config, name) if source.path]
        try:
            read_rows(files, labeled=name in _LABELED)
        except DataError as error:
            problems += [f"data.{name}: {line}" for line in str(error).splitlines()]
    return problems


def set_aside(labeled: PromptSet, count: int, learned: Set[str] = frozenset()) -> list[Prompt]:
    """Labeled questions that nothing is trained on, nor was (`learned`, by their keys), to measure by; fewer than
    `count` where there are no more.

    They are the first of a hashed order, so that they do not follow the order of files; the run's seed is not in it, so
    that a run that goes on from another's checkpoint does not measure by questions which that one learned.
    """
    unseen = [prompt for prompt in labeled.prompts if prompt.question not in learned]
    return sorted(unseen, key=lambda prompt: derive_seed("set aside", prompt.id))[:count]


def _without_text(sets: dict[str, PromptSet]) -> list[str]:
    """Questions of the warm start that some reasoning-gym tasks score but give no answer to."""
    prompts = sets["warm_start"].prompts if "warm_start" in sets else []
    sources = {prompt.source for prompt in prompts if prompt.answer is None or prompt.answer["answer"] is None}
    return [f"data.warm_start: {source} has questions without an answer to learn" for source in sorted(sources)]


def _shared_ids(sets: dict[str, PromptSet]) -> list[str]:
    """Two questions under one id would be graded by one answer."""
    seen: dict[str, tuple[int, ...]] = {}
    shared = {
        prompt.id
        for made in sets.values()
        for prompt in made.prompts
        if seen.setdefault(prompt.id, prompt.token_ids) != prompt.token_ids
    }
    return [f"data: two different questions have the id {id_}" for id_ in sorted(shared)]
