"""Kills and resumes a small run."""
