"""Topology, models, optimizers, forward and backward passes, weights and checkpoints on Megatron Core.

No other package imports megatron.core.
"""
