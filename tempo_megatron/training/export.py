"""The result of a run: the selected checkpoint, and its policy as a Hugging Face directory."""

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
from tempo_megatron.training.state import RunState

_UNFINISHED = ".exporting"


@dataclass(frozen=True)
class SelectedCheckpoint:
    """The checkpoint that is a run's result."""

    checkpoint: Path
    iteration: int
    reason: str
    """A sentence that says why the checkpoint was selected."""


def selected_checkpoint(run: Path) -> SelectedCheckpoint:
    """Return the best checkpoint of a run that selects one (`checkpoint.select_best`), else the newest.

    Interim checkpoints do not count. Raises ConversionError where there is no checkpoint.
    """
    checkpoints = run / "checkpoints"
    complete = saver.complete_checkpoints(checkpoints)
    if not complete:
        raise ConversionError(f"{checkpoints}: no checkpoint of an iteration here; has the run been trained?")
    try:
        state = RunState.from_json(saver.read_state(complete[-1]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{complete[-1]}: state.json is damaged, or of another version: {error!r}") from error
    selection = state.selection
    if selection.best is None or selection.reason is None:
        return SelectedCheckpoint(complete[-1], state.iteration, "the last one: checkpoint.select_best is off")
    best = saver.iteration_path(checkpoints, selection.best)
    return SelectedCheckpoint(best, selection.best, selection.reason)


def export_directory(run: Path) -> Path:
    """Return the directory that the policy of a run is exported to."""
    return run / "hf"


def export_run(run: Path) -> Path:
    """Export the policy of a run's selected checkpoint, in the place of an earlier export; return its directory.

    `summary.json`, if there is one, then names the checkpoint. One process suffices, and holds one tensor at a time.
    Raises ConversionError or OSError, and then leaves an earlier export as it was.
    """
    selected = selected_checkpoint(run)
    unfinished, directory = run / _UNFINISHED, export_directory(run)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        to_hf(selected.checkpoint, unfinished, role="policy")
        dist_checkpoint.remove_old(run, [directory])
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if earlier := read_summary(run):
        write_summary(run, earlier | _description(selected, directory))
    return directory


def summary(config: Config, state: RunState) -> dict[str, Any]:
    """Return what `summary.json` says of a run that ends in this state.

    It has the evaluations at the run's start and after its last iteration, and the selected checkpoint.
    """
    run, selection = Path(config.run_dir), state.selection
    final = state.initial_evaluation if state.final_evaluation is None else state.final_evaluation
    return {
        "initial": state.initial_evaluation,
        "final": final,
        "iterations": state.iteration,
        "method": config.method,
        "best_iteration": selection.best,
        "stopped": selection.stopped,
        "seconds": round(state.seconds, 1),
        **_description(selected_checkpoint(run), export_directory(run) if config.export else None),
    }


def _description(selected: SelectedCheckpoint, export: Path | None) -> dict[str, Any]:
    return {
        "chosen_iteration": selected.iteration,
        "chosen_because": selected.reason,
        "hf_export": str(export) if export else None,
    }
