"""The config of a workdir, in the place of `--config`.

`--config=stored_config.py:W/config.json` is what the command line puts in where
a workdir has a config and no `--config` is given: overrides apply to it as to a
file of `configs/`.
"""

import pathlib

import ml_collections

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_settings


def get_config(path: str) -> ml_collections.ConfigDict:
  """The config in a file `config.json`; its models are as they were trained."""
  where = workdir_lib.Workdir(pathlib.Path(path).parent)
  return model_settings.of_workdir(where)
