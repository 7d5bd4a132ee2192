"""The commands of the sbatch scripts, with shell scripts in place of Slurm's programs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tempo_megatron import planning
from tempo_megatron.config import PreflightConfig, load_config
from tempo_megatron.launch.torchrun import RANK_ENVIRONMENT
from tests.conftest import ROOT
from tests.processes.slurm_job import FINISHES, commands, requeues, submit

SCRIPTS = {
    "tempo_14b.sh": "qwen3_14b",
    "tempo_8b.sh": "qwen3_8b",
    "tempo_olmo3_7b.sh": "olmo3_7b",
    "tempo_30b_a3b.sh": "qwen3_30b_a3b",
}


TABLE = """for word; do [[ $word = --output=* ]] && log=${word#--output=}; done
echo "n2 is bad" > "${log/'%3t'/000}\""""
STOPPED = [
    ("node2: tasks 2-3: Terminated", 143, True, ""),
    ("node2: tasks 2-3: Terminated", 143, True, "yes"),
    ("node1: task 0: User defined signal 1", 138, True, ""),
    ("node1: task 0: Exited with exit code 143", 143, True, ""),
    ("node1: task 0: Exited with exit code 138", 138, True, ""),
    ("node1: task 1: Exited with exit code 1\nsrun: error: node1: tasks 0,2-3: Terminated", 143, False, ""),
    ("node1: task 3: Killed", 137, False, ""),
]
"""Message of srun, its exit code, whether the job is requeued, TEMPO_DOCTOR."""


def test_a_first_run_that_was_removed_is_not_trained_again(tmp_path: Path) -> None:
    """TEMPO has a checkpoint and resumes from it. A first run that exists is resumed as usual."""
    saved = tmp_path / "runs" / "tempo" / "checkpoints" / "iteration-000001"
    saved.mkdir(parents=True)
    (saved / "state.json").touch()
    (only,) = commands("tempo_14b.sh", tmp_path)
    assert "train recipes/qwen3_14b_math.yaml" in only and "policy.checkpoint=" in only
    (tmp_path / "called").unlink()
    (tmp_path / "runs" / "tempo" / "FINISHED").unlink()
    (tmp_path / "runs" / "rlvr").mkdir()
    first, _ = commands("tempo_14b.sh", tmp_path)
    assert "train recipes/qwen3_14b_math_rlvr.yaml" in first


@pytest.mark.parametrize(("script", "recipes"), SCRIPTS.items())
def test_both_runs_of_a_model(script: str, recipes: str, tmp_path: Path) -> None:
    """TEMPO starts from the best checkpoint of the run before it, with the model, data and settings that were given."""
    first, second = commands(script, tmp_path, "loop.iterations=3", TEMPO_MODEL="/models/m", TEMPO_DATA="/data")
    best = f"{tmp_path}/runs/rlvr/checkpoints/best"
    assert f"train recipes/{recipes}_math_rlvr.yaml run_dir={tmp_path}/runs/rlvr model.hf_path=/models/m" in first
    assert f"train recipes/{recipes}_math.yaml run_dir={tmp_path}/runs/tempo model.hf_path=/models/m" in second
    assert f"policy.checkpoint={best} critic.checkpoint={best} loop.iterations=3" in second
    assert "--container" not in first
    assert all((tmp_path / "runs" / name / "FINISHED").is_file() for name in ("rlvr", "tempo"))


def test_the_second_runs_method_does_not_reach_the_first(tmp_path: Path) -> None:
    """With another method the first run would train on questions that it must not see."""
    first, second = commands("tempo_14b.sh", tmp_path, "method=ttrl", "loop.iterations=3", "critic.checkpoint=")
    assert "_rlvr.yaml" in first and "loop.iterations=3" in first and "method=" not in first
    assert "critic" not in first and second.endswith("loop.iterations=3 method=ttrl critic.checkpoint=")


def test_a_methods_own_settings_reach_only_the_second_run(tmp_path: Path) -> None:
    """TTRL's file sets its method, which would train the first run on questions that it must not see."""
    settings_file, other_file = "recipes/methods/ttrl.yaml", f"{ROOT}/recipes/methods/empo.yaml"
    first, second = commands("tempo_14b.sh", tmp_path, settings_file, other_file, "recipes/parts/fp8.yaml")
    assert first.endswith("model.hf_path=models/Qwen3-14B-Base recipes/parts/fp8.yaml")
    assert second.endswith(f"recipes/parts/fp8.yaml {settings_file} {other_file}")


def test_the_first_run_is_skipped_if_tempo_has_its_own_policy_and_critic(tmp_path: Path) -> None:
    """For example, both may start from the model itself. The first run would take hours and not be used."""
    (only,) = commands("tempo_14b.sh", tmp_path, "policy.checkpoint=", "critic.checkpoint=", "seed=3")
    assert "train recipes/qwen3_14b_math.yaml" in only and only.endswith("seed=3 policy.checkpoint= critic.checkpoint=")


def test_any_recipe_runs_with_its_settings(tmp_path: Path) -> None:
    """Also recipes with a judge and a user's own. The model is the recipe's unless TEMPO_MODEL names another."""
    run, judge = tmp_path / "runs" / "mine", "grading.judge_url=http://judge:8000/v1"
    arguments = ("recipes/qwen3_14b_general_rlvr.yaml", str(run), judge)
    (called,) = commands("recipe.sh", tmp_path, *arguments)
    assert called.endswith(f"train {arguments[0]} run_dir={run} {judge}")
    assert (run / "FINISHED").is_file()
    (run / "FINISHED").unlink()
    model = tmp_path / "m"
    model.mkdir()
    _, called = commands("recipe.sh", tmp_path, *arguments, TEMPO_MODEL=str(model), TEMPO_CONTAINER="image.sqsh")
    assert called.endswith(f"run_dir={run} model.hf_path={model} {judge}") and f",{model}:{model}," in called
    (run / "FINISHED").unlink()
    *_, called = commands("recipe.sh", tmp_path, *arguments, TEMPO_CONTAINER="image.sqsh")
    assert f"--container-mounts={ROOT}:{ROOT},{ROOT}/data:{ROOT}/data,{run}:{run} " in called


@pytest.mark.parametrize(
    "arguments", [(), ("recipe.yaml",), ("recipe.yaml", "seed=1"), ("recipe.yaml", "parts/fp8.yaml")]
)
def test_a_run_without_a_directory_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A setting in its place would become a directory of that name."""
    code, output = submit("recipe.sh", tmp_path, FINISHES, *arguments)
    assert code == 2 and "usage: sbatch slurm/recipe.sh RECIPE RUN" in output and not (tmp_path / "called").exists()


@pytest.mark.parametrize(("script", "recipes"), SCRIPTS.items())
def test_a_script_asks_for_what_its_recipes_need(script: str, recipes: str) -> None:
    """By default one node or two, with a task and a GPU per rank. By `tempo plan` everything fits."""
    options = {
        key.removeprefix("#SBATCH --"): value
        for line in (ROOT / "slurm" / script).read_text().splitlines()
        for key, separator, value in [line.partition("=")]
        if separator
    }
    for name in (f"{recipes}_math_rlvr", f"{recipes}_math"):
        config = load_config(ROOT / "recipes" / f"{name}.yaml")
        assert options["ntasks-per-node"] == options["gpus-per-node"] == str(config.parallel.processes_per_node)
        assert (
            planning.check_plan(config, nodes=int(options["nodes"]), gpus_per_node=int(options["gpus-per-node"])) == []
        )


def test_a_container_sees_what_a_run_reads_and_writes(tmp_path: Path) -> None:
    """Paths are the same inside the image, and the targets of links are mounted too.

    pyxis's options are passed only with an image, because plain Slurm refuses them.
    """
    scratch, real = tmp_path / "scratch", tmp_path / "file-system-7"
    scratch.symlink_to(real)  # settings use this path, so the image must have it
    (real / "m").mkdir(parents=True)
    variables = {"TEMPO_CONTAINER": "image.sqsh", "TEMPO_MODEL": f"{scratch}/./m", "TEMPO_DATA": "data"}
    first, _ = commands("tempo_14b.sh", tmp_path, **variables)
    assert f"--container-image=image.sqsh --container-workdir={ROOT} --container-mounts={ROOT}:{ROOT}," in first
    assert (
        f",{real}/m:{real}/m,{scratch}/m:{scratch}/m,{ROOT}/data:{ROOT}/data,{tmp_path}/runs:{tmp_path}/runs " in first
    )
    variables["TEMPO_MODEL"] = f"{scratch}/gone"  # a run that has a checkpoint needs none
    (tmp_path / "runs" / "tempo" / "FINISHED").unlink()
    assert all("/gone:" not in command for command in commands("tempo_14b.sh", tmp_path, **variables))


def test_paths_with_blanks_and_targets_of_links_are_mounted(tmp_path: Path) -> None:
    """The list of mounts must not be split at a blank. Files of a hub's snapshot are links out of it."""
    runs, snapshot = tmp_path / "a b" / "runs", tmp_path / "hub" / "snapshots" / "1"
    blob = tmp_path / "hub" / "blobs" / "abc"
    for directory in (snapshot, blob.parent):
        directory.mkdir(parents=True)
    blob.touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "gone.safetensors").symlink_to("../../blobs/gone")
    variables = {"TEMPO_CONTAINER": "image.sqsh", "TEMPO_MODEL": str(snapshot), "TEMPO_OUTPUT": str(runs)}
    code, output = submit("tempo_14b.sh", tmp_path, f'printf "%s\n" "$@" > {tmp_path}/words; {FINISHES}', **variables)
    assert code == 0, output
    words = (tmp_path / "words").read_text().splitlines()
    (mounts,) = [word.partition("=")[2].split(",") for word in words if word.startswith("--container-mounts")]
    assert {f"{path}:{path}" for path in (runs, snapshot, blob)} < set(mounts) and "gone" not in str(mounts)
    variables["TEMPO_OUTPUT"] = str(tmp_path / "a,b")
    code, output = submit("tempo_14b.sh", tmp_path, FINISHES, **variables)
    assert code == 2 and "cannot be given a path with a comma" in output


