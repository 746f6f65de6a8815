"""Reads the weights of a Hugging Face folder: one file or several.

Input: a folder with `model.safetensors`, or the shards that its index names.
Output: arrays by name, in the dtype of the file; 16-bit floats stay 16 bits
wide until they are used.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

WEIGHTS = ("model.safetensors",)
# Tensors that an encoder does not use: heads, and buffers.
HEADS = (
  *("pooler", "cls", "classifier", "qa_outputs", "lm_head", "score"),
  *("discriminator_predictions", "generator_predictions", "generator_lm_head"),
  *("vocab_transform", "vocab_layer_norm", "vocab_projector"),
  *("pre_classifier", "head", "decoder"),
)


def heads_among(names: Iterable[str]) -> tuple[str, ...]:
  """The heads that the names of tensors belong to, sorted."""
  first = {name.partition(".")[0] for name in names}
  second = {".".join(name.split(".")[1:2]) for name in names}
  return tuple(sorted((first | second & {"pooler"}) & set(HEADS)))


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the weights of a folder.

  Raises:
    InputError: a file is missing or damaged.
  """
  tensors: dict[str, np.ndarray] = {}
  for path in weight_files(folder):
    tensors |= _of_file(path, safetensors.numpy.load_file)
  return tensors


def tensor_names(folder: pathlib.Path) -> list[str]:
  """Names of the tensors of a folder; no weight is read.

  Raises:
    InputError: a file is missing or damaged.
  """
  names: list[str] = []
  for path in weight_files(folder):
    names += _of_file(path, _names)
  return names


def lazily(
  folder: pathlib.Path, prefix: str = ""
) -> Callable[[], dict[str, np.ndarray]]:
  """A function that reads the tensors whose names begin with a prefix."""
  return functools.partial(_read_part, folder, prefix)


def _read_part(folder: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
  return {
    name.removeprefix(prefix): value
    for name, value in read_tensors(folder).items()
    if name.startswith(prefix)
  }


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files with the weights of a folder, which are there.

  Raises:
    InputError: there are none, or the index is damaged.
  """
  folder = pathlib.Path(folder)
  index = folder / f"{WEIGHTS[0]}.index.json"
  if index.exists():
    paths = [folder / name for name in _shards(index)]
  else:
    paths = [folder / WEIGHTS[0]]
  for path in paths:
    if not path.exists():
      raise errors.InputError(
        f"{path} is missing: a checkpoint folder needs model.safetensors"
        " (convert a pytorch_model.bin with transformers' save_pretrained)"
      )
  return paths


def _names(path: pathlib.Path) -> list[str]:
  with safetensors.safe_open(path, "np") as file:
    return list(file.keys())


def _of_file(path: pathlib.Path, function):
  try:
    return function(path)
  # Types that NumPy does not have, empty files, errors of the disk: any.
  except Exception as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise errors.InputError(
      f"{path} is damaged, or has a dtype that NumPy does not support:"
      f" {type(error).__name__}: {reason}"
    ) from error


def _shards(index: pathlib.Path) -> list[str]:
  """Files that an index of shards names, all in its folder."""
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
