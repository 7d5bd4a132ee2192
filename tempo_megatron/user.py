"""The user that this process runs as, where nobody has said who that is."""

from __future__ import annotations

import getpass
import os


def ensure_name() -> None:
    """Set USER where the user has no name: no variable gives it, and the machine or image has no passwd entry.

    torch's compiler and vLLM name directories by it, and raise KeyError as they are imported.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = f"uid-{os.getuid()}"
