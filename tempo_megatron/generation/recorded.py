"""Rollouts on disk: what was generated once is not generated again by a run that resumes, or that replays."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.utils.atomic_files import atomic_path
from tempo_megatron.utils.distributed import barrier, broadcast_from_first, rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

GenerationFigures = dict[str, float]


class Engine(Protocol):
    """What runs and evaluations ask of a generator."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...
    def load_weights(self) -> None: ...
    def sleep(self) -> None: ...
    def take_figures(self) -> GenerationFigures: ...


@runtime_checkable
class Stoppable(Protocol):
    should_stop: Callable[[], bool] | None


class MissingRollouts(RuntimeError):
    """A replay asks for what was not recorded."""


class RecordedGenerator:
    """An engine whose answers are kept in `directory`, a file a call, and read from there when the same is asked again.

    Requests carry seeds hashed from run, iteration, stream, prompt and sample, so that no two calls of a run ask the
    same; who resumes asks with the weights that the first answer came from. Without an engine everything comes from
    the directory (`tempo replay`).
    """

    def __init__(self, engine: Engine | None, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.iteration = 0
        """names the files, so that `prune` knows them"""
        self.figures: GenerationFigures = {}
        """of the calls since `take_figures`, those that were read from disk as when they were generated"""
        self.ended = time.monotonic()
        """when the last call of `generate` did"""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """A completion for each request, in their order, on every rank. Collective. Raises MissingRollouts."""
        path = self.directory / f"{self.iteration:06d}-{_fingerprint(requests)}.safetensors"
        if broadcast_from_first(_is_readable(path)):
            completions, figures = _read(path)
        elif self.engine is None:
            raise MissingRollouts(
                f"{self.directory} has no rollouts of iteration {self.iteration} for these {len(requests)} requests: "
                "the run that recorded them had other settings or data, stopped earlier, or kept them not "
                "(generation.keep_rollouts)"
            )
        else:
            completions, figures = self.engine.generate(requests), self.engine.take_figures()
            if rank_and_ranks()[0] == 0:
                # By a policy that came of other rollouts than these. Stages before iteration 1 are not in order.
                self._forget_from(max(self.iteration, 0) + 1)
                _write(path, completions, figures)
            barrier()  # a rank that writes alone would seem to hang
        self.figures = _together(self.figures, figures)
        self.ended = time.monotonic()
        return completions

    def load_weights(self) -> None:
        if self.engine is not None:
            self.engine.load_weights()

    def sleep(self) -> None:
        if self.engine is not None:
            self.engine.sleep()

    def take_figures(self) -> GenerationFigures:
        taken, self.figures = self.figures, {}
        return taken

    def stop_when(self, asked: Callable[[], bool] | None) -> None:
        """Let `generate` raise GenerationStopped once `asked`, where the engine can."""
        if isinstance(self.engine, Stoppable):
            self.engine.should_stop = asked

    def prune(self, iteration: int) -> None:
        """Forget what was generated up to an iteration; one rank does it. What cannot be removed is warned of, and
        tried again by the next call."""
        for path, of in self._files():
            if of <= iteration:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    logger.warning(f"{path} cannot be removed: {error}")

    @expect_pace(Pace.untimed)
    def _forget_from(self, iteration: int) -> None:
        for path, of in self._files():
            if of >= iteration:
                path.unlink()

    def _files(self) -> list[tuple[Path, int]]:
        """With the iterations that they are of."""
        found = self.directory.glob("[!.]*.safetensors")
        return [(path, int(path.name[: path.name.index("-", 1)])) for path in found]


def _fingerprint(requests: Sequence[Request]) -> str:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr(request).encode())
    return digest.hexdigest()[:32]


def _together(one: GenerationFigures, other: Mapping[str, float]) -> GenerationFigures:
    """Sums; of what replicas drew least and most, the least and most of the sums' parts."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in [*one, *(n for n in other if n not in one)]}


@expect_pace(Pace.untimed)
def _write(path: Path, completions: Sequence[Completion], figures: Mapping[str, float]) -> None:
    """Flat tensors: response_ids int32 and log_probs fp32 [tokens], lengths int32 and stopped bool [responses]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "response_ids": torch.tensor([t for done in completions for t in done.response_ids], dtype=torch.int32),
        "log_probs": torch.tensor([v for done in completions for v in done.log_probs], dtype=torch.float32),
        "lengths": torch.tensor([len(done.response_ids) for done in completions], dtype=torch.int32),
        "stopped": torch.tensor([done.finish_reason == "stop" for done in completions]),
    }
    with atomic_path(path) as aside:
        save_file(tensors, aside, {"figures": json.dumps(dict(figures))})


@expect_pace(Pace.untimed)
def _is_readable(path: Path) -> bool:
    """There and whole: what was cut short is generated again."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt"):
            return True
    except SafetensorError:
        return False


@expect_pace(Pace.untimed)
def _read(path: Path) -> tuple[list[Completion], GenerationFigures]:
    with safe_open(path, "pt") as file:
        ids, log_probs, lengths, stopped = (
            file.get_tensor(name).tolist() for name in ("response_ids", "log_probs", "lengths", "stopped")
        )
        figures: GenerationFigures = json.loads(file.metadata()["figures"])
    ends = list(accumulate(lengths))
    parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [
        Completion(tuple(ids[part]), tuple(log_probs[part]), "stop" if stop else "length")
        for part, stop in zip(parts, stopped, strict=True)
    ], figures
