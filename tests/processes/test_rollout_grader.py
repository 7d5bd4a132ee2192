"""`RolloutGrader`: grades are 0 or 1 whatever a grader does, and clusters depend only on responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tempo_megatron.config import ClusterBy, GradingConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import RolloutGrader, pool
from tempo_megatron.grading.graders import grader_functions
from tempo_megatron.grading.rollout_grader import grading_problems
from tests.clock import ProcessorTime

GRADERS = "tests.fixtures.grading.user_graders"


def respond(text: str, grader: str, finish_reason: str = "stop", prompt: str = "p") -> Rollout:
    ids = tuple(map(ord, text))
    return Rollout(Prompt(prompt, (1,), "here", grader), 0, ids, (0.0,) * len(ids), finish_reason)


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def shared_grader() -> Iterator[RolloutGrader]:
    """Yields a grader whose worker loads SymPy once for all tests that only read grades."""
    with RolloutGrader(decode, GradingConfig(workers=1)) as grader:
        yield grader


def test_a_cut_response_is_wrong_even_when_its_text_is_right(shared_grader: RolloutGrader) -> None:
    """A policy must get no reward for a response that reaches the token limit."""
    graded = shared_grader.grade([respond("42", "exact"), respond("42", "exact", "length")], {"p": {"answer": "42"}})
    assert graded == [1.0, 0.0]


def test_mathematics_is_compared_by_value(shared_grader: RolloutGrader) -> None:
    """`math` accepts equal values in other forms."""
    answers = {"p": {"answer": "$\\frac{1}{2}$"}}
    assert shared_grader.grade([respond("$0.5$", "math"), respond("$2$", "math")], answers) == [1.0, 0.0]


def test_a_reasoning_gym_task_is_graded_by_its_own_scorer(shared_grader: RolloutGrader) -> None:
    """The demo's reward depends on it."""
    import reasoning_gym

    entry = reasoning_gym.create_dataset("spell_backward", seed=1, size=1)[0]
    name = "reasoning_gym:spell_backward"
    graded = shared_grader.grade([respond(entry["answer"], name), respond("no", name)], {"p": entry})
    assert graded == [1.0, 0.0]


def test_letters_behind_the_right_word_make_it_wrong() -> None:
    """The task's scorer sums 1 / 6 for each of six right letters to nearly 1, and does not look behind the word."""
    grade = grader_functions("reasoning_gym:spell_backward").grade
    assert grade is not None
    for length in range(2, 20):
        word = "kahcapylsuoegnevabc"[:length]
        assert grade(word, {"answer": word}) and not grade(f"{word}n", {"answer": word}), word


def test_a_worker_imports_neither_torch_nor_the_trainer(shared_grader: RolloutGrader) -> None:
    """A worker needs 0.1 GiB, and 0.5 GiB with torch. Imports also take seconds when a worker is replaced."""
    shared_grader.grade([respond("1", "math")], {"p": {"answer": "1"}})
    assert shared_grader.grade([respond("", f"{GRADERS}.without_the_trainer")], {"p": {"answer": ""}}) == [1.0]


def test_graders_that_raise_or_die_give_zero_and_are_counted() -> None:
    """One response must not end a run of days, stay unnoticed, or change the grades of others."""
    names = ["starts_with", "raises", "starts_with", "dies", "starts_with", "raises", "starts_with"]
    rollouts = [respond("yes", f"{GRADERS}.{name}") for name in names]
    with RolloutGrader(decode, GradingConfig(workers=1)) as grader:
        assert grader.grade(rollouts, {"p": {"answer": "y"}}) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
        assert (grader.errors, grader.timeouts) == (3, 0)


