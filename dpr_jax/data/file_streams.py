"""Opens users' files, unzips and decodes them, and adds positions to errors.

`dpr_files.py` reads rows from these streams.  Errors of the disk, gzip, UTF-8
or JSON arise in a layer that does not know the row; this module turns them into
`errors.InputError` with a position in the file.  All JSON from users is read by
`parse_json` or `json_array`, which limit its nesting.
"""

import bisect
import contextlib
import copy
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import ijson
import ijson.backends.yajl2_c

from dpr_jax.core import errors

# Limit of nested brackets in JSON.  The formats here need 6; ijson's memory
# grows with the square of the depth, and Python's own parser fails at a depth
# that depends on its caller.
DEEPEST = 100

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TRUNCATED = "the .gz ends too early: the file is truncated, download it again"


class Position:
  """Current line and row of a reader, for errors of the layers below it."""

  def __init__(self):
    self.line = 0
    self.row = 0

  def __str__(self) -> str:
    if self.row:
      return f"row {self.row}"
    return f"line {self.line + 1}"


@contextlib.contextmanager
def stream_errors(path: str | os.PathLike) -> Iterator[Position]:
  """Adds the position to errors of reading and unzipping, as `InputError`."""
  position = Position()
  try:
    yield position
  except EOFError as error:
    raise errors.InputError(f"{path}: {position}: {_TRUNCATED}") from error
  except (OSError, zlib.error) as error:
    raise errors.InputError(
      f"{path}: {position}: cannot be read: {error}"
    ) from error


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[io.BufferedIOBase]:
  """Opens a file as bytes, unzipped if its first bytes are those of gzip."""
  try:
    raw = open(path, "rb")
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error
  with raw:
    magic = raw.read(len(_GZIP_MAGIC))
    raw.seek(0)
    if magic != _GZIP_MAGIC:
      yield raw
      return
    with gzip.open(raw, "rb") as unzipped:
      yield unzipped


def first_byte(file: io.BufferedIOBase) -> bytes:
  """The first byte that is not white space; resets the file to its start.

  A byte order mark is skipped, also in later reads.
  """
  start = file.tell()
  if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
    file.seek(start)
  start = file.tell()
  first = file.read(1)
  while first and first.isspace():
    first = file.read(1)
  file.seek(start)
  return first


@contextlib.contextmanager
def open_text(file: io.BufferedIOBase) -> Iterator[io.TextIOWrapper]:
  """Opens lines of text; bytes that are not UTF-8 become lone surrogates.

  So the check of each field can name its line; a strict decoder reads ahead and
  cannot.
  """
  text = io.TextIOWrapper(
    file, encoding="utf-8-sig", errors="surrogateescape", newline=""
  )
  try:
    yield text
  finally:
    text.detach()


