"""Settings: typed, unknown keys fatal, resolved config readable."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tempo_megatron import config
from tempo_megatron.config import Config, ConfigError, Fp8, documented_keys, load_config, to_yaml
from tempo_megatron.config.loading import _REPLACEMENTS

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def write(directory: Path, text: str) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_resolved_form_is_equal(recipe: Path, tmp_path: Path) -> None:
    """Protects recipes from settings that were renamed, and config.yaml of a run from losing one."""
    config = load_config(recipe)
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    """Protects from a mistyped key that is silently accepted."""
    with pytest.raises(ConfigError, match=r"policy\.clip_range_hgih: unknown setting; did you mean 'clip_range_high'"):
        load_config(write(tmp_path, "policy: {clip_range_hgih: 0.1}"))


def test_a_key_of_an_earlier_version_names_what_replaced_it(tmp_path: Path) -> None:
    """Protects the config.yaml of an old run from a hint at another setting, the nearest by letters."""
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, "policy: {importance_cap: 2.0, discount: 1.0}"))
    cap, discount = str(raised.value).splitlines()
    assert cap.endswith(
        "policy.importance_cap: unknown setting; it is now "
        "policy.rollout_correction.weight=token policy.rollout_correction.cap=C"
    )
    assert discount.endswith("policy.discount: unknown setting; it is now policy.gamma")


def test_replacements_of_keys_are_settings() -> None:
    """Protects the hints from keys that change again, and from a key that a setting has again."""
    known = {key for key, _, _ in documented_keys()}
    for removed, replacement in _REPLACEMENTS.items():
        assert removed not in known
        assert {item.partition("=")[0] for item in replacement.split()} <= known


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    """Protects users from mending one mistake a run."""
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, "seed: abc\nloop: 3\ndata: {labeled: [{pth: x}]}"), ["loop.iteration=4"])
    text = str(raised.value)
    assert all(part in text for part in ("seed", "loop: expected a group", "data.labeled[0].pth", "loop.iteration"))


def test_an_override_replaces_the_recipe(tmp_path: Path) -> None:
    """`key=value` wins, with the setting's type."""
    config = load_config(
        write(tmp_path, "policy: {optimizer: {learning_rate: 1.0}}"), ["policy.optimizer.learning_rate=2e-5"]
    )
    assert config.policy.optimizer.learning_rate == 2e-5


def test_a_file_of_settings_after_the_recipe_is_laid_over_it(tmp_path: Path) -> None:
    """FP8 is an overlay for every recipe; what is said after it, or by key, still wins."""
    recipe, overlay = RECIPES[0], RECIPES[0].parent / "parts" / "fp8.yaml"
    assert load_config(recipe, [str(overlay)]).model.fp8 is Fp8.tensorwise
    assert load_config(recipe, ["model.fp8=delayed", str(overlay)]).model.fp8 is Fp8.delayed
    with pytest.raises(ConfigError, match=r"no\.yaml: no such recipe file"):
        load_config(recipe, [str(tmp_path / "no.yaml")])
    with pytest.raises(ConfigError, match="'fp8': an override is key=value, or a YAML file"):
        load_config(recipe, ["fp8"])


