"""The offline converters, run through their command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from checkpoints_convert.__main__ import main
from tempo_megatron.config import load_config
from tempo_megatron.conversion import hf_files
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.validation.recipe import recipe_problems
from tests.disk import full_after
from tests.models import ALL_CONFIGS, config_of, save, write_model

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def model(tmp_path: Path, demo_model: Path) -> Callable[..., Path]:
    """Return a function that writes a model of a row of ALL_CONFIGS with the demo's tokenizer."""

    def make(name: str, **options: Any) -> Path:
        directory = tmp_path / "hf"
        write_model(name, directory, **options)
        return add_tokenizer(directory, demo_model)

    return make


def add_tokenizer(directory: Path, source: Path) -> Path:
    for name in TOKENIZER:
        shutil.copy(source / name, directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return directory


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def tensors(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("name", ALL_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_bit_for_bit_with_every_file(
    name: str, dtype: torch.dtype, model: Callable[..., Path], tmp_path: Path
) -> None:
    """Protects exports: tensors, config, tokenizer, chat template and generation config, in shards with an index that
    transformers reads. The checkpoint is the only input: the source model is deleted before."""
    hf = model(name, dtype=dtype)
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 0
    expected, files = tensors(hf), {file.name: file.read_bytes() for file in hf_files.side_files(hf)}
    in_memory = AutoModelForCausalLM.from_pretrained(hf, dtype="auto").state_dict()
    shutil.rmtree(hf)
    exported = tmp_path / "back"
    assert run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", exported, "--shard-size", "60000") == 0
    assert_same(tensors(exported), expected)
    assert {file.name: file.read_bytes() for file in hf_files.side_files(exported)} == files
    assert {*TOKENIZER, "chat_template.jinja", "config.json", "generation_config.json"} <= files.keys()
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for file in exported.glob("*.safetensors"):
        assert len(load_file(file)) == 1 or file.stat().st_size < 60000 + 8192
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype="auto").state_dict()
    assert loaded.keys() == in_memory.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in in_memory.items())


def test_a_cast_changes_the_dtype_in_the_config(model: Callable[..., Path], tmp_path: Path) -> None:
    """`--dtype` changes tensors and the config's dtype together, and nothing else."""
    hf = model("qwen3")
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint", "--dtype", "bfloat16")
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 0
    run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back")
    assert_same(tensors(tmp_path / "back"), {name: tensor.bfloat16() for name, tensor in tensors(hf).items()})
    before, after = hf_files.read_config(hf), hf_files.read_config(tmp_path / "back")
    assert after == before | {"dtype": "bfloat16"} and before["dtype"] == "float32"


CLASSIFIER = {"num_labels": 2, "problem_type": "single_label_classification", "id2label": {"0": "NO", "1": "YES"}}


@pytest.mark.parametrize("leftovers", [{}, CLASSIFIER], ids=["none", "classifier"])
@pytest.mark.parametrize("name", [name for name in ALL_CONFIGS if name != "olmoe"])
def test_a_critic_is_exported_as_plain_transformers_loads_it(
    name: str, leftovers: dict[str, Any], model: Callable[..., Path], tmp_path: Path
) -> None:
    """A fresh value head is exported. Transformers finds every tensor that it needs and no other. Its logits are the
    backbone's final hidden states times that head; OLMo's one logit is that of the last token. The settings of another
    classifier in the source's config have no effect."""
    hf = model(name)
    (hf / "config.json").write_text(json.dumps(hf_files.read_config(hf) | leftovers))
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint", "--role", "critic", "--seed", "3")
    run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "critic", "--role", "critic")
    olmo = name.startswith("olmo")
    kind = AutoModelForSequenceClassification if olmo else AutoModelForTokenClassification
    critic, info = kind.from_pretrained(tmp_path / "critic", output_loading_info=True)
    assert not any(info.values())
    assert type(critic).__name__.endswith("ForSequenceClassification" if olmo else "ForTokenClassification")
    assert critic.score.out_features == 1 and critic.score.bias is None
    assert critic.config.num_labels == 1 and critic.config.problem_type is None
    head = checkpoint_format.CheckpointReader(tmp_path / "checkpoint", "critic")("output_layer.weight")
    assert head.std() > 0.01 and torch.equal(head, critic.score.weight)
    ids = torch.arange(20)[None] + 5
    backbone = AutoModelForCausalLM.from_pretrained(hf)
    hidden = backbone(ids, output_hidden_states=True).hidden_states[-1]
    expected = (hidden @ head.T)[0, :, 0]
    logits = critic.eval()(ids).logits
    torch.testing.assert_close(logits.flatten(), expected[-1:] if olmo else expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def with_trl_head(directory: Path, bias: float | None) -> None:
    """Add a value head to a language model's tensors, as TRL's AutoModelForCausalLMWithValueHead writes it."""
    stored = load_file(directory / "model.safetensors")
    stored["v_head.summary.weight"] = torch.randn(1, stored["model.norm.weight"].shape[0])
    if bias is not None:
        stored["v_head.summary.bias"] = torch.tensor([bias])
    save_file(stored, directory / "model.safetensors", {"format": "pt"})


def test_a_critic_of_verl_and_one_of_trl_are_read_with_their_bias(
    model: Callable[..., Path], tmp_path: Path, demo_model: Path
) -> None:
    """Users bring their own critics: a token-classification model, or a language model with a value head. Exported
    again, they have the same values."""
    verl = tmp_path / "verl"
    config = config_of("qwen3", num_labels=1)
    save(AutoModelForTokenClassification.from_config(config), verl)
    trl = model("llama-3")
    with_trl_head(trl, 0.25)
    for source, head in ((verl, "score"), (trl, "v_head.summary")):
        saved, exported = tmp_path / f"{source.name}-checkpoint", tmp_path / f"{source.name}-back"
        options = ("--hf", source, "--role", "critic")
        assert run("to-megatron", *options, "--out", saved, "--target-range", "minus_one_one") == 0
        assert run("verify", *options, "--checkpoint", saved) == 0
        assert run("to-hf", "--checkpoint", saved, "--out", exported, "--role", "critic") == 0
        expected = {name: tensor for name, tensor in tensors(source).items() if not name.startswith("lm_head")}
        renamed = {name.replace(head, "score"): tensor for name, tensor in expected.items()}
        assert_same(tensors(exported), renamed)
        critic = AutoModelForTokenClassification.from_pretrained(exported)
        assert critic.score.bias.item() == renamed["score.bias"].item() != 0
        assert run("to-megatron", "--hf", exported, "--role", "critic", "--out", tmp_path / f"{source.name}-again") == 0
        assert checkpoint_format.read_target_range(tmp_path / f"{source.name}-again") == "minus_one_one"


def test_a_critic_with_an_unknown_target_range_is_refused(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values trained toward -1 and read as values toward 0 would be silently wrong."""
    hf = model("olmo-3")
    with_trl_head(hf, None)
    command = ("to-megatron", "--hf", hf, "--role", "critic", "--out", tmp_path / "critic")
    assert run(*command) == 2
    assert "--target-range zero_one or minus_one_one" in capsys.readouterr().err
    assert run(*command, "--target-range", "zero_one") == 0
    shutil.rmtree(tmp_path / "critic")
    with_trl_head(hf, 0.5)
    assert run(*command, "--target-range", "zero_one") == 2
    assert "Olmo3ForSequenceClassification has no bias" in capsys.readouterr().err


def test_a_recipe_must_fit_the_checkpoints_it_starts_from(
    model: Callable[..., Path], recipe: Path, demo_model: Path, tmp_path: Path
) -> None:
    """Role and architecture are compared at start; a critic of either target range and a policy are accepted."""
    for role, ranges in (("policy", ()), ("critic", ("--target-range", "minus_one_one"))):
        run("to-megatron", "--hf", demo_model, "--role", role, "--out", tmp_path / role, *ranges)
    start = [f"critic.checkpoint={tmp_path / 'critic'}", f"policy.checkpoint={tmp_path / 'policy'}"]
    overrides = [*start, "stages.warm_start.steps=0"]
    for target_range in ("zero_one", "minus_one_one"):
        assert recipe_problems(load_config(recipe, [*overrides, f"critic.target_range={target_range}"])) == []
    problems = recipe_problems(load_config(recipe, [*start, f"policy.checkpoint={tmp_path / 'critic'}"]))
    assert any("no policy in this checkpoint (models: critic)" in line for line in problems)
    assert any("critic.checkpoint: a warm start would replace it" in line for line in problems)
    run("to-megatron", "--hf", model("llama"), "--out", tmp_path / "other")
    problems = recipe_problems(load_config(recipe, [f"policy.checkpoint={tmp_path / 'other'}"]))
    assert any("is another model than model.hf_path" in line and "qk_norm" in line for line in problems)


def test_a_yarn_factor_that_the_generator_does_not_read_is_refused(model: Callable[..., Path], recipe: Path) -> None:
    """vLLM would silently generate from another model than the one that trains."""
    hf = model("olmo-3")
    overrides = [f"model.hf_path={hf}"]
    assert recipe_problems(load_config(recipe, overrides)) == []
    config = hf_files.read_config(hf)
    config["rope_parameters"]["full_attention"]["attention_factor"] = 1.1
    (hf / "config.json").write_text(json.dumps(config))
    (problem,) = recipe_problems(load_config(recipe, overrides))
    assert "attention_factor=1.1: vLLM does not read it and generates with 1.20794" in problem


def test_verify_names_the_tensor_in_which_one_element_is_changed(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects against a damaged or wrong checkpoint: one element of one part of a fused tensor differs."""
    hf = model("qwen3")
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint")
    changed = tensors(hf)
    changed["model.layers.2.self_attn.k_proj.weight"][3, 5] += 1e-3
    save_file(changed, hf / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("model.layers.2.self_attn.k_proj.weight: 1 of 4096 elements differ, by at most 0.001")
    assert last == "1 differences"
    (hf / "tokenizer.json").write_text("{}")
    run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint")
    assert "tokenizer.json: differs" in capsys.readouterr().out


def test_all_that_is_wrong_with_a_model_is_one_error_that_leaves_nothing(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated shard, a missing tensor, a wrong shape and an unknown tensor are listed together."""
    run("to-megatron", "--hf", model("llama"), "--out", tmp_path / "whole")
    hf = tmp_path / "sharded"
    run("to-hf", "--checkpoint", tmp_path / "whole", "--out", hf, "--shard-size", "250000")
    shard = json.loads((hf / "model.safetensors.index.json").read_text())["weight_map"]
    first, third = hf / shard["model.embed_tokens.weight"], hf / shard["model.norm.weight"]
    up, down = "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"
    first.write_bytes(first.read_bytes()[:-100])
    second = load_file(hf / shard[up])
    second.pop(up)
    save_file(second | {"model.layers.2.mlp.router.weight": torch.zeros(3)}, hf / shard[up])
    save_file(load_file(hf / shard[down]) | {down: torch.zeros(3, 5)}, hf / shard[down])
    capsys.readouterr()
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"{first}: missing or damaged" in message
    assert "no tensor model.layers.2.mlp.up_proj.weight" in message
    assert "model.layers.2.mlp.down_proj.weight is [3, 5], config.json asks for [64, 96]" in message
    assert "model.layers.2.mlp.router.weight has no place" in message
    assert len(message.splitlines()) == 5
    assert not list(tmp_path.glob("*out*"))
    third.unlink()
    run("to-megatron", "--hf", hf, "--out", tmp_path / "out")
    assert f"{third}: missing or damaged" in capsys.readouterr().err


def test_an_unknown_family_and_an_existing_output_are_refused(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, the reason is shown, and nothing is written."""
    hf = model("llama")
    config = hf_files.read_config(hf)
    (hf / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "out") == 2
    assert "GPT2LMHeadModel has no map" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (hf / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("to-hf", "--checkpoint", hf, "--out", tmp_path / "back") == 2
    assert "is it a checkpoint?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["to-megatron", "to-hf"])
def test_a_write_that_fails_half_way_leaves_nothing(
    command: str, model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes stands for a full disk: exit code 2, the system's own message, and no directory."""
    hf = model("qwen3", vocab_size=1009)
    source = ["--hf", hf]
    if command == "to-hf":
        run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint")
        source = ["--checkpoint", tmp_path / "checkpoint"]
    capsys.readouterr()
    with full_after(50_000):
        code = run(command, *source, "--out", tmp_path / "out")
    assert code == 2
    assert "File too large" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversions of large models should not fail after an hour."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore
    assert run("to-megatron", "--hf", model("qwen3"), "--out", tmp_path / "out") == 2
    assert "the disk has 0.00 GB left" in capsys.readouterr().err


def test_a_checkpoint_that_was_cut_short_is_named(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects exports: a truncated file and a missing one are in one error."""
    run("to-megatron", "--hf", model("qwen3"), "--out", tmp_path / "checkpoint")
    first, second, *_ = sorted((tmp_path / "checkpoint" / "policy").glob("*.distcp"))
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    capsys.readouterr()
    assert run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 2
    message = capsys.readouterr().err
    assert f"{first}: cut short" in message and f"{second}: missing" in message
    assert not (tmp_path / "back").exists()


def test_inspect_says_what_a_directory_holds(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It describes models and checkpoints, and fails on anything else."""
    hf = model("olmo-3")
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint", "--role", "critic")
    capsys.readouterr()
    assert run("inspect", hf) == run("inspect", tmp_path / "checkpoint") == 0
    output = capsys.readouterr().out
    assert output.count("architecture: Olmo3ForCausalLM") == 2
    assert "critic: 35, " in output and "target range zero_one" in output and "chat_template.jinja" in output
    assert run("inspect", tmp_path) == 2


def test_a_source_without_a_tokenizer_is_a_warning(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is converted, and users who need the tokenizer learn of it early."""
    hf = model("llama")
    for name in TOKENIZER:
        (hf / name).unlink()
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
    assert "has no tokenizer" in capsys.readouterr().err
