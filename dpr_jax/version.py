"""The version, in a file that `setup.py` reads without importing anything."""

__version__ = "0.2.0"
