"""Comparisons of runs: one figure on one scale, and one table."""
