"""Comparison of runs, and sweeps that launch runs to compare."""
