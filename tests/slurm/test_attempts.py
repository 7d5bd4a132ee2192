"""What the sbatch scripts do around `tempo train`, on a real cluster: ranks are a shell script, so it takes seconds."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from tests.conftest import ROOT
from tests.slurm.cluster import LIMIT, Cluster, wait_for

SCRIPT = ROOT / "slurm" / "tempo_14b.sh"
LAYOUT = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=30")
SAVES = "trap 'echo saved; sleep $SLURM_PROCID; exit 75' USR1 TERM"
NOT_OURS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "old", "TORCHELASTIC_RUN_ID": "old"}
NOT_OURS |= {"SLURM_ARRAY_JOB_ID": 1, "SLURM_ARRAY_TASK_ID": 1, "SLURM_DISTRIBUTION": "cyclic", "SLURM_LABELIO": 1}
NOT_OURS |= {"SQUEUE_STATES": "PD", "SQUEUE_FORMAT": "%i", "SLURM_TIME_FORMAT": "%d/%m/%Y %H:%M"}
"""A site, a user or another launcher may set these variables in the environment of sbatch."""


class Submission:
    """A job of tempo_14b.sh whose ranks run lines of shell, in a directory with a blank in its name. Its first run is
    finished already, so that the job begins with TEMPO."""

    def __init__(self, cluster: Cluster, directory: Path, ranks: str, *options: str, **environment: object) -> None:
        runs = directory / "my runs"
        stand_in = directory / "venv" / "bin" / "python"
        stand_in.parent.mkdir(parents=True)
        stand_in.write_text(f'#!/bin/bash\necho "$@"\n{ranks}\ntouch "{runs}/tempo/summary.json"\n')
        stand_in.chmod(0o755)
        self.run = runs / "tempo"
        finished = runs / "rlvr" / "FINISHED"
        finished.parent.mkdir(parents=True)
        finished.touch()
        self.output = directory / "job.log"
        self.cluster = cluster
        self.number = cluster.sbatch(
            *LAYOUT,
            f"--output={self.output}",
            *options,
            SCRIPT,
            "loop.iterations=3",
            cwd=ROOT,
            TEMPO_VENV=directory / "venv",
            TEMPO_OUTPUT=runs,
            **environment,
        )

    def wait(self) -> str:
        return self.cluster.wait(self.number, LIMIT)

    def logs(self, attempt: int) -> dict[str, str]:
        """The text of each rank's log, by the file's name."""
        directory = self.run / "logs" / str(self.number) / f"attempt-{attempt}"
        return {path.name: path.read_text() for path in sorted(directory.glob("rank-*.log"))}

    def wait_for_ranks(self, text: str, attempt: int = 0) -> None:
        wait_for(
            lambda: sum(text in log for log in self.logs(attempt).values()) == 4,
            LIMIT,
            lambda: f"{self.output.read_text()}\n{self.logs(attempt)}",
        )


def test_slurm_takes_every_script_as_it_is(cluster: Cluster) -> None:
    """On a node of 8 GPUs, and on two."""
    for script in sorted((ROOT / "slurm").glob("tempo_*.sh")):
        cluster.run("sbatch", "--test-only", script)
        cluster.run("sbatch", "--test-only", "--nodes=2", script, "loop.iterations=3")


def test_a_signal_reaches_all_ranks_and_the_job_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm's warning goes to the batch shell: all ranks must hear it, and the job be started again, in a directory of
    logs of its own, until the run is finished; a finished run is not started again. No variable of the environment that
    sbatch was called in changes any of it: neighboring ranks share a node."""
    ranks = f'{SAVES}\necho "deadline $TEMPO_DEADLINE, nodes $TEMPO_NODES"\n'
    ranks += 'echo "on $SLURMD_NODENAME, left ${RANK:-}${WORLD_SIZE:-}${LOCAL_RANK:-}${MASTER_ADDR:-}"\n'
    ranks += '[ "$SLURM_RESTART_COUNT" = 1 ] || while :; do sleep 0.1; done'
    job = Submission(cluster, tmp_path, ranks, **NOT_OURS)
    job.wait_for_ranks("deadline")
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    wait_for(lambda: cluster.restarts(job.number) == 1, LIMIT, job.output.read_text)

    assert job.wait() == "COMPLETED"
    assert "interrupted and saved" in job.output.read_text()
    assert list(job.logs(0)) == [f"rank-{rank:03}.log" for rank in range(4)]
    assert all("saved" in log for log in job.logs(0).values())
    assert all("nodes node1 node2" in log and "loop.iterations=3" in log for log in job.logs(1).values())
    assert (job.run / "logs" / "latest").resolve().name == "attempt-1"
    started = datetime.datetime.fromisoformat(cluster.job(job.number)["StartTime"])
    assert f"deadline {int(started.timestamp()) + 30 * 60}," in job.logs(1)["rank-000.log"]
    places = [log.splitlines()[-1] for log in job.logs(1).values()]
    assert places == [f"on {node}, left " for node in ("node1", "node1", "node2", "node2")]

    assert (job.run / "FINISHED").is_file()
    second = cluster.sbatch(
        f"--output={tmp_path / 'again.log'}", *LAYOUT, SCRIPT, cwd=ROOT, TEMPO_OUTPUT=job.run.parent
    )
    assert cluster.wait(second, LIMIT) == "COMPLETED"
    assert not (job.run / "logs" / str(second)).exists()


