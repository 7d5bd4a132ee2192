"""`tempo launch` before anything is queued."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tempo_megatron import cli, planning
from tempo_megatron.config import load_config
from tempo_megatron.launch import command, job
from tempo_megatron.launch.experiment import LaunchTask, build_tasks
from tempo_megatron.run_dir.layout import as_saved


def test_bad_input_is_refused_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message lists all that a job would report hours later in the queue."""
    arguments = ["launch", str(recipe), "--executor", "local", "--nodes", "2", "model.hf_path=/nowhere"]
    starts = ["policy.checkpoint=/no-policy", "critic.checkpoint=/no-critic"]
    impossible = ["method=grpo", "policy.learns_from=both", "critic.training=frozen"]
    assert cli.main([*arguments, *starts, *impossible, "data.held_out=[{path: /none.jsonl}]"]) == 2
    errors = capsys.readouterr().err
    assert "model.hf_path: /nowhere is no directory" in errors and "--nodes" in errors
    assert "policy.checkpoint: /no-policy is" in errors and "critic.checkpoint: /no-critic is" in errors
    assert "/none.jsonl: no such data file" in errors
    assert "policy.learns_from: both, but method grpo needs" in errors


def test_a_run_that_cannot_fit_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `tempo plan`, before a job waits for hours and then runs out of memory."""
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--gpu-memory", "1"]) == 2
    assert "GiB" in capsys.readouterr().err


def test_the_root_directory_is_not_mounted_in_an_image(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest existing parent of a run_dir is mounted. If that is /, it would hide the image's own files."""
    arguments = ["launch", str(recipe), "--executor", "slurm", "--dry-run", "run_dir=/no-such-mount/runs/x"]
    assert cli.main([*arguments, "--container", "image.sqsh"]) == 2
    assert "/no-such-mount/runs/x: nothing of this path is here" in capsys.readouterr().err


