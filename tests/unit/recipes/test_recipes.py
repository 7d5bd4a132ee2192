"""The recipes of the paper's rows have the paper's settings."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.config import ConfigError, CriticTraining, LearnsFrom, load_config
from tempo_megatron.data.prepare.catalog import SOURCES
from tests.unit.recipes.rows import ALL_ROWS, row


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_recipes_name_data_that_can_be_prepared(model: str, domain: str, name: str) -> None:
    """`tempo data prepare NAME` writes data/NAME.jsonl."""
    data = row(model, domain, name).data
    paths = [Path(source.path) for source in (*data.labeled, *data.unlabeled, *data.held_out)]
    assert paths and all(path.parent == Path("data") and path.stem in SOURCES for path in paths)


# The expected settings, from the paper (arXiv 2604.19295) or, where it says nothing, from the authors' code.
BATCH = {"olmo3_7b": (256, 64), "qwen3_8b": (256, 64), "qwen3_14b": (128, 32), "qwen3_30b_a3b": (256, 64)}
"""The prompts of a batch and of a mini-batch."""
ITERATIONS = {"olmo3_7b": 256, "qwen3_8b": 256, "qwen3_14b": 224, "qwen3_30b_a3b": 256}
COMMON_SETTINGS: dict[str, Any] = {
    "data.max_prompt_tokens": 2048,
    "generation.max_response_tokens": 16384,
    "generation.temperature": 1.0,
    "generation.top_p": 1.0,
    "loop.samples_per_prompt": 8,
    "loop.m_steps": 1,
    "loop.e_steps": 1,
    "loop.e_step_interval": 1,
    "policy.epochs": 1,
    "policy.optimizer.learning_rate": 1e-6,
    "policy.optimizer.schedule": "constant",
    "policy.optimizer.warmup_steps": 0,
    "policy.optimizer.weight_decay": 0.0,
    "policy.optimizer.gradient_clip": 1.0,
    "policy.entropy_coefficient": 0.0,
    "policy.kl_coefficient": 0.0,
    "evaluation.temperature": 1.0,
    "evaluation.top_p": 1.0,
}
TEMPO: dict[str, Any] = {
    "policy.loss": "gspo",
    "policy.clip_range_low": 3e-4,
    "policy.clip_range_high": 5e-4,
    "policy.average_over": "sequences",
    "policy.learns_from": "unlabeled",
    "policy.whiten_advantages": False,
    "critic.training": "calibrated",
    "critic.target_range": "zero_one",
    "critic.epochs": 1,
    "critic.optimizer.learning_rate": 1e-6,
    "critic.optimizer.warmup_steps": 0,
}
VOTES: dict[str, Any] = {"critic.training": "none", "policy.learns_from": "unlabeled"}
SETTINGS: dict[str, dict[str, Any]] = {
    # The critic's settings are those of the older init script, whose 50 warm-up steps are batches.
    "ppo": {
        "policy.learns_from": "labeled",
        "critic.training": "returns",
        "critic.optimizer.learning_rate": 5e-6,
        "critic.optimizer.warmup_steps": 50,
        "critic.optimizer.schedule_unit": "batch",
        "policy.gae_lambda": 1.0,
    },
    "tempo": TEMPO,
    "frozen_critic": {**TEMPO, "critic.training": "frozen"},
    "tempo_reference_code": {
        **TEMPO,
        "policy.learns_from": "both",
        "policy.whiten_advantages": True,
        "critic.target_range": "minus_one_one",
        "loop.order": "values_first",
        "loop.drop_uniform_prompts": True,
        "loop.refill_tries": 10,
    },
    # The paper does not give the settings of these rows.
    "ttrl": {**VOTES, "policy.kl_coefficient": 0.001, "loop.votes_per_prompt": 0},
    "empo": VOTES,
    # The settings of their own code.
    "ttrl, own": {
        **VOTES,
        "loop.iterations": 1600,
        "loop.votes_per_prompt": 64,
        "loop.samples_per_prompt": 32,
        "policy.loss": "ppo",
        "policy.clip_range_low": 0.2,
        "policy.clip_range_high": 0.2,
        "policy.average_over": "tokens",
        "policy.kl_coefficient": 0.001,
        "policy.optimizer.learning_rate": 5e-7,
        "policy.optimizer.schedule": "cosine",
        "policy.optimizer.schedule_unit": "batch",
        "policy.optimizer.warmup_share": 0.03,
        "policy.optimizer.decay_steps": 1600,
        "policy.optimizer.minimum_learning_rate": 0.0,
        "evaluation.temperature": 0.6,
        "evaluation.top_p": 0.95,
    },
    "empo, own": {
        **VOTES,
        "loop.samples_per_prompt": 16,
        "policy.loss": "gspo",
        "policy.clip_range_low": 3e-4,
        "policy.clip_range_high": 4e-4,
        "policy.average_over": "sequences",
        "policy.optimizer.learning_rate": 5e-7,
        "evaluation.top_p": 0.95,
    },
}
SETTINGS["scrl, own"] = {
    **SETTINGS["ttrl, own"],
    "loop.votes_per_prompt": 32,
    "loop.samples_per_prompt": 16,
    "generation.temperature": 0.6,
    "policy.scrl.positive_share": 0.375,
    "policy.scrl.margin": 0.125,
    "policy.scrl.negative_share": 0.125,
    "policy.scrl.entropy_penalty": 0.1,
}
SETTINGS["trapo, own"] = {
    "loop.iterations": 480,
    "loop.labeled_prompts": 32,
    "critic.training": "none",
    "policy.learns_from": "both",
    "policy.loss": "ppo",
    "policy.average_over": "tokens",
    "policy.entropy_coefficient": 0.01,
    "policy.trapo.warm_up_passes": 8,
    "policy.trapo.top_share": 0.1,
    "policy.trapo.similarity": 0.4,
    "evaluation.temperature": 0.6,
}
OWN_BATCH = {"ttrl, own": (8, 1), "empo, own": (256, 32), "scrl, own": (8, 1), "trapo, own": (128, 64)}
EVALUATION = {"math": (16, 8), "general": (1, 1)}
"""The responses per question during a run, and k. `tempo eval` samples 8 for GPQA-Diamond."""


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_the_settings_are_those_of_the_paper(model: str, domain: str, name: str) -> None:
    """Every row has the settings of the tables above."""
    config = row(model, domain, name)
    expected = {**COMMON_SETTINGS, "loop.iterations": ITERATIONS[model], **SETTINGS[name]}
    assert {key: attrgetter(key)(config) for key in expected} == expected
    assert (config.evaluation.samples, config.evaluation.k) == EVALUATION[domain]


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_policy_and_critic_train_on_the_papers_batch(model: str, domain: str, name: str) -> None:
    """The critic's E-step takes as many prompts as a policy step. If one mixed batch trains both, the critic takes its
    labeled half."""
    config = row(model, domain, name)
    loop, source = config.loop, config.policy.learns_from
    prompts = {"labeled": loop.labeled_prompts, "unlabeled": loop.unlabeled_prompts}
    learned = sum(prompts.values()) if source is LearnsFrom.both else prompts[source]
    expected = OWN_BATCH.get(name, BATCH[model])
    assert (learned, learned / config.policy.mini_batches) == expected
    if config.critic.training in (CriticTraining.calibrated, CriticTraining.returns):
        share = 2 if source is LearnsFrom.both else 1
        critic_batch = loop.labeled_prompts, loop.labeled_prompts / config.critic.mini_batches
        assert critic_batch == (expected[0] / share, expected[1] / share)


def test_each_run_starts_from_the_rlvr_run_of_its_model_and_domain() -> None:
    """Policy and critic start from one checkpoint, which RLVR chooses by labeled accuracy."""
    for model, domain, name in ALL_ROWS:
        config = row(model, domain, name)
        if name == "ppo":
            assert config.policy.checkpoint == config.critic.checkpoint == "" and config.checkpoint.select_best
            continue
        rlvr = row(model, domain, "ppo").run_dir
        assert config.policy.checkpoint == config.critic.checkpoint == f"{rlvr}/checkpoints/best"


def test_a_recipe_overrides_the_files_that_it_includes(tmp_path: Path) -> None:
    """Later includes override earlier ones, the recipe overrides both, and paths are relative to the file."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.yaml").write_text("seed: 1\nloop: {iterations: 5, e_steps: 2}")
    (tmp_path / "parts" / "b.yaml").write_text("include: [a.yaml]\nloop: {iterations: 6}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("include: [parts/b.yaml]\nrun_dir: runs/${method}\nseed: 3")
    config = load_config(recipe, ["method=grpo"])
    assert (config.seed, config.loop.iterations, config.loop.e_steps) == (3, 6, 2)
    assert config.run_dir == "runs/grpo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [recipe.yaml]", "includes itself"),
        ("include: [gone.yaml]", "gone.yaml: no such recipe file, included by"),
        ("include: bad.yaml", "include: expected a list of files"),
        ("include: [bad.yaml]", "bad.yaml: loop.iteratons: unknown setting; did you mean 'iterations'"),
        ("run_dir: ${nowhere}", "nowhere"),
    ],
)
def test_a_wrong_include_is_named(text: str, message: str, tmp_path: Path) -> None:
    """The message names the file with the include."""
    (tmp_path / "bad.yaml").write_text("loop: {iteratons: 3}")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "recipe.yaml")
