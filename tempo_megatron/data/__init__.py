"""Reads questions, splits off the answers of unlabeled ones, and gives prompts to the training loop.

- `reading.py` reads files and locates problems; `sources.py` makes rows and prompts; `questions.py` reads all streams.
- `identity.py` decides when two questions are the same; `fingerprint.py` records what a run's files contained.
- `templates.py` and `vocabulary.py` turn questions into token ids; `types.py` has `Prompt` and `Rollout`.
- `streams.py`, `spread.py` and `seeds.py` decide order and seeds; `tasks.py` generates reasoning-gym questions.
- `prepare/` is the command `tempo data`.
"""
