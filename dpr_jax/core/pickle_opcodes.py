"""Scans the opcodes of a pickle without running them.

A pickle is a program.  Before one is run, with stand-ins for the few names that
it needs, `check` refuses opcodes that it does not need, lengths beyond its end,
and programs that would allocate much more than the size of the file.
`embedding/vector_pickles.py` and `models/torch_pickles.py` read pickles so,
each with its own opcodes and names.
"""

import mmap
import pickletools
import re

# Bytes of memory allowed beyond twice the size of the file.
SPARE = 150_000_000
_LONG = 1 << 20  # bytes; longer texts and frames are counted separately

# Bytes that an opcode allocates, besides those of its argument in the file; a
# place on the stack, and one in a list, tuple or dict, are included.  Opcodes
# of no file that we read, which refer to Python's registry or hold protocol 5's
# buffers, are not here.
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
  "EMPTY_DICT": 84, "DICT": 84, "SETITEM": 120, "SETITEMS": 0, "NEWOBJ": 240,
  "BINPERSID": 240, "EMPTY_SET": 236, "ADDITEMS": 0,
}  # fmt: skip
# Opcodes that make lists, tuples, texts, numbers and calls.
PLAIN = frozenset(_OBJECT_BYTES) - {
  *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
  *("NEWOBJ", "BINPERSID", "EMPTY_SET", "ADDITEMS"),
}
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


def check(
  data: bytes | mmap.mmap, allowed: frozenset[str], needed_by: str
) -> int:
  """Scans the opcodes of a pickle without running them.

  Args:
    data: the pickle; what follows its end is not looked at.
    allowed: names of opcodes, those of `PLAIN` or more.
    needed_by: whose files need no other opcodes, for the message.

  Returns:
    The length of the pickle.

  Raises:
    Refused: it has another opcode, is damaged, or needs much memory.
  """
  size = len(data)
  budget = 2 * size + SPARE
  at = spent = memo = largest_frame = 0
  while True:
    if at >= size:
      raise Refused("it ends too early: the file is truncated")
    code = data[at]
    entry = _TABLE[code]
    if entry is None or entry[3] not in allowed:
      name = _NAMES.get(code, f"byte {code}")
      raise Refused(f"{name} at byte {at}: {needed_by} needs it")
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
        f" the file's size and {SPARE // 1_000_000} MB; if you trust the file,"
        " split it into smaller files"
      )
    if name == "STOP":
      return at


def _check_end(name: str, begin: int, end: int, size: int) -> None:
  if end > size:
    raise Refused(
      f"{name} at byte {begin - 1} extends to byte {end} of {size}: the file is"
      " damaged or truncated"
    )


def _line_end(data: bytes | mmap.mmap, begin: int) -> int:
  end = data.find(b"\n", begin)
  if end < 0:
    raise Refused("it ends too early: the file is truncated")
  return end + 1


def _index(line: bytes, at: int) -> int:
  if not line.isdigit() or len(line) > 18:
    raise Refused(f"PUT at byte {at - 1} has the index {line[:20]!r}")
  return int(line)
