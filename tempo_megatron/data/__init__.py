"""Prompts in: sources, the labeled and unlabeled streams, the label firewall."""
