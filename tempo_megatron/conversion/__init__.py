"""Hugging Face names and shapes <-> Megatron's: the single truth that converters and weight sync read."""
