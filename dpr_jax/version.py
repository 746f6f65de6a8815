"""The version, in a file that `setup.py` reads without importing anything."""

__version__ = "0.1.0"
