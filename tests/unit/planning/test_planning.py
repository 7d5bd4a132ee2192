"""`tempo plan` agrees with measurements on GPUs, and every recipe fits the node that it is started on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmarking.lengths import Lengths

from tempo_megatron.config import Config, load_config
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.megatron import log_probs
from tempo_megatron.planning import activations, check_plan, host, phases, shapes
from tempo_megatron.planning.fit import plan_problems
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.layout_search import rank_layouts
from tempo_megatron.planning.memory import GIB, ModelMemory
from tempo_megatron.planning.parameters import rank_parameters
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload
from tempo_megatron.training import residency

ROOT = Path(__file__).parents[3]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "demo")
RESULTS = ROOT / "docs" / "results"
NODE = Machine(1, 8, 80.0, 1536.0)
TWO_H200 = Machine(1, 2, 141.0, 256.0)


def benchmark_model(role: Role, vocabulary: int, gpus: int = 1, **changed: object) -> ModelMemory:
    """Return the model of `tools/benchmark.py llama3-8b --layers 8`, with four micro-batches of 8,192 tokens."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changed.items()]
    config = load_config(None, ["generation.max_response_tokens=8192", *overrides])
    settings = shapes.backbone_shape(shapes.shape_config("llama3-8b", 8, vocabulary))
    return ModelMemory(settings, role, config, Layout.from_config(config, gpus), 8192, 4)


def recipe_run(name: str, *overrides: str, machine: Machine = NODE) -> PlannedRun:
    config = load_config(ROOT / "recipes" / f"{name}.yaml", overrides)
    return PlannedRun(shapes.model_shape(config.model.hf_path), config, machine)


@pytest.mark.parametrize(
    ("shape", "billion"),
    [
        ("qwen3-8b", 8.191),
        ("qwen3-14b", 14.768),
        ("olmo3-7b", 7.298),
        ("llama3-8b", 8.030),
        ("qwen3-30b-a3b", 30.532),
        ("olmoe-1b-7b", 6.919),
    ],
)
def test_parameters_are_as_many_as_published(shape: str, billion: float) -> None:
    """All ranks together hold as many as one rank does alone, except for norms and value head, which TP copies."""
    settings = shapes.backbone_shape(shapes.shape_config(shape, None, None))
    unsharded = rank_parameters(settings, "policy", 1, 1, 0)
    assert unsharded.total == pytest.approx(billion * 1e9, rel=1e-3)
    sharded: Counter[str] = Counter()
    for stage in range(2):
        sharded += rank_parameters(settings, "policy", 2, 2, stage).by_kind
    for kind in ("embedding", "attention", "MLP", "output layer"):
        assert 2 * sharded[kind] == pytest.approx(unsharded.by_kind[kind], rel=1e-4)
    assert rank_parameters(settings, "critic", 2, 1, 0).by_kind["value head"] == settings.hidden_size


def test_a_tied_embedding_is_on_both_ends_of_a_pipeline_and_a_critics_on_the_first() -> None:
    """megatron-core copies it to the last stage. A critic does not need it there."""
    settings = shapes.backbone_shape(shapes.shape_config("qwen3-1.7b", None, None))
    elements = [rank_parameters(settings, "policy", 1, 2, stage).by_kind["embedding"] for stage in range(2)]
    assert elements[0] == elements[1] == settings.padded_vocab_size * settings.hidden_size
    assert rank_parameters(settings, "critic", 1, 2, 1).by_kind["embedding"] == 0


TENSOR_PARALLEL: dict[str, object] = {
    "parallel__tensor_model_parallel_size": 2,
    "parallel__sequence_parallel": "true",
}
LAYOUTS: list[tuple[str, int, dict[str, object]]] = [
    ("train-tp1", 1, {}),
    ("train-tp1", 1, {"model__fp8": "tensorwise"}),
    ("train-tp2", 2, TENSOR_PARALLEL),
    ("train-pp2", 2, {"parallel__pipeline_model_parallel_size": 2}),
    ("train-cp2", 2, {"parallel__context_parallel_size": 2}),
    ("train-recompute", 1, {"model__recompute": "full"}),
]
"""Results file, GPUs, settings."""


def measured(file: str, section: str, day: str = "2026-11-25") -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / f"{day}-gpu" / f"{file}.json").read_text())
    return results["sections"][section]


@pytest.mark.parametrize(
    ("file", "gpus", "changed"), [*LAYOUTS, ("train-tp2", 2, {**TENSOR_PARALLEL, "model__fp8": "tensorwise"})]
)
def test_memory_of_a_step_is_what_was_measured(file: str, gpus: int, changed: dict[str, object]) -> None:
    """Peaks of torch's tensors are predicted for each layout (docs/results/2026-11-25-plan-predictions.md)."""
    fp8 = changed.get("model__fp8", "none")
    for role in ("policy", "critic"):
        if (role, file) == ("critic", "train-cp2"):
            continue  # the benchmark's process still held two other models
        step = total_bytes(benchmark_model(role, 32768, gpus, **changed).step_peak()) / GIB
        assert step == pytest.approx(measured(file, f"{role} step, fp8 {fp8}")["peak GiB"], rel=0.01), role


