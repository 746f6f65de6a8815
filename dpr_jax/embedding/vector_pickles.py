"""Reads pickles of vectors safely, without running code from them.

A pickle is a program.  It is read twice.  `_check` scans the opcodes without
running them and refuses opcodes that a file of vectors does not need, lengths
beyond the end of the file, and programs that would allocate much more than the
size of the file.  Then Python's unpickler runs the rest, with stand-ins for the
few names of NumPy that vectors need: nothing is imported, and NumPy's own
unpickling is not used.
"""

import mmap
import pathlib
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

# Bytes of memory allowed beyond twice the size of the file.
_SPARE = 150_000_000
_LONG = 1 << 20  # bytes; longer texts and frames are counted separately
# Dtypes of plain numbers and texts; no objects, no records.
_DTYPE = re.compile(r"[fiuUS]([1-9][0-9]{0,8})")

# Bytes that an opcode allocates, besides those of its argument in the file; a
# place on the stack, and one in a list or tuple, are included.  Opcodes that
# are not listed are refused: they make dicts (hashing their keys could take
# arbitrarily long) or instances, or refer to objects outside of the file.
_OBJECT_BYTES = {
  "STOP": 0, "PROTO": 0, "FRAME": 0, "POP": 0, "POP_MARK": 0, "APPEND": 0,
  "APPENDS": 0, "PUT": 0, "BINPUT": 0, "LONG_BINPUT": 0, "MEMOIZE": 24,
  "NONE": 20, "NEWTRUE": 20, "NEWFALSE": 20, "DUP": 20, "MARK": 16,
  "GET": 20, "BINGET": 20, "LONG_BINGET": 20,
  "INT": 52, "BININT": 52, "BININT1": 20, "BININT2": 52, "LONG": 52,
  "LONG1": 52, "LONG4": 52, "FLOAT": 44, "BINFLOAT": 44,
  "EMPTY_TUPLE": 20, "TUPLE": 76, "TUPLE1": 76, "TUPLE2": 84, "TUPLE3": 92,
  "EMPTY_LIST": 76, "LIST": 76,
  "STRING": 68, "BINSTRING": 68, "SHORT_BINSTRING": 68, "BINBYTES": 52,
  "SHORT_BINBYTES": 52, "BINBYTES8": 52, "BYTEARRAY8": 76, "UNICODE": 76,
  "BINUNICODE": 76, "SHORT_BINUNICODE": 76, "BINUNICODE8": 76,
  "GLOBAL": 200, "STACK_GLOBAL": 200, "REDUCE": 240, "BUILD": 160,
}  # fmt: skip
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
# Texts, and the bytes of a character that makes a text use 2 or 4 bytes per
# character instead of 1.
_WIDE_UTF8 = re.compile(rb"[\xc4-\xff]")
_WIDE_ESCAPE = re.compile(rb"\\u(?!00)|\\U")
_WIDE = {
  "UNICODE": _WIDE_ESCAPE,
  "BINUNICODE": _WIDE_UTF8,
  "BINUNICODE8": _WIDE_UTF8,
}

# Arguments of opcodes: a fixed number of bytes, a length and its bytes, a line,
# two lines, the memo's index as a number or as a line, a frame's length.
_PLAIN, _LENGTH, _LINE, _TWO_LINES, _MEMO, _MEMO_LINE, _FRAME = range(7)


def _table() -> list[tuple[int, int, int, str] | None]:
  """By opcode: (bytes of its object, bytes of its argument, kind, name)."""
  table: list[tuple[int, int, int, str] | None] = [None] * 256
  sizes = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
  }
  for opcode in pickletools.opcodes:
    if opcode.name not in _OBJECT_BYTES:
      continue
    n = opcode.arg.n if opcode.arg else 0
    kind, size = _PLAIN, n
    if n in sizes:
      kind, size = _LENGTH, sizes[n]
    elif n == pickletools.UP_TO_NEWLINE:
      kind, size = _TWO_LINES if opcode.name == "GLOBAL" else _LINE, 0
    if opcode.name in _PUTS:
      kind = _MEMO if n > 0 else _MEMO_LINE
    elif opcode.name == "FRAME":
      kind = _FRAME
    cost = _OBJECT_BYTES[opcode.name]
    table[ord(opcode.code)] = cost, size, kind, opcode.name
  return table


_TABLE = _table()
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Refused(Exception):
  """Raised for a pickle that is refused; the message has the reason."""


def load(path: pathlib.Path) -> Any:
  """Loads a pickle of lists, tuples, texts, numbers and NumPy arrays.

  Uses at most about twice the size of the file in memory.

  Raises:
    Refused: the pickle needs anything else, or is damaged.
    OSError: the file cannot be read.
  """
  with open(path, "rb") as file:
    with _mapped(file) as data:
      _check(data)
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


def _check(data: mmap.mmap) -> None:
  """Scans the opcodes of a pickle without running them; raises `Refused`."""
  size = len(data)
  budget = 2 * size + _SPARE
  at = spent = memo = largest_frame = 0
  while True:
    if at >= size:
      raise Refused("it ends too early: the file is truncated")
    code = data[at]
    entry = _TABLE[code]
    if entry is None:
      name = _NAMES.get(code, f"byte {code}")
      raise Refused(
        f"{name} at byte {at}: neither a list of (id, vector) nor a pair of ids"
        " and an array needs it"
      )
    cost, width, kind, name = entry
    begin = at + 1
    at = begin + width
    if kind == _PLAIN:
      spent += cost
    elif kind == _LENGTH:
      length = int.from_bytes(data[begin:at], "little")
      at += length
      spent += cost + length
    elif kind == _FRAME:
      # The unpickler reads a frame at once, in addition to its content.
      end = at + int.from_bytes(data[begin:at], "little")
      _check_end(name, begin, end, size)
      largest_frame = max(largest_frame, end - at if end - at > _LONG else 0)
    elif kind in (_MEMO, _MEMO_LINE):
      if kind == _MEMO:
        index = int.from_bytes(data[begin:at], "little")
      else:
        at = _line_end(data, begin)
        index = _index(data[begin : at - 1], begin)
      if index >= memo:  # the memo is a table as long as its largest index
        spent += 24 * (index + 1 - memo)
        memo = index + 1
    else:
      at = _line_end(data, begin)
      if kind == _TWO_LINES:
        at = _line_end(data, at)
      spent += cost + at - begin
    if at > size:
      _check_end(name, begin, at, size)
    if at - begin > _LONG and name in _WIDE:
      spent += 3 * (at - begin) * bool(_WIDE[name].search(data, begin, at))
    if spent > budget - largest_frame:
      raise Refused(
        f"{name} at byte {begin - 1}: its objects need more memory than twice"
        f" the file's size and {_SPARE // 1_000_000} MB; if you trust the file,"
        " split it into smaller files"
      )
    if name == "STOP":
      return


def _check_end(name: str, begin: int, end: int, size: int) -> None:
  if end > size:
    raise Refused(
      f"{name} at byte {begin - 1} extends to byte {end} of {size}: the file is"
      " damaged or truncated"
    )


def _line_end(data: mmap.mmap, begin: int) -> int:
  end = data.find(b"\n", begin)
  if end < 0:
    raise Refused("it ends too early: the file is truncated")
  return end + 1


def _index(line: bytes, at: int) -> int:
  if not line.isdigit() or len(line) > 18:
    raise Refused(f"PUT at byte {at - 1} has the index {line[:20]!r}")
  return int(line)


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
