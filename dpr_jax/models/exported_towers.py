"""Reads back what `export` wrote: both towers, with their settings.

The `dpr_jax.json` of an export has "towers": the folder of the encoder of each
kind of text, relative to its own.  Two kinds with one folder are a shared
tower.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  dual_encoder,
  hf_weights,
  model_files,
  model_settings,
  pooling_layers,
  retriever_model,
  sentence_transformers_files,
  tensor_files,
)

_PROBE = "embeddings.word_embeddings.weight"


def load(
  folder: pathlib.Path, record: Mapping[str, Any], fix: str
) -> retriever_model.Towers:
  """Both towers of an export.

  Args:
    folder: the folder with `dpr_jax.json`.
    record: content of that file, with "towers".
    fix: what to do about damage, for error messages.

  Raises:
    InputError: a file is damaged or missing, or the export has no weights that
      can be read.
  """
  named = record["towers"]
  kinds = (dual_encoder.QUESTION, dual_encoder.PASSAGE)
  if not isinstance(named, dict) or not all(
    isinstance(named.get(kind), str)
    and not named[kind].startswith("/")
    and ".." not in pathlib.PurePosixPath(named[kind]).parts
    for kind in kinds
  ):
    raise errors.InputError(
      f"{folder / model_files.FILE} is damaged: towers={named!r} must name the"
      f" folders of {' and '.join(kinds)}; {fix}"
    )
  if record.get("format_name") == "onnx":
    raise errors.InputError(
      f"{folder} holds ONNX graphs, for ONNX Runtime only: export the towers"
      " with --format=sentence-transformers to load them here"
    )
  paths = [named[kind] for kind in kinds]
  if record["model"].get("shared_towers"):
    paths = paths[1:]
  towers = [_read(folder, path, record, fix) for path in paths]
  sizes, backend = towers[0][0], model_files.load_tokenizer(folder / paths[0])
  config = config_lib.base_config()
  model_settings.take(config.model, record["model"])
  model = retriever_model.assemble(config.model, sizes, backend, None)
  encoder = model.encoder
  trees = dict(
    zip(encoder.names, (params for _, params in towers), strict=True)
  )
  if (folder / sentence_transformers_files.MODULES).exists():
    encoder, trees = _with_dense(folder, encoder, trees)
  return retriever_model.Towers(encoder, trees, model.tokenizer)


def _with_dense(
  folder: pathlib.Path,
  encoder: dual_encoder.DualEncoder,
  trees: dict[str, Any],
) -> tuple[dual_encoder.DualEncoder, dict[str, Any]]:
  """Adds the dense layers of a Sentence-Transformers folder."""
  files = sentence_transformers_files.read(folder)
  result = {}
  for name, tree in trees.items():
    kind = dual_encoder.PASSAGE if name == dual_encoder.SHARED else name
    layers = files[kind].use.dense
    result[name] = tree | {
      pooling_layers.dense_name(number): {"kernel": layer.kernel}
      | ({} if layer.bias is None else {"bias": layer.bias})
      for number, layer in enumerate(layers)
    }
  structure = tuple(
    pooling_layers.DenseLayer(
      *layer.kernel.shape, layer.bias is not None, layer.activation
    )
    for layer in layers
  )
  return dataclasses.replace(encoder, dense=structure), result


def _read(
  folder: pathlib.Path, path: str, record: Mapping[str, Any], fix: str
) -> tuple[bert.BertConfig, dict[str, Any]]:
  """Sizes and parameters of one tower, checked."""
  names = ("config.json", "tokenizer.json", model_files.WEIGHTS)
  files = [str(pathlib.PurePosixPath(path) / name) for name in names]
  model_files.check(folder, record, fix, files)
  sizes = bert.BertConfig.read(folder / path)
  tensors = tensor_files.read_tensors(folder / path)
  return sizes, hf_weights.params_from_tensors(
    tensors, sizes, str(folder / path), tensor_prefix(tensors)
  )


def tensor_prefix(tensors: Mapping[str, np.ndarray]) -> str:
  """What all names of an encoder's tensors begin with, as DPR's do."""
  found = [name for name in tensors if name.endswith(_PROBE)]
  return found[0].removesuffix(_PROBE) if len(found) == 1 else ""
