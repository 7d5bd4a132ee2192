"""The phases of an iteration, from the generation of rollouts to the selection of a checkpoint, and the warm start."""
