"""The offline converters on models with experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from tempo_megatron.conversion import hf_files
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tests.end_to_end.test_converters import assert_same, run, tensors
from tests.models import join_experts, write_model


def model_directory(name: str, parent: Path, **changes: Any) -> Path:
    write_model(name, parent / "hf", **changes)
    return parent / "hf"


def test_a_critic_of_olmoe_is_exported_as_backbone_and_score(tmp_path: Path) -> None:
    """Transformers has no critic class of OLMoE. It loads the backbone of the export, `score` is the value head beside
    it, and the export converts again."""
    hf = model_directory("olmoe", tmp_path)
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint", "--role", "critic", "--seed", "3")
    run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "critic", "--role", "critic")
    expected = {name: tensor for name, tensor in tensors(hf).items() if name != "lm_head.weight"}
    head = checkpoint_format.CheckpointReader(tmp_path / "checkpoint", "critic")("output_layer.weight")
    assert_same(tensors(tmp_path / "critic"), expected | {"score.weight": head})
    assert head.std() > 0.01
    ids = torch.arange(20)[None] + 5
    hidden = [AutoModel.from_pretrained(path)(ids).last_hidden_state for path in (tmp_path / "critic", hf)]
    assert torch.equal(*hidden)
    again = ("--hf", tmp_path / "critic", "--role", "critic")
    assert run("to-megatron", *again, "--out", tmp_path / "again") == 0
    assert run("verify", *again, "--checkpoint", tmp_path / "again") == 0


@pytest.mark.parametrize("name", ["qwen3-moe", "olmoe"])
def test_tensors_that_join_all_experts_are_read_as_those_of_each_expert(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models may be stored either way. `verify` splits them by its own code, and names one changed element."""
    hf = model_directory(name, tmp_path)
    expected = tensors(hf)
    join_experts(hf)
    assert len(tensors(hf)) < len(expected)
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 0
    run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back")
    assert_same(tensors(tmp_path / "back"), expected)
    changed = tensors(hf)
    changed["model.layers.2.mlp.experts.gate_up_proj"][4, 43, 5] += 1e-3
    save_file(changed, hf / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert run("verify", "--hf", hf, "--checkpoint", tmp_path / "checkpoint") == 1
    first, _ = capsys.readouterr().out.splitlines()
    width = 64 if name == "qwen3-moe" else 128
    assert first.startswith(f"model.layers.2.mlp.experts.4.up_proj.weight: 1 of {40 * width} elements differ")


def test_experts_stored_twice_or_in_part_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with a joined tensor and an expert's own, and one with too few experts, would convert to another model."""
    hf = model_directory("olmoe", tmp_path)
    apart = tensors(hf)
    join_experts(hf)
    joined, name = tensors(hf), "model.layers.1.mlp.experts.3.down_proj.weight"
    save_file({name: apart[name]}, hf / "more.safetensors")
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "out") == 2
    assert f"{name} is in model.safetensors too" in capsys.readouterr().err
    (hf / "more.safetensors").unlink()
    joined["model.layers.1.mlp.experts.down_proj"] = joined["model.layers.1.mlp.experts.down_proj"][:3].contiguous()
    save_file(joined, hf / "model.safetensors")
    assert run("to-megatron", "--hf", hf, "--out", tmp_path / "out") == 2
    assert "no tensor model.layers.1.mlp.experts.3.down_proj.weight" in capsys.readouterr().err


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_no_tensor_in_memory_grows_with_the_number_of_experts(
    joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects machines that convert large models: experts stream one by one in both directions, from either form. The
    largest tensor is that of queries, keys and values; the experts of a layer have eight times as many elements."""
    sizes: list[int] = []
    for reader in (hf_files.HfReader, checkpoint_format.CheckpointReader):
        read = reader.__call__

        def record(self: Any, *arguments: Any, read: Callable[..., Tensor] = read) -> Tensor:
            tensor = read(self, *arguments)
            sizes.append(tensor.numel())
            return tensor

        monkeypatch.setattr(reader, "__call__", record)
    hf = model_directory("olmoe", tmp_path, num_experts=24)
    if joined:
        join_experts(hf)
    run("to-megatron", "--hf", hf, "--out", tmp_path / "checkpoint")
    assert run("to-hf", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 0
    assert len(sizes) > 4 * 24 * 5 and max(sizes) == 256 * 128  # one QKV