def test_ranks_get_the_names_of_their_nodes(tmp_path: Path) -> None:
    """An image has no scontrol, and a node that never comes must have a name."""
    submit("tempo_14b.sh", tmp_path, f'echo "$TEMPO_NODES" > {tmp_path}/nodes\n{FINISHES}')
    assert (tmp_path / "nodes").read_text() == "node1\n"


@pytest.mark.parametrize("value", ["", "7"])
def test_variables_of_ranks_are_the_users_or_those_of_torchrun(
    value: str, tmp_path: Path, nemo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripts and NeMo-Run's jobs agree with torchrun. A user's thread count must not be replaced silently."""
    from tempo_megatron.launch.nemo import setup_lines

    for name in RANK_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    variables = dict.fromkeys(RANK_ENVIRONMENT, value) if value else {}
    expected = {**RANK_ENVIRONMENT, **variables}
    ranks = f"for name in {' '.join(expected)}; do echo $name=${{!name}}; done"
    programs = f'{ranks} > "{tmp_path}/variables"\n{FINISHES}'
    code, output = submit("tempo_14b.sh", tmp_path, programs, **variables)
    assert code == 0, output
    lines = [f"{name}={value}" for name, value in expected.items()]
    assert (tmp_path / "variables").read_text().splitlines() == lines
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "-c", f"{setup_lines(tmp_path / 'run')}\nbash -c '{ranks}'"],
        env={**os.environ, **job, **variables},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert process.stdout.splitlines() == lines


@pytest.mark.parametrize(("message", "code", "expected", "doctor"), STOPPED)
def test_a_job_that_is_preempted_as_it_starts_is_requeued(
    message: str, code: int, expected: bool, doctor: str, tmp_path: Path
) -> None:
    """Slurm signals only the ranks, and SIGTERM ends them before they listen.

    The first rank that srun names was not ended by srun itself, as other ranks are after a failure.
    """
    ranks = f'echo "srun: error: {message}" >&2; exit {code}'
    _, output = submit("tempo_14b.sh", tmp_path, ranks, TEMPO_DOCTOR=doctor)
    assert requeues(tmp_path) == expected, output


@pytest.mark.parametrize("doctor", ["", "yes"])
def test_a_job_with_a_bad_node_is_requeued_a_few_times(doctor: str, tmp_path: Path) -> None:
    """Slurm may give other nodes. If all are bad, the number of restarts is limited. A wrong recipe is not requeued."""
    for attempt in range(4):
        ranks = f'{TABLE}\necho "srun: error: node1: tasks 0-7: Exited with exit code 69" >&2; exit 69'
        variables = {"TEMPO_DOCTOR": doctor, "SLURM_RESTART_COUNT": str(attempt)}
        code, output = submit("tempo_14b.sh", tmp_path, ranks, **variables)
        assert "n2 is bad" in output
        assert (code, requeues(tmp_path)) == ((75, attempt + 1) if attempt < 3 else (69, 3)), output
    ranks = 'echo "srun: error: node1: tasks 0-7: Exited with exit code 2" >&2; exit 2'
    submit("tempo_14b.sh", tmp_path, ranks, SLURM_RESTART_COUNT="4", TEMPO_DOCTOR=doctor)
    assert requeues(tmp_path) == 3


def test_an_old_summary_does_not_mean_the_run_is_finished(tmp_path: Path) -> None:
    """It may belong to another job in the directory, which has just ended while this one was refused."""
    summary, finished = (tmp_path / "runs" / "rlvr" / name for name in ("summary.json", "FINISHED"))
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    _, output = submit("tempo_14b.sh", tmp_path, "exit 2")
    assert requeues(tmp_path) == 0 and summary.exists() and not finished.exists(), output
    _, output = submit("tempo_14b.sh", tmp_path, "exit 0")  # srun may return 0 although a node failed
    assert requeues(tmp_path) == 1 and summary.exists() and not finished.exists(), output
    _, output = submit("tempo_14b.sh", tmp_path, FINISHES)
    assert finished.exists(), output


def test_a_failure_of_the_first_rank_is_no_bad_node(tmp_path: Path) -> None:
    """The others end with the exit code of bad nodes, because they report the first rank as absent."""
    message = "node1: task 0: Exited with exit code 1\nsrun: error: node1: tasks 1-7: Exited with exit code 69"
    _, printed = submit("tempo_14b.sh", tmp_path, f'echo "srun: error: {message}" >&2; exit 69')
    assert requeues(tmp_path) == 0 and "rank 0 failed first" in printed


def test_a_node_where_nothing_starts_is_judged_by_the_doctor(tmp_path: Path) -> None:
    """The node fails first, and the doctor's verdict comes later."""
    message = "node2: tasks 4-7: Exited with exit code 127\nsrun: error: node1: tasks 0-3: Exited with exit code 69"
    submit("tempo_14b.sh", tmp_path, f'{TABLE}\necho "srun: error: {message}" >&2; exit 127', TEMPO_DOCTOR="yes")
    assert requeues(tmp_path) == 1


def test_a_bad_nodes_early_end_does_not_end_the_doctor(tmp_path: Path) -> None:
    """srun counts --wait from the first rank that ends. A rank of a node without the environment ends at once."""
    first, *_ = commands("tempo_14b.sh", tmp_path, TEMPO_DOCTOR="yes")
    limits = PreflightConfig()
    longest = 2 * limits.presence_seconds + limits.time_limit_seconds + 30
    for text in (first, (ROOT / "docs" / "doctor.md").read_text()):
        assert [int(seconds) > longest for seconds in re.findall(r"--wait=(\d+)", text)] == [True]


def test_recipes_read_the_directory_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """TEMPO_DATA of the scripts applies to every data source."""
    monkeypatch.setenv("TEMPO_DATA", "/elsewhere")
    for recipe in ("qwen3_14b_math", "qwen3_14b_general"):
        data = load_config(ROOT / "recipes" / f"{recipe}.yaml").data
        assert all(source.path.startswith("/elsewhere/") for source in [*data.labeled, *data.unlabeled, *data.held_out])
