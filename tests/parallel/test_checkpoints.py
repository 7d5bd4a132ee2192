"""Checkpoints of two ranks: written while the run goes on, refused when damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from checkpoints_convert.__main__ import main
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.megatron.checkpointing.saver import NoUsableCheckpoint, newest_checkpoint
from tests.conftest import write_recipe
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("checkpoint_worker.py")
BEFORE, NEWEST = "iteration-000002", "iteration-000003"
FILES = [
    *(f"{role}/{name}" for role in ("policy", "critic") for name in (".metadata", "metadata.json")),
    *(f"{role}/__{rank}_{file}.distcp" for role in ("policy", "critic") for rank in (0, 1) for file in (0, 1)),
    *(f"huggingface/{name}" for name in ("config.json", "generation_config.json")),
    *(f"huggingface/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
    "checkpoint.json",
    "state.json",
]


@pytest.fixture(scope="module")
def ran(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the worker found, and the directory of its checkpoints."""
    directory = tmp_path_factory.mktemp("checkpoints")
    recipe, out = write_recipe(directory, demo_model), directory / "found.pt"
    small = ("loop.labeled_prompts=2", "loop.unlabeled_prompts=2", "loop.samples_per_prompt=2")
    run_ranks(WORKER, 2, recipe, out, *small)
    report: dict[str, Any] = torch.load(out)
    return report, directory / "run" / "checkpoints"


