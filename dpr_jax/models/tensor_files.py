"""Reads the weights of a Hugging Face folder: one file or several.

Input: a folder with `model.safetensors` or `pytorch_model.bin`, or with the
shards that an index names.  Output: arrays by name, in the dtype of the file;
16-bit floats stay 16 bits wide until they are used.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import torch_files
from dpr_jax.models.torch_pickles import Refused, Tensor

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
# Where weights are, in order of preference: what needs no unpickling first.
WEIGHTS = (
  *(f"{SAFETENSORS}.index.json", SAFETENSORS),
  *(f"{TORCH}.index.json", TORCH),
)
# Tensors that an encoder does not use: heads.
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
    tensors |= _of_file(path, safetensors.numpy.load_file, _torch_tensors)
  return tensors


def tensor_names(folder: pathlib.Path) -> list[str]:
  """Names of the tensors of a folder; no weight is read.

  Raises:
    InputError: a file is missing or damaged.
  """
  names: list[str] = []
  for path in weight_files(folder):
    names += _of_file(path, _names, lambda path: state_of(open_torch(path)))
  return names


def lazily(
  folder: pathlib.Path, prefix: str = ""
) -> Callable[[], dict[str, np.ndarray]]:
  """A function that reads the tensors whose names begin with a prefix."""
  return functools.partial(_read_part, folder, prefix)


def _read_part(folder: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
  return without_prefix(read_tensors(folder), prefix)


def without_prefix(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """The tensors whose names begin with a prefix, by the rest of the name."""
  return {
    name.removeprefix(prefix): value
    for name, value in tensors.items()
    if name.startswith(prefix)
  }


def open_torch(path: pathlib.Path) -> torch_files.TorchFile:
  """Opens what `torch.save` wrote; its tensors are not read yet.

  Raises:
    InputError: the file is damaged, or has something else in it.
  """
  try:
    return torch_files.TorchFile(path)
  except (Refused, OSError) as error:
    raise errors.InputError(_refusal(path, error)) from error


def read_torch(
  file: torch_files.TorchFile, tensors: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
  """The numbers of some tensors of a file of torch.

  Raises:
    InputError: the file is damaged.
  """
  try:
    return file.arrays(tensors)
  except (Refused, OSError) as error:
    raise errors.InputError(_refusal(file.path, error)) from error


def state_of(file: torch_files.TorchFile) -> dict[str, Tensor]:
  """The tensors of a state dict by name; whatever else it has is left out.

  Raises:
    InputError: the file holds no state dict.
  """
  tree = file.tree if isinstance(file.tree, dict) else {}
  state = {
    name: value
    for name, value in tree.items()
    if isinstance(name, str) and isinstance(value, Tensor)
  }
  if not state:
    raise errors.InputError(
      f"{file.path} does not map names to tensors: save the state_dict of the"
      " model alone, or use model.safetensors"
    )
  return state


def _torch_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  file = open_torch(path)
  return read_torch(file, state_of(file))


def _refusal(path: pathlib.Path, error: Exception) -> str:
  reason = getattr(error, "strerror", None) or error
  return (
    f"{path} cannot be read: {reason}; copy it again, or convert it to"
    f" {SAFETENSORS} with transformers' save_pretrained"
  )


def has_weights(folder: pathlib.Path) -> bool:
  """True where a folder has weights that `read_tensors` may read."""
  return any((folder / name).exists() for name in WEIGHTS)


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files with the weights of a folder, which are there.

  Raises:
    InputError: there are none, or an index is damaged.
  """
  folder = pathlib.Path(folder)
  names = (name for name in WEIGHTS if (folder / name).exists())
  name = next(names, SAFETENSORS)
  paths = [folder / name]
  if name.endswith(".json"):
    paths = [folder / shard for shard in _shards(folder / name)]
  for path in paths:
    if not path.exists():
      raise errors.InputError(
        f"{path} is missing: a checkpoint folder needs {SAFETENSORS} or {TORCH}"
        " (or all shards that its index names); copy the folder again"
      )
  return paths


def _names(path: pathlib.Path) -> list[str]:
  with safetensors.safe_open(path, "np") as file:
    return list(file.keys())


def _of_file(path: pathlib.Path, safe: Callable, torch: Callable) -> Any:
  """What the function for a file's format makes of it."""
  if path.suffix in torch_files.SUFFIXES:
    return torch(path)
  try:
    return safe(path)
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
