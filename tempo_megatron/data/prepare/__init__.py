"""Writes public data sets as JSONL files that a run reads, and finds labeled questions that are also evaluated."""
