"""A name and a home directory for a user that has none."""

from __future__ import annotations

import getpass
import os
import tempfile


def ensure_name_and_home() -> None:
    """Set USER and HOME if neither a variable nor a passwd entry of this machine or image gives them.

    torch's compiler and vLLM name directories by the user, and raise KeyError on import if there is none. Without HOME,
    files meant for the home directory would go into a directory named ~ of the working directory.
    """
    name = f"uid-{os.getuid()}"
    try:
        getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 and later raise OSError
        os.environ["USER"] = name
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.path.join(tempfile.gettempdir(), name)
