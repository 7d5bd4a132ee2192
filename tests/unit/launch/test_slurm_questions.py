"""What the sbatch scripts make of their environment, of Slurm's answers, and of attempts that come to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.launch.slurm_job import FINISHES, requeues, submit

STATE = '*%T*) echo "7 RUNNING 7" ;;'
SAVED = 'echo "srun: error: node1: tasks 0-7: Exited with exit code 75" >&2; exit 75'
FAILS_TWICE = 'echo x >> "$0.tries"; [ "$(wc -l < "$0.tries")" -gt 2 ] || exit 1\n'
LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "old", "MASTER_PORT": "1"}
LEFT_OVER |= {"TORCHELASTIC_RUN_ID": "none", "TEMPO_DEADLINE": "1"}
OF_A_SITE = {"SLURM_EXPORT_ENV": "NONE", "SLURM_DISTRIBUTION": "cyclic", "SLURM_LABELIO": "1", "SLURM_WAIT": "1"}
OF_A_SITE |= {"SQUEUE_STATES": "PD", "SLURM_TIME_FORMAT": "%d/%m/%Y %H:%M", "SLURM_CLUSTERS": "other"}


def test_ranks_do_not_depend_on_variables_of_a_site_or_a_launcher(tmp_path: Path) -> None:
    """sbatch hands on the environment that it was called in, and Slurm's programs read options there."""
    end = '*%e*) [ "$SLURM_TIME_FORMAT" = standard ] && echo "7 2033-05-18T03:33:20" ;;'
    squeue = f'[ -z "${{SQUEUE_STATES:-}}" ] || exit 0\nfor word; do case $word in {end} {STATE} esac; done'
    ranks = f"env > {tmp_path}/env; {FINISHES}"
    left = {**LEFT_OVER, **OF_A_SITE, "TZ": "UTC", "TEMPO_MASTER_PORT": "29000"}
    code, said = submit("tempo_14b.sh", tmp_path, ranks, programs={"squeue": squeue}, **left)
    assert code == 0, said
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    ours = {"TEMPO_DEADLINE": "2000000000", "MASTER_PORT": "29000", "SLURM_TIME_FORMAT": "standard"}
    assert {name: environment[name] for name in LEFT_OVER | OF_A_SITE if name in environment} == ours
    called = (tmp_path / "called").read_text().splitlines()
    assert all("--export=ALL --distribution=block" in line for line in called)


def test_a_question_that_failed_is_asked_again(tmp_path: Path) -> None:
    """An overloaded controller does not answer: the job is not taken for one that was canceled."""
    squeue = f"{FAILS_TWICE}for word; do case $word in {STATE} esac; done"
    scontrol = f'[ "$1" = show ] && {{ echo node1; exit; }}\n{FAILS_TWICE}echo "$@" >> {tmp_path}/asked'
    _, said = submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": squeue, "scontrol": scontrol})
    assert requeues(tmp_path) == 1, said
    nodes = f'if [ "${{*: -1}}" = true ]; then {FAILS_TWICE} exit 0; fi\necho failed >&2; exit 1'
    code, said = submit("tempo_14b.sh", tmp_path, "", programs={"srun": nodes})
    assert (code, requeues(tmp_path)) == (1, 1) and "failed with exit code 1" in said


@pytest.mark.parametrize(
    ("ranks", "programs", "code"),
    [
        (SAVED, {"squeue": "exit 1"}, 75),
        (SAVED, {}, 75),
        ("exit 0", {}, 1),
        ("", {"srun": 'echo "srun: error: node1: task 0: Exited with exit code 3" >&2; exit 3'}, 3),
    ],
    ids=["nobody says what the job is", "always interrupted", "always ends early", "nodes never answer"],
)
def test_what_fails_again_and_again_has_an_end(ranks: str, programs: dict[str, str], code: int, tmp_path: Path) -> None:
    """Three attempts more, unless one saves something: the fourth in a row is the last."""
    for before, expected in ((2, (75, 1)), (3, (code, 1))):
        came_to_nothing(tmp_path, before)
        ended, said = submit("tempo_14b.sh", tmp_path, ranks, programs=programs, SLURM_RESTART_COUNT=str(before))
        assert (ended, requeues(tmp_path)) == expected, said
    assert "nothing was saved in 4 attempts: no more" in said


