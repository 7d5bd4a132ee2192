"""`tempo launch` before anything is queued."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tempo_megatron import cli, planning
from tempo_megatron.config import load_config
from tempo_megatron.launch import command, job
from tempo_megatron.launch.experiment import LaunchTask, tasks
from tempo_megatron.run_dir.layout import as_saved
from tests.warm.start import warm_python


def test_bad_input_is_refused_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a job would find hours later in the queue, all of it in one message."""
    given = ["launch", str(recipe), "--executor", "local", "--nodes", "2", "model.hf_path=/nowhere"]
    starts = ["policy.checkpoint=/no-policy", "critic.checkpoint=/no-critic"]
    impossible = ["method=grpo", "policy.learns_from=both", "critic.training=frozen"]
    assert cli.main([*given, *starts, *impossible, "data.held_out=[{path: /none.jsonl}]"]) == 2
    said = capsys.readouterr().err
    assert "model.hf_path: /nowhere is no directory" in said and "--nodes" in said
    assert "policy.checkpoint: /no-policy is" in said and "critic.checkpoint: /no-critic is" in said
    assert "/none.jsonl: no such data file" in said
    assert "policy.learns_from: both, but method grpo needs" in said


def test_what_cannot_fit_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tempo plan`'s figures, before a job waits for hours to run out of memory."""
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--gpu-memory", "1"]) == 2
    assert "GiB" in capsys.readouterr().err


def test_an_image_is_not_given_the_whole_file_system(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run_dir of which nothing is there would be mounted as what it will be in, here /, over the image's own."""
    given = ["launch", str(recipe), "--executor", "slurm", "--dry-run", "run_dir=/no-such-mount/runs/x"]
    assert cli.main([*given, "--container", "image.sqsh"]) == 2
    assert "/no-such-mount/runs/x: nothing of this path is here" in capsys.readouterr().err


def test_the_sbatch_text_is_printed(recipe: Path, nemo_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run shows every job as it would be submitted, and leaves nothing behind."""
    before = set(nemo_home.rglob("*.sh"))  # other tests submit from the same place
    options = ["--executor", "slurm", "--nodes", "4", "--account", "acct", "--partition", "gpu", "--time", "2:00:00"]
    assert cli.main(["launch", str(recipe), *options, "--container", "image.sqsh", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [f"#SBATCH --job-name=tempo-{name}" in said for name in ("convert", "train", "export", "evaluate")] == [
        True
    ] * 4
    assert said.count("#SBATCH --nodes=4") == 1 and said.count("#SBATCH --nodes=1") == 3
    for line in ("--account=acct", "--partition=gpu", "--time=2:00:00", "--kill-on-invalid-dep=yes"):
        assert said.count(f"#SBATCH {line}") == 4
    assert said.count("#SBATCH --signal=USR1@600") == 1
    model = load_config(recipe).model.hf_path
    assert f"{model}:{model}" in said and f"{recipe.parent}:{recipe.parent}" in said
    assert "--container-image image.sqsh" in said and "exec python -m tempo_megatron.cli train" in said
    assert set(nemo_home.rglob("*.sh")) == before and not (nemo_home / "experiments" / recipe.stem).exists()


def test_nemo_runs_own_files_are_the_runs(recipe: Path, nemo_home: Path) -> None:
    """Scripts and logs lie in the run's directory, on the nodes' file system, and go with it; the home directory stays
    as it was. A dry run does not even make the run's directory."""
    home, run = recipe.parent / "home", recipe.parent / "run"
    warm = warm_python()
    environment = {name: value for name, value in os.environ.items() if name != "NEMORUN_HOME"} | {"HOME": str(home)}

    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*warm, "-m", "tempo_megatron.cli", "launch", str(recipe), "--executor", *options]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    home.mkdir()
    dry = launch("slurm", "--dry-run")
    assert f"{run}/nemo_run/experiments/recipe/" in dry.stdout and not run.exists(), dry.stderr
    assert launch("local", "data.labeled=[{task: unheard_of, size: 3}]").returncode == 1  # training refuses it
    assert list(run.glob("nemo_run/experiments/recipe/*/convert/scripts/convert.sh"))
    assert not list(home.glob(".nemo*"))


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
"""exit code of the ranks, what Slurm says of the job, its restarts so far, in which nothing was saved, whether it is
requeued"""


@pytest.mark.parametrize(("code", "state", "restarts", "expected"), REQUEUED)
def test_a_job_is_requeued_after_an_interruption_alone(
    code: int, state: str, restarts: int, expected: bool, tmp_path: Path, nemo_home: Path
) -> None:
    """As the scripts of slurm/ do it: failures, hangs and canceled jobs stay as they are, and restarts have an end,
    early where nothing is saved. Ranks are told their nodes, and nothing of another launcher."""
    from tempo_megatron.launch.nemo import setup

    squeue = f'for word; do case $word in *%T*) echo "7 {state} 7" ;; esac; done'
    scontrol = f'case $* in *hostnames*) echo node1; echo node2 ;; requeue*) echo "$@" >> {tmp_path}/asked ;; esac'
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
    for program in ("squeue", "scontrol"):
        (tmp_path / program).chmod(0o755)
    run = tmp_path / "a run"
    for attempt in range(restarts):
        mark = run / "logs" / "7" / f"attempt-{attempt}" / "in_vain"
        mark.parent.mkdir(parents=True)
        mark.touch()
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_NODELIST": "node[1-2]"}
    variables |= {"RANK": "1", "TEMPO_DEADLINE": "1"}
    environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ranks = f'bash -c "echo \\$TEMPO_NODES\\$RANK\\$TEMPO_DEADLINE; exit {code}"\nexit=$?\nset -e\nexit $exit'
    made = subprocess.run(
        ["bash", "-c", f"{setup(run)}\n{ranks}"], env=environment, stdout=subprocess.PIPE, timeout=120
    )
    assert made.returncode == code and made.stdout.startswith(b"node1 node2\n")
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("requeue 7\n" if expected else "")


SBATCH = """#!/bin/sh
[ "${*#*train}" = "$*" ] && echo 12 && exit
echo "sbatch: error: invalid partition specified: nope" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""
"""takes the first task and refuses the second"""


def test_what_slurm_refuses_is_a_line_and_leaves_nothing(
    recipe: Path, tmp_path: Path, nemo_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first task that was queued would convert a model for nobody; a hundred lines of traceback hide the reason."""
    programs = {"sbatch": SBATCH, "scancel": f'#!/bin/sh\necho "$@" >> {tmp_path}/canceled\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = set(nemo_home.rglob("*"))
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--partition", "nope"]) == 2
    said = capsys.readouterr()
    reason = "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
    assert (said.out, said.err) == ("", f"tempo launch: sbatch refuses the job: {reason}\n")
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
def test_what_slurm_cannot_do_is_refused_before_it(
    options: list[str], refusal: str, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job shorter than its own warning would be told to stop as it starts, every time."""
    monkeypatch.delenv("NEMORUN_HOME", raising=False)
    assert cli.main(["launch", str(recipe), "--executor", "slurm", "--dry-run", *options]) == 2
    assert refusal in capsys.readouterr().err


def test_an_image_is_given_what_links_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's snapshot has links to its blobs, and a name may be a link itself: files are where each path leads."""
    snapshot, blob, name = tmp_path / "snap shots" / "1", tmp_path / "blobs" / "abc", tmp_path / "model"
    for directory in (snapshot, blob.parent):
        directory.mkdir(parents=True)
    blob.touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    name.symlink_to(snapshot)
    place = tmp_path.parent / "blobs" / "abc"  # where the relative link leads from the name
    expected = [f"{snapshot}:{snapshot}", f"{blob}:{blob}", f"{name}:{name}", f"{blob}:{place}"]
    assert job.mounts([name]) == expected
    monkeypatch.chdir(tmp_path)  # the image sees the link itself, too
    assert job.mounts([name]) == expected[:2]


def test_an_image_cannot_be_given_any_path(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of mounts has commas and colons of its own."""
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
def test_a_time_limit_is_read_as_sbatch_reads_it(limit: str, expected: float) -> None:
    """One number is minutes, after a dash it is hours."""
    assert job.seconds(limit) == expected


def test_jobs_of_nemo_run_and_of_the_scripts_start_ranks_alike() -> None:
    """A site's SLURM_DISTRIBUTION would part neighbors, SLURM_EXPORT_ENV their environment."""
    assert f"RANKS=({' '.join(job.RANKS)})" in job.JOB.read_text()


def test_here_nothing_starts_after_a_failure(tmp_path: Path, nemo_home: Path) -> None:
    """NeMo-Run's local executor goes on; an export of a run that failed would look like a success."""
    from tempo_megatron.launch.nemo import run_here

    steps = [
        LaunchTask("train", f"touch {tmp_path}/trained; exit 3"),
        LaunchTask("export", f"touch {tmp_path}/exported"),
    ]
    assert not run_here("failing", steps)
    assert (tmp_path / "trained").exists() and not (tmp_path / "exported").exists()
    assert run_here("succeeding", [LaunchTask("train", "true"), steps[1]])
    assert (tmp_path / "exported").exists()


def test_a_recipe_with_a_start_of_its_own_converts_nothing(recipe: Path) -> None:
    """A run's export is asked for, which knows whether a best checkpoint was chosen; evaluation reads it."""
    chosen = ["policy.checkpoint=start", "checkpoint.select_best=true", "run_dir=runs/x"]
    train, export, evaluate = tasks(str(recipe), chosen, "python")
    assert (train.name, export.name, evaluate.name) == ("train", "export", "evaluate")
    assert train.all_nodes and not export.all_nodes and not evaluate.all_nodes
    assert "run_dir=runs/x export=false" in train.script and "runs/x/start" not in train.script
    assert export.script == "exec python -m tempo_megatron.cli export runs/x"
    assert "--model runs/x/hf" in evaluate.script


def test_a_run_that_has_a_checkpoint_is_launched_again_without_what_it_started_from(
    recipe: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the model's directory nor a start run is asked for, and nothing is converted again."""
    saved = recipe.parent / "run" / "checkpoints" / "iteration-000001"
    given = ["launch", str(recipe), "--executor", "local", "--nodes", "2", "model.hf_path=/gone"]
    assert cli.main([*given, "policy.checkpoint=/gone-too"]) == 2
    assert capsys.readouterr().err.count("is no directory here") == 2
    convert = tasks(str(recipe), [], "false")[0].script
    assert subprocess.run(["bash", "-c", convert]).returncode == 1
    copy = saved.with_suffix(".bak")
    copy.mkdir(parents=True)
    (copy / "state.json").touch()
    assert subprocess.run(["bash", "-c", convert]).returncode == 1  # a copy beside the checkpoints is none
    shutil.copytree(demo_model, saved / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (saved / "state.json").touch()
    assert cli.main([*given, "policy.checkpoint=/gone-too"]) == 2  # for --nodes
    assert "is no directory here" not in capsys.readouterr().err
    assert subprocess.run(["bash", "-c", convert]).returncode == 0


def test_a_run_that_has_a_checkpoint_is_planned_and_mounted_by_that(recipe: Path, demo_model: Path) -> None:
    """Its checkpoint describes the model, without weights in a form that could be judged; an image is given nothing of
    what the run started from."""
    saved = recipe.parent / "run" / "checkpoints" / "iteration-000001"
    shutil.copytree(demo_model, saved / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (saved / "state.json").touch()
    config = load_config(recipe, ["model.hf_path=/gone/model", "policy.checkpoint=/gone/start"])
    described = as_saved(config)
    assert planning.check_plan(described, nodes=1) == [] and planning.checkpoint_gib(described, gpus=2) > 0
    assert cli.main(["plan", str(recipe), "model.hf_path=/gone/model"]) == 0
    new = {str(path) for path in command._directories(config, config)}
    resumed = {str(path) for path in command._directories(config, described)}
    assert new - resumed == {"/gone/model", "/gone/start"} and resumed < new
