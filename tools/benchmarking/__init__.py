"""The sections of tools/benchmark.py: what each measures, and how."""
