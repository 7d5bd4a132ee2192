"""Room for what a run writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from tempo_megatron import planning
from tempo_megatron.config import Config
from tempo_megatron.preflight.facts import Finding, Verdict

_GIB = 2**30
_BESIDE_KEPT = 2
"""checkpoints beside `checkpoint.keep`: the best, and the one that is being written"""


def check(directory: Path, config: Config, ranks: int) -> Finding:
    """The finding about free space in `directory`, where run_dir is or would be made."""
    free = shutil.disk_usage(directory).free / _GIB
    count = config.checkpoint.keep + _BESIDE_KEPT
    size = planning.checkpoint_gib(config, gpus=ranks)
    there = sum(path.lstat().st_size for path in Path(config.run_dir, "checkpoints").rglob("*")) / _GIB
    to_come = max(size, count * size - there)  # one at least is written beside those that are there
    found = f"{free:,.1f} GiB free in {directory}"
    if free < to_come + config.preflight.free_disk_gib:
        wanted = f"{count} checkpoints take {count * size:,.1f}, {there:,.1f} of them there"
        return Finding(
            "free disk",
            "",
            Verdict.bad,
            f"{found}; {wanted}, and preflight.free_disk_gib is {config.preflight.free_disk_gib:g}",
            "free some, choose another run_dir, or keep fewer (checkpoint.keep)",
        )
    return Finding("free disk", "", Verdict.good, f"{found}, {to_come:,.1f} of them for checkpoints")
