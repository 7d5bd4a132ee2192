"""Every method on one recorded batch, against numbers computed by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import value_baseline_advantages
from tempo_megatron.algorithms.experience import Experience, PassRates, Votes
from tempo_megatron.algorithms.methods import METHODS, Method, method
from tempo_megatron.algorithms.methods.grpo import Grpo
from tempo_megatron.algorithms.methods.tempo import Tempo
from tempo_megatron.config import Config, CriticTraining, LearnsFrom, Order, PolicyConfig, TargetRange, load_config
from tempo_megatron.validation.recipe import recipe_problems

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
NAN = float("nan")
S = 3**-0.5  # 1/3 over the sample deviation of 1, 0, 1
H = 2**-0.5  # 1/2 over the sample deviation of 1, 0
C1, C2, C3 = 1.111098, -0.827753, -0.283346  # 0.395, -0.1125, 0.03 minus their mean, over their sample deviation

BATCH = Experience(
    response_mask=torch.tensor(
        [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    ).bool(),
    truncated=torch.tensor([False, False, False, False, True]),
    prompts=torch.tensor([0, 0, 0, 1, 1]),
    labeled=torch.tensor([False] * 5),
    correct=torch.tensor([NAN] * 5),
    values=torch.tensor(
        [
            [9.0, 0.25, 0.5, 0.75, 7.0],
            [9.0, 9.0, 0.1, 0.3, 0.6],
            [9.0, 0.2, 0.4, 7.0, 7.0],
            [9.0, 0.5, 0.8, 0.9, 7.0],
            [9.0, 9.0, 0.4, 0.1, 0.2],
        ]
    ),
    # Prompt 0: rows 0 and 1 agree. Prompt 1: row 4 was cut and has no answer.
    votes=Votes(
        count=torch.tensor([2.0, 2, 1, 1, 1]),
        total=torch.tensor([3.0, 3, 3, 2, 2]),
        majority=torch.tensor([True, True, False, True, False]),
        runner_up=torch.tensor([1.0, 1, 1, 0, 0]),
        answers=torch.tensor([0, 0, 1, 2, -1]),
    ),
    statistics={
        "self_certainty": torch.tensor(
            [[0.0, 0, 2, 4, 9], [9, 0, 0, 1, 1], [0, 0, 3, 9, 9], [0, 0, 1, 2, 0], [0, 0, 0, 1, 2]]
        )
    },
)
VERIFIED = replace(BATCH, labeled=torch.tensor([True] * 5), correct=torch.tensor([1.0, 0, 1, 0, 1]))
MIXED = replace(
    BATCH,
    labeled=torch.tensor([False, False, False, True, True]),
    correct=torch.tensor([NAN, NAN, NAN, 0.0, 1.0]),
    wrong=-1.0,
)

# Prompt 0: row 0 has 6 of 16 votes and leads by 3. Prompt 1: row 3 has 2 votes, another answer too. Mean entropies are
# 0.2, 0.9, 0.1, whose mean is 0.4, and 0.5, 0.5.
CONTESTED = replace(
    BATCH,
    votes=Votes(
        count=torch.tensor([6.0, 1, 1, 2, 1]),
        total=torch.tensor([16.0] * 5),
        majority=torch.tensor([True, False, False, True, False]),
        runner_up=torch.tensor([3.0, 3, 3, 2, 2]),
        answers=torch.tensor([0, 1, 2, 3, -1]),
    ),
    statistics={
        "entropy": torch.tensor(
            [[9, 9, 0.1, 0.3, 9], [9, 9, 9, 0.8, 1.0], [9, 9, 0.1, 9, 9], [9, 9, 0.25, 0.75, 9], [9, 9, 9, 0.5, 0.5]]
        )
    },
)

# Prompt 1 is labeled. Prompt 0's pass rates rise as those of the reliable questions do.
HALF_LABELED = replace(
    MIXED,
    wrong=0.0,
    pass_rates=PassRates(
        rows=torch.tensor([[0.0, 0.25, 0.5]] * 3 + [[0.5, 0.75, 1.0]] * 2, dtype=torch.float64),
        reliable=torch.tensor([[0.5, 0.75, 1.0]], dtype=torch.float64),
    ),
)

BY_HAND: dict[str, tuple[Experience, list[float], list[list[float]]]] = {
    "tempo": (BATCH, [0.75, 0.6, 0.4, 0.9, 0.2], [[0.5, 0.25], [0.5, 0.3], [0.2], [0.4, 0.1], [-0.2, 0.1]]),
    "frozen_critic": (BATCH, [0.75, 0.6, 0.4, 0.9, 0.2], [[0.5, 0.25], [0.5, 0.3], [0.2], [0.4, 0.1], [-0.2, 0.1]]),
    "tempo_reference_code": (
        MIXED,
        [0.75, 0.6, 0.4, -1.0, 1.0],
        [[0.5, 0.25], [0.5, 0.3], [0.2], [-1.5, -1.8], [0.6, 0.9]],
    ),
    # gamma 0.9, gae_lambda 0.5. Row 0: deltas 0.9 * 0.5 - 0.25 = 0.2 and 1 - 0.5; 0.2 + 0.45 * 0.5 = 0.425.
    "ppo": (VERIFIED, [1, 0, 1, 0, 1], [[0.425, 0.5], [0.035, -0.3], [0.8], [-0.14, -0.8], [0.095, 0.9]]),
    "grpo": (VERIFIED, [1, 0, 1, 0, 1], [[S, S], [-2 * S, -2 * S], [S], [-H, -H], [H, H]]),
    "ttrl": (BATCH, [1, 1, 0, 1, 0], [[S, S], [S, S], [-2 * S], [H, H], [-H, -H]]),
    "empo": (BATCH, [2 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2], [[S, S], [S, S], [-2 * S], [0, 0], [0, 0]]),
    # 6/16 + 0.1 * 0.2, positive. 1/16 - 1/8 - 0.1 * 0.5, negative. 0.1 * 0.3, rare but sure. No label. No answer.
    "scrl": (
        CONTESTED,
        [0.395, -0.1125, 0.03, 0, -1],
        [[C1, C1], [C2, C2], [C3], [H, H], [-H, -H]],
    ),
    "trapo": (HALF_LABELED, [1, 1, 0, 0, 1], [[S, S], [S, S], [-2 * S], [-H, -H], [H, H]]),
    # Means over tokens 3, 1, 3 and 1.5, 1.5.
    "intuitor.Intuitor": (BATCH, [3, 1, 3, 1.5, 1.5], [[S, S], [-2 * S, -2 * S], [S], [0, 0], [0, 0]]),
}


def ragged(advantages: Tensor, mask: Tensor) -> list[list[float]]:
    """Returns each row's values inside the mask."""
    return [row[row_mask].tolist() for row, row_mask in zip(advantages, mask, strict=True)]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


