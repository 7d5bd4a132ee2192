"""Which directories are checkpoints of a run, and old checkpoints that cannot be deleted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tempo_megatron.config import CheckpointConfig, Config
from tempo_megatron.megatron.checkpointing import dist_checkpoint, integrity
from tempo_megatron.megatron.checkpointing.saver import (
    ITERATION,
    Position,
    Saver,
    checkpoint_directories,
    complete_checkpoints,
    foreign_paths,
    kept_iterations,
    newest_checkpoint,
)
from tempo_megatron.run_dir.layout import as_saved, saved_checkpoint

FOREIGN = ["iteration-000002-hf", "iteration-000002.bak", "iteration-2", "notes"]


def write_checkpoint(directory: Path, name: str) -> Path:
    checkpoint = directory / name
    (checkpoint / "huggingface").mkdir(parents=True)
    (checkpoint / "huggingface" / "config.json").write_text("{}")
    (checkpoint / "state.json").write_text("{}")
    integrity.write_manifest(checkpoint, integrity.checksum_files(checkpoint, integrity.list_files(checkpoint)))
    return checkpoint


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_foreign_names_are_no_checkpoints_and_are_named(group: None, tmp_path: Path) -> None:
    """The run never resumes from, counts, moves or removes a manual copy, an export or a file."""
    for name in ("iteration-000001", "iteration-000002", "interim-critic_start-000003", "reference", "damaged-x"):
        write_checkpoint(tmp_path, name)
    for name in FOREIGN:
        write_checkpoint(tmp_path, name)
    (tmp_path / "iteration-000009").write_text("no directory")
    (tmp_path / "best").symlink_to("iteration-000001")
    named = sorted([*FOREIGN, "iteration-000009"])
    assert [path.name for path in foreign_paths(tmp_path)] == named
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["iteration-000001", "iteration-000002"]
    assert kept_iterations(tmp_path, 1, None) == {2}
    newest, lines = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "iteration-000002"
    assert [line.rpartition("/")[2] for line in lines] == named and all("ignored" in line for line in lines)
    assert all((tmp_path / name).exists() for name in named)


def test_a_half_copied_checkpoint_is_set_aside_and_named(group: None, tmp_path: Path) -> None:
    """It has a checkpoint's name, and its manifest lists the missing file."""
    write_checkpoint(tmp_path, "iteration-000001")
    half = write_checkpoint(tmp_path, "iteration-000002")
    (half / "huggingface" / "config.json").unlink()
    newest, (line,) = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "iteration-000001" and "huggingface/config.json: missing" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-iteration-000002", "iteration-000001"]


def busy(*paths: Path) -> Any:
    """Returns `os.unlink` with the behavior of NFS for files that another process has open."""
    original = os.unlink

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        parent = Path(f"/proc/self/fd/{dir_fd}").resolve() if dir_fd is not None else Path(path).parent
        if any(parent.name.endswith(open_path.name) for open_path in paths):
            raise OSError(errno.EBUSY, "Device or resource busy")
        original(path, dir_fd=dir_fd)

    return unlink


@pytest.mark.parametrize(("rank", "calls"), [(0, 1), (1, 0)])
def test_only_the_rank_that_writes_the_state_encodes_it(
    rank: int, calls: int, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With partial rollouts a state has every token that waits, which each rank of a node would hold as text too."""
    encoded, written = [], []

    def state() -> dict[str, Any]:
        encoded.append(rank)
        return {"iteration": 3}

    saver = Saver(tmp_path, CheckpointConfig(), tmp_path, "zero_one", dist.default_pg_timeout)
    monkeypatch.setattr("tempo_megatron.megatron.checkpointing.saver.rank_and_ranks", lambda: (rank, 2))
    monkeypatch.setattr(saver, "_write", lambda checkpoint, parts, text, best: written.append(text))
    saver.save(Position(ITERATION, 3), {}, state, None)
    assert len(encoded) == calls and written == ['{"iteration": 3}' if rank == 0 else ""]


def test_an_old_checkpoint_that_cannot_be_deleted_is_warned_of_and_tried_again(
    group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new checkpoint is safe, so the run continues. The next call deletes a partly deleted one."""
    old, new, newer = (write_checkpoint(tmp_path, f"iteration-00000{number}") for number in (1, 2, 3))
    saver = Saver(tmp_path, CheckpointConfig(keep=1), tmp_path, "zero_one", dist.default_pg_timeout)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy(old))
        saver._link_best_and_remove_old(new, best=None)
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "iteration-000001 cannot be removed" in warning and "busy" in warning
    assert old not in checkpoint_directories(tmp_path) and newest_checkpoint(tmp_path)[0] == newer
    saver._link_best_and_remove_old(newer, best=None)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-000003"]
    assert not capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_renamed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays complete, and the next save tries again."""
    old = write_checkpoint(tmp_path, "iteration-000001")

    def rename(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        dist_checkpoint.remove_old(tmp_path, [old])
    assert checkpoint_directories(tmp_path) == [old] and "iteration-000001 cannot be removed" in capsys.readouterr().err
    dist_checkpoint.remove_old(tmp_path, [old])
    assert not list(tmp_path.iterdir())


def test_the_models_description_is_read_from_an_intact_checkpoint(tmp_path: Path) -> None:
    """It is the newest intact one. An interim one, which may be removed at any time, is used only without others."""
    config = Config(run_dir=str(tmp_path))
    assert as_saved(config) is config
    checkpoints = tmp_path / "checkpoints"
    interim = write_checkpoint(checkpoints, "interim-iteration-000003")
    assert saved_checkpoint(tmp_path) == interim
    older, newer = (write_checkpoint(checkpoints, f"iteration-00000{number}") for number in (1, 2))
    write_checkpoint(checkpoints, "iteration-000002.bak")
    assert saved_checkpoint(tmp_path) == newer
    (newer / "huggingface" / "config.json").write_text("[]")
    assert saved_checkpoint(tmp_path) == older
    assert as_saved(config).model.hf_path == str(older / "huggingface")
