"""Helpers for every package. Nothing here depends on training.

- `distributed`: ranks, work shared between ranks, lines on standard error
- `heartbeat`: the count of work units by which `supervision` detects hangs
- `atomic_files`: files that exist complete or not at all
- `host_memory`: host memory of this job, and the peak of this process
- `packages`: versions of installed packages
- `user`: a name and a home for a user that has none
"""
