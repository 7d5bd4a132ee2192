"""What `compare_runs.py` and `reproduce.py` share: runs side by side, their samples, intervals and figures."""
