"""The sbatch scripts with a site's environment, failing requests to Slurm, and attempts that save nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.slurm_job import FINISHES, requeues, submit

STATE = '*%T*) echo "7 RUNNING 7" ;;'
SAVED = 'echo "srun: error: node1: tasks 0-7: Exited with exit code 75" >&2; exit 75'
FAILS_TWICE = 'echo x >> "$0.tries"; [ "$(wc -l < "$0.tries")" -gt 2 ] || exit 1\n'
LEFTOVERS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "old", "MASTER_PORT": "1"}
LEFTOVERS |= {"TORCHELASTIC_RUN_ID": "none", "TEMPO_DEADLINE": "1"}
SITE_VARIABLES = {"SLURM_EXPORT_ENV": "NONE", "SLURM_DISTRIBUTION": "cyclic", "SLURM_LABELIO": "1", "SLURM_WAIT": "1"}
SITE_VARIABLES |= {"SQUEUE_STATES": "PD", "SLURM_TIME_FORMAT": "%d/%m/%Y %H:%M", "SLURM_CLUSTERS": "other"}


def test_ranks_do_not_depend_on_variables_of_a_site_or_a_launcher(tmp_path: Path) -> None:
    """sbatch passes on the environment that it was called in, and Slurm's programs read options from it."""
    end = '*%e*) [ "$SLURM_TIME_FORMAT" = standard ] && echo "7 2033-05-18T03:33:20" ;;'
    squeue = f'[ -z "${{SQUEUE_STATES:-}}" ] || exit 0\nfor word; do case $word in {end} {STATE} esac; done'
    ranks = f"env > {tmp_path}/env; {FINISHES}"
    variables = {**LEFTOVERS, **SITE_VARIABLES, "TZ": "UTC", "TEMPO_MASTER_PORT": "29000"}
    code, output = submit("tempo_14b.sh", tmp_path, ranks, programs={"squeue": squeue}, **variables)
    assert code == 0, output
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    expected = {"TEMPO_DEADLINE": "2000000000", "MASTER_PORT": "29000", "SLURM_TIME_FORMAT": "standard"}
    assert {name: environment[name] for name in LEFTOVERS | SITE_VARIABLES if name in environment} == expected
    called = (tmp_path / "called").read_text().splitlines()
    assert all("--export=ALL --distribution=block" in line for line in called)


def test_a_failed_request_is_tried_again(tmp_path: Path) -> None:
    """An overloaded controller may not answer. The job does not count as canceled then."""
    squeue = f"{FAILS_TWICE}for word; do case $word in {STATE} esac; done"
    scontrol = f'[ "$1" = show ] && {{ echo node1; exit; }}\n{FAILS_TWICE}echo "$@" >> {tmp_path}/requests'
    _, output = submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": squeue, "scontrol": scontrol})
    assert requeues(tmp_path) == 1, output
    nodes = f'if [ "${{*: -1}}" = true ]; then {FAILS_TWICE} exit 0; fi\necho failed >&2; exit 1'
    code, output = submit("tempo_14b.sh", tmp_path, "", programs={"srun": nodes})
    assert (code, requeues(tmp_path)) == (1, 1) and "failed with exit code 1" in output


@pytest.mark.parametrize(
    ("ranks", "programs", "code"),
    [
        (SAVED, {"squeue": "exit 1"}, 75),
        (SAVED, {}, 75),
        ("exit 0", {}, 1),
        ("", {"srun": 'echo "srun: error: node1: task 0: Exited with exit code 3" >&2; exit 3'}, 3),
    ],
    ids=["unknown state", "always interrupted", "always ends early", "nodes never answer"],
)
def test_attempts_that_save_nothing_are_limited(
    ranks: str, programs: dict[str, str], code: int, tmp_path: Path
) -> None:
    """The fourth attempt in a row that saves nothing is the last one."""
    for failed_attempts, expected in ((2, (75, 1)), (3, (code, 1))):
        record_attempts(tmp_path, failed_attempts)
        exit_code, output = submit(
            "tempo_14b.sh", tmp_path, ranks, programs=programs, SLURM_RESTART_COUNT=str(failed_attempts)
        )
        assert (exit_code, requeues(tmp_path)) == expected, output
    assert "nothing was saved in 4 attempts: no more" in output


