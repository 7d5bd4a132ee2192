"""The recipes of the paper's rows can start if their files and GPUs are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from checkpoints_convert.__main__ import main
from tempo_megatron.config import DataConfig
from tempo_megatron.data.questions import Questions, read_questions
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.validation import recipe
from tempo_megatron.validation.recipe import recipe_problems
from tests.models import EXPERT_CONFIGS, write_model
from tests.unit.recipes.rows import ALL_ROWS, MODELS, OWN_CODE, row

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
        sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 32768}
        if family in EXPERT_CONFIGS:
            sizes["num_experts"] = 8
        write_model(family, hf_path, **sizes)
        for file in demo_model.glob("tokenizer*"):
            shutil.copy(file, hf_path)
        tokenizer = AutoTokenizer.from_pretrained(hf_path)
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
        tokenizer.save_pretrained(hf_path)
        for domain in sorted({domain for name, domain, _ in ALL_ROWS if name == model}):
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
