"""Rollouts on disk: a repeated call reads them, and a replay reads nothing else."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tempo_megatron.config import load_config
from tempo_megatron.generation.recorded import MissingRollouts, RecordedGenerator
from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.launch.replay import replay_arguments
from tempo_megatron.run_dir.layout import create_run_directory
from tempo_megatron.validation.recipe import recipe_problems


class Engine:
    """Completes a request with its seed, and counts the calls."""

    should_stop = None

    def __init__(self) -> None:
        self.calls = 0

    def generate(self, requests: list[Request], enough_groups: int | None = None) -> list[Completion]:
        self.calls += 1
        reasons = ("stop", "length")
        return [
            Completion((r.seed, 5)[: 1 + r.seed % 2], (-0.1,) * (1 + r.seed % 2), reasons[r.seed % 2]) for r in requests
        ]

    def take_figures(self) -> dict[str, float]:
        return {"requests": 2, "replica_requests_least": 1}

    def load_weights(self) -> None: ...

    def sleep(self) -> None: ...


REQUESTS = [Request((1, 2), 4, 8, 1.0, 1.0), Request((1, 2), 7, 8, 1.0, 1.0)]


def test_a_replay_has_the_recipe_of_its_run(recipe: Path, tmp_path: Path) -> None:
    """It needs its own directory, because in that of the run it would resume the run."""
    kept = load_config(recipe, ["generation.keep_rollouts=true", "seed=7", "policy.clip_range_low=0.2"])
    create_run_directory(kept)
    run = Path(kept.run_dir)
    (run / "rollouts").mkdir()
    (run / "rollouts" / "one.safetensors").touch()
    assert any(
        "a replay needs a directory of its own" in line
        for line in recipe_problems(load_config(*replay_arguments(run, [])))
    )
    again = load_config(*replay_arguments(run, [f"run_dir={tmp_path / 'again'}", "policy.clip_range_low=0.3"]))
    assert recipe_problems(again) == []
    kept.run_dir, kept.generation.replay, kept.policy.clip_range_low = again.run_dir, str(run / "rollouts"), 0.3
    assert again == kept


def test_what_was_generated_is_read_again_with_its_figures(tmp_path: Path) -> None:
    """By the same run when it resumes, and without an engine. Other expected lengths make no other requests. Other
    requests are generated."""
    engine = Engine()
    first = RecordedGenerator(engine, tmp_path)
    generated = first.generate(REQUESTS)
    assert [completion.response_ids for completion in generated] == [(4,), (7, 5)]
    again = RecordedGenerator(engine, tmp_path)
    replayed = RecordedGenerator(None, tmp_path)
    for generator in (again, replayed):
        recorded = generator.generate(REQUESTS)
        pairs = [[(each.response_ids, each.finish_reason) for each in calls] for calls in (recorded, generated)]
        assert pairs[0] == pairs[1]
        assert recorded[1].log_probs == pytest.approx((-0.1, -0.1), abs=1e-8)
        assert generator.take_figures() == {"requests": 2, "replica_requests_least": 1}
        assert generator.take_figures() == {}
    replayed.generate([replace(request, expected_tokens=9.5) for request in REQUESTS])
    assert engine.calls == 1
    again.generate(REQUESTS[:1])
    assert engine.calls == 2


def test_a_call_that_was_read_is_known_until_the_next_iteration(tmp_path: Path) -> None:
    """Exact numerics compare log-probs of rollouts that this process generated, since a resume's weights may differ in
    their last bit."""
    RecordedGenerator(Engine(), tmp_path).generate(REQUESTS)
    resumed = RecordedGenerator(Engine(), tmp_path)
    assert resumed.last_read is None
    resumed.generate(REQUESTS)
    assert resumed.last_read == resumed.iteration == 0
    resumed.iteration = 1
    resumed.generate(REQUESTS)
    assert resumed.last_read == 0


def test_paused_responses_are_recorded_and_files_without_them_are_still_read(tmp_path: Path) -> None:
    """What pauses depends on time where there are several replicas, so that a resumed run must read it back."""
    paused = Completion((4, 5), (-1.0, -2.0), PAUSED)

    class Pausing(Engine):
        def generate(self, requests: list[Request], enough_groups: int | None = None) -> list[Completion]:
            assert enough_groups == 1
            return [paused, Completion((), (), PAUSED)]

    generated = RecordedGenerator(Pausing(), tmp_path).generate(REQUESTS, 1)
    assert generated[0] == paused
    assert RecordedGenerator(None, tmp_path).generate(REQUESTS, 1) == generated

    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        old = {name: tensors.get_tensor(name) for name in tensors.keys() if name != "paused"}  # noqa: SIM118
        figures = tensors.metadata()
    save_file(old | {"stopped": torch.tensor([True, False])}, file, figures)
    assert [each.finish_reason for each in RecordedGenerator(None, tmp_path).generate(REQUESTS)] == ["stop", "length"]


def test_routes_are_recorded_where_responses_have_them(tmp_path: Path) -> None:
    """A resumed run and a replay train on the chosen experts. A file without the routes of one request is generated
    again once it needs them, and a replay of it says so."""
    routes = np.arange(3 * 2 * 2, dtype=np.uint16).reshape(3, 2, 2)

    class Routing(Engine):
        def generate(self, requests: list[Request], enough_groups: int | None = None) -> list[Completion]:
            first, second = super().generate(requests)
            return [replace(first, routes=None), replace(second, routes=routes)]

    needing = [REQUESTS[0], replace(REQUESTS[1], needs_routes=True)]
    RecordedGenerator(Engine(), tmp_path).generate(REQUESTS)
    with pytest.raises(MissingRollouts, match=r"recorded no routes, which policy\.router_replay=generator needs"):
        RecordedGenerator(None, tmp_path).generate(needing)
    RecordedGenerator(Routing(), tmp_path).generate(needing)
    first, second = RecordedGenerator(None, tmp_path).generate(needing)
    assert first.routes is None and second.routes is not None
    assert second.routes.dtype == np.uint16 and np.array_equal(second.routes, routes)
    needing = [replace(request, needs_routes=True) for request in REQUESTS]
    with pytest.raises(MissingRollouts, match=r"recorded no routes, which policy\.router_replay=generator needs"):
        RecordedGenerator(None, tmp_path).generate(needing)


def test_a_replay_names_missing_rollouts(tmp_path: Path) -> None:
    replayed = RecordedGenerator(None, tmp_path)
    replayed.iteration = 3
    with pytest.raises(MissingRollouts, match=r"no rollouts of iteration 3 for these 2 requests.*keep_rollouts"):
        replayed.generate(REQUESTS)


def test_prune_removes_the_rollouts_of_earlier_iterations(tmp_path: Path) -> None:
    """It removes those of the stages before iteration 0 too. A file that is being written is no rollout."""
    generator = RecordedGenerator(Engine(), tmp_path)
    for iteration in (-2, 1, 2, 3):
        generator.iteration = iteration
        generator.generate(REQUESTS)
    (tmp_path / ".000001-aside.safetensors").write_text("half")
    generator.prune(2)
    assert [path.name[:6] for path in tmp_path.glob("[!.]*.safetensors")] == ["000003"]


def test_an_incomplete_file_is_generated_again(tmp_path: Path) -> None:
    """A node that goes down may leave a file without its contents."""
    engine = Engine()
    generator = RecordedGenerator(engine, tmp_path)
    generated = generator.generate(REQUESTS)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert RecordedGenerator(engine, tmp_path).generate(REQUESTS) == generated
    assert engine.calls == 2 and len(RecordedGenerator(None, tmp_path).generate(REQUESTS)) == 2


def test_generating_an_iteration_again_removes_later_rollouts(tmp_path: Path) -> None:
    """A run that resumes from an older checkpoint and generates iteration 2 again has another iteration 3."""
    generator = RecordedGenerator(Engine(), tmp_path)
    for generator.iteration in (0, -1, 1, 2, 3):
        generator.generate(REQUESTS)
    next(tmp_path.glob("000002-*")).unlink()
    generator.iteration = 2
    generator.generate(REQUESTS)
    assert sorted(path.name[:6] for path in tmp_path.glob("*.safetensors")) == [
        "-00001",
        "000000",
        "000001",
        "000002",
    ]


def test_rollouts_that_cannot_be_removed_are_warned_of_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The later checkpoint is safe, so the run continues."""

    def busy(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    generator = RecordedGenerator(Engine(), tmp_path)
    generator.generate(REQUESTS)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        generator.prune(2)
    assert list(tmp_path.iterdir()) and "cannot be removed" in capsys.readouterr().err
    generator.prune(2)
    assert not list(tmp_path.iterdir())
