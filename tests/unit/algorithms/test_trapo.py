"""TraPO's similarities and selection, in float64 against closed forms and a loop over questions."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience, PassRates
from tempo_megatron.algorithms.methods.trapo import Trapo, select_questions, similarities
from tempo_megatron.config import Comparison, PolicyConfig, TrapoConfig

NAN = float("nan")
CENTERED = TrapoConfig(warm_up_passes=2)
MEAN = TrapoConfig(warm_up_passes=2, comparison=Comparison.mean)


def rates(*questions: list[float], width: int = 0) -> Tensor:
    width = max([width, *map(len, questions)])
    padded = [[*question, *[NAN] * (width - len(question))] for question in questions]
    return torch.tensor(padded, dtype=torch.float64)


def test_centered_similarity_is_the_mean_correlation() -> None:
    """With Python's own correlation, question by question."""
    generator = torch.Generator().manual_seed(0)
    questions, reliable = torch.rand(2, 5, 9, generator=generator, dtype=torch.float64)
    expected = [
        statistics.fmean(statistics.correlation(question, other) for other in reliable.tolist())
        for question in questions.tolist()
    ]
    assert similarities(questions, reliable, CENTERED).tolist() == pytest.approx(expected, abs=1e-12)


def test_mean_similarity_is_the_cosine_with_the_mean_trajectory() -> None:
    """The mean of (0, 1) and (1, 1) is (0.5, 1), of length sqrt(1.25)."""
    scores = similarities(rates([1.0, 0.0], [0.5, 0.5], [0.25, 0.5], [0.0, 0.0]), rates([0.0, 1.0], [1.0, 1.0]), MEAN)
    length = math.sqrt(1.25)
    assert scores.tolist() == pytest.approx([0.5 / length, 0.75 / length / math.sqrt(0.5), 1.0, 0.0], abs=1e-15)


def test_the_formulas_disagree_about_a_falling_question() -> None:
    """Rates fall from 1 to 0.5 while reliable ones rise. The correlation is -1. The cosine of rates that are never
    negative is 0.8, above the threshold: the literal form selects nearly everything."""
    falling, rising = rates([1.0, 0.5]), rates([0.5, 1.0])
    assert similarities(falling, rising, CENTERED).item() == pytest.approx(-1)
    assert similarities(falling, rising, MEAN).item() == pytest.approx(0.8)
    settings = replace(CENTERED, top_share=0.0)
    assert not select_questions(falling, rising, settings).any()
    assert select_questions(falling, rising, replace(settings, comparison=Comparison.mean)).all()


@pytest.mark.parametrize("constant", [0.0, 0.5, 1 / 3, 0.1])
def test_a_constant_question_resembles_nothing(constant: float) -> None:
    """Nine times 1/3 has a mean that is off by rounding. Scaled to length 1, that rounding would be a trajectory."""
    rising = rates([number / 8 for number in range(9)])
    assert similarities(rates([constant] * 9), rising, CENTERED).tolist() == [0.0]
    assert similarities(rising, rates([constant] * 9), CENTERED).tolist() == [0.0]


def test_the_pass_rates_that_all_have_are_compared() -> None:
    """The first question has two, the second four, and the shortest reliable one three. The rest is not read."""
    reliable = rates([0.0, 1.0, 0.5], [0.0, 0.5, 0.0, 1.0])
    scores = similarities(rates([0.0, 1.0], [0.0, 1.0, 0.5, 0.0]), reliable, CENTERED)
    correlations = [1.0, statistics.correlation([0.0, 1.0, 0.5], [0.0, 0.5, 0.0])]
    assert scores.tolist() == pytest.approx([1.0, statistics.fmean(correlations)])


def test_nothing_is_compared_in_the_warm_up() -> None:
    """Neither a question with too few pass rates, nor any while a reliable one has too few, or there is none."""
    settings = TrapoConfig(warm_up_passes=3)
    short, long = rates([0.0, 1.0], width=3), rates([0.0, 0.5, 1.0])
    both = rates([0.0, 1.0], [0.0, 0.5, 1.0])
    assert similarities(both, long, settings).isnan().tolist() == [True, False]
    assert similarities(both, short, settings).isnan().all()
    assert similarities(both, long[:0], settings).isnan().all()
    assert select_questions(both, long, settings).tolist() == [False, True]
    assert not select_questions(both, short, settings).any()


@pytest.mark.parametrize(
    ("top_share", "similarity", "selected"),
    [
        (0.0, 0.5, [False, False, True, False]),
        (0.1, 2.0, [False, False, True, False]),  # a tenth of four questions is at least one
        (0.5, 2.0, [True, False, True, False]),  # the first of two equal similarities
        (0.5, 0.0, [True, True, True, False]),
        (0.0, 2.0, [False] * 4),
        (1.0, 2.0, [True] * 4),
    ],
)
def test_the_most_similar_and_all_above_the_threshold_are_selected(
    top_share: float, similarity: float, selected: list[bool]
) -> None:
    """Similarities are 0, 0, 1 and -1. Both rules count: either one selects a question."""
    questions = rates([0.5, 0.5], [0.25, 0.25], [0.0, 0.5], [0.5, 0.25])
    settings = replace(CENTERED, top_share=top_share, similarity=similarity)
    assert select_questions(questions, rates([0.5, 1.0]), settings).tolist() == selected


def test_all_rows_of_a_selected_question_learn_and_all_labeled_rows() -> None:
    """Rows of prompts alternate. Question 7 rises as the reliable one does, question 3 falls, question 5 is labeled."""
    prompts = [3, 7, 5, 7, 3, 5]
    by_prompt = {3: [1.0, 0.0], 7: [0.0, 1.0], 5: [1.0, 0.0]}
    labeled = torch.tensor([prompt == 5 for prompt in prompts])
    experience = Experience(
        response_mask=torch.ones(6, 2).bool(),
        truncated=torch.zeros(6).bool(),
        prompts=torch.tensor(prompts),
        labeled=labeled,
        correct=torch.where(labeled, 1.0, NAN),
        pass_rates=PassRates(rates(*(by_prompt[prompt] for prompt in prompts)), rates([0.25, 0.5])),
    )
    learning = Trapo().learning_rows(experience, PolicyConfig(trapo=CENTERED))
    assert learning.tolist() == [prompt != 3 for prompt in prompts]