def test_grades_do_not_depend_on_the_number_of_workers() -> None:
    """The same responses get the same grades, in their order, however workers share them."""
    texts = {
        "exact": ["ab", "b"],
        "choice": ["(A)", "B"],
        "free": ["yes", "ab."],
        f"{GRADERS}.starts_with": ["abc", "x"],
    }
    rollouts = [respond(text, name) for name, both in texts.items() for text in both] * 3
    rollouts.insert(5, respond("", f"{GRADERS}.raises"))
    outcomes = []
    for workers in (1, 2, 4):
        with RolloutGrader(decode, GradingConfig(workers=workers)) as grader:
            answers = {"p": {"answer": "a"}}
            grades, reversed_grades = grader.grade(rollouts, answers), grader.grade(rollouts[::-1], answers)[::-1]
            outcomes.append((grades, reversed_grades, grader.errors))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0] == outcomes[0][1]
    assert sum(outcomes[0][0]) == 6  # "(A)" and "abc", three times each


def test_extract_returns_the_final_answer_in_canonical_form(shared_grader: RolloutGrader) -> None:
    """Majority votes count these texts."""
    rollouts = [
        respond("so \\boxed{\\frac12}", "math"),
        respond("so x = 7", "math"),
        respond("so \\boxed{7}", "math", "length"),
        respond("nothing", "math"),
        respond("Answer: (b)", "choice"),
        respond(" as is ", "exact"),
        respond("<answer> 12 </answer> done", "reasoning_gym:spell_backward"),
        respond(" olleh ", "reasoning_gym:spell_backward"),
    ]
    assert shared_grader.extract(rollouts) == ["\\frac{1}{2}", "x=7", "", "", "B", "as is", "12", "olleh"]


def test_clusters_are_of_equivalent_answers_to_one_prompt(shared_grader: RolloutGrader) -> None:
    """TTRL's vote and EMPO's reward need it. Equal values join; other prompts and missing answers do not."""
    rollouts = [
        respond("\\boxed{\\frac{1}{2}}", "math"),
        respond("\\boxed{3}", "math"),
        respond("\\boxed{0.5}", "math", prompt="q"),
        respond("no answer", "math"),
        respond("\\boxed{0.5}", "math"),
        respond("\\boxed{0.5}", "math", "length"),
        respond("no answer", "math"),
        respond("I say \\boxed{3.0}", "math"),
        respond("\\boxed{2/4}", "math", prompt="q"),
    ]
    assert shared_grader.cluster(rollouts) == [0, 1, 2, 3, 0, 4, 5, 1, 2]


def test_a_group_that_exceeds_its_time_limit_is_clustered_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless sum costs only its own group the comparison by value."""
    monkeypatch.setattr(pool, "time", ProcessorTime(1))
    endless = "\\sum_{n=1}^{10^{12}} \\frac{1}{n^{1.5}}"
    texts = [f"\\boxed{{{answer}}}" for answer in (endless, "\\frac12", "0.5", "\\frac12")]
    rollouts = [respond(text, "math") for text in texts]
    other_group = [respond(text, "math", prompt="q") for text in texts[1:]]
    with RolloutGrader(decode, GradingConfig(workers=1, group_time_limit_seconds=1)) as grader:
        assert grader.cluster(rollouts + other_group) == [0, 1, 2, 1, 3, 3, 3]
        assert grader.timeouts == 1


def test_unknown_graders_raise_at_the_start() -> None:
    """A run must not fail after its first generation because it cannot grade."""
    for name in (
        "maths",
        "no_such_package.grader",
        f"{GRADERS}.missing",
        f"{GRADERS}.not_a_function",
        "reasoning_gym:no",
    ):
        with pytest.raises(ValueError, match=name.rpartition(":")[2]):
            grader_functions(name)
    assert grader_functions(f"{GRADERS}.starts_with").grade is not None


def test_all_invalid_settings_are_listed() -> None:
    """Each problem names its key. A judge without an address is one of them."""
    config = GradingConfig(cluster_by=ClusterBy.judge)
    problems = "\n".join(grading_problems(config, {"exact": "data.jsonl, line 1", "maths": "data.jsonl, line 7"}))
    assert all(key in problems for key in ("grading.judge_url", "grading.judge_model", "line 7: unknown"))
    assert grading_problems(GradingConfig(), {"exact": "", "free": ""}) == []