def came_to_nothing(directory: Path, attempts: int, name: str = "in_vain") -> None:
    """So many attempts of a job's first run have failed before, or ended with another mark."""
    for attempt in range(attempts):
        mark = directory / "runs" / "rlvr" / "logs" / "7" / f"attempt-{attempt}" / name
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


@pytest.mark.parametrize(
    "ranks",
    [
        'for word; do [[ $word != run_dir=* ]] || mkdir -p "${word#run_dir=}/checkpoints/iteration-000003"; done',
        'for word; do [[ $word != run_dir=* ]] || echo SIGTERM > "${word#run_dir=}/interrupted"; done',
    ],
    ids=["saves", "is preempted"],
)
def test_what_is_no_failure_may_be_followed_by_any_number_of_attempts(ranks: str, tmp_path: Path) -> None:
    """The limit is for what fails whenever it is tried. A run has many interruptions, and others may take its nodes
    before it could save anything."""
    came_to_nothing(tmp_path, 3)
    _, said = submit("tempo_14b.sh", tmp_path, f"{ranks}\n{SAVED}", SLURM_RESTART_COUNT="3")
    assert requeues(tmp_path) == 1, said


def test_what_stays_unknown_is_not_requeued_for_ever(tmp_path: Path) -> None:
    """Its owner may have canceled it, and Slurm would start it again whenever it is told to. `scontrol` is the second
    to be asked."""
    saves = 'for word; do [[ $word != run_dir=* ]] || mkdir -p "${word#run_dir=}/checkpoints/iteration-000003"; done'
    came_to_nothing(tmp_path, 3, "unknown")
    programs = {"squeue": "exit 1"}
    _, said = submit("tempo_14b.sh", tmp_path, f"{saves}\n{SAVED}", programs=programs, SLURM_RESTART_COUNT="3")
    assert requeues(tmp_path) == 0 and "Slurm has not said for 4 attempts whether the job is canceled" in said
    programs["scontrol"] = '[ "$2" != hostnames ] || echo node1; [ "$2" != job ] || echo " JobState=CANCELLED"'
    _, said = submit("tempo_14b.sh", tmp_path, SAVED, programs=programs)
    assert requeues(tmp_path) == 0 and "the job is not requeued, as it is CANCELLED" in said


def test_an_element_of_an_array_asks_for_itself(tmp_path: Path) -> None:
    """The id of the last element is the array's: by it Slurm lists, and requeues, all."""
    squeue = "for word; do case $word in *%T*) printf '8 CANCELLED 7_1\\n7 RUNNING 7_2\\n' ;; esac; done"
    submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": squeue})
    assert (tmp_path / "asked").read_text() == "requeue 7_2\n"
    (tmp_path / "asked").unlink()
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    submit("tempo_14b.sh", tmp_path, SAVED, programs={"squeue": "exit 1"}, **array)
    assert (tmp_path / "asked").read_text() == "requeue 7_2\n"


def test_a_job_that_may_not_be_requeued_says_so(tmp_path: Path) -> None:
    """`sbatch --no-requeue` is the owner's word; a controller that refuses is named as well."""
    scontrol = '[ "$2" != hostnames ] || echo node1; [ "$2" != job ] || echo "   Requeue=0 Restarts=0"'
    code, said = submit("tempo_14b.sh", tmp_path, SAVED, programs={"scontrol": scontrol})
    assert code == 75 and "it has --no-requeue: submit it again to go on" in said
    refuses = '[ "$1" = show ] && echo node1 || exit 1'
    code, said = submit("tempo_14b.sh", tmp_path, SAVED, programs={"scontrol": refuses})
    assert code == 75 and "the job could not be requeued: submit it again to go on" in said
