"""Converts between Hugging Face weights and our parameters.

Makes the tree of `bert.py` from the tensors of an encoder, whose names may
start with a prefix (`bert.`), and back.  The names are those of
`tensor_names.py`.  Linear weights are transposed: Hugging Face stores
`[out, in]`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpr_jax.core import errors
from dpr_jax.models import bert, tensor_files
from dpr_jax.models.tensor_names import join, separate, tensor_names

# Tensors of heads and buffers that an encoder does not use.
IGNORED = (
  "embeddings.position_ids",
  *(f"{head}." for head in tensor_files.HEADS),
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
