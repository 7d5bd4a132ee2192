"""Which passes a pipeline stage keeps activations of, and what virtual stages change in a plan."""

from __future__ import annotations

from collections import Counter

import pytest
from megatron.core.pipeline_parallel.schedules import get_schedule_table

from tempo_megatron.config import load_config
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning import shapes
from tempo_megatron.planning.fit import layout_problems
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import ModelMemory
from tempo_megatron.planning.model_time import ModelTime
from tempo_megatron.planning.parameters import rank_parameters
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.pipeline import bubble_share, passes_in_flight
from tempo_megatron.planning.workload import Workload

CHUNKS = "parallel.virtual_pipeline_model_parallel_size=2"


def shape(layers: int) -> BackboneSettings:
    return shapes.backbone_shape(shapes.shape_config("llama3-8b", layers, 32768))


def planned(layers: int, stages: int, *overrides: str) -> PlannedRun:
    settings = (f"parallel.pipeline_model_parallel_size={stages}", "generation.max_response_tokens=4096", *overrides)
    return PlannedRun(shape(layers), load_config(None, settings), Machine(1, stages, 80.0, 1536.0))


@pytest.mark.parametrize(("stage", "expected"), [(0, 4), (1, 3), (3, 1)])
def test_a_stage_without_chunks_keeps_as_many_micro_batches_as_stages_follow(stage: int, expected: int) -> None:
    """One forward pass for each stage from this one on, and never more than there are micro-batches."""
    assert max(passes.total() for passes in passes_in_flight(stage, 4, 1, 8)) == expected
    assert max(passes.total() for passes in passes_in_flight(stage, 4, 1, 2)) == min(2, expected)


@pytest.mark.parametrize(("stages", "chunks", "groups"), [(2, 2, 1), (2, 2, 4), (4, 2, 2), (4, 3, 3)])
def test_passes_of_chunks_come_in_the_order_of_megatrons_schedule(stages: int, chunks: int, groups: int) -> None:
    """Passes in flight follow from megatron-core's table and its count of forward passes before the first backward
    pass. No stage keeps a pass that is not in the table, and at the end all but one have gone back."""
    micro_batches = groups * stages
    forward = [chunk for _, chunk in get_schedule_table(micro_batches, chunks, stages)]
    for stage in range(stages):
        before = 2 * (stages - stage - 1) + (chunks - 1) * stages
        for number, passes in enumerate(passes_in_flight(stage, stages, chunks, micro_batches)):
            expected = Counter(forward[: before + number + 1])
            expected.subtract(chunks - 1 - chunk for chunk in forward[:number])
            assert +passes == +expected and min(passes.values()) >= 0
        assert passes.total() == 1


def test_chunks_keep_more_activations_and_shorten_the_bubble() -> None:
    """Of two stages with two chunks each, the first keeps five passes of half its layers instead of two of all, and
    waits half as long. What it has sent counts too: four hidden states instead of one."""
    config = planned(8, 2).config
    layouts = [Layout.from_config(planned(8, 2, *overrides).config, 2) for overrides in ((), (CHUNKS,))]
    plain, chunked = (ModelMemory(shape(8), "policy", config, layout, 8192, 4) for layout in layouts)
    layer, hidden = plain.activations.kept([False]), plain.activations.hidden
    assert plain._kept_activations(0) == 8 * layer + hidden
    assert chunked._kept_activations(0) == 10 * layer + 4 * hidden
    assert plain._kept_activations(1) == 4 * layer
    assert chunked._kept_activations(1) > plain._kept_activations(1)
    assert bubble_share(2, 1, 8) == 1 / 8 and bubble_share(2, 2, 8) == 1 / 16
    workload = Workload.uniform(2048, 4096)
    seconds = [
        ModelTime(planned(8, 2, *overrides), workload, "policy").pass_seconds(64) for overrides in ((), (CHUNKS,))
    ]
    assert seconds[1] < seconds[0]


def test_stages_hold_the_layers_of_all_their_chunks_once() -> None:
    """Seven layers in four chunks of 2, 2, 2 and 1: the first of two stages has four of them, the second three. Without
    chunks they have four and three as well, but not the same ones."""
    settings = shape(7)
    assert settings.stage_chunks(2, 2, "policy") == [[range(2), range(4, 6)], [range(2, 4), range(6, 7)]]
    stages = [rank_parameters(settings, "policy", 1, 2, stage, chunks=2) for stage in range(2)]
    assert sum(stage.total for stage in stages) == rank_parameters(settings, "policy", 1, 1, 0).total
    assert stages[0].linear * 3 == stages[1].linear * 4
    assert stages[0].by_kind["embedding"] and not stages[1].by_kind["embedding"]
    assert stages[1].by_kind["output layer"] and not stages[0].by_kind["output layer"]


def test_chunks_that_a_model_cannot_have_are_refused() -> None:
    """A plan must not count what no start allows: more chunks than layers, and chunks of a single stage."""
    assert layout_problems(planned(4, 2, CHUNKS)) == []
    assert "PP x VPP = 4 is more than the model's 3 layers" in layout_problems(planned(3, 2, CHUNKS))[0]
    assert "needs pipeline_model_parallel_size above 1" in layout_problems(planned(4, 1, CHUNKS))[0]
