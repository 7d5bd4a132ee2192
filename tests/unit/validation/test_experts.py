"""What cannot run yet on a model with experts is refused at start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints_convert.__main__ import main as convert_main
from tempo_megatron.cli import main
from tempo_megatron.config import Config, load_config
from tempo_megatron.conversion import hf_config
from tempo_megatron.megatron import model as megatron_model
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import described, write_model

REFUSAL = "a model with experts (mixture of experts) can be converted"


@pytest.fixture
def mixture(tmp_path: Path, demo_model: Path) -> Path:
    write_model("qwen3-moe", tmp_path / "mixture")
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "mixture")
    return tmp_path / "mixture"


def test_a_plan_is_refused_in_one_line(mixture: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects users from a plan that takes experts for one MLP. The recipe itself is accepted."""
    assert recipe_problems(load_config(recipe, [f"model.hf_path={mixture}"])) == []
    assert main(["plan", str(recipe), f"model.hf_path={mixture}"]) == 2
    assert f"model.hf_path: {REFUSAL}" in capsys.readouterr().err


def test_an_evaluation_is_refused(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects users from figures of an engine whose experts nobody has compared yet."""
    monkeypatch.setenv("TEMPO_CHECKED", "1")
    (tmp_path / "words.jsonl").write_text(json.dumps({"prompt": "abc", "answer": "a"}) + "\n")
    options = ["--data", str(tmp_path / "words.jsonl"), "--out", str(tmp_path / "out"), "--precision", "fp32"]
    assert main(["eval", "--model", str(mixture), *options]) == 2
    assert f"--model: {REFUSAL}" in capsys.readouterr().err


def test_several_ranks_are_refused() -> None:
    """Protects from a model whose experts no rank holds in full: neither the builder nor `verify` spreads them."""
    ranks: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="built in one process; there are 2"):
        megatron_model.build_model("policy", hf_config.backbone_settings(described("olmoe")), Config(), ranks)


def test_verify_refuses_a_layout_of_several_ranks(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is one line, before any rank starts."""
    checkpoint = str(tmp_path / "checkpoint")
    assert convert_main(["to-megatron", "--hf", str(mixture), "--out", checkpoint]) == 0
    assert convert_main(["verify", "--hf", str(mixture), "--checkpoint", checkpoint, "--pipeline-parallel", "2"]) == 2
    assert "a model with experts loads in one process only" in capsys.readouterr().err
