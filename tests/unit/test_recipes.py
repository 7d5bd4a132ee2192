"""The paper's rows: every recipe's whole configuration can start where its files and GPUs are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from checkpoints_convert.__main__ import main
from tempo_megatron.config import Config, ConfigError, load
from tempo_megatron.data.prepare.catalogue import SOURCES
from tempo_megatron.megatron import manifest
from tempo_megatron.validate import problems
from tests.models import write_model

RECIPES = Path(__file__).parents[2] / "recipes"
MODELS = {"qwen3_8b": "qwen3", "qwen3_14b": "qwen3", "olmo3_7b": "olmo-3"}
ROWS = {"ppo": "_rlvr", "tempo": "", "ttrl": "", "empo": "", "frozen_critic": ""}
EVERY = [(model, domain, name) for model in MODELS for domain in ("math", "general") for name in ROWS]


def row(model: str, domain: str, name: str, *overrides: str) -> Config:
    return load(RECIPES / f"{model}_{domain}{ROWS[name]}.yaml", [f"method={name}", *overrides])


@pytest.fixture(scope="module")
def place(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the recipes name: tiny models of each family, a file for each data source."""
    directory = tmp_path_factory.mktemp("place")
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
                made = directory / f"{model}-{role}"
                if not made.exists():
                    given = ["--hf", str(hf_path), "--out", str(made), "--role", role]
                    assert main(["to-megatron", *given]) == 0
                best = directory / start
                shutil.copytree(made, best, dirs_exist_ok=True)
                manifest.write(best, manifest.describe(best, manifest.files_of(best)))
            data = config.data
            for source in (*data.labelled, *data.unlabelled, *data.held_out):
                path = directory / source.path
                path.parent.mkdir(exist_ok=True)
                texts = [{"prompt": f"{path.stem} {number}", "answer": "1", "grader": "math"} for number in range(300)]
                path.write_text("\n".join(map(json.dumps, texts)))
    return directory


@pytest.mark.parametrize(("model", "domain", "name"), EVERY)
def test_every_row_of_the_tables_can_start(
    model: str, domain: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, layout, data, method, schedule and starting checkpoints together; only the GPU is missing here."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("TEMPO_CHECKED", "1")  # the invented labels: workers that grade them take a second to start
    config = row(model, domain, name)
    assert problems(config) == ["model.precision: bf16 needs a GPU; this machine has none, use fp32"]
    assert config.run_dir == f"runs/{model}_{domain}{ROWS[name] or f'_{name}'}"
    assert config.loop.samples_per_prompt == 8 and config.generation.max_response_tokens == 16384


@pytest.mark.parametrize(("model", "domain", "name"), EVERY)
def test_recipes_name_data_that_can_be_prepared(model: str, domain: str, name: str) -> None:
    """`tempo data prepare NAME` writes data/NAME.jsonl."""
    data = row(model, domain, name).data
    paths = [Path(source.path) for source in (*data.labelled, *data.unlabelled, *data.held_out)]
    assert paths and all(path.parent == Path("data") and path.stem in SOURCES for path in paths)


def test_the_settings_are_those_of_the_paper() -> None:
    """Prompts an iteration, clip range, learning rate: 256 and four mini-batches, half of it for 14B."""
    small, large = row("qwen3_8b", "math", "tempo"), row("qwen3_14b", "math", "tempo")
    assert small.loop.labelled_prompts + small.loop.unlabelled_prompts == 256
    assert large.loop.labelled_prompts + large.loop.unlabelled_prompts == 128
    for config in (small, large):
        assert (config.policy.clip_low, config.policy.clip_high, config.policy.mini_batches) == (3e-4, 5e-4, 4)
        assert config.policy.optimizer.learning_rate == config.critic.optimizer.learning_rate == 1e-6


def test_an_included_file_is_weaker_than_the_one_that_includes_it(tmp_path: Path) -> None:
    """Composition: later includes win over earlier ones, the recipe over both, and paths are relative to the file."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.yaml").write_text("seed: 1\nloop: {iterations: 5, critic_steps: 2}")
    (tmp_path / "parts" / "b.yaml").write_text("include: [a.yaml]\nloop: {iterations: 6}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("include: [parts/b.yaml]\nrun_dir: runs/${method}\nseed: 3")
    config = load(recipe, ["method=grpo"])
    assert (config.seed, config.loop.iterations, config.loop.critic_steps) == (3, 6, 2)
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
    """With the file that says it."""
    (tmp_path / "bad.yaml").write_text("loop: {iteratons: 3}")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "recipe.yaml")