def test_every_method_has_numbers_computed_by_hand() -> None:
    """No method can be added without them."""
    assert METHODS.keys() < BY_HAND.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_rewards_and_advantages_equal_those_computed_by_hand(name: str) -> None:
    """Protects value, group, baseline and sign of each method."""
    experience, rewards, advantages = BY_HAND[name]
    tested = method(name)
    settings = PolicyConfig(gamma=0.9, gae_lambda=0.5)
    actual_rewards = tested.rewards(experience, settings)
    actual_advantages = tested.advantages(experience, actual_rewards, settings)
    assert actual_rewards.tolist() == pytest.approx(rewards)
    for actual, expected in zip(ragged(actual_advantages, experience.response_mask), advantages, strict=True):
        assert actual == pytest.approx(expected, abs=1e-5)
    assert actual_advantages[~experience.response_mask].abs().sum() == 0


@pytest.mark.parametrize("name", BY_HAND)
def test_a_method_reads_no_truth_of_unlabeled_rows(name: str) -> None:
    """Unlabeled rows have NaN as correctness, so a method that reads it would return NaN."""
    experience = BY_HAND[name][0]
    tested = method(name)
    rewards = tested.rewards(experience, PolicyConfig())
    assert not rewards.isnan().any()
    assert not tested.advantages(experience, rewards, PolicyConfig()).isnan().any()


class Undeclared(Grpo):
    """Reads the correctness of rows without naming it in `needs`."""

    needs = frozenset()


class Uncounted(Grpo):
    """Asks for pass rates without the votes that they are counted from."""

    needs = frozenset({"pass_rates"})


class Greedy(Tempo):
    """Reads values without naming them in `needs`."""

    needs = frozenset()


