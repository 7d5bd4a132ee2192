"""The user that this process runs as, where nobody has said who that is."""

from __future__ import annotations

import getpass
import os
import tempfile


def ensure_name_and_home() -> None:
    """Set USER and HOME where nothing gives them: no variable, and no passwd entry of this machine or image.

    torch's compiler and vLLM name directories by the user, and raise KeyError as they are imported. What they keep in
    a home directory would go into one called ~ of the present directory.
    """
    name = f"uid-{os.getuid()}"
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = name
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.path.join(tempfile.gettempdir(), name)