@pytest.fixture
def checkpoints(ran: tuple[dict[str, Any], Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of the checkpoints, and a process group of this process alone to look at them with."""
    for name in (BEFORE, NEWEST):
        shutil.copytree(ran[1] / name, tmp_path / "checkpoints" / name)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield tmp_path / "checkpoints"
    dist.destroy_process_group()


def flip(path: Path, share: float) -> None:
    """One bit of the byte at that share of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_a_slow_write_saves_its_own_step(ran: tuple[dict[str, Any], Path]) -> None:
    """Weights and optimizer states of policy and critic, while both learn on and go to the host and back: loaded, they
    are what they were when the save was asked for, bit for bit. The next save waits for the write before it."""
    report, _ = ran
    assert report["complete_at_first"] == [] and report["written_at_first"] == []
    first = [f".writing-iteration-000001/{role}" for role in ("policy", "critic")]
    assert report["written_when_the_next_was_saved"] == first
    assert report["complete"] == ["iteration-000001", "iteration-000002"]
    assert report["moved_on"] and report["same_state"]


def test_a_failed_write_is_told_to_every_rank_and_leaves_no_checkpoint(ran: tuple[dict[str, Any], Path]) -> None:
    """A full disk of one rank, in the thread: all ranks get its error with the traceback, nothing takes the
    checkpoint's name, and the next save works."""
    report, _ = ran
    for messages in report["told"]:
        assert "No space left on the disk of rank 1" in messages and "in full" in messages
    assert report["complete_after_failure"] == ["iteration-000001", BEFORE]
    assert report["complete_at_last"] == ["iteration-000001", BEFORE, NEWEST]


def test_the_deadline_leaves_room_for_the_writing(ran: tuple[dict[str, Any], Path]) -> None:
    """A write in the background holds the run up for the copies alone, and an interrupted run waits for its end."""
    report, _ = ran
    assert report["save_seconds"] == 30
    assert report["lead"] >= 2 * 30 + 60


def test_copies_are_as_large_as_what_is_written_of_them(ran: tuple[dict[str, Any], Path]) -> None:
    """Their bytes, which the budget of host memory counts, are those of all ranks' files but for headers."""
    checkpoint, directory = ran
    written = sum(path.stat().st_size for path in (directory / NEWEST).rglob("*.distcp"))
    assert checkpoint["copied_bytes"] == pytest.approx(written, rel=0.05)


def test_the_manifest_says_everything(checkpoints: Path) -> None:
    """The list that the next test goes through is that of the files there are."""
    assert (
        sorted(FILES)
        == integrity.list_files(checkpoints / NEWEST)
        == sorted(integrity.read_manifest(checkpoints / NEWEST))
    )


@pytest.mark.parametrize("name", [*FILES, integrity.MANIFEST_NAME])
def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(name: str, checkpoints: Path) -> None:
    """Whichever file it is in. What is damaged no longer counts among the checkpoints."""
    flip(checkpoints / NEWEST / name, 0.5)
    checkpoint, (line,) = newest_checkpoint(checkpoints)
    assert checkpoint == checkpoints / BEFORE
    assert str(checkpoints / NEWEST / name) in line and "damaged" in line
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"damaged-{NEWEST}", BEFORE]


def test_an_incomplete_checkpoint_is_named_and_the_one_before_is_used(checkpoints: Path) -> None:
    """A file gone and one cut short, a checkpoint without a manifest, and what an interrupted write leaves."""
    shutil.copytree(checkpoints / NEWEST, checkpoints / "iteration-000004")
    (checkpoints / "iteration-000004" / integrity.MANIFEST_NAME).unlink()
    (checkpoints / NEWEST / "critic" / "__1_0.distcp").unlink()
    short = checkpoints / NEWEST / "policy" / "__0_1.distcp"
    short.write_bytes(short.read_bytes()[:-1])
    (checkpoints / ".writing-iteration-000005" / "policy").mkdir(parents=True)
    report, lines = newest_checkpoint(checkpoints)
    assert report == checkpoints / BEFORE
    assert all(
        part in line
        for part, line in zip(("no manifest.json", "missing", "cut short", "interrupted"), lines, strict=True)
    )
    assert not list(checkpoints.glob(".*"))


def test_an_interim_checkpoint_is_gone_on_from_until_another_takes_its_place(
    ran: tuple[dict[str, Any], Path], checkpoints: Path
) -> None:
    """It is newer than what was saved before it and older than what was saved at the same place or a later one; the
    next save removes it, and it takes nobody's place among those that are kept."""
    report, _ = ran
    assert report["there_when_interrupted"] == [
        ["iteration-000001", BEFORE, NEWEST, "interim-iteration-000004"],
        ["iteration-000001", BEFORE, NEWEST, "interim-iteration-000005"],
        [BEFORE, NEWEST, "iteration-000005"],
    ]
    assert [line.split()[0] for line in report["said_when_interrupted"]] == [
        "iteration-000004",
        *["iteration-000005"] * 2,
    ]

    names = ["interim-warm_start-000020", "interim-critic_start-000003", BEFORE, f"interim-{NEWEST}", NEWEST]
    for name in names:
        if not (checkpoints / name).exists():
            shutil.copytree(checkpoints / BEFORE, checkpoints / name)
    for name in reversed(names):
        assert newest_checkpoint(checkpoints)[0] == checkpoints / name
        (checkpoints / name).rename(checkpoints / f"gone-{name}")


def test_a_run_with_damaged_checkpoints_alone_does_not_start_afresh(checkpoints: Path) -> None:
    """Nothing is moved, all is named, and so is what to do."""
    for name in (BEFORE, NEWEST):
        flip(checkpoints / name / "policy" / "__0_0.distcp", 0.9)
    with pytest.raises(NoUsableCheckpoint) as error:
        newest_checkpoint(checkpoints)
    assert str(error.value).count("__0_0.distcp: damaged") == 2 and f"remove {checkpoints}" in str(error.value)
    assert sorted(path.name for path in checkpoints.iterdir()) == [BEFORE, NEWEST]
    assert newest_checkpoint(checkpoints / "none") == (None, [])


def test_the_converter_refuses_damage(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit among the optimizer's state or the weights, and one of what stands beside them, in one error."""
    flip(checkpoints / NEWEST / "policy" / "__1_1.distcp", 0.5)
    flip(checkpoints / NEWEST / "huggingface" / "tokenizer.json", 0.5)
    arguments = ["--checkpoint", str(checkpoints / NEWEST), "--out", str(tmp_path / "hf")]
    assert main(["to-hf", *arguments]) == 2
    messages = capsys.readouterr().err
    assert "__1_1.distcp: damaged" in messages and "tokenizer.json: damaged" in messages
    assert not (tmp_path / "hf").exists()
    assert main(["to-hf", *arguments, "--role", "critic"]) == 2
    (checkpoints / NEWEST / integrity.MANIFEST_NAME).unlink()
    assert main(["to-hf", *arguments]) == 2
    assert "no manifest.json" in capsys.readouterr().err
