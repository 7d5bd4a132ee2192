"""SCRL's labels and rewards, in float64 against the paper's formulas."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import group_relative_advantages
from tempo_megatron.algorithms.experience import Votes, count_votes
from tempo_megatron.algorithms.methods.scrl import excess_entropy, label_rewards
from tempo_megatron.config import ScrlConfig


def votes_on(answers: list[int | None]) -> Votes:
    """The votes of one prompt's responses; None gives no answer."""
    clusters = torch.tensor([100 + row if answer is None else answer for row, answer in enumerate(answers)])
    answered = torch.tensor([answer is not None for answer in answers])
    return count_votes(clusters, answered, torch.zeros(len(answers), dtype=torch.int64))


def rewards(answers: list[int | None], entropy: list[float], settings: ScrlConfig) -> Tensor:
    votes = votes_on(answers)
    prompts = torch.zeros(len(answers), dtype=torch.int64)
    excess = excess_entropy(torch.tensor(entropy, dtype=torch.float64), votes.answers, prompts)
    return label_rewards(votes, excess, settings)


def labels_by_definition(
    answers: list[int | None], entropy: list[float], settings: ScrlConfig
) -> list[tuple[str, float]]:
    """Label and reward by the paper's equations, answer by answer; the reward of no answer is -1."""
    counts = Counter(answer for answer in answers if answer is not None)
    shares = {answer: count / len(answers) for answer, count in counts.items()}
    ranked = [*sorted(shares.values(), reverse=True), 0.0]
    best = max(shares, key=lambda answer: shares[answer], default=None)
    is_clear = best is not None and ranked[0] >= settings.positive_share and ranked[0] - ranked[1] > settings.margin
    results = []
    for answer in answers:
        if answer is None:
            results.append(("unanswered", -1.0))
            continue
        mean = fmean(nats for nats, other in zip(entropy, answers, strict=True) if other == answer)
        label, reward = "none", 0.0
        if is_clear and answer == best:
            label, reward = "positive", shares[answer]
        elif shares[answer] < settings.negative_share and mean >= fmean(entropy):
            label, reward = "negative", shares[answer] - settings.negative_share
        results.append((label, reward - settings.entropy_penalty * (mean - fmean(entropy))))
    return results


@pytest.mark.parametrize("settings", [ScrlConfig(), ScrlConfig(0.5, 0.25, 0.2, 0.3), ScrlConfig(0.1, 0.0, 0.0, 0.0)])
def test_rewards_are_those_of_the_definition(settings: ScrlConfig) -> None:
    """On 16 responses at a time, from one clear answer to none at all. Each label occurs."""
    generator, kinds = random.Random(0), Counter[str]()
    for _ in range(60):
        choices = [*range(generator.randint(1, 12)), None]
        answers = [choices[int(len(choices) * generator.random() ** 2)] for _ in range(16)]
        entropy = [generator.random() for _ in answers]
        labels, expected = zip(*labels_by_definition(answers, entropy, settings), strict=True)
        assert rewards(answers, entropy, settings).tolist() == pytest.approx(expected, abs=1e-12)
        kinds.update(labels)
    assert kinds.keys() == {"positive", "none", "unanswered"} | ({"negative"} if settings.negative_share else set())


@pytest.mark.parametrize(
    ("answers", "positive"),
    [
        ([0, 0, 0, 1, 2, 3, 4, 5], True),  # 3/8 is the threshold itself, and the lead of 2/8 is above the margin
        ([0, 0, 0, 1, 1, 2, 3, 4], False),  # a lead of 1/8 is the margin itself
        ([0, 0, 1, 2, 3, 4, 5, 6], False),  # 2/8 is below the threshold
        ([0, 0, 0, None, None, None, None, None], True),  # missing answers are no runner-up, but votes
        ([0, 0, None, None, None, None, None, None], False),
        ([None] * 8, False),
    ],
)
def test_a_close_vote_labels_nothing(answers: list[int | None], positive: bool) -> None:
    """The bounds are those of the paper: at least `positive_share`, more than `margin`. TTRL would reward them all."""
    labeled = rewards(answers, [0.5] * 8, ScrlConfig())
    assert (labeled > 0).tolist() == [positive and answer == 0 for answer in answers]


def test_decimal_thresholds_are_met_exactly() -> None:
    """8/10 - 6/10 is above 0.2 in floating point; a lead of 2 votes of 10 is not."""
    votes = Votes(
        count=torch.tensor([8.0, 3.0]),
        total=torch.tensor([10.0, 10.0]),
        majority=torch.tensor([True, True]),
        runner_up=torch.tensor([6.0, 0.0]),
        answers=torch.tensor([0, 1]),
    )
    result = label_rewards(votes, torch.zeros(2, dtype=torch.float64), ScrlConfig(positive_share=0.3, margin=0.2))
    assert result.tolist() == [0.0, 0.3]


def test_a_rare_answer_is_negative_only_if_its_responses_are_unsure() -> None:
    """The rare answers 1 and 2 differ in entropy alone. Answer 3 has exactly the mean, which counts as unsure."""
    entropy = [0.5] * 13 + [0.25, 0.75, 0.5]
    result = rewards([0] * 13 + [1, 2, 3], entropy, ScrlConfig(entropy_penalty=0.0))
    assert result.tolist() == [13 / 16] * 13 + [0.0, 1 / 16 - 1 / 8, 1 / 16 - 1 / 8]


@pytest.mark.parametrize("entropy_penalty", [0.1, 0.001])
def test_an_undecided_vote_teaches_certainty_at_full_size(entropy_penalty: float) -> None:
    """Nothing is labeled, and the group's deviation undoes the small penalty: a nat more or less
    than the mean has an advantage of about 1, whatever the penalty. A documented weakness of the published formula."""
    answers, entropy = [0, 0, 1, 1, 2, 2], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    undecided = rewards(answers, entropy, ScrlConfig(entropy_penalty=entropy_penalty))
    group, mask = torch.zeros(6, dtype=torch.int64), torch.ones(6, 1).bool()
    advantages = group_relative_advantages(undecided.float(), group, mask, epsilon=0.0)[:, 0]
    size = (5 / 4) ** 0.5  # the deviation of the excesses is sqrt(4/5)
    assert advantages.tolist() == pytest.approx([size, size, 0, 0, -size, -size], abs=1e-5)


def test_equal_entropies_have_no_excess() -> None:
    """A sum of many equal numbers is rounded; whether a label is negative must not hang on it."""
    for entropy in torch.rand(50).double():  # float32 numbers, as the policy's scores are
        answers = torch.tensor([0] * 7 + [1] * 3 + [2])
        excess = excess_entropy(entropy.repeat(11), answers, torch.zeros(11, dtype=torch.int64))
        assert excess.tolist() == [0.0] * 11


def test_answers_of_other_prompts_do_not_count() -> None:
    """Numbers of answers compare within a prompt alone; -1, no answer, occurs in several."""
    entropy = torch.tensor([1.0, 3.0, 2.0, 6.0], dtype=torch.float64)
    excess = excess_entropy(entropy, torch.tensor([-1, 0, 0, -1]), torch.tensor([7, 7, 3, 3]))
    assert excess.tolist() == [-1.0, 1.0, -2.0, 2.0]
