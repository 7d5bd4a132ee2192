"""A name and a home for a user that has none."""

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
    """An image may not know the cluster's user id. torch and vLLM then raise KeyError on import."""

    def no_entry(number: int) -> None:
        raise KeyError(number)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # the same as unset; monkeypatch also undoes what is set meanwhile
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert cli.main(["settings"]) == 0
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == Path(tempfile.gettempdir(), f"uid-{os.getuid()}")
