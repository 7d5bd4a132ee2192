"""Derives every seed by hashing its purpose. No code draws from a global generator."""

from __future__ import annotations

import hashlib

_HASHED_AS = {"labeled": "labelled", "unlabeled": "unlabelled", "e_step": "calibrate", "m_step": "refine"}
"""Streams and phases whose names have changed. Their old names are hashed, so that published runs can be repeated."""


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2^31) for the parts, the same on every machine and in every run."""
    digest = hashlib.sha256("\x1f".join(_HASHED_AS.get(str(part), str(part)) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 33
