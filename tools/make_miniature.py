"""Makes the miniature's model and questions: subset sums, which are easier to check than to find.

usage: python tools/make_miniature.py DIRECTORY [--seed N] [--recipes recipes/miniature]

DIRECTORY gets `model/`, a Qwen3 with random weights and the shape of `model.yaml` in the folder of recipes, and a JSONL
file for each set of questions in its `questions.yaml`. It also gets copies of these two files, and later calls with
another size are refused. A question lists hexadecimal digits and a target: `5c3>8:`.
Exactly one subset of the digits has the target as its sum modulo 16. The answer writes the running sum after each
digit, which is either taken or left: `558` takes 5, leaves c and takes 3. Each step is one addition, and the last sum
shows whether the guesses were right. To find the subset, a policy must look ahead over all subsets of the digits that
are left.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from make_demo_model import make_character_tokenizer, make_config, write_model
from transformers import PreTrainedTokenizerFast

from tempo_megatron.utils.atomic_files import write_text_atomically

DIGITS = "0123456789abcdef"
MAXIMUM_REPEATS = 20
"""Repeated questions, for each question of a set, after which the draw is given up."""
RECIPES = Path(__file__).parent.parent / "recipes" / "miniature"
"""The recipes of the small size."""
SETTINGS = {"questions.yaml": "*.jsonl", "model.yaml": "model"}
"""The files that describe a size's questions and model, and a pattern of what is made from each."""


def running_sums(digits: Sequence[int], taken: Sequence[int]) -> str:
    """Returns the sum modulo 16 after each digit, where `taken` is 1 for a digit of the subset and 0 otherwise."""
    total, steps = 0, ""
    for digit, is_taken in zip(digits, taken, strict=True):
        total = (total + digit * is_taken) % len(DIGITS)
        steps += DIGITS[total]
    return steps


def unique_answers(digits: Sequence[int]) -> dict[int, str]:
    """Returns each sum that exactly one subset of the digits has, with the running sums of this subset.

    The sums are in the order of their first subset, where subsets count up in binary and the last digit is the lowest.
    """
    subsets = {0: (1, "")}
    for digit in digits:
        longer: dict[int, tuple[int, str]] = {}
        for total, (count, steps) in subsets.items():
            for new in (total, (total + digit) % len(DIGITS)):
                earlier, first = longer.get(new, (0, steps + DIGITS[new]))
                longer[new] = (earlier + count, first)
        subsets = longer
    return {total: steps for total, (count, steps) in subsets.items() if count == 1}


def make_question(generator: random.Random, length: int) -> tuple[str, str, str]:
    """Returns a question of `length` digits, its answer, and the running sums of a random subset."""
    while True:
        digits = [generator.randrange(1, len(DIGITS)) for _ in range(length)]
        if answers := unique_answers(digits):
            target = generator.choice([*answers])
            guess = running_sums(digits, [generator.randrange(2) for _ in digits])
            return f"{''.join(DIGITS[digit] for digit in digits)}>{DIGITS[target]}:", answers[target], guess


def question_rows(
    seed: int, size: int, lengths: Mapping[int, float], guesses: float = 0.0, excluded: Set[str] = frozenset()
) -> Iterator[dict[str, str]]:
    """Yields `size` different questions that are not `excluded`. `lengths` maps a number of digits to its weight.

    The share `guesses` of the answers has the running sums of a random subset: steps to imitate, without their goal.
    The first questions of a larger set with the same seed and lengths are the same. Raises ValueError where the draws
    repeat so often that there seem to be too few questions.
    """
    generator = random.Random(seed)
    seen, repeats = set(excluded), 0
    while len(seen) < size + len(excluded):
        (length,) = generator.choices([*lengths], [*lengths.values()])
        question, answer, guess = make_question(generator, length)
        is_guess = generator.random() < guesses
        if question not in seen:
            seen.add(question)
            yield {"prompt": question, "answer": guess if is_guess else answer}
        elif (repeats := repeats + 1) > MAXIMUM_REPEATS * size:
            raise ValueError(f"there are fewer than {size} questions of these lengths: {lengths}")


def write_questions(directory: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `NAME.jsonl` for each set, whose settings are arguments of `question_rows`.

    A set with guesses has no question of another set: a run refuses a question that has two answers.
    """
    answered: set[str] = set()
    for name, settings in sorted(sets.items(), key=lambda item: "guesses" in item[1]):
        rows = [*question_rows(**settings, excluded=answered if "guesses" in settings else frozenset())]
        answered |= {row["prompt"] for row in rows}
        write_text_atomically(directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def size_problems(directory: Path, recipes: Path) -> list[str]:
    """Returns a line for each reason why the questions or the model in a directory may be those of another size.

    Comments of the size's files do not count. Files without a copy of their settings are of an unknown size.
    """
    lines = []
    for name, written in SETTINGS.items():
        copy = directory / name
        if copy.is_file():
            if _settings(copy) != _settings(recipes / name):
                lines.append(f"{directory} is of another size: its {name} differs from {recipes / name}")
        elif any(directory.glob(written)):
            lines.append(f"{directory} has {written} and no {name}, so its size is unknown; remove {written} to go on")
    return lines


def _settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    return settings


def model_config(recipes: Path) -> dict[str, Any]:
    """Returns the config.json of a size's model."""
    config: dict[str, Any] = make_config(_tokenizer(), _settings(recipes / "model.yaml")).to_dict()
    return config


def _tokenizer() -> PreTrainedTokenizerFast:
    return make_character_tokenizer(f"{DIGITS}>:")


def recipes_folder(text: str) -> Path:
    """Returns the folder of a size's recipes. Raises ArgumentTypeError where one of its files does not exist."""
    folder = Path(text)
    if absent := [name for name in ("start.yaml", "loop.yaml", *SETTINGS) if not (folder / name).is_file()]:
        raise argparse.ArgumentTypeError(f"{text} is no folder of a size's recipes: it has no {', '.join(absent)}")
    return folder


def write_miniature(directory: Path, seed: int = 0, recipes: Path = RECIPES) -> None:
    """Writes the questions and the model of a size, whose folder of recipes is `recipes`, unless they exist.

    Raises ValueError where the directory has, or may have, those of another size.
    """
    if problems := size_problems(directory, recipes):
        raise ValueError("\n".join(problems))
    directory.mkdir(parents=True, exist_ok=True)
    for name in SETTINGS:  # First, so that a call that is killed can be repeated.
        write_text_atomically(directory / name, (recipes / name).read_text())
    sets = _settings(recipes / "questions.yaml")
    if not all((directory / f"{name}.jsonl").is_file() for name in sets):
        write_questions(directory, sets)
    if not (directory / "model").is_dir():
        write_model(directory / "model", _tokenizer(), _settings(recipes / "model.yaml"), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the model's weights")
    parser.add_argument("--recipes", type=recipes_folder, default=RECIPES, help="folder of a size's recipes")
    arguments = parser.parse_args()
    write_miniature(arguments.directory, arguments.seed, arguments.recipes)


if __name__ == "__main__":
    main()
