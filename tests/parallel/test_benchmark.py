"""Every section of the benchmark runs on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.shapes import backbone_shape, shape_config
from tests.conftest import ROOT
from tests.warm.start import warm_python

_GENERATION = ("sync", "rollout", "order", "partial", "tail", "switch", "iteration")


def test_every_section_runs_and_is_recorded(tmp_path: Path) -> None:
    """Runs the command in one process, as each rank does."""
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
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["shape"]["name"] == "tiny" and report["versions"]["megatron-core"] and "tiny" in report["command"]
    measured = report["sections"]
    passes = {"log-probs and entropy", "values"}
    other_sections = {name: measured.pop(name) for name in _GENERATION}
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
            "host in a policy step",
            "host in raw Megatron",
            "host in a critic step",
            *passes,
        )
    }
    work = ModelFlops(backbone_shape(shape_config("tiny", None, None)), "policy")
    for name in ("policy step", "raw Megatron"):
        figures = measured[f"{name}, fp8 none"]
        assert figures["tokens"] == 4 * 64
        flops = figures["TFLOP/s/GPU"] * 1e12 * figures["seconds"]
        assert flops == pytest.approx(work.step([64] * 4))
    kernels = measured["kernels of raw Megatron, fp8 none"]["rank 0"]
    assert 0 < sum(kernels["ms by kind"].values()) <= kernels["ms"]
    host = measured["host in a critic step, fp8 none"]["rank 0"]
    assert 0 < host["ms inside operations"] < host["ms"] and host["waits for the device"] == 0
    assert "aten::mm" in host["own ms and calls by operation"]
    assert any(name.startswith(("torch/", "megatron/core/")) for name in host["own ms and calls by function"])
    shares = measured["shares of raw Megatron, fp8 none"]
    raw, packed = measured["raw Megatron, fp8 none"], measured["packed policy step, fp8 none"]
    assert shares["packed policy step / raw"] == pytest.approx(packed["TFLOP/s/GPU"] / raw["TFLOP/s/GPU"])
    rollout = other_sections["rollout"]
    assert rollout["tokens/s/GPU"]["ours"] > 0 and other_sections["sync"]["GB"] > 0
    assert 0 < rollout["seconds in them"]["ours"][0] < rollout["seconds of each"]["ours"][0]
    assert other_sections["order"]["requests"] == 4 * 2 and other_sections["order"]["longest first / in order"] > 0
    partial = other_sections["partial"]
    for name in ("all finish", "partial"):
        assert partial[name]["responses that train a call"] == 3 * 2 and partial[name]["trained tokens/s/GPU"] > 0
        assert (partial[name]["share paused"] > 0) == (partial[name]["oldest token, in M-steps"] > 0)
    assert partial["all finish"]["share paused"] == 0
    assert list(other_sections["tail"]) == ["1 live", "3 live"]
    for live, figures in zip((1, 3), other_sections["tail"].values(), strict=True):
        assert figures["tokens/s"] == pytest.approx(live / figures["ms a step"] * 1e3)
        assert figures["device, ms a step"]["kernels"] > 0 and figures["host, ms a step"]["scheduling"] > 0
    assert other_sections["switch"]["training to generating"]["seconds, sync"] > 0
    iteration = other_sections["iteration"]
    parts = sum(iteration[f"share {name}"] for name in ("training", "generating", "of the rest"))
    assert parts == pytest.approx(1) and iteration["seconds, critic steps"] > 0
    # CPUs have no plan, so the phases have measured figures alone.
    phases = iteration["phases"]
    assert {"generate", "e_step", "advantages", "m_step", "sync"} <= set(phases)
    for name in ("e_step", "sync"):
        assert set(phases[name]) == {"seconds", "peak GiB"} and phases[name]["seconds"] > 0
