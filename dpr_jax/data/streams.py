"""Bytes of users' files: unzipped, decoded, and with errors that say where.

`formats.py` reads rows from what this opens.  The errors of the layers below
(the disk, gzip, UTF-8) arise far from the row that they spoil; what stands here
makes them `errors.InputError` with a position in the file.
"""

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator

from dpr_jax import errors

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TRUNCATED = "the .gz ends too early: the file is truncated, fetch it again"


class Position:
  """How far a reader has come, for errors that arise below it."""

  def __init__(self):
    self.line = 0
    self.row = 0

  def __str__(self) -> str:
    if self.row:
      return f"row {self.row}"
    return f"line {self.line + 1}"


@contextlib.contextmanager
def stream_errors(path: str | os.PathLike) -> Iterator[Position]:
  """Turns the errors of reading and unzipping into errors with a position."""
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
  """The file's bytes, unzipped where its first bytes say gzip."""
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
  """The first byte that is not white space; leaves the file at its start.

  A byte order mark is passed over for good.
  """
  if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
    file.seek(0)
  start = file.tell()
  first = file.read(1)
  while first and first.isspace():
    first = file.read(1)
  file.seek(start)
  return first


@contextlib.contextmanager
def open_text(file: io.BufferedIOBase) -> Iterator[io.TextIOWrapper]:
  """Lines of text; bytes that are not UTF-8 survive as lone surrogates.

  So the check of each field can name its line, which a decoder that reads
  ahead cannot.
  """
  text = io.TextIOWrapper(
    file, encoding="utf-8-sig", errors="surrogateescape", newline=""
  )
  try:
    yield text
  finally:
    text.detach()


class LoneSurrogates:
  r"""Marks halves of surrogate pairs in a stream of JSON before yajl sees them.

  yajl reads `"\ud800"` as `"?"` without a word, and swallows the character
  after it.  Here the escape becomes U+FFFF, which is no character, so that the
  row can be named.

  Attributes:
    found: some escape was replaced.
    bytes_read: how far the parser has been fed.
  """

  MARK = "\uffff"

  _ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
  )

  def __init__(self, file: io.BufferedIOBase):
    self.found = False
    self.bytes_read = 0
    self._file = file
    self._rest = b""

  def read(self, size: int = -1) -> bytes:
    """About `size` bytes more; none are left where it returns none."""
    if size == 0:
      return b""
    pieces = [self._rest]
    while True:
      chunk = self._file.read(size)
      # No escape sequence contains a comma: behind one it is safe to cut.
      cut = chunk.rfind(b",") + 1
      pieces.append(chunk[:cut] if cut else chunk)
      if cut or not chunk:
        break
    self._rest = chunk[cut:]
    data = b"".join(pieces)
    if b"\\ud" in data or b"\\uD" in data:
      data = self._ESCAPE.sub(self._mark, data)
    self.bytes_read += len(data)
    return data

  def _mark(self, match: re.Match) -> bytes:
    if match[1] is None:
      return match[0]
    self.found = True
    return rb"\uffff"
