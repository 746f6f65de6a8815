"""What the tests of hostile files share: a pickled call, and its refusal."""

import pathlib
from collections.abc import Callable
from typing import Any

from dpr_jax.core import errors
from tests.faults import children

MB = children.MB
CANARY = "canary"  # the file that hostile code would write


class Call:
  """Pickled, it is a call; `state` is what BUILD gives to the result."""

  def __init__(self, function, *arguments, state=None):
    self._reduced = (function, arguments, state)

  def __reduce__(self):
    return self._reduced[: 2 if self._reduced[2] is None else 3]


def refusal(read: Callable[[], Any], path: pathlib.Path) -> str:
  """The message with which a file is refused, in a child.

  Args:
    read: reads the file.
    path: the file.

  Raises:
    AssertionError: it is read, the message has several lines or is long, its
      code ran, or it took more memory than twice the file and 200 MB.
  """

  def call():
    try:
      read()
    except errors.InputError as error:
      return str(error)
    raise AssertionError(f"{path} was read")

  message, _, grew = children.in_child(call, seconds=60)
  assert "\n" not in message
  assert len(message) < 1000
  assert not (path.parent / CANARY).exists()
  assert grew <= 2 * path.stat().st_size + 200 * MB, f"{grew / MB:.0f} MB"
  return message
