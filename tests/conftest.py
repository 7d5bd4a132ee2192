"""What tests share: the demo's model and a small recipe around it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.shapes import check_shapes

check_shapes()

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as the demo starts from."""
    directory = tmp_path_factory.mktemp("model") / "hf"
    subprocess.run([sys.executable, ROOT / "tools" / "make_demo_model.py", directory], check=True)
    return directory


@pytest.fixture(scope="session")
def nemo_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where NeMo-Run keeps its own files; skipped where it is not installed. To be had before it is imported."""
    if not find_spec("nemo_run"):
        pytest.skip("the extra `launch` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("nemo")
        patch.setenv("NEMORUN_HOME", str(home))
        patch.setattr(sys, "stdin", io.StringIO())  # what submits jobs reads it, and pytest does not let it
        yield home


@pytest.fixture
def recipe(demo_model: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, demo_model)


def write_recipe(directory: Path, model: Path) -> Path:
    """A complete recipe in two ranks, small enough for a test; its run directory does not exist yet."""
    words = {"task": "spell_backward", "options": {"min_word_len": 4, "max_word_len": 5}}
    text = {
        "run_dir": str(directory / "run"),
        "model": {"hf_path": str(model), "precision": "fp32"},
        "parallel": {"processes_per_node": 2, "tensor_model_parallel_size": 2},
        "data": {
            "labeled": [{**words, "seed": 1000, "size": 40}],
            "unlabeled": [{**words, "seed": 2000, "size": 12}],
            "held_out": [{**words, "seed": 3000, "size": 8}],
            "warm_start": [{**words, "seed": 4000, "size": 200}],
            "max_prompt_tokens": 12,
        },
        "generation": {"max_response_tokens": 8, "max_num_seqs": 64, "kv_cache_gib": 0.1, "check_weights": "always"},
        "stages": {
            "warm_start": {"steps": 20, "batch_size": 32, "optimizer": {"learning_rate": 1e-3}},
            "critic_start": {"iterations": 1, "prompts": 8},
        },
        "loop": {"iterations": 4, "labeled_prompts": 6, "unlabeled_prompts": 5, "samples_per_prompt": 4},
        "critic": {"optimizer": {"learning_rate": 1e-3}, "mini_batches": 2, "micro_batch_tokens": 128},
        "policy": {
            "optimizer": {"learning_rate": 1e-4},
            "mini_batches": 2,
            "micro_batch_tokens": 128,
            "clip_range_low": 0.1,
            "clip_range_high": 0.15,
        },
        "evaluation": {"every": 2, "samples": 4, "k": 4},
        "checkpoint": {"every": 1},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path
