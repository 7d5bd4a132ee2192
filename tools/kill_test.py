"""Kills a small run repeatedly, at random moments, and checks that it ends like an uninterrupted run.

usage: python tools/kill_test.py DIRECTORY [--kills 30] [--seed 0] [--ranks 2] [--iterations 8] [--model DIR]

SIGKILL hits all processes of the run, at moments hashed from the seed: some at any time, some while a checkpoint is
written. Each restart must resume from the newest checkpoint, and no checkpoint may be lost or incomplete. Metrics
(without timings) and exported weights must equal those of an uninterrupted run, bit for bit. Rollouts and grades are
simulated, so neither vLLM nor grading processes start. DIRECTORY gets kills.md and kills.json. The exit code is 0 if
all checks pass and 1 otherwise.
"""

from __future__ import annotations

import sys

from killing.command import main

if __name__ == "__main__":
    sys.exit(main())
