"""The measurements of the recipes' sizes: which ones run, as which commands, and what a failure does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import benchmark_sizes
import pytest
from benchmark_sizes import MEASUREMENTS, Measurement, main, rehearsal, selected
from benchmarking import command
from benchmarking.command import _parser
from benchmarking.phases import predicted_iteration

from tempo_megatron.config import load_config
from tempo_megatron.planning.fit import memory_problems
from tests.conftest import ROOT


def test_every_command_is_one_that_the_benchmark_and_the_settings_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong option or key would be seen only on the rented GPUs. Names are unique for a number of GPUs."""
    monkeypatch.chdir(ROOT)
    for measurement in (*MEASUREMENTS, *map(rehearsal, MEASUREMENTS)):
        options = _parser().parse_intermixed_args(measurement.command(())[2:])
        assert options.gpus == measurement.gpus and options.sections == measurement.sections
        config = load_config(None, options.overrides)
        sizes = (options.tp or config.parallel.tensor_model_parallel_size), (options.ep or 1)
        assert all(measurement.gpus % size == 0 for size in sizes)
    keys = [(measurement.gpus, measurement.name) for measurement in MEASUREMENTS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda each: f"{each.name} on {each.gpus}")
def test_every_measurement_fits_its_gpus_and_its_time_by_plan(
    measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are written once all iterations have ended, so a time limit within them would lose everything. A fifth
    of the time is for starting an engine."""
    monkeypatch.chdir(ROOT)
    options = _parser().parse_intermixed_args(measurement.command(["--plan=141"])[2:])
    run, workload = command.planned_iteration(options)
    prediction = predicted_iteration(run, workload)
    untimed = 2 if run.config.loop.partial_rollouts else 1
    assert (untimed + options.steps) * prediction["seconds"] < 0.8 * 570
    assert not [line for line in memory_problems(run) if "GPU" in line]


def test_whoever_ends_the_benchmark_ends_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun replaces the process, so that a time limit signals it, and waits until it has ended its ranks."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.append(arguments))
    monkeypatch.setattr(command.torchrun, "is_rank", lambda: False)
    command.main(["tiny", "--gpus=2", "--sections=train"])
    ((*_, script, shape, gpus, sections),) = started
    assert "torch.distributed.run" in started[0] and "--nproc-per-node=2" in started[0]
    assert Path(script).name == "benchmark.py" and [shape, gpus, sections] == ["tiny", "--gpus=2", "--sections=train"]


def test_measurements_are_chosen_by_gpus_and_name_and_an_unknown_name_is_refused() -> None:
    assert [each.name for each in selected(8, [])][:2] == ["14b-tp4", "14b-tp2"]
    assert all(each.gpus == 4 for each in selected(4, []))
    assert [each.name for each in selected(8, ["14b-tp2"])] == ["14b-tp2"]
    with pytest.raises(ValueError, match=r"4 GPUs is called 14b-tp2; there are 14b-tp4"):
        selected(4, ["14b-tp2"])
    with pytest.raises(ValueError, match="no measurement for 3 GPUs"):
        selected(3, [])


def test_a_failure_stops_no_other_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command fails, the second exceeds its time, the third writes its figures."""
    script = tmp_path / "benchmark.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "options = dict(part.split('=', 1) for part in sys.argv[2:])\n"
        "sys.argv[1] == 'slow' and time.sleep(60)\n"
        "sys.argv[1] == 'wrong' and sys.exit('no such shape')\n"
        "pathlib.Path(options['--json']).write_text('{}')\n"
    )
    shapes = ("wrong", "slow", "right")
    monkeypatch.setattr(benchmark_sizes, "MEASUREMENTS", [Measurement(name, 2, name, "sync", ()) for name in shapes])
    monkeypatch.setattr(benchmark_sizes, "_BENCHMARK", script)
    assert main([str(tmp_path / "out"), "--gpus=2", "--seconds=2"]) == 1
    printed = capsys.readouterr().out
    assert "wrong ended with 1" in printed and "slow took longer than 2 seconds" in printed
    assert "no such shape" in (tmp_path / "out/wrong.log").read_text()
    assert json.loads((tmp_path / "out/right.json").read_text()) == {}
    assert sorted(os.listdir(tmp_path / "out")) == ["right.json", "right.log", "slow.log", "wrong.log"]
