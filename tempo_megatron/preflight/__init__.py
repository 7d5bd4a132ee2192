"""Checks whether these nodes can train: `tempo doctor`, and the first seconds of `tempo train`. See `docs/doctor.md`.

In the order of a check:

- `command`, `arguments`: the command, and the checks before training
- `rendezvous`: ranks meet in a TCPStore; the first rank sends tasks, the others answer
- `check_runner`: the first rank's part; it runs the checks in order and makes the report
- `node_reader`, `nvidia_smi`: read the facts of a node
- `node_facts`, `findings`: the types of facts and of findings
- `device_checks`, `node_checks`, `memory_and_disk`, `rank_placement`: checks of facts
- `clocks`, `shared_directory`, `network`, `bandwidth`, `all_reduce`: checks that need more than one node
- `report`: which nodes are good, whether training may start, a table and JSON
"""
