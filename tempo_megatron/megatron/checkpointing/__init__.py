"""Writes, verifies and reads checkpoints of Megatron models, with or without a process group."""
