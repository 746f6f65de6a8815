"""Answers of a server: which are a file, which may be tried again, and when.

Input: a response of `requests` whose body has not been read.
"""

import email.utils
import re
import time
from typing import Any

import requests
import urllib3

from dpr_jax.core import errors, progress
from dpr_jax.data.download_list import RemoteFile

_BLOCK = 1 << 16  # bytes; at most this much is lost when a connection stalls
# Answers of a server that is busy or ill, and may be well in a moment.
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))


class Failed(Exception):
  """An attempt failed, and another may succeed.

  Attributes:
    wait: seconds that the server asked to wait; None = it did not ask.
  """

  def __init__(self, reason: str, wait: float | None = None):
    super().__init__(reason)
    self.wait = wait


def check(
  answer: requests.Response, file: RemoteFile, longest_asked: float
) -> None:
  """Sorts out answers that are not the file or a part of it.

  Args:
    answer: the answer, after redirects.
    file: the file that was asked for.
    longest_asked: longest `Retry-After` that is waited for, in seconds.

  Raises:
    Failed: another attempt may succeed.
    InputError: it would not.
  """
  addresses = [each.url for each in (*answer.history, answer)]
  for before, after in zip(addresses, addresses[1:], strict=False):
    if before.startswith("https:") and not after.startswith("https:"):
      raise errors.InputError(
        f"{before} redirects to {after}, which is not https: refused"
      )
  code = answer.status_code
  if code in _RETRIED:
    raise Failed(
      f"HTTP {code} {answer.reason}", _asked_wait(answer, longest_asked)
    )
  if code not in (200, 206, 416):
    raise errors.InputError(
      f"{answer.url} answered HTTP {code} {answer.reason}: has the file moved,"
      " or does a proxy refuse it?"
    )
  if code == 416:  # with a body of the server's own, which is not read
    return
  if answer.headers.get("Content-Type", "").startswith("text/html"):
    raise errors.InputError(
      f"{answer.url} answered with a web page instead of the file: is there a"
      " proxy or a login page?"
    )
  encoding = answer.headers.get("Content-Encoding", "").lower()
  # For a .gz it may be a needless label; bytes are stored as they come.
  is_gzip = file.name.endswith(".gz") and encoding == "gzip"
  if encoding not in ("", "identity") and not is_gzip:
    if not file.digest:
      raise errors.InputError(
        f"{answer.url} sends the file compressed (Content-Encoding:"
        f" {encoding}), although it was asked not to: refused"
      )


def _asked_wait(
  answer: requests.Response, longest_asked: float
) -> float | None:
  """Seconds of `Retry-After`, a number or a date; None = not said."""
  text = answer.headers.get("Retry-After", "").strip()
  if re.fullmatch(r"\d{1,9}", text):
    wait = float(text)
  else:
    try:
      when = email.utils.parsedate_to_datetime(text)
      wait = max(0.0, when.timestamp() - time.time())
    except (ValueError, OverflowError):
      return None
  if wait > longest_asked:
    raise errors.InputError(
      f"{answer.url} asks to come back in {progress.clock(wait)}: run it again"
      " then"
    )
  return wait


def read(answer: requests.Response) -> bytes:
  """The next bytes of a body as they are sent; b"" at its end."""
  try:
    return answer.raw.read(_BLOCK, decode_content=False)
  except (urllib3.exceptions.HTTPError, OSError) as error:
    raise Failed(reason_of(error)) from error


def reason_of(error: Exception) -> str:
  """The innermost reason of a library's error, in one line."""
  reason: Any = error
  while True:
    inner = getattr(reason, "reason", None)
    if not isinstance(inner, Exception):
      inner = next(
        (each for each in reason.args if isinstance(each, Exception)), None
      )
    if inner is None or inner is reason:
      break
    reason = inner
  return f"{type(reason).__name__}: {' '.join(str(reason).split())}"[:300]
