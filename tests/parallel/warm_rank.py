"""A rank as a fork of the process that `preload` describes."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence


def run(script: str, arguments: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """Become the rank that `environment` describes: run `script` as the main module, its output appended to `log`.

    Ends with the script's exit code, or 1 and a traceback."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a fork without them
