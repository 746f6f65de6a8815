"""Log lines for people and for programs, written down by hand."""

import json
import logging as py_logging

from absl import logging

from dpr_jax.core import log_lines


def _record(level=py_logging.INFO, path=log_lines.__file__, error=None):
  raised = error and (type(error), error, None)
  record = py_logging.LogRecord("absl", level, path, 1, "step %d", (7,), raised)
  record.created = 1.5
  return record


def _shown(record):
  handler = logging.get_absl_handler()
  return handler.format(record) if handler.filter(record) else None


def test_for_people():
  """A clock, the level where it is not INFO, one line."""
  log_lines.set_up()
  clock, _, message = _shown(_record()).partition(" ")
  assert (len(clock), message) == (8, "step 7")
  assert _shown(_record(py_logging.WARNING)).endswith(" WARNING: step 7")


def test_libraries_are_heard_from_warning_on():
  log_lines.set_up()
  assert _shown(_record(path="/site-packages/orbax/x.py")) is None
  assert _shown(_record(py_logging.WARNING, "/site-packages/orbax/x.py"))


def test_for_programs():
  """One object a line; the traceback of an error is in it."""
  log_lines.set_up(as_json=True)
  assert json.loads(_shown(_record())) == {
    "time": "1970-01-01T00:00:01.500+00:00",
    "level": "info",
    "message": "step 7",
  }
  shown = _shown(_record(py_logging.ERROR, error=ValueError("a\nb")))
  assert "\n" not in shown
  assert json.loads(shown)["traceback"] == "ValueError: a\nb\n"


def test_failure_is_one_line(capsys):
  log_lines.set_up()
  log_lines.failure("what\n was wrong")
  assert capsys.readouterr().err == "dpr-jax: what was wrong\n"
  log_lines.set_up(as_json=True)
  log_lines.failure("what\n was wrong")
  said = json.loads(capsys.readouterr().err)
  assert (said["level"], said["message"]) == ("error", "what was wrong")


def test_quiet():
  log_lines.set_up(quiet=True)
  assert not logging.level_info()
  assert logging.level_warning()
  log_lines.set_up()
  assert logging.level_info()
