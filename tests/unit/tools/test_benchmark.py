"""The benchmark's figures are what docs/benchmark.md says."""

from __future__ import annotations

import itertools
import statistics

import pytest
from benchmarking.command import main
from benchmarking.host import Operation, operation_summary
from benchmarking.kernels import Kernel, kernel_summary, merge_intervals, total_length, transfer_time
from benchmarking.lengths import Lengths
from benchmarking.phases import beside_plan

from tempo_megatron.config import load_config
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.shapes import SHAPES, backbone_shape, shape_config
from tempo_megatron.planning.workload import Workload
from tests.conftest import ROOT


def test_flops_of_a_tiny_shape_by_hand() -> None:
    """Two layers of width 64, MLP 128, four query heads and two groups of 32 channels, 256 tokens in the vocabulary."""
    shape = backbone_shape(shape_config("tiny", None, None))
    query, key, value, output = 64 * 128, 64 * 64, 64 * 64, 128 * 64
    layer = query + key + value + output + 3 * 64 * 128
    weights = 2 * layer + 64 * 256
    # A token attends to half the sequence on average: a score and a weighted sum of 128 channels each, in both layers.
    attention = 2 * (2 * 128 + 2 * 128) * (10 * 10 / 2 + 6 * 6 / 2)
    assert ModelFlops(shape, "policy").forward([10, 6]) == 2 * weights * 16 + attention
    assert ModelFlops(shape, "policy").step([10, 6]) == 3 * ModelFlops(shape, "policy").forward([10, 6])
    assert ModelFlops(shape, "critic").weights == 2 * layer + 64


def test_flops_agree_with_the_usual_formula_on_equal_lengths() -> None:
    """6 (N - V H) tokens + 12 L H sequence tokens / 2, as for Llama 3 8B with 8 layers and 32,768 tokens."""
    shape = backbone_shape(shape_config("llama3-8b", 8, 32768))
    parameters = 8 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336) + 2 * 32768 * 4096
    usual = 6 * (parameters - 32768 * 4096) * 8192 + 12 * 8 * 4096 * 8192 * 8192 / 2
    assert ModelFlops(shape, "policy").step([8192]) == pytest.approx(usual, rel=1e-12)


def test_flops_of_a_window_count_the_tokens_inside_it() -> None:
    """In OLMo 3 three of four layers attend to 4,096 tokens."""
    work = ModelFlops(backbone_shape(shape_config("olmo3-7b", 4, None)), "policy")
    attention = work.forward([8192]) - 2 * work.weights * 8192
    full, window = 8192**2 / 2, 4096**2 / 2 + 4096 * 4096
    assert attention == 4 * 4096 * (full + 3 * window)


def test_every_shape_can_be_built() -> None:
    for name in SHAPES:
        assert backbone_shape(shape_config(name, 2, 512)).num_layers == 2


def test_lengths_follow_their_seed_and_stay_within_bounds() -> None:
    lengths = [Lengths.parse("median:2048:16384").draw(seed) for seed in range(2000)]
    assert lengths == [Lengths.parse("median:2048:16384").draw(seed) for seed in range(2000)]
    assert 1800 < sorted(lengths)[1000] < 2300 and max(lengths) <= 16384
    mean = sum(Lengths.parse("mean:1060:4096").draw(seed) for seed in range(2000)) / 2000
    assert 960 < mean < 1100
    assert {Lengths.parse("uniform:3:4").draw(seed) for seed in range(20)} == {3, 4}
    with pytest.raises(ValueError, match="LOW"):
        Lengths.parse("normal:3:4")


def test_lengths_of_questions_are_distributed_as_without_them_and_predictable() -> None:
    """Half of the variance of the logarithm is between questions, none of it comes from a wider distribution."""
    for text in ("mean:1060:100000", "uniform:256:768"):
        lengths = Lengths.parse(text)
        alone = sorted(lengths.draw(seed) for seed in range(4000))
        by_question = [
            [lengths.draw_of_question(question, (question, n)) for n in range(2)] for question in range(2000)
        ]
        of_questions = sorted(itertools.chain(*by_question))
        for rank in range(200, 4000, 200):
            assert of_questions[rank] == pytest.approx(alone[rank], rel=0.12)
        first, second = zip(*by_question, strict=True)
        assert 0.42 < statistics.correlation(first, second, method="ranked") < 0.56


