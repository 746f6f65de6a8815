"""Converts between Hugging Face weights and our parameters.

Reads the `model.safetensors` of an encoder's folder, whose names may start with
a prefix (`bert.`), into the tree of `bert.py`, and writes it back.  The names
are those of `tensor_names.py`.  Linear weights are transposed: Hugging Face
stores `[out, in]`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import bert
from dpr_jax.models.tensor_names import join, separate, tensor_names

# Tensors of heads and buffers that an encoder does not use.
IGNORED = (
  *("embeddings.position_ids", "pooler.", "cls.", "qa_outputs."),
  *("lm_head.", "classifier.", "pre_classifier.", "vocab_"),
  *("discriminator_predictions.", "generator_predictions.", "generator_lm_"),
  *("head.", "decoder."),
)


def prefixes(config: bert.BertConfig) -> tuple[str, ...]:
  """Prefixes that the names of an encoder's tensors may have."""
  return ("", config.prefix, "bert_model.")


def shapes(config: bert.BertConfig) -> dict[str, Any]:
  """The parameter tree of an encoder, with shapes instead of arrays."""
  tree: dict[str, Any] = {}
  for path, _, shape in tensor_names(config):
    node = tree
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = shape[::-1] if path[-1] == "kernel" else shape
  return tree


def _modern_name(name: str) -> str:
  """LayerNorm tensors were once called gamma and beta."""
  stem, _, last = name.rpartition(".")
  old = {"gamma": "weight", "beta": "bias"}
  return f"{stem}.{old[last]}" if last in old else name


def params_from_tensors(
  tensors: Mapping[str, np.ndarray],
  config: bert.BertConfig,
  source: str,
  prefix: str | None = None,
) -> dict[str, Any]:
  """Builds our parameter tree from Hugging Face tensors.

  Args:
    tensors: arrays by Hugging Face name.
    config: sizes that the tensors must have.
    source: name of the checkpoint in error messages.
    prefix: prefix of the encoder tensors' names; None = detected.

  Raises:
    InputError: tensors are missing, misshapen or unexpected; all are named.
  """
  modern = separate(
    {_modern_name(name): value for name, value in tensors.items()}
  )
  if prefix is None:
    _, probe, _ = next(tensor_names(config))
    prefix = next((p for p in prefixes(config) if p + probe in modern), "")
  tree: dict[str, Any] = {}
  missing, misshapen, used = [], [], set()
  for path, name, shape in tensor_names(config):
    value = modern.get(prefix + name)
    used.add(prefix + name)
    if value is None:
      missing.append(prefix + name)
    elif value.shape != shape:
      misshapen.append(f"{prefix + name} is {value.shape}, not {shape}")
    else:
      value = np.asarray(value, np.float32)
      node = tree
      for part in path[:-1]:
        node = node.setdefault(part, {})
      node[path[-1]] = value.T if path[-1] == "kernel" else value
  unexpected = [
    name
    for name in modern
    if name not in used and not name.removeprefix(prefix).startswith(IGNORED)
  ]
  problems = [
    f"{kind}: {_some(names)}"
    for kind, names in (
      ("missing", missing),
      ("misshapen", misshapen),
      ("unexpected", unexpected),
    )
    if names
  ]
  if problems:
    sizes = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
    raise errors.InputError(
      f"{source} does not hold the {config.title} that its config.json"
      f" describes ({sizes}):"
      f" {'; '.join(problems)}"
    )
  return tree


def _some(names: list[str], most: int = 6) -> str:
  more = f", and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads `model.safetensors`, or the shards that its index names.

  Raises:
    InputError: a file is missing or damaged.
  """
  folder = pathlib.Path(folder)
  index = folder / "model.safetensors.index.json"
  if index.exists():
    paths = [folder / name for name in _shards(index)]
  else:
    paths = [folder / "model.safetensors"]
  tensors: dict[str, np.ndarray] = {}
  for path in paths:
    if not path.exists():
      raise errors.InputError(
        f"{path} is missing: a checkpoint folder needs model.safetensors"
        " (convert a pytorch_model.bin with transformers' save_pretrained)"
      )
    try:
      tensors |= safetensors.numpy.load_file(path)
    # Types that NumPy does not have, empty files, errors of the disk: any.
    except Exception as error:
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      raise errors.InputError(
        f"{path} is damaged, or has a dtype that NumPy does not support:"
        f" {type(error).__name__}: {reason}"
      ) from error
  return tensors


def _shards(index: pathlib.Path) -> list[str]:
  """Files that a `model.safetensors.index.json` names, all in its folder."""
  content = workdir_lib.read_json(index)
  shards = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(shards, dict) or not all(
    isinstance(name, str) and name and pathlib.PurePath(name).name == name
    for name in shards.values()
  ):
    raise errors.InputError(
      f"{index}: weight_map must map names of tensors to files in its folder"
    )
  return sorted(set(shards.values()))


def load_bert(
  folder: pathlib.Path,
) -> tuple[bert.BertConfig, dict[str, Any]]:
  """Loads config and float32 parameters of a Hugging Face folder."""
  config = bert.BertConfig.read(folder)
  params = params_from_tensors(read_tensors(folder), config, str(folder))
  return config, params


def tensors_from_params(
  params: Mapping[str, Any], config: bert.BertConfig, prefix: str = ""
) -> dict[str, np.ndarray]:
  """The inverse of `params_from_tensors`: tensors by Hugging Face name."""
  tensors = {}
  for path, name, _ in tensor_names(config):
    value: Any = params
    for part in path:
      value = value[part]
    value = np.asarray(value, np.float32)
    tensors[prefix + name] = np.ascontiguousarray(
      value.T if path[-1] == "kernel" else value
    )
  return join(tensors)
