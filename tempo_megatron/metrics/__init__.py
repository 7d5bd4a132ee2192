"""Metrics of a run and of an evaluation: how they are computed, written, plotted and watched."""