def test_memory_follows_the_vocabulary_and_8_bits() -> None:
    """A pass and training steps with a vocabulary of 151,936 and all state on the GPU.

    The figures were measured after the plan had been changed to fp32 logits.
    """
    file, day = "train-152k-fp32-logits", "2026-11-26"
    for fp8 in ("none", "tensorwise"):
        policy, critic = (benchmark_model(role, 151936, model__fp8=fp8) for role in ("policy", "critic"))
        for role, model in (("policy", policy), ("critic", critic)):
            expected = measured(file, f"{role} step, fp8 {fp8}", day)["peak GiB"]
            assert total_bytes(model.step_peak()) / GIB == pytest.approx(expected, rel=0.01)
        step = policy.step_peak()
        state = [step[name] for name in ("gradients", "optimizer", "dummy weight gradients")]
        forward_pass = policy.pass_peak()
        # The 8-bit weights have transposed copies from the step before.
        peak = total_bytes(forward_pass) + sum(state) + forward_pass["weights in 8 bits"]
        expected = measured(file, f"log-probs and entropy, fp8 {fp8}", day)["peak GiB"]
        assert peak / GIB == pytest.approx(expected, rel=0.01)


def test_a_chunk_of_logits_is_as_large_as_it_is_planned() -> None:
    assert activations.LOGITS_CHUNK == 4 * log_probs.CHUNK_ELEMENTS


RECORDED_NAMES = {"e_step": "calibrate", "advantages": "estimate", "m_step": "refine"}
"""The former names of phases, as in older results."""


def test_memory_of_each_phase_is_what_was_measured() -> None:
    """An iteration of a 1.7B shape on two GPUs, as the driver counts it, including vLLM and all contexts."""
    overrides = "loop.labeled_prompts=16 loop.unlabeled_prompts=16 policy.micro_batch_tokens=8192 "
    overrides += (
        "critic.micro_batch_tokens=8192 generation.gpu_memory_utilization=0.8 generation.max_response_tokens=4096 "
    )
    config = load_config(None, [*overrides.split(), "data.max_prompt_tokens=128"])
    run = PlannedRun(
        shapes.backbone_shape(shapes.shape_config("qwen3-1.7b", None, None)), config, Machine(1, 2, 80, 256)
    )
    logged = json.loads((RESULTS / "2026-11-25-gpu" / "iteration-1.7b.jsonl").read_text().splitlines()[0])
    planned = run.phase_memory()
    for phase in ("generate", "sync", "e_step", "m_step"):
        expected = logged[f"memory/{RECORDED_NAMES.get(phase, phase)}/device_peak_gib"]
        assert total_bytes(planned[phase]) / GIB == pytest.approx(expected, rel=0.1), phase
    pinned = total_bytes(host.pinned_memory(run)) / GIB
    assert pinned + 3.2 == pytest.approx(logged["memory/host_peak_gib"], rel=0.05)
    lengths = tuple(range(2080, 4096, 64))
    seconds = Schedule(run, Workload(lengths, prompt=128)).generate_seconds(256)
    assert seconds == pytest.approx(logged["seconds/generate"], rel=0.15)


@pytest.mark.parametrize(("file", "gpus", "changed"), LAYOUTS)
def test_seconds_of_a_step_are_about_what_was_measured(file: str, gpus: int, changed: dict[str, object]) -> None:
    """The measured sequences have 8,192 tokens; the rates are those of packed ones, which are a little faster.

    FP8 under TP is left out: with one short sequence per micro-batch the host was the limit.
    """
    model = benchmark_model("policy", 32768, gpus, **changed)
    model.config.policy.mini_batches = 1
    run = PlannedRun(model.settings, model.config, Machine(1, gpus, 80.0, 256.0))
    seconds = Schedule(run, Workload((8064,), prompt=128)).training_seconds("policy", 4, model.config.policy)
    fp8 = changed.get("model__fp8", "none")
    assert seconds == pytest.approx(measured(file, f"policy step, fp8 {fp8}")["seconds"], rel=0.15)


