"""Experiments: each file's docstring holds its command and what to expect."""
