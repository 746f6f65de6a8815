"""Log lines on stderr: readable text, or one JSON object per line.

Our own lines are shown from INFO on, those of libraries from WARNING on.  The
error line of a command that fails, `dpr-jax: ...`, has the same format.  The
only state is absl's log handler, of which a process has one.
"""

import datetime
import json
import logging as py_logging
import pathlib
import sys
import time
import traceback
from typing import Any

from absl import logging

_OURS = str(pathlib.Path(__file__).parent.parent)


class _Lines(logging.PythonFormatter):
  """`12:34:56 message`, with the level unless it is INFO."""

  def format(self, record: py_logging.LogRecord) -> str:
    """One line, without source positions."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.created))
    level = "" if record.levelname == "INFO" else f"{record.levelname}: "
    return f"{clock} {level}{record.getMessage()}"


class _Json(logging.PythonFormatter):
  """`{"time": ..., "level": ..., "message": ...}` in one line of ASCII."""

  def format(self, record: py_logging.LogRecord) -> str:
    """One object; `time` is in UTC, `traceback` only with an exception.

    A line that was logged with extra={"fields": {...}} has these as well.
    """
    level = record.levelname.lower()
    values: dict[str, Any] = _values(record.created, level, record.getMessage())
    values |= getattr(record, "fields", {})
    if record.exc_info and record.exc_info[0]:
      values["traceback"] = "".join(
        traceback.format_exception(*record.exc_info)
      )
    return json.dumps(values)


def _values(seconds: float, level: str, message: str) -> dict[str, str]:
  """A line as an object; `seconds` since 1970."""
  when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  time_ = when.isoformat(timespec="milliseconds")
  return {"time": time_, "level": level, "message": message}


def set_up(*, quiet: bool = False, as_json: bool = False) -> None:
  """Sets level and format of the lines on stderr.

  Args:
    quiet: whether to show only warnings and errors.
    as_json: whether every line is a JSON object, including Python's warnings
      and unhandled exceptions.
  """
  logging.set_verbosity(logging.WARNING if quiet else logging.INFO)
  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(_Json() if as_json else _Lines())
  handler.addFilter(_is_ours_or_a_warning)
  py_logging.captureWarnings(as_json)
  if as_json:
    sys.excepthook = _log_exception


def _is_ours_or_a_warning(record: py_logging.LogRecord) -> bool:
  """False for lines of libraries (Orbax, TFDS) below WARNING."""
  ours = record.pathname.startswith(_OURS)
  return ours or record.levelno >= py_logging.WARNING


def _log_exception(kind, error, trace) -> None:
  logging.error("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def failure(message: object) -> None:
  """Prints an error line, `dpr-jax: message`, on stderr."""
  line = " ".join(str(message).split())
  if isinstance(logging.get_absl_handler().python_handler.formatter, _Json):
    line = json.dumps(_values(time.time(), "error", line))
  else:
    line = f"dpr-jax: {line}"
  print(line, file=sys.stderr, flush=True)