_SMALL = "loop.samples_per_prompt=8 generation.gpu_memory_utilization=0.8 loop.labeled_prompts="
_17B = f"{_SMALL}16 loop.unlabeled_prompts=16 policy.micro_batch_tokens=8192 critic.micro_batch_tokens=8192"
_TP2 = "parallel.tensor_model_parallel_size=2 parallel.sequence_parallel=true generation.tensor_parallel_size=1"
_8B = f"{_TP2} policy.micro_batch_tokens=8448 critic.micro_batch_tokens=8448 {_SMALL}"
ITERATIONS = [
    ("iteration-1.7b", "qwen3-1.7b", _17B, "uniform:2048:4096"),
    ("grpo-8b", "qwen3-8b", f"{_8B}32 method=grpo", "mean:1060:4096"),
    ("tempo-8b", "qwen3-8b", f"{_8B}16 loop.unlabeled_prompts=16 memory.offload_weights=false", "mean:1060:4096"),
]
"""Results file, shape, settings, lengths."""


@pytest.mark.parametrize(("file", "shape", "overrides", "lengths"), ITERATIONS)
def test_seconds_of_whole_iterations_are_about_what_was_measured(
    file: str, shape: str, overrides: str, lengths: str
) -> None:
    """In bf16 on two H200s: iterations within a fifth, generating within a tenth, all of training within a fifth."""
    results = json.loads((RESULTS / "2026-11-26-gpu" / f"{file}.json").read_text())["sections"]["iteration"]
    sizes = ("data.max_prompt_tokens=128", "generation.max_response_tokens=4096")
    run = PlannedRun(
        shapes.backbone_shape(shapes.shape_config(shape, None, None)),
        load_config(None, [*overrides.split(), *sizes]),
        TWO_H200,
    )
    response_lengths = tuple(sorted(map(Lengths.parse(lengths).draw, range(512))))
    planned = Schedule(run, Workload(response_lengths, prompt=128)).phase_seconds()
    training = {"e_step", "advantages", "m_step"}.intersection(planned)
    assert sum(planned.values()) == pytest.approx(results["seconds"], rel=0.2)
    assert planned["generate"] == pytest.approx(results["log: seconds/generate"], rel=0.1)
    expected = sum(results[f"log: seconds/{RECORDED_NAMES[phase]}"] for phase in training)
    assert sum(planned[phase] for phase in training) == pytest.approx(expected, rel=0.2)


def test_phases_use_the_same_state_as_in_a_run() -> None:
    """`training/residency.py` decides what is offloaded in a phase, and the plan must agree with it."""
    for phase, models in phases.PHASE_STATE.items():
        models_in_run = {name: {str(kind) for kind in kinds} for name, kinds in residency._WORKERS[phase].items()}
        models_in_run.pop("generator", None)
        assert {name: set(kinds) for name, kinds in models.items()} == models_in_run, phase


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("overlay", ["bf16", "fp8"])
def test_every_recipe_fits_the_nodes_of_its_script(recipe: Path, overlay: str) -> None:
    """The Slurm scripts ask for one node of eight 80 GB GPUs by default, for a model with experts for two."""
    config = load_config(recipe, [str(ROOT / "recipes" / "parts" / "fp8.yaml")] if overlay == "fp8" else [])
    assert check_plan(config, nodes=2 if config.parallel.expert_model_parallel_size > 1 else 1) == []


