"""A process whose user has no name."""

from __future__ import annotations

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from tempo_megatron import cli


def test_a_user_without_a_name_is_given_one_and_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image may know no user of the cluster's number: torch and vLLM raise KeyError as they are imported."""

    def no_entry(number: int) -> None:
        raise KeyError(number)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # as if it was not there; what is set meanwhile goes with it
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert cli.main(["settings"]) == 0
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == Path(tempfile.gettempdir(), f"uid-{os.getuid()}")
