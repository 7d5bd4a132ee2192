"""The commit that a run reports is that of this code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tempo_megatron.training import banner


def test_the_commit_of_another_project_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package may lie in the checkout of the project that uses it."""
    module = tmp_path / "banner.py"
    module.touch()
    (tmp_path / "other.py").touch()
    identity = ["-c", "user.name=name", "-c", "user.email=name@example.org"]

    def git(*arguments: str) -> None:
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(banner, "__file__", str(module))
    git("init")
    git("add", "other.py")
    git("commit", "-m", "another project")
    assert banner._commit() == "unknown"
    git("add", "banner.py")
    git("commit", "-m", "this project")
    assert len(banner._commit()) == 12
