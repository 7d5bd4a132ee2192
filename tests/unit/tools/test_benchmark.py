"""The benchmark counts what it says it counts, and its training sections run here, raw Megatron beside them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from benchmarking.kernels import Kernel, described, length, transferring, union
from benchmarking.lengths import Lengths

from tempo_megatron.planning.shapes import SHAPES, backbone_shape, config
from tempo_megatron.planning.work import Work
from tests.warm.start import warm_python

ROOT = Path(__file__).parents[3]


def test_flops_of_a_tiny_shape_by_hand() -> None:
    """Two layers of width 64, MLP 128, four query heads and two groups of 32 channels, 256 tokens in the vocabulary."""
    shape = backbone_shape(config("tiny", None, None))
    query, key, value, output = 64 * 128, 64 * 64, 64 * 64, 128 * 64
    layer = query + key + value + output + 3 * 64 * 128
    weights = 2 * layer + 64 * 256
    # a token sees half the sequence on average: a score and a weighted sum, 128 channels each, in both layers
    attention = 2 * (2 * 128 + 2 * 128) * (10 * 10 / 2 + 6 * 6 / 2)
    assert Work(shape, "policy").forward([10, 6]) == 2 * weights * 16 + attention
    assert Work(shape, "policy").step([10, 6]) == 3 * Work(shape, "policy").forward([10, 6])
    assert Work(shape, "critic").weights == 2 * layer + 64


def test_flops_agree_with_the_usual_formula_on_equal_lengths() -> None:
    """6 (N - V H) tokens + 12 L H sequence tokens / 2, as for Llama 3 8B with 8 layers and 32,768 tokens."""
    shape = backbone_shape(config("llama3-8b", 8, 32768))
    parameters = 8 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336) + 2 * 32768 * 4096
    usual = 6 * (parameters - 32768 * 4096) * 8192 + 12 * 8 * 4096 * 8192 * 8192 / 2
    assert Work(shape, "policy").step([8192]) == pytest.approx(usual, rel=1e-12)


def test_a_window_counts_as_what_it_lets_through() -> None:
    """OLMo 3: three layers in four see 4,096 tokens."""
    work = Work(backbone_shape(config("olmo3-7b", 4, None)), "policy")
    attention = work.forward([8192]) - 2 * work.weights * 8192
    full, window = 8192**2 / 2, 4096**2 / 2 + 4096 * 4096
    assert attention == 4 * 4096 * (full + 3 * window)


def test_every_shape_is_one_that_can_be_built() -> None:
    for name in SHAPES:
        assert backbone_shape(config(name, 2, 512)).num_layers == 2


def test_lengths_are_the_seeds_own_and_within_bounds() -> None:
    drawn = [Lengths.parse("median:2048:16384").draw(seed) for seed in range(2000)]
    assert drawn == [Lengths.parse("median:2048:16384").draw(seed) for seed in range(2000)]
    assert 1800 < sorted(drawn)[1000] < 2300 and max(drawn) <= 16384
    mean = sum(Lengths.parse("mean:1060:4096").draw(seed) for seed in range(2000)) / 2000
    assert 960 < mean < 1100
    assert {Lengths.parse("uniform:3:4").draw(seed) for seed in range(20)} == {3, 4}
    with pytest.raises(ValueError, match="LOW"):
        Lengths.parse("normal:3:4")


def test_time_of_kernels_by_hand() -> None:
    """Communication from 0 to 4 and 6 to 9, a product from 3 to 5: 8 of 9 microseconds are busy, 6 with
    communication alone; a collective lasts as long as on the rank that came last."""
    mine = [Kernel("ncclAllGather", 0, 4), Kernel("nvjet_tst", 3, 5), Kernel("ncclAllGather", 6, 9)]
    figures = described(mine)
    assert figures["kernels"] == 3 and figures["ms"] == pytest.approx(9e-3)
    assert figures["ms with none running"] == pytest.approx(1e-3)
    assert figures["ms communicating"] == pytest.approx(7e-3)
    assert figures["ms communicating, nothing beside it"] == pytest.approx(6e-3)
    assert figures["ms by kind"] == pytest.approx({"communication": 7e-3, "matrix products": 2e-3})
    late = [Kernel("ncclAllGather", 3, 4), Kernel("ncclAllGather", 5, 9)]
    assert transferring([[mine[0], mine[2]], late]) == 1 + 3
    assert transferring([[mine[0], mine[2]], late[:1]]) == 4 + 3
    assert union([(5, 6), (0, 2), (1, 3), (2.5, 2.75)]) == [(0, 3), (5, 6)] and length([(0, 3), (5, 6)]) == 4


def test_every_section_runs_and_is_recorded(tmp_path: Path) -> None:
    """The whole command in one process, as each rank runs it."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [*warm_python(), "tools/benchmark.py", "tiny", "--steps=1", f"--directory={tmp_path}/work"]
    small = [f"loop.{name}=2" for name in ("labeled_prompts", "unlabeled_prompts", "samples_per_prompt")]
    subprocess.run(
        [*command, "--sections=all", f"--json={tmp_path}/figures.json", *small],
        check=True,
        cwd=ROOT,
        timeout=240,
        env={**os.environ, **rank, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["shape"]["name"] == "tiny" and found["versions"]["megatron-core"] and "tiny" in found["command"]
    measured = found["sections"]
    passes = {"log-probs and entropy", "values"}
    whole = {name: measured.pop(name) for name in ("sync", "rollout", "tail", "switch", "iteration")}
    assert set(measured) == {
        f"{name}, fp8 none"
        for name in (
            "policy step",
            "packed policy step",
            "critic step",
            "raw Megatron",
            "shares of raw Megatron",
            "kernels of a policy step",
            "kernels of a pass for log-probs",
            "kernels of raw Megatron",
            *passes,
        )
    }
    work = Work(backbone_shape(config("tiny", None, None)), "policy")
    for name in ("policy step", "raw Megatron"):
        figures = measured[f"{name}, fp8 none"]
        assert figures["tokens"] == 4 * 64
        flops = figures["TFLOP/s/GPU"] * 1e12 * figures["seconds"]
        assert flops == pytest.approx(work.step([64] * 4))
    kernels = measured["kernels of raw Megatron, fp8 none"]["rank 0"]
    assert 0 < sum(kernels["ms by kind"].values()) <= kernels["ms"]
    shares = measured["shares of raw Megatron, fp8 none"]
    raw, packed = measured["raw Megatron, fp8 none"], measured["packed policy step, fp8 none"]
    assert shares["packed policy step / raw"] == pytest.approx(packed["TFLOP/s/GPU"] / raw["TFLOP/s/GPU"])
    rollout = whole["rollout"]
    assert rollout["tokens/s/GPU"]["ours"] > 0 and whole["sync"]["GB"] > 0
    assert 0 < rollout["seconds in them"]["ours"][0] < rollout["seconds of each"]["ours"][0]
    assert list(whole["tail"]) == ["1 live", "3 live"]
    for live, figures in zip((1, 3), whole["tail"].values(), strict=True):
        assert figures["tokens/s"] == pytest.approx(live / figures["ms a step"] * 1e3)
        assert figures["device, ms a step"]["kernels"] > 0 and figures["host, ms a step"]["scheduling"] > 0
    assert whole["switch"]["training to generating"]["seconds, sync"] > 0
    iteration = whole["iteration"]
    parts = sum(iteration[f"share {name}"] for name in ("training", "generating", "of the rest"))
    assert parts == pytest.approx(1) and iteration["seconds, critic steps"] > 0
