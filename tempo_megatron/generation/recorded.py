"""Keeps rollouts on disk, so that a run that resumes or replays does not generate them again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.utils.atomic_files import atomic_path
from tempo_megatron.utils.distributed import barrier, broadcast_from_first, rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

GenerationFigures = dict[str, float]
"""Counts of generated requests and tokens by name (`Generator.take_figures`)."""


class Engine(Protocol):
    """The generator interface of runs and evaluations."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]: ...
    def load_weights(self) -> None: ...
    def sleep(self) -> None: ...
    def take_figures(self) -> GenerationFigures: ...


@runtime_checkable
class Stoppable(Protocol):
    """A generator that stops when `should_stop` returns true."""

    should_stop: Callable[[], bool] | None


class MissingRollouts(RuntimeError):
    """A replay requests rollouts that were not recorded."""


class RecordedGenerator:
    """An engine whose completions are kept in `directory`, one file per call. A repeated call reads them from there.

    The seed of a request is a hash of run, iteration, stream, prompt and sample, so no two calls of a run have the same
    requests. A resumed run repeats a call with the same weights, so the kept completions are still
    right. Without an engine all completions come from the directory (`tempo replay`).
    """

    def __init__(self, engine: Engine | None, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.iteration = 0
        """The present iteration. File names start with it, which `prune` relies on."""
        self.figures: GenerationFigures = {}
        """Figures of the calls since `take_figures`. A call that is read from disk has those of its generation."""
        self.last_read: int | None = None
        """The iteration of the last call that was read from disk; None before the first.

        A resumed run's weights may differ in their last bits from those that sampled it.
        """
        self.ended = time.monotonic()
        """The monotonic time at which the last call of `generate` ended."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        """Returns a completion for each request, in order, on every rank. Collective. Raises MissingRollouts.

        Which requests are `PAUSED` with `enough_groups` is recorded with the completions.
        """
        path = self.directory / f"{self.iteration:06d}-{_fingerprint(requests)}.safetensors"
        routed = [number for number, request in enumerate(requests) if request.needs_routes]
        if broadcast_from_first(_is_readable(path, routed)):
            completions, figures = _read(path)
            self.last_read = self.iteration
        elif self.engine is None:
            raise MissingRollouts(
                f"{self.directory} has no rollouts of iteration {self.iteration} for these {len(requests)} requests: "
                "the run that recorded them had other settings or data, stopped earlier, or did not keep them "
                "(generation.keep_rollouts), or recorded no routes, which policy.router_replay=generator needs"
            )
        else:
            completions, figures = self.engine.generate(requests, enough_groups), self.engine.take_figures()
            if rank_and_ranks()[0] == 0:
                # Later files come from a policy trained on other rollouts. Stages before iteration 1 have no order.
                self._remove_from(max(self.iteration, 0) + 1)
                _write(path, completions, figures)
            barrier()  # A rank that writes alone would look like a hang.
        self.figures = _sum(self.figures, figures)
        self.ended = time.monotonic()
        return completions

    def load_weights(self) -> None:
        if self.engine is not None:
            self.engine.load_weights()

    def sleep(self) -> None:
        if self.engine is not None:
            self.engine.sleep()

    def take_figures(self) -> GenerationFigures:
        figures, self.figures = self.figures, {}
        return figures

    def stop_when(self, should_stop: Callable[[], bool] | None) -> None:
        """Lets `generate` raise GenerationStopped once `should_stop` returns true, if the engine supports it."""
        if isinstance(self.engine, Stoppable):
            self.engine.should_stop = should_stop

    def prune(self, iteration: int) -> None:
        """Removes the rollouts of all iterations up to this one. One rank calls it.

        A file that cannot be removed causes a warning, and the next call tries again.
        """
        for path, file_iteration in self._files():
            if file_iteration <= iteration:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    logger.warning(f"{path} cannot be removed: {error}")

    @expect_pace(Pace.untimed)
    def _remove_from(self, iteration: int) -> None:
        for path, file_iteration in self._files():
            if file_iteration >= iteration:
                path.unlink()

    def _files(self) -> list[tuple[Path, int]]:
        """Returns the files with their iterations."""
        paths = self.directory.glob("[!.]*.safetensors")
        return [(path, int(path.name[: path.name.index("-", 1)])) for path in paths]


def _fingerprint(requests: Sequence[Request]) -> str:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr(request).encode())
    return digest.hexdigest()[:32]


def _sum(figures: GenerationFigures, other: Mapping[str, float]) -> GenerationFigures:
    """Returns the sums by name. The least and most requests of a replica are summed over calls too."""
    names = [*figures, *(name for name in other if name not in figures)]
    return {name: figures.get(name, 0) + other.get(name, 0) for name in names}


@expect_pace(Pace.untimed)
def _write(path: Path, completions: Sequence[Completion], figures: Mapping[str, float]) -> None:
    """Writes response_ids int32 and log_probs fp32, [tokens]; lengths int32, stopped and paused bool, [responses].

    If any completion has routes: all of them, [routed tokens, layers, experts per token], and their lengths int32,
    [responses], 0 where a completion has none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "response_ids": torch.tensor([token for each in completions for token in each.response_ids], dtype=torch.int32),
        "log_probs": torch.tensor([value for each in completions for value in each.log_probs], dtype=torch.float32),
        "lengths": torch.tensor([len(each.response_ids) for each in completions], dtype=torch.int32),
        "stopped": torch.tensor([each.finish_reason == "stop" for each in completions]),
        "paused": torch.tensor([each.finish_reason == PAUSED for each in completions]),
    }
    routes = [each.routes for each in completions if each.routes is not None]
    if routes:
        counts = [0 if each.routes is None else len(each.routes) for each in completions]
        tensors |= {
            "routes": torch.from_numpy(np.concatenate(routes)),
            "routed": torch.tensor(counts, dtype=torch.int32),
        }
    with atomic_path(path) as aside:
        save_file(tensors, aside, {"figures": json.dumps(dict(figures))})


