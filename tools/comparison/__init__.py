"""What `compare_precisions.py` and `reproduce.py` share: runs side by side, their samples, intervals and figures."""