def record_attempts(directory: Path, attempts: int, name: str = "in_vain") -> None:
    """Record this many earlier attempts of the job's first run, each with this marker file."""
    for attempt in range(attempts):
        marker = directory / "runs" / "rlvr" / "logs" / "7" / f"attempt-{attempt}" / name
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


@pytest.mark.parametrize(
    "ranks",
    [
        'for word; do [[ $word != run_dir=* ]] || mkdir -p "${word#run_dir=}/checkpoints/iteration-000003"; done',
        'for word; do [[ $word != run_dir=* ]] || echo SIGTERM > "${word#run_dir=}/interrupted"; done',
    ],
    ids=["saves", "is preempted"],
)
def test_attempts_that_save_or_are_preempted_are_not_limited(ranks: str, tmp_path: Path) -> None:
    """A run may have many interruptions, and may be preempted before it could save anything."""
    record_attempts(tmp_path, 3)
    _, output = submit("tempo_14b.sh", tmp_path, f"{ranks}\n{SAVED}", SLURM_RESTART_COUNT="3")
    assert requeues(tmp_path) == 1, output


def test_a_job_of_unknown_state_is_not_requeued_forever(tmp_path: Path) -> None:
    """Its owner may have canceled it, and Slurm would start it again at each requeue. If `squeue` fails, `scontrol` is
    tried."""
    save = 'for word; do [[ $word != run_dir=* ]] || mkdir -p "${word#run_dir=}/checkpoints/iteration-000003"; done'
    record_attempts(tmp_path, 3, "unknown")
    programs = {"squeue": "exit 1"}
    _, output = submit("tempo_14b.sh", tmp_path, f"{save}\n{SAVED}", programs=programs, SLURM_RESTART_COUNT="3")
    assert requeues(tmp_path) == 0 and "Slurm has not said for 4 attempts whether the job is canceled" in output
    programs["scontrol"] = '[ "$2" != hostnames ] || echo node1; [ "$2" != job ] || echo " JobState=CANCELLED"'
    _, output = submit("tempo_14b.sh", tmp_path, SAVED, programs=programs)
    assert requeues(tmp_path) == 0 and "the job is not requeued, as it is CANCELLED" in output


def test_an_array_element_requeues_only_itself(tmp_path: Path) -> None:
    """The last element has the id of the array, by which Slurm lists and requeues all elements."""
    squeue = "for word; do case $word in *%T*) printf '8 CANCELLED 7_1\\n7 RUNNING 7_2\\n' ;; esac; done"
    submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": squeue})
    assert (tmp_path / "requests").read_text() == "requeue 7_2\n"
    (tmp_path / "requests").unlink()
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": "exit 1"}, **array)
    assert (tmp_path / "requests").read_text() == "requeue 7_2\n"


def test_a_job_that_cannot_be_requeued_says_so(tmp_path: Path) -> None:
    """The reason is `sbatch --no-requeue`, or a controller that refuses."""
    scontrol = '[ "$2" != hostnames ] || echo node1; [ "$2" != job ] || echo "   Requeue=0 Restarts=0"'
    code, output = submit("tempo_14b.sh", tmp_path, SAVED, programs={"scontrol": scontrol})
    assert code == 75 and "it has --no-requeue: submit it again to go on" in output
    refuses = '[ "$1" = show ] && echo node1 || exit 1'
    code, output = submit("tempo_14b.sh", tmp_path, SAVED, programs={"scontrol": refuses})
    assert code == 75 and "the job could not be requeued: submit it again to go on" in output
