"""Measures speed and memory of every part of a run against raw Megatron and raw vLLM: a table, and JSON with --json.

usage: python tools/benchmark.py SHAPE [--gpus N] [--layers N] [--sections train,packed,...] [key=value ...]

`--help` lists shapes, sections and options; docs/benchmark.md says what each figure is.
"""

from __future__ import annotations

import sys

from benchmarking.command import main

if __name__ == "__main__":
    sys.exit(main())
