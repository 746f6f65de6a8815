"""Arrays exchanged between processes, over the devices, bit for bit.

All processes call these functions at the same time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpr_jax.core import jax_unstable, multiprocess


def array_of_first(
  function: Callable[[], np.ndarray], shape: Sequence[int], dtype: Any
) -> np.ndarray:
  """Broadcasts the array that `function` returns in process 0.

  This is a collective, with a time-out.  If `function` takes minutes, let the
  other processes wait in `multiprocess.first_alone` or `multiprocess.barrier`
  before, which have none.

  Args:
    function: function called in process 0 only; an exception ends all
      processes.
    shape: shape of the array, known to all processes.
    dtype: dtype of the array, with an item size of a multiple of 4 bytes.
  """
  if multiprocess.count() == 1:
    return function()
  words = np.zeros(_words_shape(shape, dtype), np.uint32)
  if multiprocess.is_first():
    words = _words(np.asarray(function(), dtype).reshape(shape))
  # Sent as uint32, because a broadcast is a sum with zeros, and -0.0 + 0.0 is
  # +0.0: the bytes would change.
  words = np.asarray(jax_unstable.multihost_utils().broadcast_one_to_all(words))
  return words.view(dtype).reshape(shape)


def gather(array: np.ndarray) -> np.ndarray:
  """Gathers one array of each process, in all processes: [processes, ...].

  Args:
    array: array with the same shape and dtype in all processes, and an item
      size of a multiple of 4 bytes.
  """
  if multiprocess.count() == 1:
    return array[None]
  gathered = jax_unstable.multihost_utils().process_allgather(_words(array))
  words = np.asarray(gathered)
  return words.view(array.dtype).reshape(multiprocess.count(), *array.shape)


def _words(array: np.ndarray) -> np.ndarray:
  """The bytes of an array as uint32, because JAX has no int64 by default."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


def _words_shape(shape: Sequence[int], dtype: Any) -> tuple[int]:
  return (math.prod(shape) * np.dtype(dtype).itemsize // 4,)