@pytest.mark.parametrize(
    "settings_file", sorted((ROOT / "recipes" / "methods").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_methods_own_settings_fit_the_nodes_of_their_scripts(settings_file: Path) -> None:
    """TTRL holds a third model, the reference. The model with experts asks for two nodes."""
    for name in ("qwen3_14b_math", "qwen3_8b_math", "olmo3_7b_math"):
        assert check_plan(recipe_run(name, str(settings_file)).config, nodes=1) == []
    experts = recipe_run("qwen3_30b_a3b_math", str(settings_file)).config
    assert check_plan(experts, nodes=2) == [] and any("m_step" in line for line in check_plan(experts, nodes=1))


@pytest.mark.parametrize("nodes", [2, 4, 64])
def test_recipes_still_fit_when_nodes_are_added(nodes: int) -> None:
    for name in ("qwen3_14b_math", "qwen3_8b_math", "olmo3_7b_math", "qwen3_30b_a3b_math"):
        assert check_plan(recipe_run(name).config, nodes=nodes) == []


REFUSED: list[tuple[list[str], Machine, list[str]]] = [
    (["model.recompute=none"], NODE, ["e_step: ", "m_step: "]),
    ([], Machine(1, 8, 40.0, 1536.0), ["e_step: ", "m_step: "]),
    ([], Machine(1, 8, 80.0, 256.0), ["host: a rank takes", "host: a node takes"]),
    (["generation.gpu_memory_utilization=0.2"], NODE, ["generate: "]),
    (["parallel.tensor_model_parallel_size=3"], NODE, ["attention heads", "KV heads", "MLP channels", "8 GPUs"]),
    (["memory.offload_optimizer=false"], NODE, ["generate: ", "e_step: ", "m_step: "]),
]


@pytest.mark.parametrize(("overrides", "machine", "reasons"), REFUSED)
def test_a_run_that_does_not_fit_is_refused_with_every_reason(
    overrides: list[str], machine: Machine, reasons: list[str]
) -> None:
    problems = plan_problems(recipe_run("qwen3_14b_math", *overrides, machine=machine))
    for reason in reasons:
        assert any(reason in line for line in problems), (reason, problems)


@pytest.mark.parametrize(("tensor", "pipeline", "nodes"), [(4, 1, 1), (4, 1, 2), (8, 2, 2)])
def test_an_asynchronous_saves_copies_are_counted(tensor: int, pipeline: int, nodes: int) -> None:
    """Copies take 14 bytes per parameter of policy and critic: weights, fp32 weights and two moments.

    They exist once for all data-parallel ranks, on the nodes of the first of these ranks. A rank's budget has its part
    of the node's copies.
    """
    layout = [f"parallel.tensor_model_parallel_size={tensor}", f"parallel.pipeline_model_parallel_size={pipeline}"]
    machine = Machine(nodes, 8, 80.0, 1536.0)
    usual = recipe_run("qwen3_14b_math", *layout, machine=machine)
    asynchronous = recipe_run("qwen3_14b_math", *layout, "checkpoint.asynchronous=true", machine=machine)
    policy, critic = (rank_parameters(asynchronous.settings, role, 1, 1, 0).total for role in ("policy", "critic"))
    nodes_of_copies = max(1, tensor * pipeline // 8)
    copies = total_bytes(host.node_memory(asynchronous)) - total_bytes(host.node_memory(usual))
    assert copies == pytest.approx(14 * (policy + critic) / nodes_of_copies, rel=0.06 if pipeline > 1 else 1e-3)
    assert total_bytes(host.budgeted_memory(asynchronous)) - total_bytes(host.budgeted_memory(usual)) == copies // 8

    asynchronous.config.memory.host_gib = usual.config.memory.host_gib = (
        total_bytes(host.budgeted_memory(usual)) / GIB + 1
    )
    assert not any("host: a rank" in line for line in plan_problems(usual))
    assert any("host: a rank" in line and "asynchronous" in line for line in plan_problems(asynchronous))


def test_chosen_layouts_fit_and_more_nodes_are_faster() -> None:
    """Every listed layout fits, even if the recipe's own does not."""
    workload = Workload.uniform(8192, 16384)
    seconds = []
    for nodes in (1, 2, 4):
        choices = rank_layouts(recipe_run("qwen3_14b_math", machine=Machine(nodes, 8, 80.0, 1536.0)), workload)
        assert choices and all(not plan_problems(choice.run) for choice in choices)
        seconds.append(min(choice.seconds for choice in choices))
    assert seconds == sorted(seconds, reverse=True)
    assert rank_layouts(recipe_run("qwen3_14b_math", machine=Machine(1, 8, 24.0, 1536.0)), workload) == []


def test_layout_changes_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with one GPU, TP divides the layers, PP keeps more micro-batches, CP divides tokens and optimizer state,
    and recomputation keeps fewer activations."""

    def parts(**changed: Any) -> dict[str, int]:
        gpus = 2 if any(key.startswith("parallel") for key in changed) else 1
        return benchmark_model("policy", 32768, gpus, **changed).step_peak()

    one_gpu = parts()
    tensor = parts(**TENSOR_PARALLEL)
    for kind in ("weights", "gradients", "optimizer", "activations", "logits"):
        assert tensor[kind] == pytest.approx(one_gpu[kind] / 2, rel=1e-3)
    context = parts(parallel__context_parallel_size=2)
    assert context["weights"] == one_gpu["weights"] and context["optimizer"] == one_gpu["optimizer"] // 2
    assert context["activations"] == one_gpu["activations"] // 2
    pipeline = parts(parallel__pipeline_model_parallel_size=2)
    assert pipeline["weights"] == pytest.approx(one_gpu["weights"] / 2, rel=1e-3)
    assert pipeline["activations"] > one_gpu["activations"]  # two micro-batches of half the layers, and what is sent
    assert parts(model__recompute="full")["activations"] == 16 * 8192 * 4096 * 2
    assert (
        total_bytes(parts(model__recompute="full")) < total_bytes(parts(model__recompute="mlp")) < total_bytes(one_gpu)
    )


def test_a_config_needs_no_model_directory() -> None:
    """`tempo launch` refuses a run before anything is downloaded or queued."""
    config = Config()
    config.model.hf_path = "somewhere/Qwen3-14B-Base"
    config.parallel.tensor_model_parallel_size = 8
    config.parallel.sequence_parallel = True
    assert check_plan(config, nodes=1) == []
    config.model.hf_path = "somewhere/unheard-of"
    assert "config.json" in check_plan(config, nodes=1)[0]
