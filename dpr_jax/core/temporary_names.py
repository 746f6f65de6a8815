"""Temporary names of files and folders that are not finished.

They contain a marker of dpr-jax, so that leftovers of a killed process cannot
be mistaken for a user's files.
"""

import os
import pathlib
import re

MARK = ".dprjax-"
# Temporary names of `replace_file` and `replace_folder`.
LEFTOVER = re.compile(
  r"(?P<name>.*?)\.dprjax-(?P<kind>tmp|old)-(?P<number>\d+)(?P<suffix>\..+)?",
  re.DOTALL,
)


def is_temporary(name: str | os.PathLike) -> bool:
  """True for a temporary name: of an unfinished write, or of an old version."""
  return LEFTOVER.fullmatch(pathlib.PurePath(name).name) is not None
