"""Offline converters between Hugging Face directories and Megatron checkpoints: command line and streaming."""
