"""`tempo` with recorded responses in the place of vLLM's: a response follows from its request alone, and ranks start in
seconds."""

from __future__ import annotations

import os
import sys
from functools import partial

from tempo_megatron import cli
from tempo_megatron.launch.torchrun import environment_of_ranks
from tempo_megatron.training import loop
from tests.runs import build_recorded, make_no_reports

if __name__ == "__main__":
    os.environ.update(environment_of_ranks())  # Each rank would start a process that checks the labels.
    make_no_reports()
    loop.train = partial(loop.train, build=build_recorded)
    sys.exit(cli.main())