@expect_pace(Pace.untimed)
def _is_readable(path: Path, routed: Sequence[int]) -> bool:
    """Returns whether the file exists, is complete, and has the routes of the responses with the numbers in `routed`.

    Other files are generated again.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            if not routed:
                return True
            return "routed" in file.keys() and bool((file.get_tensor("routed")[list(routed)] > 0).all())  # noqa: SIM118
    except SafetensorError:
        return False


@expect_pace(Pace.untimed)
def _read(path: Path) -> tuple[list[Completion], GenerationFigures]:
    with safe_open(path, "pt") as file:
        ids, log_probs, lengths, stopped = (
            file.get_tensor(name).tolist() for name in ("response_ids", "log_probs", "lengths", "stopped")
        )
        # Files that were written before responses could pause have no such tensor.
        paused = file.get_tensor("paused").tolist() if "paused" in file.keys() else [False] * len(lengths)  # noqa: SIM118
        routes = _read_routes(file, len(lengths))
        figures: GenerationFigures = json.loads(file.metadata()["figures"])
    ends = list(accumulate(lengths))
    parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [
        Completion(tuple(ids[part]), tuple(log_probs[part]), PAUSED if pause else "stop" if stop else "length", routed)
        for part, stop, pause, routed in zip(parts, stopped, paused, routes, strict=True)
    ], figures


def _read_routes(file: Any, responses: int) -> list[np.ndarray | None]:
    """Returns the routes of each response, None where it has none."""
    if "routes" not in file.keys():  # noqa: SIM118
        return [None] * responses
    counts = file.get_tensor("routed").tolist()
    parts = np.split(file.get_tensor("routes").numpy(), np.cumsum(counts)[:-1])
    return [part if count else None for part, count in zip(parts, counts, strict=True)]
