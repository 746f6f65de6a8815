"""The user's cache folder: downloaded checkpoints and compiled programs."""

import os
import pathlib

from dpr_jax.core import errors


def cache_folder() -> pathlib.Path:
  """`$DPR_JAX_CACHE`, else `dpr-jax` in the user's cache folder.

  Raises:
    InputError: the user has no home folder and no variable names one.
  """
  try:
    if own := os.environ.get("DPR_JAX_CACHE"):
      return pathlib.Path(own).expanduser().absolute()
    if general := os.environ.get("XDG_CACHE_HOME"):
      return pathlib.Path(general).absolute() / "dpr-jax"
    return pathlib.Path.home() / ".cache" / "dpr-jax"
  except RuntimeError as error:  # no HOME, and a user without an entry
    raise errors.InputError(
      f"no folder for the cache ({error}): set DPR_JAX_CACHE to a folder with"
      " free space"
    ) from error