class SelfTaught(Method):
    """Rewards a response by the critic's value at position 2."""

    settings: ClassVar = {"critic.training": "calibrated", "policy.learns_from": "unlabeled"}
    needs = frozenset({"values"})

    def rewards(self, experience: Experience, settings: object) -> Tensor:
        return experience.needed_values()[:, 2]

    def advantages(self, experience: Experience, rewards: Tensor, settings: object) -> Tensor:
        return value_baseline_advantages(rewards, experience.needed_values(), experience.response_mask)


class Certain(SelfTaught):
    """Rewards certainty, and uses the critic's values as a baseline alone."""

    needs = frozenset({"values", "self_certainty"})

    def rewards(self, experience: Experience, settings: object) -> Tensor:
        return experience.statistics["self_certainty"].mean(1)


@pytest.mark.parametrize(
    ("method_class", "overrides", "message"),
    [
        (Undeclared, ["policy.learns_from=unlabeled"], "makes rewards or advantages that are not finite"),
        (Undeclared, ["policy.learns_from=labeled"], ""),
        (Greedy, [], "fails on a few synthetic rows (unlabeled): ValueError: this method reads values"),
        (Uncounted, ["policy.learns_from=both"], "needs pass_rates, which are counted from votes"),
        (SelfTaught, ["critic.training=returns"], "would teach it its own verdict"),
        (SelfTaught, [], ""),
        (Certain, ["critic.training=returns"], ""),
    ],
)
def test_a_users_own_method_gets_a_dry_run_at_start(
    method_class: type[Method], overrides: list[str], message: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN would end a run after its first generation, and a critic that learns its own values would seem to learn."""
    monkeypatch.setitem(METHODS, "own", method_class)
    problems = recipe_problems(load_config(recipe, ["method=own", *overrides]))
    assert any(message in line for line in problems) if message else problems == [], problems


def test_missing_needs_of_a_method_are_an_error() -> None:
    """The error names `needs`."""
    for name, bare in (("tempo", replace(BATCH, values=None)), ("ttrl", replace(BATCH, votes=None))):
        with pytest.raises(ValueError, match="needs"):
            method(name).rewards(bare, PolicyConfig())
    with pytest.raises(ValueError, match="needs"):
        method("trapo").learning_rows(BATCH, PolicyConfig())


@pytest.mark.parametrize("name", METHODS)
def test_only_trapo_selects_rows(name: str) -> None:
    """All rows of a batch train. TraPO leaves unlabeled rows out while they have fewer pass rates than a warm-up."""
    learning = method(name).learning_rows(HALF_LABELED, PolicyConfig())
    assert learning.tolist() == ([False] * 3 if name == "trapo" else [True] * 3) + [True] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("temppo", "no method; known: tempo"),
        ("no_package.Method", "cannot be imported"),
        ("math.sqrt", "is no method"),
    ],
)
def test_a_name_that_is_no_method_is_refused(name: str, message: str) -> None:
    """Misspelled, missing, or not a class of methods."""
    with pytest.raises(ValueError, match=message):
        method(name)


def resolved(tmp_path: Path, *overrides: str, text: str = "{}") -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def test_a_method_brings_its_settings_and_the_recipe_has_the_last_word(tmp_path: Path) -> None:
    """One key selects a method, and each of its settings can be overridden."""
    config = resolved(tmp_path, "method=tempo_reference_code")
    assert config.policy.learns_from is LearnsFrom.both and config.policy.whiten_advantages
    assert config.critic.target_range is TargetRange.minus_one_one
    assert config.loop.order is Order.values_first and config.loop.drop_uniform_prompts
    config = resolved(tmp_path, "method=tempo_reference_code", text="policy: {whiten_advantages: false}")
    assert not config.policy.whiten_advantages and config.policy.learns_from is LearnsFrom.both
    assert resolved(tmp_path, text="method: grpo").critic.training is CriticTraining.none
    assert resolved(tmp_path, "method=tempo", text="method: grpo").critic.training is CriticTraining.calibrated


def test_settings_that_a_method_brings_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key in a method is an error, like one in a recipe."""

    class Wrong(Method):
        settings = {"policy.whiten_advantage": True}  # noqa: RUF012

    monkeypatch.setitem(METHODS, "wrong", Wrong)
    with pytest.raises(
        ValueError, match=r"method wrong: policy.whiten_advantage: unknown setting; did you mean 'whiten_advantages'"
    ):
        resolved(tmp_path, "method=wrong")