def test_bad_nodes_are_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """Where the job asks for it, the ranks start on the nodes that `tempo doctor` wrote down, and on no others. They
    have the script's environment, although sbatch exports a few variables only, and its srun would pass no others
    on."""
    doctor = 'while [ $# -gt 1 ]; do [ "$1" != --nodes-file ] || echo node2 > "$2"; shift; done; exit 0'
    ranks = f'if [ "$3" = doctor ]; then {doctor}; fi\necho "$SLURMD_NODENAME of $SLURM_STEP_NUM_TASKS, $TEMPO_NODES"'
    ranks += '\n[ "$TEMPO_DEADLINE" -gt 0 ] && command -v python || exit 1'
    job = Submission(cluster, tmp_path, ranks, "--export=TEMPO_OUTPUT,TEMPO_VENV,TEMPO_DOCTOR", TEMPO_DOCTOR="yes")
    assert job.wait() == "COMPLETED", job.output.read_text()
    expected = ["node2 of 2, node2", f"{tmp_path}/venv/bin/python"]
    assert [log.splitlines()[-2:] for log in job.logs(0).values()] == [expected] * 2


def test_elements_of_an_array_are_jobs_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    """The last element has the array's id, by which Slurm lists and requeues all of them. One element goes on although
    squeue fails at times. The ranks of the other end before the run does, and srun returns 0, as it can after a node
    has failed. The script does not take that run for finished and requeues the job three times."""
    programs = {
        "python": '[ "$SLURM_ARRAY_TASK_ID" = 1 ] || exit 0\n[ -n "${SLURM_RESTART_COUNT:-}" ] || exit 75\n'
        f"echo until $TEMPO_DEADLINE; touch {tmp_path}/run-1/summary.json",
        "squeue": 'mark=$(dirname "$0")/$SLURM_JOB_ID; mkdir "$mark" 2>/dev/null && exit 1\n'
        'rmdir "$mark"; exec /usr/bin/squeue "$@"',
        "sleep": "exec /bin/sleep 0.1",
    }
    for name, text in programs.items():
        program = tmp_path / "venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    script = tmp_path / "array.sh"
    train = f"slurm/recipe.sh recipes/demo.yaml {tmp_path}/run-$SLURM_ARRAY_TASK_ID"
    script.write_text(f"#!/bin/bash\nexec bash {train}\n")
    layout = ("--array=1-2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=30", "--requeue", "--open-mode=append")
    log = f"--output={tmp_path}/%a.log"
    array = cluster.sbatch(*layout, log, script, cwd=ROOT, TEMPO_VENV=tmp_path / "venv")
    ended = {element: cluster.wait(f"{array}_{element}", LIMIT) for element in (1, 2)}
    output = "".join((tmp_path / f"{element}.log").read_text() for element in (1, 2))
    assert ended == {1: "COMPLETED", 2: "FAILED"}, output
    assert [cluster.restarts(f"{array}_{element}") for element in (1, 2)] == [1, 3], output
    assert "nothing was saved in 4 attempts: no more" in output and not (tmp_path / "run-2" / "FINISHED").exists()
    (rank,) = tmp_path.glob("run-1/logs/*/attempt-1/rank-000.log")
    assert re.fullmatch(r"until \d+\n", rank.read_text())


def test_a_job_that_may_not_be_requeued_says_so(cluster: Cluster, tmp_path: Path) -> None:
    """The run has saved. The job's owner has to submit it again."""
    job = Submission(cluster, tmp_path, "exit 75", "--no-requeue")
    assert job.wait() == "FAILED" and "it has --no-requeue: submit it again" in job.output.read_text()


def test_a_rank_that_fails_ends_the_job_and_is_named(cluster: Cluster, tmp_path: Path) -> None:
    """The other ranks would wait forever. The job's log ends with the last words of the rank that failed."""
    ranks = '[ "$SLURM_PROCID" = 2 ] || sleep 600\necho "ValueError: of rank $SLURM_PROCID"; exit 1'
    job = Submission(cluster, tmp_path, ranks)
    assert job.wait() == "FAILED"
    assert cluster.restarts(job.number) == 0 and not (job.run / "FINISHED").exists()
    assert "rank 2 failed first" in job.output.read_text() and "ValueError: of rank 2" in job.output.read_text()


def test_a_canceled_job_stays_canceled(cluster: Cluster, tmp_path: Path) -> None:
    """scancel's SIGTERM lets the ranks save; the job is not requeued behind its owner's back."""
    job = Submission(cluster, tmp_path, f"{SAVES}\necho on; while :; do sleep 0.1; done")
    job.wait_for_ranks("on")
    cluster.run("scancel", job.number)
    assert job.wait() == "CANCELLED"
    wait_for(lambda: "saved" in job.logs(0)["rank-000.log"], LIMIT, job.output.read_text)
    assert cluster.state(job.number) == "CANCELLED" and cluster.restarts(job.number) == 0


def test_restarts_have_an_end(cluster: Cluster, tmp_path: Path) -> None:
    """A run is preempted at every start, before its ranks listen for signals; Slurm tells the ranks alone and not the
    script. The script starts it again and gives up after TEMPO_MAX_RESTARTS."""
    job = Submission(cluster, tmp_path, "echo on; exec sleep 600", TEMPO_MAX_RESTARTS=0)
    job.wait_for_ranks("on")
    cluster.run("scancel", "--signal=TERM", job.number)
    assert job.wait() == "FAILED"
    assert cluster.restarts(job.number) == 1 and not job.logs(1)
    assert "no more" in job.output.read_text()
