"""Vectors as torch tensors, for callers that work with torch.

The library is the caller's: it is imported only when a tensor is asked for.
"""

import reprlib
import sys
from typing import Any

import numpy as np
from jaxtyping import Float

from dpr_jax.core import errors


def from_numpy(vectors: Float[np.ndarray, "texts dim"]) -> Any:
  """The same memory as a torch tensor; `InputError` without torch."""
  try:
    import torch
  except ImportError as error:
    raise errors.InputError(
      "convert_to_tensor=True: needs torch, which is not installed; install it,"
      " or use the NumPy arrays"
    ) from error
  return torch.from_numpy(vectors)


def alike(first: Any, second: Any) -> tuple[Any, Any]:
  """Two sets of vectors as float32, in one library's arrays.

  Args:
    first: vectors [texts, dim] or [dim], in the form of any library.
    second: the same; its width must be that of the first.

  Returns:
    Torch tensors if one of the two is one, else NumPy arrays.

  Raises:
    InputError: one is not an array of numbers, or their widths differ.
  """
  pair = []
  for name, value in (("embeddings1", first), ("embeddings2", second)):
    if not _is_tensor(value):
      value = _array(name, value)
    if value.ndim not in (1, 2):
      raise errors.InputError(
        f"{name}: has {value.ndim} dimensions; must be [texts, dim] or [dim]"
      )
    pair.append(value)
  if pair[0].shape[-1] != pair[1].shape[-1]:
    raise errors.InputError(
      f"embeddings2: vectors of width {pair[1].shape[-1]}, and those of"
      f" embeddings1 have {pair[0].shape[-1]}"
    )
  devices = {part.device for part in pair if _is_tensor(part)}
  if not devices:
    return pair[0], pair[1]
  import torch

  device = devices.pop()
  first, second = (
    torch.as_tensor(part, dtype=torch.float32, device=device) for part in pair
  )
  return first, second


def _is_tensor(value: Any) -> bool:
  """True for a torch tensor; there is none before torch was imported."""
  torch = sys.modules.get("torch")
  return torch is not None and isinstance(value, torch.Tensor)


def _array(name: str, value: Any) -> Float[np.ndarray, "..."]:
  try:
    return np.asarray(value, np.float32)
  except (TypeError, ValueError) as error:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be vectors, all of one width"
    ) from error
