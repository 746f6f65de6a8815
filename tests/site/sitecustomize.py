"""What every process that a test starts does first: see `programs.py`."""

from tests import programs

programs.write_whole()