def test_the_sbatch_text_is_printed(recipe: Path, nemo_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run prints every job as it would be submitted, and leaves no files."""
    before = set(nemo_home.rglob("*.sh"))  # other tests submit from the same place
    options = ["--executor", "slurm", "--nodes", "4", "--account", "acct", "--partition", "gpu", "--time", "2:00:00"]
    assert cli.main(["launch", str(recipe), *options, "--container", "image.sqsh", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert [f"#SBATCH --job-name=tempo-{name}" in output for name in ("convert", "train", "export", "evaluate")] == [
        True
    ] * 4
    assert output.count("#SBATCH --nodes=4") == 1 and output.count("#SBATCH --nodes=1") == 3
    for line in ("--account=acct", "--partition=gpu", "--time=2:00:00", "--kill-on-invalid-dep=yes"):
        assert output.count(f"#SBATCH {line}") == 4
    assert output.count("#SBATCH --signal=USR1@600") == 1
    assert not [line for line in output.splitlines() if re.match("export (OMP|TOKENIZERS|CUDA).*=[^$]*$", line)]
    model = load_config(recipe).model.hf_path
    assert f"{model}:{model}" in output and f"{recipe.parent}:{recipe.parent}" in output
    assert "--container-image image.sqsh" in output and "exec python -m tempo_megatron.cli train" in output
    assert set(nemo_home.rglob("*.sh")) == before and not (nemo_home / "experiments" / recipe.stem).exists()


REQUEUED = [
    (75, "RUNNING", 0, True),
    (128 + signal.SIGUSR1, "RUNNING", 0, True),
    (128 + signal.SIGTERM, "RUNNING", 0, True),
    (0, "RUNNING", 0, False),
    (1, "RUNNING", 0, False),
    (70, "RUNNING", 0, False),
    (69, "RUNNING", 2, True),
    (69, "RUNNING", 3, False),
    (75, "RUNNING", 3, False),
    (128 + signal.SIGTERM, "RUNNING", 3, True),
    (75, "CANCELLED", 0, False),
    (128 + signal.SIGTERM, "RUNNING", 50, False),
]
"""Exit code of the ranks, state of the job in Slurm, restarts so far without a save, whether the job is requeued."""


@pytest.mark.parametrize(("code", "state", "restarts", "expected"), REQUEUED)
def test_only_interrupted_jobs_are_requeued(
    code: int, state: str, restarts: int, expected: bool, tmp_path: Path, nemo_home: Path
) -> None:
    """The scripts of slurm/ do the same. Failed, hanging and canceled jobs are not requeued, and restarts are limited.

    Ranks get the names of their nodes, and no variables of another launcher.
    """
    from tempo_megatron.launch.nemo import setup_lines

    squeue = f'for word; do case $word in *%T*) echo "7 {state} 7" ;; esac; done'
    scontrol = f'case $* in *hostnames*) echo node1; echo node2 ;; requeue*) echo "$@" >> {tmp_path}/requests ;; esac'
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
    for program in ("squeue", "scontrol"):
        (tmp_path / program).chmod(0o755)
    run = tmp_path / "a run"
    for attempt in range(restarts):
        marker = run / "logs" / "7" / f"attempt-{attempt}" / "in_vain"
        marker.parent.mkdir(parents=True)
        marker.touch()
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_NODELIST": "node[1-2]"}
    variables |= {"RANK": "1", "TEMPO_DEADLINE": "1"}
    environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ranks = f'bash -c "echo \\$TEMPO_NODES\\$RANK\\$TEMPO_DEADLINE; exit {code}"\nexit=$?\nset -e\nexit $exit'
    process = subprocess.run(
        ["bash", "-c", f"{setup_lines(run)}\n{ranks}"], env=environment, stdout=subprocess.PIPE, timeout=120
    )
    assert process.returncode == code and process.stdout.startswith(b"node1 node2\n")
    requests = (tmp_path / "requests").read_text() if (tmp_path / "requests").exists() else ""
    assert requests == ("requeue 7\n" if expected else "")


SBATCH = """#!/bin/sh
[ "${*#*train}" = "$*" ] && echo 12 && exit
echo "sbatch: error: invalid partition specified: nope" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""
"""Accepts the first task and refuses the second one."""


def test_a_refusal_of_slurm_is_one_line_and_leaves_nothing(
    recipe: Path, tmp_path: Path, nemo_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first task is canceled, since it would convert a model that nobody uses. No traceback hides the reason."""
    programs = {"sbatch": SBATCH, "scancel": f'#!/bin/sh\necho "$@" >> {tmp_path}/canceled\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = set(nemo_home.rglob("*"))
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--partition", "nope"]) == 2
    captured = capsys.readouterr()
    reason = "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
    assert (captured.out, captured.err) == ("", f"tempo launch: sbatch refuses the job: {reason}\n")
    assert (tmp_path / "canceled").read_text() == "12\n"
    assert set(nemo_home.rglob("*")) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--time", "10"], "--time: 10 is no longer than the 600 s"),
        (["--time", "0:10:00"], "--time: 0:10:00 is no longer than the 600 s"),
        (["--time", "tomorrow"], "--time: 'tomorrow' is no time limit"),
        (["run_dir=/tmp/a b"], "run_dir: NeMo-Run's scripts cannot lie in /tmp/a b/nemo_run, which has a blank"),
    ],
)
def test_impossible_options_are_refused_before_submission(
    options: list[str], refusal: str, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a job shorter than its own warning would be asked to stop at every start."""
    monkeypatch.delenv("NEMORUN_HOME", raising=False)
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--dry-run", *options]) == 2
    assert refusal in capsys.readouterr().err


def test_targets_of_links_are_mounted_in_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's snapshot has links to its blobs, and a path may itself be a link. Each link's target is mounted."""
    snapshot, blob, name = tmp_path / "snap shots" / "1", tmp_path / "blobs" / "abc", tmp_path / "model"
    for directory in (snapshot, blob.parent):
        directory.mkdir(parents=True)
    blob.touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    name.symlink_to(snapshot)
    target = tmp_path.parent / "blobs" / "abc"  # where the relative link points from the name
    expected = [f"{snapshot}:{snapshot}", f"{blob}:{blob}", f"{name}:{name}", f"{blob}:{target}"]
    assert job.container_mounts([name]) == expected
    monkeypatch.chdir(tmp_path)  # the image has the link itself, too
    assert job.container_mounts([name]) == expected[:2]


def test_paths_with_commas_cannot_be_mounted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of mounts uses commas and colons as separators."""
    run = recipe.parent / "a,b"
    run.mkdir()
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--container", "x", f"run_dir={run}"]) == 2
    assert "--container: an image cannot be given a path with a comma" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86400),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("1-00:00:01", 86401),
        ("0", math.inf),
    ],
)
def test_time_limits_are_parsed_as_sbatch_parses_them(limit: str, expected: float) -> None:
    """A single number is minutes. After a dash it is hours."""
    assert job.time_limit_seconds(limit) == expected


