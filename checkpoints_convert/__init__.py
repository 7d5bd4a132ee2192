"""Offline converters between Hugging Face model directories and Megatron checkpoints."""
