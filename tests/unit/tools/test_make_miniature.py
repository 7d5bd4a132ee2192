"""tools/make_miniature.py: questions have exactly one answer, and sets grow without changing."""

from __future__ import annotations

import argparse
import json
import random
from itertools import product
from pathlib import Path

import make_miniature
import pytest
import yaml
from transformers import AutoTokenizer

from tempo_megatron.config import load_config

DIGITS = "0123456789abcdef"


def solutions(question: str) -> list[str]:
    """Return the running sums of every subset that reaches the target, by brute force."""
    digits, target = question.rstrip(":").split(">")
    results = []
    for taken in product((False, True), repeat=len(digits)):
        values = [int(digit, 16) * is_taken for digit, is_taken in zip(digits, taken, strict=True)]
        steps = "".join(DIGITS[sum(values[:end]) % 16] for end in range(1, len(digits) + 1))
        results += [steps] if steps[-1] == target else []
    return results


def test_the_example_of_the_docstring_is_right() -> None:
    assert make_miniature.running_sums([5, 12, 3], [1, 0, 1]) == "558"
    assert solutions("5c3>8:") == ["558"]


def test_a_question_has_exactly_one_answer() -> None:
    """A second subset with the same sum would be graded wrong, and the majority would split."""
    rows = list(make_miniature.question_rows(seed=1, size=60, lengths={3: 1, 6: 1}))
    assert all(solutions(row["prompt"]) == [row["answer"]] for row in rows)
    assert {len(row["answer"]) for row in rows} == {3, 6}
    assert len({row["prompt"] for row in rows}) == 60


def test_unique_answers_are_those_sums_that_one_subset_has() -> None:
    """In the order in which subsets first reach them: the draw of a target, and so every set, depends on it."""
    generator = random.Random(0)
    for length in (1, 4, 7):
        digits = [generator.randrange(1, 16) for _ in range(length)]
        sums = [make_miniature.running_sums(digits, taken) for taken in product((0, 1), repeat=length)]
        totals = [DIGITS.index(steps[-1]) for steps in sums]
        expected = {total: steps for total, steps in zip(totals, sums, strict=True) if totals.count(total) == 1}
        assert [*make_miniature.unique_answers(digits).items()] == [*expected.items()]


def test_guesses_are_valid_steps_that_mostly_miss_the_target() -> None:
    rows = list(make_miniature.question_rows(seed=1, size=80, lengths={5: 1}, guesses=1.0))
    assert all(
        (int(now, 16) - int(before, 16)) % 16 in (0, int(digit, 16))
        for row in rows
        for before, now, digit in zip("0" + row["answer"], row["answer"], row["prompt"], strict=False)
    )
    assert sum(solutions(row["prompt"]) == [row["answer"]] for row in rows) < 20


def test_guesses_contradict_no_other_set(tmp_path: Path) -> None:
    """A run refuses a labeled question that has another answer in the warm start. There are few short questions."""
    sets = {
        "warm_start": {"seed": 1, "size": 900, "lengths": {3: 1}, "guesses": 0.5},
        "labeled": {"seed": 2, "size": 300, "lengths": {3: 1}},
    }
    make_miniature.write_questions(tmp_path, sets)
    rows = {
        name: {json.loads(line)["prompt"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()}
        for name in sets
    }
    assert rows["warm_start"].isdisjoint(rows["labeled"])
    assert (len(rows["warm_start"]), len(rows["labeled"])) == (900, 300)
    drawn_alone = {row["prompt"] for row in make_miniature.question_rows(seed=1, size=900, lengths={3: 1})}
    assert not drawn_alone.isdisjoint(rows["labeled"])


def test_a_set_that_is_too_large_is_refused() -> None:
    """One digit has 15 questions for each of the targets 0 and itself. The draw would go on forever."""
    with pytest.raises(ValueError, match="fewer than 31 questions"):
        list(make_miniature.question_rows(seed=0, size=31, lengths={1: 1}))


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    """The study `labels` compares the first questions with all of them."""
    sets = yaml.safe_load((make_miniature.RECIPES / "questions.yaml").read_text())
    small, whole = ({**sets[name], "size": size} for name, size in (("labeled_64", 20), ("labeled", 40)))
    make_miniature.write_questions(tmp_path, {"small": small, "whole": whole})
    first, second = ((tmp_path / f"{name}.jsonl").read_text() for name in ("small", "whole"))
    assert second.startswith(first) and len(second.splitlines()) == 40
    assert json.loads(first.splitlines()[0]).keys() == {"prompt", "answer"}


@pytest.mark.parametrize("size", ["", "large"])
@pytest.mark.parametrize("recipe", ["start", "loop"])
def test_prompts_and_answers_of_all_sets_fit(size: str, recipe: str) -> None:
    """A prompt over the limit would be dropped, and a response that is cut could not be right."""
    recipes = make_miniature.RECIPES / size
    sets = yaml.safe_load((recipes / "questions.yaml").read_text())
    longest = max(max(settings["lengths"]) for settings in sets.values())
    config = load_config(recipes / f"{recipe}.yaml")
    target_and_signs, end = 3, 1
    assert longest + target_and_signs <= config.data.max_prompt_tokens
    assert longest + end <= config.generation.max_response_tokens


def write_size(recipes: Path, length: int = 3, width: int = 8, comment: str = "") -> None:
    """Write the settings of a size: questions of `length` digits, and a model of `width`."""
    recipes.mkdir(exist_ok=True)
    shape = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    (recipes / "model.yaml").write_text(f"{comment}{yaml.safe_dump(shape)}")
    sets = {"labeled": {"seed": 1, "size": 4, "lengths": {length: 1}}}
    (recipes / "questions.yaml").write_text(f"{comment}{yaml.safe_dump(sets)}")


@pytest.mark.parametrize(("changes", "file"), [({"length": 4}, "questions.yaml"), ({"width": 16}, "model.yaml")])
def test_a_directory_of_another_size_is_refused_and_unchanged(
    tmp_path: Path, changes: dict[str, int], file: str
) -> None:
    """Both sizes have sets of the same names, so that a run would learn the one by the recipes of the other."""
    small, large, data = tmp_path / "small", tmp_path / "large", tmp_path / "data"
    write_size(small)
    write_size(large, **changes)
    make_miniature.write_miniature(data, recipes=small)
    contents = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"^{data} is of another size: its {file} differs from {large / file}$"):
        make_miniature.write_miniature(data, recipes=large)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == contents


