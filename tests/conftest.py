"""What tests share: the demo's model and a small recipe around it."""

from __future__ import annotations

import gc
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.shapes import check_shapes
from tests.warm import start

check_shapes()

ROOT = Path(__file__).parents[1]
BUSIEST = (
    "tests/slurm/test_attempts.py",
    "tests/end_to_end/test_methods.py",
    "tests/end_to_end/test_train.py",
    "tests/slurm",
    "tests/end_to_end",
    "tests/parallel",
    "tests/gpu",
    "tests/processes",
)
"""The tests of these modules and directories take longest. They start in this order.

Tests of Slurm wait more than they compute. In this order one of two workers of pytest-xdist runs all of them, on one
cluster, while the other computes.
"""


def pytest_configure(config: pytest.Config) -> None:
    """Name a directory for the warm server of this test run; workers of pytest-xdist inherit the name."""
    if not hasattr(config, "workerinput"):
        directory = Path(tempfile.mkdtemp(prefix="tempo-warm-"))
        start.announce(directory)
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests first that take longest."""
    items.sort(key=_turn)


def pytest_collection_finish() -> None:
    """Exempt the hundreds of thousands of objects that imports have created from garbage collection."""
    gc.collect()
    gc.freeze()


def _turn(item: pytest.Item) -> int:
    module = item.nodeid.partition("::")[0]
    return next((turn for turn, place in enumerate(BUSIEST) if module.startswith(place)), len(BUSIEST))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model directory that the demo starts from."""
    import torch  # two seconds, which the first process of pytest does without
    from make_demo_model import write_demo_model  # transformers, which many tests do without

    directory = tmp_path_factory.mktemp("model") / "hf"
    with torch.random.fork_rng():
        write_demo_model(directory)
    return directory


@pytest.fixture(scope="session")
def nemo_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the directory where NeMo-Run keeps its own files.

    A test that imports NeMo-Run uses this fixture first. It skips the test where NeMo-Run is not installed.
    """
    if not find_spec("nemo_run"):
        pytest.skip("the extra `launch` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("nemo")
        patch.setenv("NEMORUN_HOME", str(home))
        patch.setattr(sys, "stdin", io.StringIO())  # NeMo-Run reads it, which pytest forbids
        yield home


@pytest.fixture
def warm_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchrun, which commands of a test start, start its ranks as forks of the warm server."""
    for name, value in start.warm_torchrun().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def recipe(demo_model: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, demo_model)


def write_recipe(directory: Path, model: Path) -> Path:
    """Write a complete recipe for two ranks, small enough for a test; return its path. It names a new run directory."""
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
        "grading": {"workers": 1},
        "evaluation": {"every": 2, "samples": 4, "k": 4},
        "checkpoint": {"every": 1},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path
