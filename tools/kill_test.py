"""Kill a small run again and again, at random moments, and see that it ends as one that nobody killed.

usage: python tools/kill_test.py DIRECTORY [--kills 30] [--seed 0] [--ranks 2] [--iterations 8] [--model DIR]

SIGKILL for all processes of the run, at moments hashed from the seed: some anywhere, some while a checkpoint is
written. Every restart must go on from the newest checkpoint, no checkpoint may be lost or half-written, and metrics
(without timings) and exported weights must be those of an uninterrupted run, bit for bit. Rollouts and grades are
recorded ones, so that neither vLLM nor graders start. DIRECTORY gets kills.md and kills.json. Exit codes: 0 all held, 1
something did not.
"""

from __future__ import annotations

import sys

from killing.command import main

if __name__ == "__main__":
    sys.exit(main())
