"""Checkpoints of Megatron models: written, checked, read, with or without a process group."""
