"""Hugging Face names and shapes <-> Megatron names and shapes: the single truth that converters and weight sync read."""
