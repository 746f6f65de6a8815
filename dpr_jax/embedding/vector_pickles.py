"""Reads pickles of vectors safely, without running code from them.

A pickle is a program.  It is read twice.  `pickle_opcodes.check` scans it
without running it.  Then Python's unpickler runs it, with stand-ins for the few
names of NumPy that vectors need: nothing is imported, and NumPy's own
unpickling is not used.
"""

import mmap
import pathlib
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dpr_jax.core import pickle_opcodes

# Dtypes of plain numbers and texts; no objects, no records.
_DTYPE = re.compile(r"[fiuUS]([1-9][0-9]{0,8})")

# Whose files need no more than plain opcodes.  Dicts are not among them:
# hashing their keys could take arbitrarily long.
_NEEDED_BY = "neither a list of (id, vector) nor a pair of ids and an array"
Refused = pickle_opcodes.Refused


def load(path: pathlib.Path) -> Any:
  """Loads a pickle of lists, tuples, texts, numbers and NumPy arrays.

  Uses at most about twice the size of the file in memory.

  Raises:
    Refused: the pickle needs anything else, or is damaged.
    OSError: the file cannot be read.
  """
  with open(path, "rb") as file:
    with _mapped(file) as data:
      pickle_opcodes.check(data, pickle_opcodes.PLAIN, _NEEDED_BY)
    try:
      return _Unpickler(file).load()
    except OSError:
      raise
    except Exception as error:  # a damaged pickle can raise anything
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      raise Refused(reason) from error


def _mapped(file) -> mmap.mmap:
  try:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except ValueError as error:  # an empty file cannot be mapped
    raise Refused("it is empty") from error


class _StandIn:
  """Replaces a function or class of NumPy; accepts no state."""

  __slots__ = ("_call",)

  def __init__(self, call: Callable[..., Any]):
    self._call = call

  def __call__(self, *arguments: Any) -> Any:
    return self._call(*arguments)

  def __setstate__(self, state: Any) -> None:
    raise Refused("it gives a function a state")


class _DType:
  """Replaces a NumPy dtype of plain numbers or texts."""

  __slots__ = ("_code", "_order")

  def __init__(self, code: Any, *flags: Any):
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
      raise Refused(f"it holds an array of dtype {str(code)[:40]}, not numbers")
    self._code = code
    self._order = "="

  def __setstate__(self, state: Any) -> None:
    order, *record = state[1:5]
    if order not in ("<", ">", "|", "=") or any(x is not None for x in record):
      raise Refused("it holds an array of records, not numbers")
    self._order = order

  def real(self) -> np.dtype:
    """The NumPy dtype."""
    return np.dtype(self._order + self._code)


class Array:
  """Replaces a NumPy array.

  Attributes:
    real: the array; None until its state has been read.
  """

  __slots__ = ("real",)

  def __init__(self, real: np.ndarray | None = None):
    self.real = real

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, is_fortran, data = state
    self.real = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
  """An array over bytes of a pickle, whose number must match its shape."""
  if isinstance(data, str):  # as Python 2 wrote bytes
    data = data.encode("latin1")
  if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
    raise Refused("it holds an array of objects, not numbers")
  real = dtype.real()
  if not isinstance(shape, tuple) or not all(
    type(n) is int and 0 <= n <= len(data) for n in shape
  ):
    raise Refused(f"an array of {len(data)} bytes has an impossible shape")
  count = 1
  for n in shape:
    count *= n
  if count * real.itemsize != len(data):
    raise Refused(
      f"an array of {len(data)} bytes is said to hold {count} of {real}"
    )
  array = np.frombuffer(data, real)
  if real.kind == "U" and len(data):
    if np.frombuffer(data, real.byteorder + "u4").max() > 0x10FFFF:
      raise Refused("it holds texts of characters that do not exist")
  return array if len(shape) == 1 else array.reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
  if kind is not _NDARRAY or shape != (0,):
    raise Refused("it makes an array in a way that NumPy does not write")
  return Array()


def _frombuffer(
  data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> Array:
  if order == "K" and axes is not None:
    return Array(_array(data, dtype, shape, "C").transpose(axes))
  return Array(_array(data, dtype, shape, "F" if order == "F" else "C"))


def _scalar(dtype: Any, data: Any = b"") -> Any:
  return _array(data, dtype, (1,), "C")[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise Refused(f"it asks for the encoding {str(encoding)[:40]}")
  return text.encode("latin1")


def _refuse(*arguments: Any) -> None:
  raise Refused("it makes an array in a way that NumPy does not write")


_NDARRAY = _StandIn(_refuse)
# Names in the pickles that NumPy writes, of versions 1 and 2.
_ALLOWED = {
  (f"{package}.{module}", name): stand_in
  for module, name, stand_in in (
    ("multiarray", "_reconstruct", _StandIn(_reconstruct)),
    ("multiarray", "scalar", _StandIn(_scalar)),
    ("numeric", "_frombuffer", _StandIn(_frombuffer)),
  )
  for package in ("numpy.core", "numpy._core")
} | {
  ("numpy", "ndarray"): _NDARRAY,
  ("numpy", "dtype"): _StandIn(_DType),
  ("_codecs", "encode"): _StandIn(_encode),
}


class _Unpickler(pickle.Unpickler):
  """Python's unpickler with our stand-ins; refuses every other name."""

  def find_class(self, module: str, name: str) -> Any:
    """The stand-in for what a pickle asks for; nothing is imported."""
    if (module, name) not in _ALLOWED:
      raise Refused(
        f"it asks for {module[:80]}.{name[:80]}, which no file of vectors needs"
      )
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> None:
    """Refuses references to objects outside of the file."""
    raise Refused("it asks for something outside of the file")
