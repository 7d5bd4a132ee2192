"""`tempo plan` counts experts: their state, activations of routed tokens, active parameters, and reads of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tempo_megatron.config import load_config
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.generation.requests import Completion, gather_completions
from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.packing import PackingRule, pack
from tempo_megatron.megatron.route_recorder import RouteRecorder
from tempo_megatron.planning import host, rates, shapes
from tempo_megatron.planning.activations import Activations
from tempo_megatron.planning.decoding import Decoding
from tempo_megatron.planning.fit import layout_problems
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import ModelMemory
from tempo_megatron.planning.model_time import ModelTime
from tempo_megatron.planning.parameters import rank_parameters
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.workload import Workload

WORKLOAD = Workload.uniform(2048, 4096)


def shape(layers: int = 4, **changes: Any) -> BackboneSettings:
    """Qwen3-30B-A3B of a few layers: 128 experts of 768 channels, 8 for each token, hidden size 2048."""
    return shapes.backbone_shape(shapes.shape_config("qwen3-30b-a3b", layers, None) | changes)


def planned(gpus: int, *overrides: str, settings: BackboneSettings | None = None) -> PlannedRun:
    config = load_config(None, ["generation.max_response_tokens=4096", *overrides])
    return PlannedRun(settings or shape(), config, Machine(1, gpus, 141.0, 1536.0))


def state(gpus: int, *overrides: str) -> dict[str, dict[str, int]]:
    run = planned(gpus, *overrides)
    return ModelMemory(run.settings, "policy", run.config, run.layout, 4096, 4).state_by_kind(0)


def test_ep_divides_the_state_of_experts_and_no_other() -> None:
    """Eight ranks hold a quarter of the experts each at EP4, and two ranks share the optimizer state of a quarter. TP
    divides attention and copies experts, so that EP alone makes room for them."""
    experts = 4 * 128 * 3 * 768 * 2048
    alone, spread = state(8), state(8, "parallel.expert_model_parallel_size=4")
    assert alone["experts"] == {"weights": 2 * experts, "gradients": 4 * experts, "optimizer": 12 * experts // 8}
    assert spread["experts"] == {"weights": experts // 2, "gradients": experts, "optimizer": 12 * (experts // 4) // 2}
    assert {kind: parts for kind, parts in alone.items() if kind != "experts"} == {
        kind: parts for kind, parts in spread.items() if kind != "experts"
    }
    tensor = state(8, "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
    assert tensor["experts"] == alone["experts"]
    assert tensor["attention"]["weights"] == pytest.approx(alone["attention"]["weights"] / 2, rel=1e-3)


def test_a_checkpoint_is_as_large_under_every_layout() -> None:
    """Weights, and fp32 weights with two moments, each once, whichever ranks gather them."""
    sizes = [
        host.checkpoint_bytes(planned(8, *overrides))
        for overrides in (
            (),
            ("parallel.expert_model_parallel_size=8",),
            ("parallel.expert_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"),
        )
    ]
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-4)


def test_stages_of_unequal_length_hold_every_parameter_once() -> None:
    """Three stages of seven layers have three, two and two, those of a policy three, three and one: its output layer
    costs as much as five layers. Protects a plan from layers that no stage counts."""
    settings = shape(7)
    stages = [rank_parameters(settings, "policy", 1, 3, stage) for stage in range(3)]
    assert sum(stage.total for stage in stages) == rank_parameters(settings, "policy", 1, 1, 0).total
    experts = [stage.by_kind["experts"] for stage in stages]
    assert experts[0] == experts[1] == experts[2] * 3
    experts = [rank_parameters(settings, "critic", 1, 3, stage).by_kind["experts"] for stage in range(3)]
    assert experts[0] * 2 == experts[1] * 3 == experts[2] * 3
    whole = planned(3, settings=settings)
    staged = planned(3, "parallel.pipeline_model_parallel_size=3", settings=settings)
    slower = ModelTime(staged, WORKLOAD, "critic")._slowest_stage_factor()
    assert slower == pytest.approx(3 * 3 / 7, rel=1e-3)
    assert ModelTime(whole, WORKLOAD, "critic")._slowest_stage_factor() == 1.0


def test_activations_of_routed_tokens_follow_the_formula() -> None:
    """1,000 tokens with 8 experts each, in bf16: by hand. A layer with one MLP keeps what a dense model keeps."""
    run = planned(8)
    kept = Activations(run.settings, run.config, run.layout, 1000)
    routed = 1000 * 8
    by_hand = 2 * 1000 * 2048 * 2 + 1000 * 128 * 13 + routed * ((2048 + 3 * 768) * 2 + 4)
    assert kept.experts.kept == by_hand
    assert kept.kept([True, True, False]) == 2 * (kept.attention.kept + by_hand) + kept.attention.kept + kept.mlp.kept
    recomputed = replace(kept, config=planned(8, "model.recompute=mlp").config)
    assert recomputed.kept([True]) == kept.attention.kept + 1000 * 2048 * 2
    assert recomputed.at_backward(True) > kept.at_backward(True)
    spread = planned(8, "parallel.expert_model_parallel_size=2")
    copies = replace(kept, layout=Layout.from_config(spread.config, 8)).experts.forward - kept.experts.forward
    assert copies == routed * 2048 * 2


def test_active_parameters_are_those_of_a_tokens_experts() -> None:
    """3.04 billion of 30.5, with the output layer and without the embedding. Two dense layers have one MLP each."""
    assert ModelFlops(shape(48), "policy").weights == pytest.approx(3.04e9, rel=1e-3)
    sparse, mixed = (shape(4, mlp_only_layers=dense) for dense in ([], [0, 2]))
    expert_layer, mlp = 3 * 8 * 768 * 2048 + 128 * 2048, 3 * 6144 * 2048
    assert sparse.mlp_weights == 4 * expert_layer and mixed.mlp_weights == 2 * expert_layer + 2 * mlp


def test_a_sequence_at_ep_takes_the_time_of_its_exchanges_more() -> None:
    """The products of a rank are the same at every EP; half of the copies go to the other of two ranks. A step
    exchanges them in its forward and in its backward pass."""
    alone, spread = (
        ModelTime(planned(2, *overrides), WORKLOAD, "critic")
        for overrides in ((), ("parallel.expert_model_parallel_size=2",))
    )
    exchange = 2 * 4 * 1000 * 8 / 2 * 2048 * 2 / rates.EXCHANGE_BYTES_PER_SECOND["node"]
    for work, exchanges in (("pass", 1), ("step", 2)):
        seconds = spread._sequence_seconds(1000, work) - alone._sequence_seconds(1000, work)
        assert seconds == pytest.approx(exchanges * exchange, rel=1e-6)


def test_the_host_and_the_device_take_turns_in_layers_with_experts() -> None:
    """Two dense layers wait for the slower of both, two layers with experts for both. Eight micro-batches of one
    sequence each."""
    workload = Workload((4096,), prompt=0)
    changes = ("policy.mini_batches=4", "policy.micro_batch_tokens=4096")

    def seconds(settings: BackboneSettings) -> tuple[float, float]:
        model = ModelTime(planned(1, *changes, settings=settings), workload, "policy")
        return model.pass_seconds(8), 8 * model._sequence_seconds(4096, "pass")

    dense, sparse = (rates.LAYER_HOST_SECONDS[kind]["pass"] for kind in ("dense", "experts"))
    total, device = seconds(shape(4, mlp_only_layers=[0, 1]))
    assert total == pytest.approx(device + 8 * 2 * sparse) and device > 8 * 2 * dense
    small = {"mlp_only_layers": [0, 1, 2, 3], "intermediate_size": 64, "vocab_size": 1024}
    total, device = seconds(shape(4, **small))
    assert total == pytest.approx(8 * 4 * dense) and total > device


def test_gradients_of_experts_that_one_rank_holds_are_not_reduced() -> None:
    """At EP2 on two ranks each rank has experts of its own; attention is reduced as ever."""
    alone, spread = (
        ModelTime(planned(2, *overrides), WORKLOAD, "policy")._reduce_seconds()
        for overrides in ((), ("parallel.expert_model_parallel_size=2",))
    )
    experts = 6 * 4 * 128 * 3 * 768 * 2048
    assert 0 < spread < alone and alone - spread == pytest.approx(experts / 150e9 / 2)


def test_a_decoding_step_reads_the_experts_that_are_used() -> None:
    """One sequence reads 8 of 128 experts and all other weights, 200 sequences read everything, and eight something
    between. The bandwidth is 80% of an H200's, and a step's fixed device time is taken off."""
    decoding = Decoding(planned(1, settings=shape(48)), WORKLOAD)
    seconds = decoding._step_seconds(np.array([1.0, 8.0, 200.0]), np.zeros(3)) - 1.2e-3
    read_bytes = seconds * 0.8 * 4.8e12
    assert read_bytes[0] == pytest.approx(2 * 3.353e9, rel=0.01)
    assert read_bytes[1] == pytest.approx(2 * (30.532e9 - 28.991e9 * (15 / 16) ** 8), rel=0.01)
    assert read_bytes[2] == pytest.approx(2 * 30.532e9, rel=0.01)


@pytest.mark.parametrize(("learns_from", "rollouts"), [("unlabeled", 3 * 4), ("both", (2 * 5 + 3) * 4)])
def test_routes_are_counted_on_every_rank(learns_from: str, rollouts: int) -> None:
    """A byte for each of 8 experts in 4 layers, of every token that the policy learns from. Labeled rollouts of all
    E-steps have routes if some train the policy."""
    changes = ["loop.labeled_prompts=5", "loop.unlabeled_prompts=3", "loop.samples_per_prompt=4", "loop.e_steps=2"]
    changes += [f"policy.learns_from={learns_from}", "data.max_prompt_tokens=96", "generation.max_response_tokens=4000"]
    parts = host.node_memory(planned(8, *changes, "policy.router_replay=generator"))
    assert parts["routes"] == 8 * rollouts * 4096 * 4 * 8
    assert "routes" not in host.node_memory(planned(8, *changes))


ROLLOUTS, TOKENS = 64, 512
"""The rollouts of the runs below, all of the longest length, and their tokens."""
ROUTED = (
    f"loop.unlabeled_prompts={ROLLOUTS // 4}",
    "loop.samples_per_prompt=4",
    "policy.learns_from=unlabeled",
    "policy.mini_batches=2",
    f"data.max_prompt_tokens={TOKENS // 2}",
    f"generation.max_response_tokens={TOKENS // 2}",
)


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each exchange between objects of 8 ranks, of which the others send what this one does: the buffers,
    and the object's bytes, of which one buffer is a copy."""
    sizes: list[int] = []
    gather = dist.distributed_c10d.all_gather

    def measured(outputs: list[Tensor], sent: Tensor, group: Any = None) -> Any:
        sizes.append(2 * sent.nbytes + sum(output.nbytes for output in outputs))
        return gather(outputs, sent, group=group)

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    monkeypatch.setattr(dist.distributed_c10d, "all_gather", measured)
    yield sizes
    dist.destroy_process_group()


