"""What jobs of `tempo launch` share with those of the sbatch scripts: `job.sh`."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

JOB = Path(__file__).with_name("job.sh")
RANKS = ("--export=ALL", "--distribution=block,NoPack", "--cpu-bind=none")
"""options of srun for ranks, against a site's"""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def mounts(directories: Sequence[Path]) -> list[str]:
    """Mounts of an image, HERE:THERE each: the directories by their names, and what links lead to.

    Raises ValueError for a path that cannot be said to an image.
    """
    command = ["bash", "-c", 'source "$0" && mounts "$@"', str(JOB), *map(str, directories)]
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        raise ValueError(shown.stderr.strip())
    return shown.stdout.splitlines()


def seconds(limit: str) -> float:
    """Seconds of a time limit as sbatch's --time has it, such as 90 (minutes), 24:00:00 or 2-12; inf for none.

    Raises ValueError for anything else.
    """
    if limit.lower() in ("unlimited", "infinite", "0"):
        return math.inf
    match = _TIME.fullmatch(limit)
    if not match:
        raise ValueError(f"{limit!r} is no time limit: minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, rest = [*numbers, 0, 0][:3]
    elif len(numbers) < 3:
        hours, (minutes, rest) = 0, [*numbers, 0][:2]
    else:
        hours, minutes, rest = numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest
