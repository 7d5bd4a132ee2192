"""`tempo` with recorded responses in the place of vLLM's: a response follows from its request alone, and ranks start in
seconds."""

from __future__ import annotations

import sys
from functools import partial

from tempo_megatron import cli
from tempo_megatron.training import loop
from tests.runs import build_recorded

if __name__ == "__main__":
    loop.train = partial(loop.train, build=build_recorded)
    sys.exit(cli.main())
