"""A config file that loads the config stored in a workdir.

If `--config` is left out and the workdir has a config, the command line uses
`--config=stored_config.py:W/config.json`.  Overrides then apply as with a file
of `configs/`.
"""

import pathlib

import ml_collections

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_settings


def get_config(path: str) -> ml_collections.ConfigDict:
  """The config in `config.json`, with the settings of the trained models."""
  where = workdir_lib.Workdir(pathlib.Path(path).parent)
  return model_settings.of_workdir(where)
