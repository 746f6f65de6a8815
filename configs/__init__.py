"""Experiments: the docstring of each file has its command and its results."""
