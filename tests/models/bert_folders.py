"""Loads folders of transformers, for tests that compare with it."""

import pathlib
from typing import Any

from dpr_jax.models import bert, hf_weights, tensor_files


def load_bert(
  folder: pathlib.Path,
) -> tuple[bert.BertConfig, dict[str, Any]]:
  """Config and float32 parameters of the encoder in a folder."""
  config = bert.BertConfig.read(folder)
  tensors = tensor_files.read_tensors(folder)
  return config, hf_weights.params_from_tensors(tensors, config, str(folder))