@pytest.mark.parametrize("replica", [1, 2])
def test_the_exchange_of_generated_routes_is_as_large_as_its_buffers(exchanged: list[int], replica: int) -> None:
    """And as the responses of the replica, which its ranks still hold. Token ids and log-probs take less than a
    hundredth. Protects a node from running out of memory after the generate call."""
    run = planned(8, *ROUTED, "policy.router_replay=generator", f"generation.tensor_parallel_size={replica}")
    responses = {
        number: Completion((7,), (-0.5,), "stop", np.zeros((TOKENS, 4, 8), dtype=np.uint8))
        for number in range(ROLLOUTS * replica // 8)
    }
    gather_completions(responses, {}, replica)
    held = sum(response.routes.nbytes for response in responses.values() if response.routes is not None)
    assert max(exchanged) + held == pytest.approx(host.route_exchange_bytes(run), rel=0.01)


@pytest.mark.parametrize(("data", "pipeline"), [(8, 1), (4, 2), (1, 8)])
def test_the_exchange_of_recorded_routes_is_as_large_as_its_buffers(
    exchanged: list[int], data: int, pipeline: int
) -> None:
    """A rank records its rows of a mini-batch in the layers of its stage. Without data parallelism stages alone
    exchange."""
    layout = f"parallel.pipeline_model_parallel_size={pipeline}"
    run = planned(8, *ROUTED, "policy.router_replay=old_log_probs", layout, settings=shape(8))
    rows = ROLLOUTS // 2 // data
    batch = from_sequences([[1] * (TOKENS // 2)] * rows, [[2] * (TOKENS // 2)] * rows)
    topology: Any = SimpleNamespace(context_size=1, context_group=None, tensor_size=1, tensor_group=None)
    topology.data_size, topology.data_group = data, dist.new_group(range(data))
    topology.pipeline_size, topology.pipeline_group = pipeline, dist.new_group(range(pipeline))
    recorder = RouteRecorder(topology, layers=8, experts=128, is_split=False)
    micro = pack(batch, range(rows), PackingRule(rows * TOKENS, 1, 1, 0.0))
    chosen = torch.zeros(len(micro.tokens), 8, dtype=torch.int64)
    recorder.add(micro, {layer: SimpleNamespace(recorded_topk_idx=chosen) for layer in range(8 // pipeline)})
    recorder.routes(rows)
    assert max(exchanged) == pytest.approx(host.route_exchange_bytes(run), rel=0.01)


def test_a_node_holds_exchanged_routes_or_a_model_as_it_is_saved() -> None:
    """Both at once never happen. Without replay there are no routes, and a single rank exchanges nothing."""
    small, large = (
        host.node_memory(planned(8, "policy.router_replay=generator", f"loop.unlabeled_prompts={prompts}"))
        for prompts in (4, 2**20)
    )
    assert "a model as it is saved" in small and "exchanged routes" not in small
    assert "exchanged routes" in large and "a model as it is saved" not in large
    assert large["exchanged routes"] == pytest.approx(large["routes"] * (1 + 3 / 8))
    one_replica = planned(8, "policy.router_replay=generator", "generation.tensor_parallel_size=8")
    assert host.route_exchange_bytes(one_replica) == 0
    assert host.route_exchange_bytes(planned(1, "policy.router_replay=generator")) == 0
    assert host.route_exchange_bytes(planned(1, "policy.router_replay=old_log_probs")) == 0


def test_experts_in_8_bits_have_copies_of_their_weights_and_smaller_operands() -> None:
    """Two copies of all weights in a step, and one in a pass; the router and layers that stay in bf16 have none. The
    products keep gate and up projections in bf16, by hand. Protects a GPU of one node of Qwen3-30B-A3B, where the
    copies are 6.7 GiB."""
    run, eight = planned(8), planned(8, "model.fp8=blockwise")
    attention, experts = 2 * 32 * 128 * 2048 + 2 * 4 * 128 * 2048, 128 * 3 * 768 * 2048
    assert run.models["policy"].step_peak()["weights in 8 bits"] == 0
    assert eight.models["policy"].step_peak()["weights in 8 bits"] == 2 * 4 * (attention + experts)
    assert eight.models["policy"].pass_peak()["weights in 8 bits"] == 4 * (attention + experts)
    edges = planned(8, "model.fp8=blockwise", "model.fp8_edges_in_bf16=1")
    assert edges.models["policy"].pass_peak()["weights in 8 bits"] == 2 * (attention + experts)
    mixed = planned(8, "model.fp8=blockwise", "model.fp8_edges_in_bf16=1", settings=shape(mlp_only_layers=[0, 2]))
    copies = mixed.models["policy"].pass_peak()["weights in 8 bits"]
    assert copies == pytest.approx(2 * attention + 3 * 6144 * 2048 + experts)
    routed = 1000 * 8
    by_hand = 2 * 1000 * 2048 * 2 + 1000 * 128 * 13 + routed * (2048 + 2 * 768 * 2 + 768 + 4)
    activations = Activations(eight.settings, eight.config, eight.layout, 1000).experts
    assert activations.kept == by_hand
    filled = 2 * routed * 2048 + 2 * routed * 2048  # in bf16, and quantized for the products of both passes
    assert activations.backward >= 3 * 2 * routed * 2048 + 2 * 1000 * 2048 + filled


def test_experts_have_a_workspace_for_each_of_four_streams() -> None:
    """Of 32 MiB each, in steps and passes."""
    sparse, dense = (
        planned(1, settings=shape(mlp_only_layers=layers)).models["policy"] for layers in ([], [0, 1, 2, 3])
    )
    for peak in ("step_peak", "pass_peak"):
        assert getattr(sparse, peak)()["workspaces"] - getattr(dense, peak)()["workspaces"] == 4 * 32 * 2**20


def test_edges_in_bf16_are_those_of_one_stage() -> None:
    """Protects plans from negative numbers of layers. A run refuses such edges too."""
    run = planned(8, "model.fp8=blockwise", "parallel.pipeline_model_parallel_size=4", "model.fp8_edges_in_bf16=2")
    assert [line for line in layout_problems(run) if "at most the 1 layers of a pipeline stage, got 2" in line]


def test_routes_of_the_old_log_probs_are_those_of_trained_rollouts() -> None:
    """Further votes are generated and not trained on."""
    counts = ["loop.unlabeled_prompts=3", "loop.samples_per_prompt=4", "loop.votes_per_prompt=16", "method=ttrl"]
    trained, generated = (
        host.route_bytes(planned(8, *counts, f"policy.router_replay={kind}")) for kind in ("old_log_probs", "generator")
    )
    assert generated == 4 * trained > 0
