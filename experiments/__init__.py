"""Comparisons of the optimizer with others, run by `python -m experiments` from a clone; no part of the package."""
