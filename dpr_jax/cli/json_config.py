"""A config file that loads a whole config from JSON, as `sweep` writes it.

`--config=json_config.py:FILE`; overrides apply as with a file of `configs/`.
"""

import ml_collections

from dpr_jax.core import config as config_lib


def get_config(path: str) -> ml_collections.ConfigDict:
  """The config in a file in the format of a workdir's `config.json`."""
  return config_lib.read(path)
