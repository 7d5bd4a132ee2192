"""A real model all the way: converted, checked against transformers, generating, trained, exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_convert import convert
from tempo_megatron.conversion.mapping import OUTPUT_BIAS
from tempo_megatron.megatron.checkpointing.format import CheckpointReader
from tests import smollm2
from tests.end_to_end.test_train import metrics, train
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("argmax_worker.py")
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 + 5?",
    "Name three colors.",
    "Why is the sky blue?",
)
NEW = 32
LAYERS = 6


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The model, its checkpoint, and what is exported from that."""
    place = tmp_path_factory.mktemp("smollm2")
    hf, saved, back = place / "hf", place / "checkpoint", place / "back"
    smollm2.write(hf)
    convert.to_megatron(hf, saved, role="policy")
    convert.to_hf(saved, back, role="policy", shard_bytes=2 * 10**8)
    return [hf, saved, back]


@pytest.fixture(scope="module")
def greedy(directories: list[Path]) -> list[tuple[int, Tensor]]:
    """Each prompt with transformers' greedy tokens after it."""
    tokenizer = AutoTokenizer.from_pretrained(directories[0])
    model = AutoModelForCausalLM.from_pretrained(directories[0])
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    tokenizer.padding_side = "left"
    batch = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    rows = model.generate(**batch, **options)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [(length, row[-length - NEW :]) for length, row in zip(lengths, rows, strict=True)]


@pytest.mark.parametrize("pipeline_size", [2, 3])
def test_greedy_tokens_of_transformers_are_megatrons_before_and_after_the_round_trip(
    pipeline_size: int, directories: list[Path], greedy: list[tuple[int, Tensor]], tmp_path: Path
) -> None:
    """One teacher-forced pass over five prompts: the argmax at each position of the 32 new tokens is that of
    transformers."""
    torch.save([ids.tolist() for _, ids in greedy], tmp_path / "sequences.pt")
    arguments = (tmp_path / "sequences.pt", tmp_path / "next.pt", pipeline_size, *directories)
    run_ranks(WORKER, pipeline_size, *arguments)
    predictions = torch.load(tmp_path / "next.pt")
    assert len(predictions) == 3
    for predicted in predictions.values():
        for row, (prompt, ids) in enumerate(greedy):
            assert len(ids) == prompt + NEW
            assert torch.equal(predicted[row, prompt - 1 : len(ids) - 1], ids[prompt:])


def test_the_round_trip_is_exact(directories: list[Path]) -> None:
    """Every tensor and every file comes back as it was."""
    hf, _, back = directories
    expected = load_file(hf / "model.safetensors")
    tensors = {name: tensor for file in back.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert len(list(back.glob("*.safetensors"))) > 1 and tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (back / file).read_bytes() == (hf / file).read_bytes()


def write_first_layers(model: Path, directory: Path) -> None:
    """Write the model with its first `LAYERS` layers. With all 30, two ranks that train would take 23 GB."""
    shutil.copytree(model, directory)
    config = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    tensors = load_file(model / "model.safetensors")
    layer = re.compile(r"model\.layers\.(\d+)\.")
    kept = {name: tensor for name, tensor in tensors.items() if not (m := layer.match(name)) or int(m[1]) < LAYERS}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})


def test_its_converted_policy_generates_and_trains_one_iteration(directories: list[Path], tmp_path: Path) -> None:
    """Policy and critic start from checkpoints of the first layers. The critic's checkpoint has another target range,
    which gives its head a bias. vLLM generates with the policy's weights, and its log-probs agree with the trainer's.
    One TEMPO iteration at PP2 moves the weights, and transformers loads the export."""
    hf, saved = tmp_path / "hf", tmp_path / "checkpoint"
    write_first_layers(directories[0], hf)
    convert.to_megatron(hf, saved, role="policy")
    convert.to_megatron(hf, tmp_path / "critic", role="critic", target_range="minus_one_one")
    sums = {"task": "chain_sum", "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    text = {
        "run_dir": str(tmp_path / "run"),
        "model": {"hf_path": str(hf), "precision": "fp32"},
        "parallel": {"processes_per_node": 2, "pipeline_model_parallel_size": 2},
        "data": {
            "labeled": [{**sums, "seed": 1000, "size": 20}],
            "unlabeled": [{**sums, "seed": 2000, "size": 2}],
            "chat_template": True,
            "max_prompt_tokens": 100,
        },
        "generation": {"max_response_tokens": 6, "max_num_seqs": 4, "kv_cache_gib": 0.2, "check_weights": "always"},
        "loop": {"iterations": 1, "labeled_prompts": 2, "unlabeled_prompts": 2, "samples_per_prompt": 2},
        "critic": {"checkpoint": str(tmp_path / "critic"), "target_range": "zero_one", "mini_batches": 1},
        "policy": {"checkpoint": str(saved), "mini_batches": 1, "optimizer": {"learning_rate": 1e-4}},
        "evaluation": {"samples": 1, "k": 1},
        "logging": {"tensorboard": False, "token_samples": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(text))
    run = train(tmp_path / "recipe.yaml")
    (row,) = [row for row in metrics(run) if row["stage"] == "train" and row["iteration"] == 1]
    assert row["generation/log_prob_difference_mean"] < 1e-4
    assert json.loads((run / "summary.json").read_text())["iterations"] == 1
    critic = CheckpointReader(run / "checkpoints" / "iteration-000001", "critic")
    assert critic(OUTPUT_BIAS).item() == pytest.approx(0.5, abs=0.01)
    moved, before = load_file(run / "hf" / "model.safetensors"), load_file(hf / "model.safetensors")
    assert moved.keys() == before.keys()
    name = f"model.layers.{LAYERS - 1}.mlp.up_proj.weight"
    assert 0 < (moved[name] - before[name]).abs().max() < 1e-2
    AutoModelForCausalLM.from_pretrained(run / "hf")
