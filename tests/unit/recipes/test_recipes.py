"""The recipes of the paper's rows can start if their files and GPUs are there, and have the paper's settings."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from checkpoints_convert.__main__ import main
from tempo_megatron.config import Config, ConfigError, CriticTraining, DataConfig, LearnsFrom, load_config
from tempo_megatron.data.prepare.catalog import SOURCES
from tempo_megatron.data.questions import Questions, read_questions
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.validation import recipe
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import write_model

RECIPES = Path(__file__).parents[3] / "recipes"
MODELS = {"qwen3_8b": "qwen3", "qwen3_14b": "qwen3", "olmo3_7b": "olmo-3"}
OWN_CODE = {"ttrl, own": "ttrl", "empo, own": "empo", "tempo_reference_code": "tempo_reference_code"}
"""The rows that have a file in recipes/methods."""
ROWS = ("ppo", "tempo", "frozen_critic", "ttrl", "empo", *OWN_CODE)
ALL_ROWS = [(model, domain, name) for model in MODELS for domain in ("math", "general") for name in ROWS]


@functools.cache
def row(model: str, domain: str, name: str) -> Config:
    if name in OWN_CODE:
        size = "_14b" if (name, model) == ("tempo_reference_code", "qwen3_14b") else ""
        override = str(RECIPES / "methods" / f"{OWN_CODE[name]}{size}.yaml")
    else:
        override = f"method={name}"
    return load_config(RECIPES / f"{model}_{domain}{'_rlvr' if name == 'ppo' else ''}.yaml", [override])


_questions: dict[tuple[str, str], Questions] = {}


def read_once(config: DataConfig, tokenizer: Any, learned: frozenset[str]) -> Questions:
    """Return what `read_questions` returns. The rows of a model and a domain read the same files."""
    assert not learned
    key = (repr(config), tokenizer.name_or_path)
    if key not in _questions:
        _questions[key] = read_questions(config, tokenizer)
    return _questions[key]


@pytest.fixture(scope="module")
def recipe_inputs(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model of each family and a file for each data source of the recipes."""
    directory = tmp_path_factory.mktemp("inputs")
    for model, family in MODELS.items():
        hf_path = directory / row(model, "math", "tempo").model.hf_path
        write_model(
            family, hf_path, num_attention_heads=8, num_key_value_heads=4, head_dim=8, max_position_embeddings=32768
        )
        for file in demo_model.glob("tokenizer*"):
            shutil.copy(file, hf_path)
        tokenizer = AutoTokenizer.from_pretrained(hf_path)
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
        tokenizer.save_pretrained(hf_path)
        for domain in ("math", "general"):
            config = row(model, domain, "tempo")
            for role, start in (("policy", config.policy.checkpoint), ("critic", config.critic.checkpoint)):
                converted = directory / f"{model}-{role}"
                if not converted.exists():
                    arguments = ["--hf", str(hf_path), "--out", str(converted), "--role", role]
                    assert main(["to-megatron", *arguments]) == 0
                best = directory / start
                shutil.copytree(converted, best, dirs_exist_ok=True)
                integrity.write_manifest(best, integrity.checksum_files(best, integrity.list_files(best)))
            data = config.data
            for source in (*data.labeled, *data.unlabeled, *data.held_out):
                path = directory / source.path
                path.parent.mkdir(exist_ok=True)
                texts = [{"prompt": f"{path.stem} {number}", "answer": "1", "grader": "math"} for number in range(300)]
                path.write_text("\n".join(map(json.dumps, texts)))
    return directory


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_every_row_of_the_tables_can_start(
    model: str, domain: str, name: str, recipe_inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, layout, data, method, schedule and starting checkpoints fit together. Only the GPU is missing here.

    The authors' code has its own critic targets, and starts from the same RLVR run.
    """
    monkeypatch.chdir(recipe_inputs)
    monkeypatch.setenv("TEMPO_CHECKED", "1")  # skips grading the invented labels, whose workers take a second to start
    monkeypatch.setattr(recipe, "read_questions", read_once)
    config = row(model, domain, name)
    assert recipe_problems(config) == ["model.precision: bf16 needs a GPU; this machine has none, use fp32"]
    assert config.run_dir == f"runs/{model}_{domain}_{'rlvr' if name == 'ppo' else OWN_CODE.get(name, name)}"


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_recipes_name_data_that_can_be_prepared(model: str, domain: str, name: str) -> None:
    """`tempo data prepare NAME` writes data/NAME.jsonl."""
    data = row(model, domain, name).data
    paths = [Path(source.path) for source in (*data.labeled, *data.unlabeled, *data.held_out)]
    assert paths and all(path.parent == Path("data") and path.stem in SOURCES for path in paths)


# The expected settings, from the paper (arXiv 2604.19295) or, where it says nothing, from the authors' code.
BATCH = {"olmo3_7b": (256, 64), "qwen3_8b": (256, 64), "qwen3_14b": (128, 32)}
"""The prompts of a batch and of a mini-batch."""
ITERATIONS = {"olmo3_7b": 256, "qwen3_8b": 256, "qwen3_14b": 224}
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
OWN_BATCH = {"ttrl, own": (8, 1), "empo, own": (256, 32)}
EVALUATION = {"math": (16, 8), "general": (1, 1)}
"""The responses per question during a run, and k. `tempo eval` samples 8 for GPQA-Diamond."""


@pytest.mark.parametrize(("model", "domain", "name"), ALL_ROWS)
def test_the_settings_are_those_of_the_paper(model: str, domain: str, name: str) -> None:
    """Every row has the settings of the tables above."""
    config = OmegaConf.structured(row(model, domain, name))
    expected = {**COMMON_SETTINGS, "loop.iterations": ITERATIONS[model], **SETTINGS[name]}
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
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
