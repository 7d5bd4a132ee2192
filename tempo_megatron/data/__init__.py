"""Prompts in: sources, the labelled and unlabelled streams, the label firewall."""
