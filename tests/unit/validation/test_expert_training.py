"""What training with experts and their generator cannot do is refused at start."""

from __future__ import annotations

import shutil
from pathlib import Path

from tempo_megatron.config import load_config
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import write_model

REPLAY = "policy.router_replay=generator"


def problems_of(model: str, directory: Path, tokenizer: Path, recipe: Path, *overrides: str) -> list[str]:
    """Returns the problems of a recipe in one process, with a model of `tests.models`."""
    write_model(model, directory)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, directory)
    one_process = ("parallel.processes_per_node=1", "parallel.tensor_model_parallel_size=1")
    return recipe_problems(load_config(recipe, [f"model.hf_path={directory}", *one_process, *overrides]))


def test_router_replay_is_refused_where_responses_may_pause(tmp_path: Path, demo_model: Path, recipe: Path) -> None:
    """A checkpoint does not hold the routes of carried responses, which later M-steps would need. Routes of the old
    log-probs are as old as these."""
    arguments = ("qwen3-moe", tmp_path / "model", demo_model, recipe, REPLAY)
    assert problems_of(*arguments) == []
    problems = problems_of(*arguments, "loop.partial_rollouts=0.5")
    reason = "policy.router_replay: generator needs loop.partial_rollouts 0, got 0.5: checkpoints hold no routes"
    assert any(problem.startswith(reason) for problem in problems)
    problems = problems_of(*arguments[:-1], "policy.router_replay=old_log_probs", "loop.partial_rollouts=0.5")
    assert not any("router_replay" in problem for problem in problems)


def test_router_replay_needs_experts(recipe: Path) -> None:
    """A dense model has no routes, and its generator would return none."""
    problems = recipe_problems(load_config(recipe, [REPLAY]))
    assert problems == ["policy.router_replay: needs a model with experts; this one has none"]


def test_a_load_balancing_loss_needs_experts(recipe: Path) -> None:
    """A dense model has no router, so the setting would have no effect."""
    problems = recipe_problems(
        load_config(recipe, [f"{name}.aux_loss_coefficient=0.1" for name in ("policy", "critic")])
    )
    assert problems == [
        f"{name}.aux_loss_coefficient: needs a model with experts; this one has none" for name in ("policy", "critic")
    ]


def test_the_loss_of_a_critic_needs_a_critic(tmp_path: Path, demo_model: Path, recipe: Path) -> None:
    arguments = ("qwen3-moe", tmp_path / "model", demo_model, recipe, "critic.aux_loss_coefficient=0.1")
    assert problems_of(*arguments) == []
    reason = "critic.aux_loss_coefficient: needs a critic; critic.training is none"
    assert reason in problems_of(*arguments, "method=ttrl", "critic.training=none")


def test_replicas_of_unset_size_must_divide_the_channels_of_experts(
    tmp_path: Path, demo_model: Path, recipe: Path
) -> None:
    """Training divides no expert over tensor-parallel ranks, so only the generator would fail."""
    layout = ("parallel.processes_per_node=64", "parallel.tensor_model_parallel_size=64")
    problems = problems_of("qwen3-moe", tmp_path / "model", demo_model, recipe, *layout)
    assert any("channels of an expert" in problem for problem in problems)


def test_biases_that_the_generator_ignores_are_refused(tmp_path: Path, demo_model: Path, recipe: Path) -> None:
    """Protects from responses of a model without these biases."""
    problems = problems_of("qwen3-moe-step", tmp_path / "model", demo_model, recipe)
    assert problems == ["model.hf_path: attention_bias=True: vLLM ignores the bias of o_proj in models with experts"]
