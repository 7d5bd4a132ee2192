"""The result of a run: the checkpoint that was chosen, and its policy as a Hugging Face directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_convert.convert import to_hf
from tempo_megatron.config import Config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron.checkpointing import dist_checkpoint, saver
from tempo_megatron.run_dir.layout import read_summary, write_summary

_ASIDE = ".exporting"


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that is a run's result. `reason` says in a sentence why it is."""

    checkpoint: Path
    iteration: int
    reason: str


def chosen(run: Path) -> Chosen:
    """The best checkpoint of a run that chooses one (`checkpoint.select_best`), else the newest, interim ones aside.

    Raises ConversionError where there is none.
    """
    checkpoints = run / "checkpoints"
    complete = saver.complete_checkpoints(checkpoints)
    if not complete:
        raise ConversionError(f"{checkpoints}: no checkpoint of an iteration here; has the run been trained?")
    try:
        state = saver.read_state(complete[-1])
        choice = state["choice"]
    except (ValueError, KeyError) as error:
        raise ConversionError(f"{complete[-1]}: state.json is damaged, or of another version: {error!r}") from error
    if choice["best"] is None:
        return Chosen(complete[-1], state["iteration"], "the last one: checkpoint.select_best is off")
    reason = choice.get("reason") or "the best when it was chosen, by a version that kept no reason"
    return Chosen(saver.iteration_path(checkpoints, choice["best"]), choice["best"], reason)


def export_directory(run: Path) -> Path:
    """Where the policy of a run is exported to."""
    return run / "hf"


def export_run(run: Path) -> Path:
    """Write the policy of a run's chosen checkpoint in the place of an earlier export; returns its directory.

    An existing `summary.json` then names it. One process needs no group, and holds a tensor at a time. Raises
    ConversionError or OSError, which leave an earlier export as it was.
    """
    result = chosen(run)
    aside, directory = run / _ASIDE, export_directory(run)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        to_hf(result.checkpoint, aside, role="policy")
        dist_checkpoint.remove_old(run, [directory])
        aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if earlier := read_summary(run):
        write_summary(run, earlier | _described(result, directory))
    return directory


def summary(config: Config, state: dict[str, Any]) -> dict[str, Any]:
    """What `summary.json` says of a run that ends in this state: figures at its start and at its last iteration, and
    which iteration was chosen."""
    run, choice = Path(config.run_dir), state["choice"]
    return {
        "initial": state["initial"],
        "final": state.get("final", state["initial"]),
        "iterations": state["iteration"],
        "method": config.method,
        "best_iteration": choice["best"],
        "stopped": choice["stopped"],
        "seconds": round(state["seconds"], 1),
        **_described(chosen(run), export_directory(run) if config.export else None),
    }


def _described(result: Chosen, export: Path | None) -> dict[str, Any]:
    return {
        "chosen_iteration": result.iteration,
        "chosen_because": result.reason,
        "hf_export": str(export) if export else None,
    }