def is_unicode(text: str) -> bool:
  """Whether a text has no lone surrogate, so that UTF-8 can encode it."""
  try:
    return text.isascii() or bool(text.encode())
  except UnicodeEncodeError:
    return False


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, text) of the lines of a file, but for blank ones.

  Raises:
    InputError: the file cannot be read, or a line is not UTF-8.
  """
  with (
    open_bytes(path) as file,
    stream_errors(path) as position,
    open_text(file) as lines,
  ):
    for number, line in enumerate(lines, start=1):
      position.line = number
      if not is_unicode(line):
        raise errors.InputError(
          f"{path}:{number}: not valid UTF-8: {ascii(line.strip())[:80]}: the"
          " file was written in another encoding or cut"
        )
      if line.strip():
        yield number, line


class Nesting:
  """Measures the nesting of a stream of JSON before a parser reads it.

  Exact for valid JSON; the count of anything else may be wrong, but the parser
  refuses it.  Takes a few passes in C over each chunk, and a loop in Python
  over the brackets of a chunk that may exceed the limit.

  Attributes:
    in_string: the next byte is within a string.
  """

  # Only these escapes matter: they contain a quotation mark or a backslash.
  _ESCAPE = re.compile(rb"\\[\\\"]")
  _OTHERS = bytes(set(range(256)) - set(b'[]{}"'))

  def __init__(self, deepest: int = DEEPEST):
    self._deepest = deepest
    self._depth = 0
    self.in_string = False

  def too_deep(self, chunk: bytes) -> bool:
    r"""Whether the nesting exceeds the limit within the next chunk.

    Args:
      chunk: the bytes that follow those of the previous call; must not begin or
        end within an escape (`\"`).
    """
    if b"\\" in chunk:
      chunk = self._ESCAPE.sub(b"", chunk)
    marks = b'"' * self.in_string + chunk.translate(None, self._OTHERS)
    # Pieces are alternately outside and inside of strings; removing empty
    # strings does not change that.
    pieces = marks.replace(b'""', b"").split(b'"')
    brackets = b"".join(pieces[::2])
    self.in_string = len(pieces) % 2 == 0
    # Removing innermost pairs reduces the depth by at most 2.  If even all
    # opening brackets that are left cannot reach the limit, no loop is needed.
    left = brackets.replace(b"{}", b"").replace(b"[]", b"")
    opened = left.count(b"[") + left.count(b"{")
    if self._depth + opened + 2 <= self._deepest:
      self._depth += 2 * opened - len(left)
      return False
    for bracket in brackets:
      self._depth += 1 if bracket in b"[{" else -1
      if self._depth > self._deepest:
        return True
    return False


# Python writes NaN and Infinity, which are not JSON.  They are harmless in
# fields that are not read, and become None here and in `json_array`.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
_CONSTANT = re.compile(
  rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|(-?(?:NaN|Infinity))', re.DOTALL
)
_STRING_END = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)


def _loads(data: bytes | str) -> Any:
  if isinstance(data, bytes):
    data = data.decode(json.detect_encoding(data), "surrogatepass")
  return _DECODER.decode(data)


def _without_constants(data: bytes, in_string: bool) -> bytes:
  """Replaces NaN and Infinity outside of strings by `null`.

  Args:
    data: a piece of JSON that does not begin or end in a word or an escape.
    in_string: the piece starts within a string.
  """
  start = _STRING_END.match(data).end() if in_string else 0
  return data[:start] + _CONSTANT.sub(
    lambda match: b"null" if match[1] else match[0], data[start:]
  )


def parse_json(data: bytes | str, where: str) -> Any:
  """`json.loads` of a line or of a small file; NaN and Infinity become None.

  Args:
    data: the JSON.
    where: file and position, the begin of error messages.

  Raises:
    InputError: the data is not JSON, or nested too deeply.
  """
  try:
    raw = data
    if isinstance(raw, str):
      raw = raw.encode("utf-8", "surrogatepass")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and Nesting().too_deep(raw):
      raise RecursionError
    return _loads(data)
  except RecursionError as error:
    raise too_deep(where) from error
  except ValueError as error:  # also for bytes that are not UTF-8
    raise errors.InputError(f"{where} is not JSON: {error}") from error


def string(value: Any, where: str, field: str) -> str:
  """`value`, if it is a string that can be encoded as UTF-8.

  Raises:
    InputError: any other value; the message names `where` and `field`.
  """
  if not isinstance(value, str):
    raise errors.InputError(
      f"{where}: the field {field} is {str(value)[:80]!r}, not a string"
    )
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise errors.InputError(
      f"{where}: the field {field} has half of a surrogate pair: {error}"
    ) from error
  return value


def too_deep(where: str) -> errors.InputError:
  """The error for JSON that is nested too deeply."""
  return errors.InputError(
    f"{where}: JSON nested more than {DEEPEST} brackets deep: the file is"
    " damaged, or not one of questions, passages or results"
  )


def json_array(
  path: str | os.PathLike,
  file: io.BufferedIOBase,
  position: Position,
  noun: str = "row",
  first: int = 1,
) -> Iterator[tuple[str, Any, bool]]:
  """Elements of a JSON array, one at a time.

  Args:
    path: path of the file, for errors.
    file: the file, at its start.
    position: position to update; its row counts from 1.
    noun: name of an element in errors.
    first: number of the first element in errors.

  Yields:
    (path and name of the element, the element, whether it may contain the mark
    of a lone surrogate, see `LoneSurrogates`).

  Raises:
    InputError: the file is malformed; the message names path and element.
  """
  start = first_byte(file)
  if start != b"[":
    said = "is empty" if not start else f"starts with {ascii(start)[1:]}"
    raise errors.InputError(
      f"{path}: {said}: it must be a list [...] of {noun}s"
    )
  checked = LoneSurrogates(file)
  items = ijson.backends.yajl2_c.items(checked, "item", use_float=True)
  for row in itertools.count(1):
    position.row = row
    where = f"{path}: {noun} {row - 1 + first}"
    try:
      value = next(items)
    except StopIteration:
      if checked.too_deep:
        raise too_deep(where) from None
      return
    except (ijson.JSONError, ValueError, OverflowError) as error:
      if checked.too_deep:
        raise too_deep(where) from error
      raise errors.InputError(
        f"{where}, or shortly after it, is not JSON in UTF-8:"
        f" {_yajl_message(error)} (stopped before byte {checked.bytes_read})"
      ) from error
    yield where, value, checked.found


def _yajl_message(error: Exception) -> str:
  message = error.args[0] if error.args else ""
  if isinstance(message, bytes):
    message = message.decode("utf-8", errors="replace")
  return " ".join(str(message).split()) or str(error)


# No escape sequence contains one of these: a chunk can be cut after them.
_CUTS = (b",", b"[", b"{")


class LoneSurrogates:
  r"""Marks halves of surrogate pairs in a stream of JSON before yajl sees them.

  yajl silently reads `"\ud800"` as `"?"` and drops the next character.  Here
  the escape becomes U+FFFF, which is not a character, so that the row can be
  named.

  The parser gets no bytes beyond the point where the nesting becomes too deep,
  so that it fails within the row to name.

  Attributes:
    found: an escape was replaced.
    too_deep: the nesting exceeds `DEEPEST` after what was read.
    bytes_read: number of bytes that the parser got.
  """

  MARK = "\uffff"

  _ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
  )

  def __init__(self, file: io.BufferedIOBase):
    self.found = False
    self.too_deep = False
    self.bytes_read = 0
    self._file = file
    self._rest = b""
    self._nesting = Nesting()

  def read(self, size: int = -1) -> bytes:
    """Returns about `size` more bytes; b"" at the end of the stream."""
    if size == 0 or self.too_deep:
      return b""
    pieces = [self._rest]
    while True:
      chunk = self._file.read(size)
      cut = next(filter(None, (chunk.rfind(c) + 1 for c in _CUTS)), 0)
      pieces.append(chunk[:cut] if cut else chunk)
      if cut or not chunk:
        break
    self._rest = chunk[cut:]
    data = b"".join(pieces)
    before = copy.copy(self._nesting)
    if self._nesting.too_deep(data):
      self.too_deep = True
      # The shortest prefix that is too deep ends with the bracket at fault.
      ends = range(len(data) + 1)
      deep = bisect.bisect_left(
        ends, True, key=lambda end: copy.copy(before).too_deep(data[:end])
      )
      data = data[: deep - 1]
    if b"NaN" in data or b"Infinity" in data:
      data = _without_constants(data, before.in_string)
    if b"\\ud" in data or b"\\uD" in data:
      data = self._ESCAPE.sub(self._mark, data)
    self.bytes_read += len(data)
    return data

  def _mark(self, match: re.Match) -> bytes:
    if match[1] is None:
      return match[0]
    self.found = True
    return rb"\uffff"