def test_nemo_run_and_the_scripts_start_ranks_with_the_same_options() -> None:
    """A site's SLURM_DISTRIBUTION could separate neighbors, and SLURM_EXPORT_ENV could drop their environment."""
    assert f"RANKS=({' '.join(job.SRUN_RANK_OPTIONS)})" in job.JOB_SCRIPT.read_text()


def test_no_local_task_starts_after_a_failure(tmp_path: Path, nemo_home: Path) -> None:
    """NeMo-Run's local executor would continue, and an export of a failed run would look like a success."""
    from tempo_megatron.launch.nemo import run_locally

    steps = [
        LaunchTask("train", f"touch {tmp_path}/trained; exit 3"),
        LaunchTask("export", f"touch {tmp_path}/exported"),
    ]
    assert not run_locally("failing", steps)
    assert (tmp_path / "trained").exists() and not (tmp_path / "exported").exists()
    assert run_locally("succeeding", [LaunchTask("train", "true"), steps[1]])
    assert (tmp_path / "exported").exists()


def test_a_recipe_with_a_start_of_its_own_converts_nothing(recipe: Path) -> None:
    """`tempo export` knows whether a best checkpoint was chosen. The evaluation reads its export."""
    chosen = ["policy.checkpoint=start", "checkpoint.select_best=true", "run_dir=runs/x"]
    train, export, evaluate = build_tasks(str(recipe), chosen, "python")
    assert (train.name, export.name, evaluate.name) == ("train", "export", "evaluate")
    assert train.all_nodes and not export.all_nodes and not evaluate.all_nodes
    assert "run_dir=runs/x export=false" in train.script and "runs/x/start" not in train.script
    assert export.script == "exec python -m tempo_megatron.cli export runs/x"
    assert "--model runs/x/hf" in evaluate.script


def test_a_run_that_has_a_checkpoint_needs_no_start_to_be_launched_again(
    recipe: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs neither the model's directory nor a start run, and converts nothing again."""
    saved = recipe.parent / "run" / "checkpoints" / "iteration-000001"
    arguments = ["launch", str(recipe), "--executor", "local", "--nodes", "2", "model.hf_path=/gone"]
    assert cli.main([*arguments, "policy.checkpoint=/gone-too"]) == 2
    assert capsys.readouterr().err.count("is no directory here") == 2
    convert = build_tasks(str(recipe), [], "false")[0].script
    assert subprocess.run(["bash", "-c", convert]).returncode == 1
    copy = saved.with_suffix(".bak")
    copy.mkdir(parents=True)
    (copy / "state.json").touch()
    assert subprocess.run(["bash", "-c", convert]).returncode == 1  # a copy is no checkpoint
    shutil.copytree(demo_model, saved / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (saved / "state.json").touch()
    assert cli.main([*arguments, "policy.checkpoint=/gone-too"]) == 2  # because of --nodes
    assert "is no directory here" not in capsys.readouterr().err
    assert subprocess.run(["bash", "-c", convert]).returncode == 0


def test_a_run_that_has_a_checkpoint_is_planned_and_mounted_by_it(recipe: Path, demo_model: Path) -> None:
    """Its checkpoint describes the model. The directories that the run started from are not mounted."""
    saved = recipe.parent / "run" / "checkpoints" / "iteration-000001"
    shutil.copytree(demo_model, saved / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (saved / "state.json").touch()
    config = load_config(recipe, ["model.hf_path=/gone/model", "policy.checkpoint=/gone/start"])
    described = as_saved(config)
    assert planning.check_plan(described, nodes=1) == [] and planning.checkpoint_gib(described, gpus=2) > 0
    assert cli.main(["plan", str(recipe), "model.hf_path=/gone/model"]) == 0
    new = {str(path) for path in command._mount_points(config, config)}
    resumed = {str(path) for path in command._mount_points(config, described)}
    assert new - resumed == {"/gone/model", "/gone/start"} and resumed < new
