"""`tempo` with recorded responses in the place of vLLM's: a response follows from its request alone, and ranks start in
seconds."""

from __future__ import annotations

import sys

from tempo_megatron import cli
from tempo_megatron.training import run
from tools.killing.recorded import Recorded

if __name__ == "__main__":
    run.Run._build_generator = lambda _: Recorded()  # type: ignore[assignment, return-value]
    sys.exit(cli.main())
