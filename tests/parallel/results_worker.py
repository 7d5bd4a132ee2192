"""The rank of test_results: whole runs with responses that are made up, and what befalls their directories in between.

usage: results_worker.py RECIPE MODEL OUT; MODEL is a model directory that may be damaged
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from checkpoints_convert.convert import to_hf
from tempo_megatron import cli
from tempo_megatron.config import Config, load_config
from tempo_megatron.data.vocabulary import load_tokenizer
from tempo_megatron.generation.engine import GenerationStopped
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.launch.replay import replay_arguments
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.checkpointing import saver
from tempo_megatron.megatron.checkpointing.format import CheckpointReader
from tempo_megatron.training import run_data
from tempo_megatron.training.loop import train
from tempo_megatron.training.run import Run
from tempo_megatron.validation.recipe import recipe_problems
from tests.parallel.layout_worker import leave_groups
from tests.runs import build_recorded, lines_of_runs, make_no_reports
from tools.killing.recorded import Recorded

ROWS = 24
ASIDE = 4


class Trials:
    """Runs by one recipe, one after the other in this process. `said` has what the last run said."""

    def __init__(self, recipe: Path, model: Path) -> None:
        self.recipe, self.model, self.place = recipe, model, recipe.parent
        self.labeled, self.held_out = self.place / "labeled.jsonl", self.place / "held-out.jsonl"
        self.said: list[str] = []

    def build(self, config: Config, **settings: Any) -> Run:
        return build_recorded(config, **settings)

    def config(self, name: str, *overrides: str) -> Config:
        return load_config(self.recipe, [f"run_dir={self.place / name}", f"model.hf_path={self.model}", *overrides])

    def run(self, config: Config, build: Callable[..., Run] | None = None) -> bool:
        with lines_of_runs() as self.said:
            finished = train(config, build or self.build)
        leave_groups()
        return finished

    def weights(self, name: str, iteration: int) -> bytes:
        """The policy of that checkpoint, as the converter writes it."""
        out = self.place / f"{name}-{iteration}"
        to_hf(self.place / name / "checkpoints" / f"iteration-{iteration:06d}", out, role="policy")
        return (out / "model.safetensors").read_bytes()

    def exported(self, name: str) -> bytes:
        return (self.place / name / "hf" / "model.safetensors").read_bytes()

    def summary(self, name: str) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.place / name / "summary.json").read_text())
        return summary


def write_rows(path: Path, words: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": word, "answer": word[::-1]}) + "\n" for word in words))


def words(first: str, count: int) -> list[str]:
    return [f"{first}{chr(97 + number // 26)}{chr(97 + number % 26)}x" for number in range(count)]


def choice(trials: Trials, from_start: Sequence[str]) -> dict[str, Any]:
    """A run whose earliest checkpoint is best, since all policies answer alike; and its export asked for once more."""
    assert trials.run(trials.config("run", *from_start, "checkpoint.select_best=true", "loop.iterations=2"))
    chosen = {
        "summary": trials.summary("run"),
        "exports_the_best": trials.exported("run") == trials.weights("run", 0),
        "exports_the_last": trials.exported("run") == trials.weights("run", 2),
    }
    best = trials.exported("run")
    shutil.rmtree(trials.place / "run" / "hf")
    code = cli.main(["export", str(trials.place / "run")])
    return chosen | {"export": (code, trials.exported("run") == best), "no_run": cli.main(["export", "/nowhere"])}


def critic_from_policy(trials: Trials, from_start: Sequence[str]) -> dict[str, Any]:
    """A run whose policy starts from a checkpoint and whose critic has none: what the critic starts from."""
    untaught = ("critic.checkpoint=''", "stages.critic_start.iterations=0", "loop.iterations=1")
    assert trials.run(trials.config("untaught", *from_start, *untaught))
    checkpoints = {name: trials.place / name / "checkpoints" for name in ("untaught", "start")}
    critic = CheckpointReader(checkpoints["untaught"] / "iteration-000000", "critic")
    origins = {
        "policy_of_the_start": CheckpointReader(checkpoints["start"] / "iteration-000001", "policy"),
        "critic_of_the_start": CheckpointReader(checkpoints["start"] / "iteration-000001", "critic"),
        "earlier_policy": CheckpointReader(checkpoints["start"] / "iteration-000000", "policy"),
    }
    backbone = [name for name in critic.descriptions if not name.startswith(("output_layer", "optimizer"))]
    return {
        name: all(torch.equal(critic(tensor), origin(tensor)) for tensor in backbone)
        for name, origin in origins.items()
    } | {"tensors": len(backbone)}


def without_origins(trials: Trials, from_start: Sequence[str]) -> dict[str, Any]:
    """The same command once what the run started from is gone, and foreign names lie among its checkpoints."""
    config = trials.config("run", *from_start, "checkpoint.select_best=true", "loop.iterations=3")
    assert trials.run(trials.config("whole", *from_start, "checkpoint.select_best=true", "loop.iterations=3"))
    shutil.rmtree(trials.place / "start")
    shutil.rmtree(trials.model)
    checkpoints = trials.place / "run" / "checkpoints"
    foreign = [checkpoints / f"iteration-000002{end}" for end in (".bak", "-hf")]
    for path in foreign:
        shutil.copytree(checkpoints / "iteration-000002", path)
    lines = recipe_problems(config)
    assert trials.run(config)
    return {
        "problems": lines,
        "foreign": {path.name: path.is_dir() and any(str(path) in line for line in trials.said) for path in foreign},
        "same_weights": trials.weights("run", 3) == trials.weights("whole", 3),
        "describes": sorted(path.name for path in (checkpoints / "iteration-000003" / "huggingface").iterdir()),
    }


def changed_data(trials: Trials, from_start: Sequence[str]) -> dict[str, Any]:
    """Rows removed, one changed, new ones, and one that was learned among the held-out ones."""
    config = trials.config("run", *from_start, "checkpoint.select_best=true", "loop.iterations=4")
    tokenizer = load_tokenizer(trials.place / "run" / "hf")
    before = run_data.load_run_data(config, tokenizer)
    aside = {prompt.question for prompt in before.set_aside}
    rows = [json.loads(line) for line in trials.labeled.read_text().splitlines()]
    learned = [row for row in rows if key_of(row) in before.learned]
    measured = [row for row in rows if key_of(row) in aside]
    learned[0]["answer"] = "changed"
    left = [*measured[:1], *learned[:-6]]
    new = [{"prompt": word, "answer": "new"} for word in words("N", 2)]
    trials.labeled.write_text("".join(json.dumps(row) + "\n" for row in [*left, *new]))
    with trials.held_out.open("a") as file:
        file.write(json.dumps(learned[-1]) + "\n")
    refusal = recipe_problems(config)
    accepting = trials.config(
        "run", *from_start, "checkpoint.select_best=true", "loop.iterations=4", "data.changed=accept"
    )
    accepted = recipe_problems(accepting)
    assert trials.run(accepting)
    said = list(trials.said)
    after = run_data.load_run_data(config, tokenizer)
    return {
        "removed": len(rows) - len(left),
        "refusal": refusal,
        "accepted": accepted,
        "said": said,
        "afterwards": recipe_problems(config),
        "measured_was_learned": sorted({prompt.question for prompt in after.set_aside} & before.learned),
        "still_measured": key_of(measured[0]) in {prompt.question for prompt in after.set_aside},
        "measured": len(after.set_aside),
        "held_out_was_learned": [
            p.id for p in after.questions.sets["held_out"].prompts if p.question in before.learned
        ],
        "candidates": trials.summary("run")["best_iteration"],
    }


def fewer_iterations(trials: Trials) -> dict[str, Any]:
    """A run that was interrupted after its first iteration, of which no checkpoint was due, and then has no more."""
    settings = ("stages.warm_start.steps=0", "checkpoint.every=10")

    def interrupted_in_iteration_2(config: Config, **factories: Any) -> Run:
        run: Any = trials.build(config, **factories)
        begin_iteration = run.begin_iteration

        def begin(iteration: int) -> None:
            if iteration == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            begin_iteration(iteration)

        run.begin_iteration = begin
        return run

    assert not trials.run(trials.config("fewer", *settings), interrupted_in_iteration_2)
    checkpoints = trials.place / "fewer" / "checkpoints"
    interim = sorted(path.name for path in checkpoints.iterdir() if path.name.startswith("i"))
    torch.distributed.distributed_c10d._get_default_store().delete_key("tempo/interrupted")
    assert trials.run(trials.config("fewer", *settings, "loop.iterations=1"))
    rows = map(json.loads, (trials.place / "fewer" / "metrics.jsonl").read_text().splitlines())
    return {
        "interim": interim,
        "summary": trials.summary("fewer"),
        "evaluated": [row["iteration"] for row in rows if "evaluation/held_out/avg@4" in row],
        "exports_it": trials.exported("fewer") == trials.weights("fewer", 1),
    }


class StoppedInIteration2(Recorded):
    """A generator that is asked to stop while it generates for iteration 2, and stops."""

    def __init__(self) -> None:
        self.should_stop: Callable[[], bool] | None = None
        self.run: Run | None = None

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        if self.run and self.run.iteration == 2 and self.should_stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert self.should_stop()
            raise GenerationStopped
        return super().generate(requests, enough_groups)


def partial_rollouts(trials: Trials) -> dict[str, Any]:
    """A run whose responses pause: uninterrupted, interrupted while it generates, from an older checkpoint with what it
    has recorded, and replayed."""
    settings = (
        "stages.warm_start.steps=0",
        "checkpoint.every=2",
        "checkpoint.keep=9",
        "loop.partial_rollouts=0.5",
        "policy.rollout_correction.weight=token",
        "policy.rollout_correction.cap=2",
        "generation.keep_rollouts=true",
    )

    def interrupted(config: Config, **factories: Any) -> Run:
        generator = StoppedInIteration2()
        generator.run = build_recorded(config, generator, **factories)
        return generator.run

    def metrics(name: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (trials.place / name / "metrics.jsonl").read_text().splitlines())
        return [{key: row[key] for key in row if not key.startswith(("seconds/", "memory/"))} for row in rows]

    def token_samples(name: str) -> dict[str, str]:
        return {path.name: path.read_text() for path in (trials.place / name / "token_samples").glob("*")}

    assert trials.run(trials.config("uninterrupted", *settings))
    assert not trials.run(trials.config("interrupted", *settings), interrupted)
    torch.distributed.distributed_c10d._get_default_store().delete_key("tempo/interrupted")
    interim = sorted(path.name for path in (trials.place / "interrupted" / "checkpoints").glob("i*"))
    assert trials.run(trials.config("interrupted", *settings))

    shutil.copytree(trials.place / "uninterrupted", trials.place / "older", symlinks=True)
    shutil.rmtree(trials.place / "older" / "checkpoints" / "iteration-000004")
    assert trials.run(trials.config("older", *settings))
    recipe, overrides = replay_arguments(trials.place / "uninterrupted", [f"run_dir={trials.place / 'replayed'}"])
    assert trials.run(load_config(recipe, overrides))
    assert trials.run(trials.config("unrecorded", *settings, "logging.token_samples=0"))
    names = ("interrupted", "older", "replayed")
    return {
        "interim": interim,
        "same_weights": [trials.exported(name) == trials.exported("uninterrupted") for name in names],
        "same_metrics": [metrics(name) == metrics("uninterrupted") for name in names],
        "token_samples": token_samples("uninterrupted"),
        "same_token_samples": [token_samples(name) == token_samples("uninterrupted") for name in names],
        "same_without_them": [
            trials.exported("unrecorded") == trials.exported("uninterrupted"),
            metrics("unrecorded") == metrics("uninterrupted"),
            token_samples("unrecorded") == {},
        ],
        "train": [row for row in metrics("uninterrupted") if row["stage"] == "train" and row["iteration"]],
        "carried": len(saver.read_state(trials.place / "uninterrupted/checkpoints/iteration-000004")["carried"]),
    }


def key_of(row: dict[str, str]) -> str:
    from tempo_megatron.data.identity import question_key

    return question_key(row["prompt"])


def main(path: str, model: str, out: str) -> None:
    torch.set_num_threads(1)
    recipe = Path(path)
    trials = Trials(recipe, Path(model))
    topology.shutdown = lambda: None
    make_no_reports()
    write_rows(trials.labeled, words("L", ROWS))
    write_rows(trials.held_out, words("H", 4))
    settings = yaml.safe_load(recipe.read_text())
    settings["data"] |= {"labeled": [{"path": str(trials.labeled)}], "held_out": [{"path": str(trials.held_out)}]}
    recipe.write_text(yaml.safe_dump(settings))

    assert trials.run(trials.config("start", "loop.iterations=1"))
    best = trials.place / "start" / "checkpoints" / "iteration-000001"
    from_start = (
        "stages.warm_start.steps=0",
        f"policy.checkpoint={best}",
        f"critic.checkpoint={best}",
        "policy.kl_coefficient=0.1",
        f"calibration.questions={ASIDE}",
        "checkpoint.keep=4",
    )
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "fewer_iterations": lambda: fewer_iterations(trials),
        "partial_rollouts": lambda: partial_rollouts(trials),
        "choice": lambda: choice(trials, from_start),
        "critic_from_policy": lambda: critic_from_policy(trials, from_start),
        "without_origins": lambda: without_origins(trials, from_start),
        "changed_data": lambda: changed_data(trials, from_start),
    }
    Path(out).write_text(json.dumps({name: step() for name, step in steps.items()}, indent=2))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
