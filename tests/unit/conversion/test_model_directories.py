"""Which files of a Hugging Face model directory are read, and the one check of it that every command uses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_convert import verify
from checkpoints_convert.__main__ import main
from tempo_megatron import cli, planning
from tempo_megatron.config import load_config
from tempo_megatron.conversion import hf_files, source
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import write_model

INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A small model in one file, without a tokenizer."""
    write_model("llama", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def sharded(hf: Path) -> Path:
    """The same model with an index, in one shard."""
    shard = "model-00001-of-00001.safetensors"
    (hf / "model.safetensors").rename(hf / shard)
    (hf / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(hf / shard), shard)}))
    return hf


@pytest.fixture
def copied_model(tmp_path: Path, demo_model: Path) -> Path:
    """A copy of the demo's model that a test may change."""
    return shutil.copytree(demo_model, tmp_path / "changed")


def test_an_index_decides_what_is_read(sharded: Path, tmp_path: Path) -> None:
    """Protects against shards of an earlier save, which were once converted, verified and exported silently."""
    expected = load_file(sharded / "model-00001-of-00001.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    save_file(zeros, sharded / "model-00001-of-00002.safetensors", {"format": "pt"})
    assert run("to-megatron", "--hf", sharded, "--out", tmp_path / "checkpoint") == 0
    assert run("verify", "--hf", sharded, "--checkpoint", tmp_path / "checkpoint") == 0
    assert run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 0
    exported = load_file(tmp_path / "back" / "model.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_tensors_that_could_be_read_from_two_files_are_refused(hf: Path) -> None:
    """It is unknown which values count. Each cause is one line, not one line a tensor."""
    shutil.copy(hf / "model.safetensors", hf / "model-00001-of-00002.safetensors")
    (line,) = source.source_problems(hf, "policy")
    assert "model.safetensors: model.embed_tokens.weight" in line and "model-00001-of-00002.safetensors too" in line
    names = load_file(hf / "model.safetensors")
    (hf / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))
    (line,) = source.source_problems(hf, "policy")
    assert line.endswith(f"has both model.safetensors and the files that {INDEX} names; remove one of them")
    (hf / "model.safetensors").unlink()
    assert source.source_problems(hf, "policy") == []


@pytest.mark.parametrize("text", ['{"weight_map": null}', '{"weight_map": {"a": 3}}', "[]", "{}", "{", POINTER])
def test_an_index_that_assigns_nothing_is_one_line(text: str, sharded: Path) -> None:
    """It was once a traceback. The tensors do not add a line each."""
    (sharded / INDEX).write_text(text)
    (line,) = source.source_problems(sharded, "policy")
    assert line.startswith(f"{sharded / INDEX}: ")


def test_verify_does_not_share_a_fault_of_the_converters_reader(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a shared reader, one that returns zeros or misses side files went unnoticed by `verify`."""
    (hf / "LICENSE").write_text("of this model")
    with monkeypatch.context() as patch:
        patch.setattr(hf_files.HfReader, "__call__", lambda self, name: torch.zeros(self.descriptions[name].shape))
        patch.setattr(hf_files, "side_files", lambda directory: [directory / "config.json"])
        assert run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
        differences = verify.differences(hf, tmp_path / "checkpoint", "policy")
    assert sum("elements differ" in line for line in differences) == len(load_file(hf / "model.safetensors"))
    assert "LICENSE: differs or is missing in the checkpoint" in differences


def launched(model: Path, recipe: Path) -> int:
    return cli.main(["launch", str(recipe), "--executor", "local", f"model.hf_path={model}"])


def planned(model: Path, recipe: Path) -> int:
    return cli.main(["plan", str(recipe), f"model.hf_path={model}"])


def trained(model: Path, recipe: Path, *settings: str) -> int:
    return cli.main(["train", str(recipe), f"model.hf_path={model}", *settings])


def evaluated(model: Path, recipe: Path, *settings: str) -> int:
    arguments = ["--model", model, "--recipe", recipe, "--out", recipe.parent / "out", *settings]
    return cli.main(["eval", *map(str, arguments)])


def converted(model: Path, recipe: Path) -> int:
    return run("to-megatron", "--hf", model, "--out", recipe.parent / "out")


def verified(model: Path, recipe: Path) -> int:
    return run("verify", "--hf", model, "--checkpoint", recipe.parent / "out")


@pytest.mark.parametrize("command", [trained, planned, launched, evaluated, converted, verified])
def test_every_command_refuses_a_model_for_the_same_reasons(
    command: Callable[[Path, Path], int],
    copied_model: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Converters once refused a tied model with another output layer, while training ignored that layer. A git-LFS
    pointer, a broken link and a wrong shape are listed with it."""
    if command is launched:
        request.getfixturevalue("nemo_home")
    edit(copied_model / "config.json", tie_word_embeddings=True)
    assert command(copied_model, recipe) == 2
    assert "lm_head.weight differs from the embedding that config.json ties it to" in capsys.readouterr().err
    (copied_model / "tokenizer.model").symlink_to("blobs/gone")
    (copied_model / "README.md").write_text(POINTER)
    edit(copied_model / "config.json", hidden_size=256)
    assert command(copied_model, recipe) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if str(copied_model) in line]
    assert len(lines) == 3
    assert f"{copied_model / 'tokenizer.model'}: a broken link to blobs/gone" in "\n".join(lines)
    assert f"{copied_model / 'README.md'}: a git-LFS pointer" in "\n".join(lines)
    assert "config.json asks for [" in "\n".join(lines) and "more have other shapes too" in "\n".join(lines)


def test_an_output_layer_that_repeats_the_embedding_it_is_tied_to_is_no_problem(hf: Path) -> None:
    """Some tools write both tensors."""
    tensors = load_file(hf / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, hf / "model.safetensors", {"format": "pt"})
    assert source.source_problems(hf, "policy") == []


def test_side_files_travel_in_their_folders_and_without_permissions(hf: Path, tmp_path: Path) -> None:
    """Read-only models once made read-only copies, in which a finished run could not write its config, and folders were
    dropped. Weights, hidden files, and models or runs in subfolders are not copied."""
    (hf / "additional_chat_templates").mkdir()
    (hf / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (hf / "additional_chat_templates" / "again").symlink_to("..")
    (hf / "blob").write_text("by link")
    (hf / "linked.txt").symlink_to("blob")
    for folder, mark in ((".cache", "part"), ("checkpoint-5", "config.json"), ("run", "config.yaml")):
        (hf / folder).mkdir()
        (hf / folder / mark).write_text("{}")
    (hf / "pytorch_model.bin").write_text("")
    for path in (path for path in hf.rglob("*") if path.is_file()):
        path.chmod(0o444)
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint", "--dtype", "bfloat16") == 0
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 0
    assert run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 0
    copies = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    names = ["additional_chat_templates/tool_use.jinja", "blob", "config.json", "generation_config.json"]
    assert sorted(str(path.relative_to(tmp_path / "back")) for path in copies) == [
        *names,
        "linked.txt",
        "model.safetensors",
    ]
    assert all(path.stat().st_mode & 0o200 and not path.is_symlink() for path in copies)
    assert hf_files.read_config(tmp_path / "back")["dtype"] == "bfloat16"
    (tmp_path / "checkpoint" / "huggingface" / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert verify._side_file_differences(hf, tmp_path / "checkpoint" / "huggingface") == [
        "additional_chat_templates/tool_use.jinja: differs or is missing in the checkpoint"
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_a_pointer_and_a_broken_link_are_refused_by_name(name: str, hf: Path) -> None:
    """They come from a hub cache whose blobs are gone, and from clones without git-LFS."""
    (hf / name).write_text(POINTER)
    (line,) = source.source_problems(hf, "policy")
    assert line.startswith(f"{hf / name}: a git-LFS pointer")
    (hf / name).unlink()
    (hf / name).symlink_to("../blobs/gone")
    (line,) = source.source_problems(hf, "policy")
    assert line == f"{hf / name}: a broken link to ../blobs/gone"


def test_settings_that_no_model_can_have_are_listed_with_what_is_wrong_with_files(
    hf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One list has them all, each with its file. `inspect` shows each of them too."""
    edit(hf / "config.json", num_attention_heads=5, vocab_size=101.0)
    (hf / "merges.txt").write_text(POINTER)
    lines = source.source_problems(hf, "policy")
    assert [line.removeprefix(f"{hf}/").split(":")[0] for line in lines] == ["config.json", "config.json", "merges.txt"]
    assert run("inspect", hf) == 0
    output = capsys.readouterr().out
    assert output.count("cannot be converted: config.json: ") == 2 and output.count("problem: ") == 1


def test_a_model_and_its_tokenizer_must_agree_on_every_token(copied_model: Path, recipe: Path) -> None:
    """Training once accepted tokens past the vocabulary silently: in prompts, in answers of the warm start, as end."""
    tokenizer = json.loads((copied_model / "tokenizer.json").read_text())
    size = hf_files.read_config(copied_model)["vocab_size"]
    token = {"id": size, "content": "~", "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(token | {"normalized": False, "special": True})
    (copied_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = recipe.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in (("a~b", "c"), ("d", "e~"))))
    model = [f"model.hf_path={copied_model}"]
    assert recipe_problems(load_config(recipe, model)) == []
    data = [f"data.labeled=[{{path: {rows}}}]", f"data.warm_start=[{{path: {rows}}}]"]
    streams = [line for line in recipe_problems(load_config(recipe, [*model, *data])) if "past the model" in line]
    assert [line.partition(": ")[0] for line in streams] == ["data.labeled", "data.warm_start", "data.warm_start"]
    assert all(line.endswith(f"have tokens past the model's {size}: {size} (~)") for line in streams)
    assert "answers of 1 prompts" in streams[2]
    edit(copied_model / "tokenizer_config.json", eos_token="~")
    (line,) = recipe_problems(load_config(recipe, model))[:1]
    assert line == f"model.hf_path: an end token is past the model's {size} tokens: {size} (~)"


@pytest.mark.parametrize("style", ["none", "chatml"])
def test_a_model_without_a_tokenizer_is_refused_with_what_to_do(
    style: str, copied_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For some models transformers makes an empty tokenizer of config.json alone. The run then trained on prompts
    without tokens, or was told to take another prompt style."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied_model / name).unlink()
    for command in (trained, evaluated):
        assert command(copied_model, recipe, f"data.prompt_style={style}") == 2
        message = capsys.readouterr().err
        assert message.count(f"no tokenizer in {copied_model}: copy the tokenizer's files (tokenizer.json and ") == 1
        assert "prompt_style" not in message


def test_a_tokenizer_without_an_end_is_refused(
    copied_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It once passed all checks, and the start failed with `int(None)`."""
    edit(copied_model / "tokenizer_config.json", eos_token=None)
    for command in (trained, evaluated):
        assert command(copied_model, recipe) == 2
        assert "the tokenizer has no eos_token, so that no response could end" in capsys.readouterr().err


def test_a_layout_that_does_not_divide_the_model_is_one_line(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    """Three ranks once started, and each failed with a traceback."""
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint")
    capsys.readouterr()
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint", "--tensor-parallel", 3) == 2
    _, line = capsys.readouterr().err.splitlines()
    sizes = "4 attention heads, 2 KV heads, 128 padded vocabulary entries"
    assert line.endswith(f"tensor_model_parallel_size: 3 does not divide the model's {sizes}")
    config = load_config(recipe, ["parallel.tensor_model_parallel_size=3", f"model.hf_path={hf}"])
    for lines in (planning.check_plan(config, nodes=1, gpus_per_node=4), recipe_problems(config)):
        assert sum(line.startswith("parallel.tensor_model_parallel_size: 3 does") for line in lines) == 1
        assert not [line for line in lines if line.startswith("generation.tensor_parallel_size")]


def test_a_checkpoint_of_another_model_is_named_as_one(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Comparing tensors of different shapes once raised. Each cause is one line; side files are compared too."""
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint")
    write_model("llama", tmp_path / "other", num_hidden_layers=6, hidden_size=128)
    capsys.readouterr()
    assert run("verify", "--hf", tmp_path / "other", "--checkpoint", tmp_path / "checkpoint") == 1
    missing, shapes, config, last = capsys.readouterr().out.splitlines()
    assert "no tensor decoder.layers.10" in missing and "more have other shapes too" in shapes
    assert config.startswith("config.json: differs") and last == "3 differences"