def test_a_size_whose_comments_changed_goes_on_and_its_files_stay(tmp_path: Path) -> None:
    """A missing file is written again. The weights of a model that is there stay."""
    recipes, data = tmp_path / "recipes", tmp_path / "data"
    write_size(recipes)
    make_miniature.write_miniature(data, recipes=recipes)
    questions, weights = (data / "labeled.jsonl").read_text(), data / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    (data / "labeled.jsonl").unlink()
    write_size(recipes, comment="# Another comment.\n")
    make_miniature.write_miniature(data, recipes=recipes)
    assert (data / "labeled.jsonl").read_text() == questions and weights.stat().st_mtime_ns == written


@pytest.mark.parametrize(("copy", "written"), [("questions.yaml", r"\*.jsonl"), ("model.yaml", "model")])
def test_files_of_an_unknown_size_are_refused(tmp_path: Path, copy: str, written: str) -> None:
    """Directories of earlier versions have no copies. A directory without questions and model has no size yet."""
    recipes, data = tmp_path / "recipes", tmp_path / "data"
    write_size(recipes)
    data.mkdir()
    make_miniature.write_miniature(data, recipes=recipes)
    (data / copy).unlink()
    with pytest.raises(ValueError, match=f"{data} has {written} and no {copy}, so its size is unknown"):
        make_miniature.write_miniature(data, recipes=recipes)


def test_a_size_has_the_model_and_the_questions_of_its_folder(tmp_path: Path) -> None:
    """Each digit has a token of its own, so that an answer has as many tokens as digits. Settings replace defaults."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 128}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(shape))
    sets = {"labeled": {"seed": 1, "size": 40, "lengths": {6: 1}}}
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(sets))
    data = tmp_path / "data"
    make_miniature.write_miniature(data, recipes=tmp_path)
    config = json.loads((data / "model" / "config.json").read_text())
    assert {name: config[name] for name in shape} == shape
    rows = [json.loads(line) for line in (data / "labeled.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    tokens = {token for row in rows for token in tokenizer(row["prompt"] + row["answer"])["input_ids"]}
    assert {len(tokenizer(row["answer"])["input_ids"]) for row in rows} == {6}
    assert tokens == {*range(2, 2 + 16 + 2)} and config["vocab_size"] == 2 + 16 + 2


def test_a_folder_without_a_size_is_refused_with_the_files_that_it_lacks(tmp_path: Path) -> None:
    """A mistyped folder would end in a traceback from deep inside a recipe's loader."""
    assert make_miniature.recipes_folder(str(make_miniature.RECIPES / "large")) == make_miniature.RECIPES / "large"
    (tmp_path / "start.yaml").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"it has no loop\.yaml, questions\.yaml, model\.yaml"):
        make_miniature.recipes_folder(str(tmp_path))
