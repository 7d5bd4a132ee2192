"""Figures of a run: writers, pass@k, calibration, plots."""
