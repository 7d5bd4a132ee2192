"""Checks of a recipe before a run starts. One error lists all problems."""
