"""What jobs of `tempo launch` share with those of the sbatch scripts (`job.sh`)."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

JOB_SCRIPT = Path(__file__).with_name("job.sh")
SRUN_RANK_OPTIONS = ("--export=ALL", "--distribution=block,NoPack", "--cpu-bind=none")
"""The options of srun for ranks. They override defaults of the site."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def container_mounts(directories: Sequence[Path]) -> list[str]:
    """Return the mounts of an image as HOST_PATH:IMAGE_PATH: the directories, and the targets of links in them.

    Raises ValueError for a path that cannot be mounted.
    """
    command = ["bash", "-c", 'source "$0" && mounts "$@"', str(JOB_SCRIPT), *map(str, directories)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(process.stderr.strip())
    return process.stdout.splitlines()


def time_limit_seconds(limit: str) -> float:
    """Return the seconds of a time limit in the form of sbatch's --time; inf for no limit.

    Examples are 90 (minutes), 24:00:00 and 2-12 (days-hours). Raises ValueError for anything else.
    """
    if limit.lower() in ("unlimited", "infinite", "0"):
        return math.inf
    match = _TIME.fullmatch(limit)
    if not match:
        raise ValueError(f"{limit!r} is no time limit: minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) < 3:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    else:
        hours, minutes, seconds = numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
