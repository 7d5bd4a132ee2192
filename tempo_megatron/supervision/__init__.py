"""Supervision of a run's ranks. `docs/faults.md` describes the behavior.

- `interruption`: requests to stop, by a signal or a deadline, agreed on by all ranks
- `watchdog`: threads of each rank that end the run when a rank hangs
- `hangs`: the rules that decide which rank hangs, over the heartbeats of all ranks
- `collectives`: torch's record of this process's collectives
- `failure`: how a failed rank ends, and which rank failed first
"""
