"""Writes pickles of vectors that every version of NumPy since 1.7 can read.

`pickle.dumps` of NumPy 2 names the module `numpy._core`, which NumPy before
1.26 does not have.  So the opcodes are written here, with the old name
`numpy.core`, which NumPy 2 still reads without a warning.  Protocol 4, without
frames; the format is described in Python's `pickletools`.
"""

import io
import pickle
import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

_BATCH = 1000  # items per APPENDS, as Python's pickler writes them
_HEADER = pickle.PROTO + b"\x04"
# Places in the memo of objects that are written once and then looked up.
_RECONSTRUCT, _NDARRAY, _NO_BYTES, _DTYPE = range(4)


def write_pairs(
  file: io.BufferedIOBase,
  ids: Sequence[str],
  vectors: Float32[np.ndarray, "rows dim"],
) -> None:
  """Writes a list of (id, float32 [dim]), DPR's layout, row by row."""
  file.write(_HEADER + pickle.EMPTY_LIST)
  for first in range(0, len(ids), _BATCH):
    file.write(pickle.MARK)
    for row in range(first, min(first + _BATCH, len(ids))):
      file.write(_text(ids[row]))
      _write_array(file, vectors[row], memoized=row > 0)
      file.write(pickle.TUPLE2)
    file.write(pickle.APPENDS)
  file.write(pickle.STOP)


def write_pair(
  file: io.BufferedIOBase,
  ids: Sequence[str],
  vectors: Float32[np.ndarray, "rows dim"],
  *,
  ids_first: bool,
) -> None:
  """Writes (ids, array) as Contriever, or (array, ids) as Tevatron does."""
  file.write(_HEADER)
  if ids_first:
    _write_texts(file, ids)
  _write_array(file, vectors, memoized=False)
  if not ids_first:
    _write_texts(file, ids)
  file.write(pickle.TUPLE2 + pickle.STOP)


def _write_texts(file: io.BufferedIOBase, texts: Sequence[str]) -> None:
  """Writes a list of texts."""
  file.write(pickle.EMPTY_LIST)
  for first in range(0, len(texts), _BATCH):
    some = texts[first : first + _BATCH]
    file.write(pickle.MARK + b"".join(map(_text, some)) + pickle.APPENDS)


def _write_array(
  file: io.BufferedIOBase, array: Float32[np.ndarray, "..."], *, memoized: bool
) -> None:
  """Writes what `ndarray.__reduce__` returns.

  Args:
    file: a binary file.
    array: the array.
    memoized: an array has been written to this pickle before, so that the
      functions and the dtype are looked up in the memo.
  """
  array = np.ascontiguousarray(array, "<f4")
  # _reconstruct(ndarray, (0,), b"b") makes an empty array ...
  if memoized:
    file.write(_get(_RECONSTRUCT) + _get(_NDARRAY))
  else:
    file.write(_global("numpy.core.multiarray", "_reconstruct", _RECONSTRUCT))
    file.write(_global("numpy", "ndarray", _NDARRAY))
  file.write(_integer(0) + pickle.TUPLE1)
  file.write(_get(_NO_BYTES) if memoized else _bytes(b"b") + _put(_NO_BYTES))
  file.write(pickle.TUPLE3 + pickle.REDUCE)
  # ... and BUILD gives it (version, shape, dtype, is Fortran order, bytes).
  file.write(pickle.MARK + _integer(1) + pickle.MARK)
  file.write(b"".join(map(_integer, array.shape)) + pickle.TUPLE)
  file.write(_get(_DTYPE) if memoized else _dtype() + _put(_DTYPE))
  file.write(pickle.NEWFALSE)
  file.write(_bytes(memoryview(array).cast("B")))
  file.write(pickle.TUPLE + pickle.BUILD)


def _dtype() -> bytes:
  """Opcodes of `np.dtype("<f4")`, as `dtype.__reduce__` describes it."""
  made = (
    pickle.GLOBAL
    + b"numpy\ndtype\n"
    + _text("f4")
    + pickle.NEWFALSE
    + pickle.NEWTRUE
    + pickle.TUPLE3
    + pickle.REDUCE
  )
  state = (
    pickle.MARK
    + _integer(3)
    + _text("<")
    + 3 * pickle.NONE
    + _integer(-1)
    + _integer(-1)
    + _integer(0)
    + pickle.TUPLE
  )
  return made + state + pickle.BUILD


def _global(module: str, name: str, place: int) -> bytes:
  return pickle.GLOBAL + f"{module}\n{name}\n".encode() + _put(place)


def _put(place: int) -> bytes:
  return pickle.BINPUT + bytes([place])


def _get(place: int) -> bytes:
  return pickle.BINGET + bytes([place])


def _text(text: str) -> bytes:
  data = text.encode()
  if len(data) < 256:
    return pickle.SHORT_BINUNICODE + bytes([len(data)]) + data
  return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _bytes(data: bytes | memoryview) -> bytes:
  if len(data) < 256:
    return pickle.SHORT_BINBYTES + bytes([len(data)]) + bytes(data)
  if len(data) < 1 << 32:
    return pickle.BINBYTES + struct.pack("<I", len(data)) + bytes(data)
  return pickle.BINBYTES8 + struct.pack("<Q", len(data)) + bytes(data)


def _integer(value: int) -> bytes:
  if 0 <= value < 256:
    return pickle.BININT1 + bytes([value])
  return pickle.BININT + struct.pack("<i", value)
