"""Exceptions for errors that the user can fix.

Whatever a user can fix (a malformed row, an unknown config key, a checkpoint of
other sizes, a full disk) raises `InputError` with a message that names the
file, the line or row, the value and the fix.  The command line prints it as one
line and exits with status 2; any other exception is a bug and exits with 1.
"""


class InputError(ValueError):
  """Bad input, config or flag; the message says where and how to fix it."""


class DiskError(InputError):
  """A file could not be written; the message says which one and why."""
