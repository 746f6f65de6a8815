"""Downloads files so that the right bytes are under the final name, or nothing.

Input: a `RemoteFile` of `download_list.py` and a folder.  While a file is
downloaded it is `NAME.part`, and `NAME.part.json` says which version of it the
server was sending (`ETag`, `Last-Modified`), so that an interrupted download
continues where it stopped, and begins again if the file has changed.  At the
end size and hash of the whole file are compared, and it is renamed.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import requests
from absl import logging

from dpr_jax import version
from dpr_jax.core import atomic_files, disk_errors, errors, manifests, progress
from dpr_jax.data import fetched_files, http_answers
from dpr_jax.data.download_list import BASE, RemoteFile
from dpr_jax.data.fetched_files import beside, size_of

_MEGABYTE = 1_000_000
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")


class Unreachable(errors.InputError):
  """The server cannot be reached from this machine."""


class _WrongBytes(errors.InputError):
  """A whole file has another hash, or is damaged."""


@dataclasses.dataclass(frozen=True)
class Patience:
  """How long to wait, and how often to try again.

  Attributes:
    connect: seconds for a connection.
    stall: seconds without a byte until a connection counts as lost.
    attempts: attempts in a row without a further megabyte.
    unanswered: attempts in a row if the server has never answered.
    first_wait: seconds before the second attempt; doubled for each further.
    longest_wait: limit of that, in seconds.
    longest_asked: longest `Retry-After` that is waited for, in seconds.
  """

  connect: float = 15.0
  stall: float = 60.0
  attempts: int = 8
  unanswered: int = 3
  first_wait: float = 1.0
  longest_wait: float = 60.0
  longest_asked: float = 900.0


def fetch(
  file: RemoteFile,
  folder: pathlib.Path,
  base: str = BASE,
  patience: Patience | None = None,
) -> str:
  """Downloads a file unless it is there; returns what was verified, in words.

  Args:
    file: the file.
    folder: output folder.
    base: address that the file's path is appended to.
    patience: limits of time and attempts; None = the usual ones.

  Raises:
    Unreachable: the server does not answer at all.
    InputError: the server has not sent the right file, or a file of this name
      is not the right one.
    DiskError: the file cannot be written, or there is no room for it.
  """
  target = folder / file.name
  with disk_errors.writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
  with fetched_files.locked(target):
    if os.path.lexists(target):
      return f"was there, {fetched_files.check(file, folder, base)}"
    return _Download(file, target, base, patience or Patience()).run()


class _Download:
  """One download: attempts until the part is whole, then the comparison."""

  def __init__(
    self,
    file: RemoteFile,
    target: pathlib.Path,
    base: str,
    patience: Patience,
  ):
    self._file, self._target = file, target
    self._address, self._patience = file.address(base), patience
    self._part = beside(target, ".part")
    self._note = beside(target, ".part.json")
    self._answered = False  # whether the server has ever answered
    self._session = requests.Session()
    self._session.max_redirects = 5

  def run(self) -> str:
    """Downloads, verifies and renames; returns what was verified."""
    self._check_ours()
    resumed = size_of(self._part) > 0
    with self._session:
      try:
        said = self._downloaded()
      except _WrongBytes as error:
        if not resumed:
          raise
        # The beginning is of an earlier run, so that may be the damaged part.
        logging.warning("%s; downloading it again from the beginning", error)
        said = self._downloaded()
    with disk_errors.writing(self._target):
      with open(self._part, "rb+") as whole:
        os.fsync(whole.fileno())
      os.replace(self._part, self._target)
      self._note.unlink(missing_ok=True)
      atomic_files.fsync_folder(self._target.parent)
    return f"downloaded, {said}"

  def _downloaded(self) -> str:
    """Downloads the part and verifies it; a wrong one is removed."""
    self._download()
    source = {"address": self._address} | {
      key: self._version().get(key) for key in ("etag", "last_modified")
    }
    try:
      return fetched_files.verify(self._file, self._target, self._part, source)
    except errors.DiskError:
      raise
    except errors.InputError as error:
      self._discard()
      raise _WrongBytes(
        f"{self._address} sent another file than expected, nothing of it is"
        f" kept: {error}"
      ) from error

  def _check_ours(self) -> None:
    """Refuses a `.part` that another program has written."""
    if not os.path.lexists(self._part):
      return
    try:
      ours = "address" in self._version()
    except errors.InputError:
      ours = False
    if not ours:
      raise errors.InputError(
        f"{self._part} is not from `dpr-jax fetch` ({self._note.name} is"
        " missing or damaged): move it away"
      )

  def _version(self) -> dict[str, Any]:
    """What the server said of the file that the part belongs to."""
    return manifests.read_record(self._note) if self._note.exists() else {}

  def _discard(self) -> None:
    with disk_errors.writing(self._part):
      self._part.unlink(missing_ok=True)
      self._note.unlink(missing_ok=True)

  def _download(self) -> None:
    """Attempts until the part is whole."""
    patience, failures, most = self._patience, 0, size_of(self._part)
    while not self._is_whole():
      try:
        self._attempt()
        if self._is_whole():
          return
        failed = http_answers.Failed("the part that was sent is incomplete")
      except http_answers.Failed as error:
        failed = error
      if size_of(self._part) >= most + _MEGABYTE:
        most, failures = size_of(self._part), 0
      failures += 1
      allowed = patience.attempts if self._answered else patience.unanswered
      if failures >= allowed:
        kind = errors.InputError if self._answered else Unreachable
        kept = size_of(self._part)
        rest = f"; {kept:,} bytes are kept, run it again later" if kept else ""
        raise kind(f"{self._address}: {failed} ({failures} attempts){rest}")
      wait = min(
        patience.first_wait * 2 ** (failures - 1), patience.longest_wait
      )
      wait = wait if failed.wait is None else failed.wait
      logging.warning(
        "%s: %s; trying again in %.0f s", self._file.name, failed, wait
      )
      time.sleep(wait)

  def _is_whole(self) -> bool:
    size = self._version().get("size")
    return self._part.exists() and size == size_of(self._part)

  def _attempt(self) -> None:
    """One request, and its body.

    Raises:
      http_answers.Failed: the connection or the server failed.
      InputError: further attempts would not help.
    """
    said, offset = self._version(), size_of(self._part)
    # A weak ETag does not promise equal bytes, so it is no validator here.
    etag = said.get("etag") or ""
    validator = said.get("last_modified") if etag[:2] in ("", "W/") else etag
    if said.get("address") != self._address or not validator:
      offset = 0
    headers = {
      "Accept-Encoding": "identity",
      "User-Agent": f"dpr-jax/{version.__version__}",
    }
    if offset:
      headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
      answer = self._session.get(
        self._address,
        headers=headers,
        stream=True,
        timeout=(self._patience.connect, self._patience.stall),
      )
    except requests.exceptions.SSLError as error:
      reason = http_answers.reason_of(error)
      raise errors.InputError(
        f"{self._address}: no secure connection: {reason}"
      ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
      raise http_answers.Failed(http_answers.reason_of(error)) from error
    except requests.RequestException as error:
      raise errors.InputError(
        f"{self._address}: {http_answers.reason_of(error)}"
      ) from error
    with answer:
      self._answered = True
      http_answers.check(answer, self._file, self._patience.longest_asked)
      if answer.status_code == 416:
        self._cannot_continue(answer, offset)
      elif answer.status_code == 206:
        self._continue(answer, said, offset)
      else:
        self._begin(answer, offset)

  def _cannot_continue(self, answer: requests.Response, offset: int) -> None:
    """416: the part is the whole file, or longer than it."""
    said = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", ""))
    if offset and said and int(said[1]) == offset:
      self._write_note(self._version() | {"size": offset})
      return
    self._discard()
    raise http_answers.Failed("HTTP 416, the part does not belong to this file")

  def _continue(
    self, answer: requests.Response, said: dict[str, Any], offset: int
  ) -> None:
    """206: appends the body to the part if it is what was asked for."""
    header = answer.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(header)
    size, etag = said.get("size"), answer.headers.get("ETag")
    if not offset or not match or int(match[1]) != offset:
      self._discard()
      raise http_answers.Failed(
        f"the wrong part was sent (Content-Range: {header!r})"
      )
    total = None if match[3] == "*" else int(match[3])
    if (size and total and size != total) or (
      etag and said.get("etag") and etag != said["etag"]
    ):
      self._discard()
      raise http_answers.Failed("the file has changed meanwhile")
    if total and not size:
      self._write_note(said | {"size": total})
    self._copy(answer, offset, size or total)

  def _begin(self, answer: requests.Response, offset: int) -> None:
    """200: the whole file."""
    if offset:
      logging.info(
        "%s: the server sends it from the beginning", self._file.name
      )
    size = self._file.size
    length = answer.headers.get("Content-Length", "")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    if length and not chunked:
      if not re.fullmatch(r"\d{1,18}", length):
        raise http_answers.Failed(f"Content-Length: {length!r}")
      if size is not None and int(length) != size:
        raise errors.InputError(
          f"{answer.url} has {int(length):,} bytes, and the published size is"
          f" {size:,}: another file, refused"
        )
      size = int(length)
    elif not chunked and size is None:
      raise errors.InputError(
        f"{answer.url} does not say how long the file is, so it cannot be known"
        " whether all of it has arrived: refused"
      )
    # First the note, then the part: a part without a note is not ours.
    self._discard()
    self._write_note(
      {
        "address": self._address,
        "etag": answer.headers.get("ETag"),
        "last_modified": answer.headers.get("Last-Modified"),
        "size": size,
      }
    )
    self._copy(answer, 0, size)

  def _write_note(self, values: dict[str, Any]) -> None:
    kept = ("address", "etag", "last_modified", "size")
    manifests.write_record(self._note, {key: values.get(key) for key in kept})

  def _copy(
    self, answer: requests.Response, offset: int, size: int | None
  ) -> None:
    """Appends a body to the part; `size` is that of the whole file."""
    fetched_files.check_space(self._target.parent, (size or offset) - offset)
    bar = progress.Progress(
      size and -(-size // _MEGABYTE),
      self._file.name,
      "MB",
      offset // _MEGABYTE,
    )
    there, shown = offset, offset // _MEGABYTE
    with contextlib.closing(bar), self._opened(offset) as part:
      while block := http_answers.read(answer):
        there += len(block)
        if size is not None and there > size:
          break
        with disk_errors.writing(self._part):
          part.write(block)
        bar.update(there // _MEGABYTE - shown)
        shown = there // _MEGABYTE
    if size is not None and there > size:
      self._discard()
      raise errors.InputError(
        f"{answer.url} sends more than {size:,} bytes: another file, refused"
      )
    if size is not None and there < size:
      raise http_answers.Failed(
        f"the connection ended after {there:,} of {size:,} bytes"
      )
    if size is None:
      self._write_note(self._version() | {"size": there})

  @contextlib.contextmanager
  def _opened(self, offset: int) -> Iterator[Any]:
    """The part, open for writing at `offset`; bytes behind it are cut off."""
    with disk_errors.writing(self._part):
      part = open(self._part, "rb+" if offset else "wb")
      part.seek(offset)
      part.truncate()
    try:
      yield part
    finally:
      # Closing writes what is buffered, for which the disk may be full.
      with disk_errors.writing(self._part):
        part.close()