def test_a_typo_is_found_in_the_file_that_it_is_in(tmp_path: Path) -> None:
    """A run of a recipe, its parts and an overlay has many files to search; what names none was on the command line."""
    part, overlay = tmp_path / "part.yaml", tmp_path / "overlay.yaml"
    part.write_text("loop: {iteratons: 1}")
    overlay.write_text("model: {fp9: tensorwise}")
    recipe = write(tmp_path, "include: [part.yaml]\npolicy: {clip_range_hgih: 0.1}")
    with pytest.raises(ConfigError) as raised:
        load_config(recipe, [str(overlay), "critic.epoch=2", "seed=[", str(tmp_path / "no.yaml")])
    starts = [
        f"{tmp_path}/no.yaml: no such recipe file",
        f"{part}: loop.iteratons: unknown",
        f"{recipe}: policy.clip_range_hgih: unknown",
        f"{overlay}: model.fp9: unknown",
        "'seed=[': not a readable override",
        "override critic.epoch: unknown",
    ]
    lines = str(raised.value).splitlines()
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["policy.clip_range_low=0"], "policy.clip_range_low: above 0, got 0.0"),
        (["loop.gate=1"], "loop.gate: at least 0 and below 1, got 1.0"),
        (["generation.gpu_memory_utilization=7"], "generation.gpu_memory_utilization: above 0 and at most 1, got 7.0"),
        (["generation.temperature=nan"], "generation.temperature: above 0, got nan"),
        (["generation.temperature=.inf"], "generation.temperature: a finite number, got inf"),
        (["policy.rollout_correction.cap=.inf"], "policy.rollout_correction.cap: a finite number, got inf"),
        (["loop.gate=-.inf"], "loop.gate: a finite number, got -inf"),
        (["evaluation.samples=0", "evaluation.k='${.samples}'"], "evaluation.samples: at least 1, got 0"),
        (["checkpoint.patience=-2", "loop.m_steps='${checkpoint.patience}'"], "checkpoint.patience: at least 0"),
        (
            ["checkpoint.patience=0", "loop.m_steps='${checkpoint.patience}'"],
            "loop.m_steps: at least 1, got 0",
        ),
    ],
)
def test_a_number_outside_its_bounds_is_refused(settings: list[str], message: str) -> None:
    """Whichever command reads the recipe, and where it stands for another setting: it would fail hours later."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, settings)


def test_a_missing_value_is_told_from_the_empty_text() -> None:
    """`policy.checkpoint=` has no value for OmegaConf, and its own message speaks of Optional."""
    with pytest.raises(
        ConfigError, match=re.escape("policy.checkpoint: expected a text, got null; the empty text is ''")
    ):
        load_config(None, ["policy.checkpoint="])
    assert load_config(None, ["policy.checkpoint=''"]).policy.checkpoint == ""


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("loop.iterations=many", 'loop.iterations: expected a whole number, got "many"'),
        ("loop.iterations=1.5", "loop.iterations: expected a whole number, got 1.5"),
        ("loop.iterations=true", "loop.iterations: expected a whole number, got true"),
        ("loop.iterations=null", "loop.iterations: expected a whole number, got null"),
        ("evaluation.k=[1, 2]", "evaluation.k: expected a whole number, got [1, 2]"),
        ("critic.optimizer.beta1={a: b}", 'critic.optimizer.beta1: expected a number, got {"a": "b"}'),
        ("loop.drop_uniform_prompts=perhaps", 'loop.drop_uniform_prompts: expected true or false, got "perhaps"'),
        ("policy.loss=grpo", 'policy.loss: expected one of gspo, ppo, got "grpo"'),
        ("model.precision=null", "model.precision: expected one of fp32, bf16, got null"),
        ("run_dir=[a]", 'run_dir: expected a text, got ["a"]'),
        ("policy.optimizer=3", "policy.optimizer: expected a group of settings, got 3"),
        ("data.labeled=x", 'data.labeled: expected a list of sources such as [{path: FILE.jsonl}], got "x"'),
        ("data.labeled=[3]", "data.labeled[0]: expected a group of settings, got 3"),
        ("data.labeled=[{size: x}]", 'data.labeled[0].size: expected a whole number, got "x"'),
        ("data.labeled=[{options: [1]}]", "data.labeled[0].options: expected a mapping of names to values, got [1]"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_our_words(setting: str, line: str, tmp_path: Path) -> None:
    """Its file, or that it is an override; then key, expected type and value. OmegaConf would name its own classes."""
    recipe = write(tmp_path, OmegaConf.to_yaml(OmegaConf.from_dotlist([setting])))
    for recipe_or_none, overrides, origin in ((recipe, [], f"{recipe}: "), (None, [setting], "override ")):
        with pytest.raises(ConfigError) as raised:
            load_config(recipe_or_none, overrides)
        assert str(raised.value) == f"{origin}{line}"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${run_dir}", 'expected a whole number, got "r"'),
        ("${loop.nothing}", "its value refers to what cannot be read: Interpolation key 'loop.nothing' not found"),
        ("${seed.x}", "its value refers to what cannot be read: Error trying to access seed.x"),
        ("${oc.env:TEMPO_TEST_MISSING}", "its value refers to what cannot be read: "),
    ],
)
def test_a_reference_to_a_wrong_value_is_told_in_one_line(reference: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, ["run_dir=r", f"loop.m_steps='{reference}'"])
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"loop.m_steps: {message}")


@pytest.mark.parametrize("included", ["3", "part.yaml", "[3]", "{a: b}"])
def test_what_a_recipe_includes_is_a_list_of_files(included: str, tmp_path: Path) -> None:
    recipe = write(tmp_path, f"include: {included}")
    with pytest.raises(ConfigError, match=re.escape(f"{recipe}: include: expected a list of files, got ")):
        load_config(recipe)


def test_every_type_of_setting_has_words() -> None:
    """A setting of a type without words would end in a KeyError where its value is wrong."""
    keys = {StrEnum if isinstance(default, StrEnum) else type(default): key for key, default, _ in documented_keys()}
    del keys[list]  # sources
    for key in keys.values():
        with pytest.raises(ConfigError, match=f"{key}: expected "):
            load_config(None, [f"{key}=[{{a: [1]}}]"])


def test_names_of_choices_are_their_values() -> None:
    """Errors list the names, which recipes use; `tempo settings` shows values."""
    choices = {type(default) for _, default, _ in documented_keys() if isinstance(default, StrEnum)}
    assert choices and all(name == choice for kind in choices for name, choice in kind.__members__.items())


def test_values_are_judged_by_themselves() -> None:
    """Whatever was read before: options that are a list in one source may be a group in the next."""
    sources = "[{task: a, options: {w: [1, 2]}}, {task: b, options: {w: {x: 1}}}]"
    first, second = load_config(None, [f"data.labeled={sources}"]).data.labeled
    assert (first.options, second.options) == ({"w": [1, 2]}, {"w": {"x": 1}})
    (again,) = load_config(None, ["data.labeled=[{task: b, options: {w: {x: 1}}}]"]).data.labeled
    assert again.options == {"w": {"x": 1}}


def test_what_a_value_stands_for_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escaped template, and what the environment says, are no settings."""
    monkeypatch.setenv("TEMPO_TEST_PLACE", "${seed}")
    config_read = load_config(
        None, [r"data.prompt_template='{question} \${x}'", "run_dir='${oc.env:TEMPO_TEST_PLACE}'"]
    )
    assert (config_read.data.prompt_template, config_read.run_dir) == ("{question} ${x}", "${seed}")


def test_defaults_are_within_their_bounds_and_numbers_have_some() -> None:
    """A setting without an end would take -1. Seeds may be any number; a source's weight is checked as it is read."""
    assert load_config(None) == Config()
    unbounded = {
        f"{cls.__name__}.{item.name}"
        for cls in vars(config).values()
        if isinstance(cls, type) and is_dataclass(cls)
        for item in fields(cls)
        if item.type in ("int", "float") and not str(item.metadata["bounds"])
    }
    assert unbounded == {"Config.seed", "SourceConfig.seed", "SourceConfig.weight"}


def test_every_setting_says_what_it_means() -> None:
    """Protects `tempo settings`."""
    assert all(help_ for _, _, help_ in documented_keys())
    assert len(list(documented_keys())) > 50
