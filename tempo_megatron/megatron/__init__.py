"""Megatron Core: topology, models, optimizers, forward-backward, weights, checkpoints. Alone imports megatron.core."""
