"""The page docs/metrics.md, which names every key that a run writes to metrics.jsonl."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
PLACEHOLDERS = {
    "MOMENT": "(before|after)",
    "SET": "(unlabeled|held_out)(/.+)?",
    "PERCENT": r"\d{3}",
    "KIND": "(host|device)",
    "PHASE": r"\w+",
    "RATIO": "(token|sequence|geometric_mean)",
    "K": r"\d+",
}


def documented_keys() -> list[str]:
    """Return the keys in the first column of the page's tables, with placeholders in capitals."""
    cells = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`(.+?)`", cell)]


def undocumented(keys: Iterable[str]) -> list[str]:
    """Return the keys that no key of the page matches."""
    patterns = [re.compile(_pattern(key)) for key in documented_keys()]
    return sorted({key for key in keys if not any(pattern.fullmatch(key) for pattern in patterns)})


def literal_parts(key: str) -> list[str]:
    """Return the parts of a documented key's last segment that are no placeholders."""
    return [part for part in re.split("|".join(PLACEHOLDERS), key.rpartition("/")[2]) if part]


def _pattern(key: str) -> str:
    return re.sub("|".join(PLACEHOLDERS), lambda match: PLACEHOLDERS[match[0]], re.escape(key))