def test_time_of_kernels_by_hand() -> None:
    """Communication runs from 0 to 4 and 6 to 9, a product from 3 to 5: 8 of 9 microseconds are busy, 6 with
    communication alone. A collective takes as long as on the rank that arrives last."""
    early = [Kernel("ncclAllGather", 0, 4), Kernel("nvjet_tst", 3, 5), Kernel("ncclAllGather", 6, 9)]
    figures = kernel_summary(early)
    assert figures["kernels"] == 3 and figures["ms"] == pytest.approx(9e-3)
    assert figures["ms with none running"] == pytest.approx(1e-3)
    assert figures["ms communicating"] == pytest.approx(7e-3)
    assert figures["ms communicating, nothing beside it"] == pytest.approx(6e-3)
    assert figures["ms by kind"] == pytest.approx({"communication": 7e-3, "matrix products": 2e-3})
    late = [Kernel("ncclAllGather", 3, 4), Kernel("ncclAllGather", 5, 9)]
    assert transfer_time([[early[0], early[2]], late]) == 1 + 3
    assert transfer_time([[early[0], early[2]], late[:1]]) == 4 + 3
    assert (
        merge_intervals([(5, 6), (0, 2), (1, 3), (2.5, 2.75)]) == [(0, 3), (5, 6)]
        and total_length([(0, 3), (5, 6)]) == 4
    )


def test_time_of_the_host_by_hand() -> None:
    """An operation from 0 to 4 calls one from 1 to 3, another thread waits from 3 to 6 and copies from 8 to 9: 7 of
    10 microseconds are inside operations, 4 of them waiting."""
    operations = [
        Operation("aten::linear", 0, 4, own=2),
        Operation("aten::mm", 1, 3, own=2),
        Operation("cudaStreamSynchronize", 3, 6, own=3),
        Operation("Memcpy DtoH (Device -> Pageable)", 8, 9, own=0),
    ]
    figures = operation_summary(operations, seconds=10e-6)
    assert figures["ms"] == pytest.approx(0.010) and figures["operations"] == 4
    assert figures["ms inside operations"] == pytest.approx(0.007)
    assert figures["ms outside"] == pytest.approx(0.003)
    assert figures["waits for the device"] == 2 and figures["ms waiting for the device"] == pytest.approx(0.004)
    own = figures["own ms and calls by operation"]
    assert next(iter(own)) == "cudaStreamSynchronize" and own["aten::mm"] == [0.002, 1]


def test_phases_beside_the_plan_by_hand() -> None:
    """Seconds are medians and memory is the largest. Figures without a measurement or a plan have no ratio."""
    usages = [
        {"seconds/m_step": 4.0, "memory/m_step/device_peak_gib": 30.0, "memory/m_step/host_peak_gib": 9.0},
        {"seconds/m_step": 6.0, "memory/m_step/device_peak_gib": 33.0, "seconds/offload": 0.5},
    ]
    plan = {"m_step": {"seconds": 10.0, "peak GiB": 30.0}, "offload": {"seconds": 1.0}, "save": {"peak GiB": 20.0}}
    assert beside_plan(usages, "device", plan) == {
        "m_step": {
            "seconds": 5.0,
            "seconds, planned": 10.0,
            "seconds, measured / planned": 0.5,
            "peak GiB": 33.0,
            "peak GiB, planned": 30.0,
            "peak GiB, measured / planned": 1.1,
        },
        "offload": {"seconds": 0.5, "seconds, planned": 1.0, "seconds, measured / planned": 0.5},
    }
    assert beside_plan(usages[:1], "host", {}) == {"m_step": {"seconds": 4.0, "peak GiB": 9.0}}


def test_predictions_need_no_gpu_and_are_those_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's own layout, batch and precision hold, with the benchmark's lengths."""
    recipe = ROOT / "recipes/qwen3_14b_math.yaml"
    arguments = ["qwen3-14b", "--plan=141", "--gpus=8", "--iteration-lengths=uniform:1024:1024", str(recipe)]
    assert main(arguments) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "| qwen3-14b, TP4 DP2 | |"
    rows = dict(line.strip("| ").split(" | ") for line in lines)
    config = load_config(recipe, ["generation.max_response_tokens=1024", "data.max_prompt_tokens=128"])
    run = PlannedRun(backbone_shape(shape_config("qwen3-14b", None, None)), config, Machine(1, 8, 141, 0.0))
    expected = Schedule(run, Workload((1024,), prompt=128)).phase_seconds()
    assert float(rows["phases: m_step: seconds"]) == pytest.approx(expected["m_step"], rel=1e-3)
    assert float(rows["phases: generate: seconds"]) == pytest.approx(expected["generate"], rel=1e-3)
    memory = sum(run.phase_memory()["e_step"].values()) / 2**30
    assert float(rows["phases: e_step: peak GiB"]) == pytest.approx(memory, rel=1e-3)
    assert rows["tokens"] == f"{2 * 128 * 8 * (1024 + 128):,}"


def test_a_layout_that_cannot_be_is_refused_before_anything_is_predicted() -> None:
    """The recipe has eight ranks of experts; four GPUs cannot hold them."""
    recipe = str(ROOT / "recipes/qwen3_30b_a3b_math.yaml")
    with pytest.raises(SystemExit, match="expert_model_parallel_size: 4 processes cannot be cut into PP x EP = 8"):
        main(["qwen3-30b-a3b", "--plan=141", "--gpus=4", recipe])
