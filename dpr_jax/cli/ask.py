"""`dpr-jax ask`: answers questions from the command line or from stdin.

Unquoted words after the command form one question.  If any of several words
contains a space, the words were quoted, and each one is a question.  A line of
stdin that cannot be answered does not end the session; with --json it prints
`null`, so that line n of the output belongs to line n of the input.
"""

import gc
import json
from collections.abc import Iterator, Sequence

from dpr_jax.cli import experiment, streams
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors, log_lines


def questions_of(words: Sequence[str]) -> list[str]:
  """The questions in the words of a command line.

  Raises:
    InputError: a word is not UTF-8.
  """
  for word in words:
    if any("\ud800" <= letter <= "\udfff" for letter in word):
      raise errors.InputError(f"question {word!r} is not UTF-8")
  if any(" " in word.strip() for word in words):
    return list(words)
  return [" ".join(words)] if words else []


def ask(call: Invocation) -> None:
  """Prints an answer for every question."""
  as_json = call.flags["json"] is not None
  if as_json and call.flags["json"] != "-":
    raise errors.InputError(
      f"--json={call.flags['json']}: ask prints its answers: use --json without"
      " a value"
    )
  questions = questions_of(call.words)
  # Imports make a million objects that stay; to search them for garbage again
  # and again takes a tenth of the time.
  gc.disable()
  try:
    answerer = _load(call)
  finally:
    gc.enable()
  if questions:
    for question in questions:
      _print(_answer(answerer, question, as_json))
    return
  for line in _lines(answerer, as_json):
    _print(line)


def _load(call: Invocation):
  """The `Answerer` of the workdir."""
  from dpr_jax.reading import answerer as answerer_lib

  config = None
  if call.has_config:
    config = experiment.settled(call, call.command)
  return answerer_lib.Answerer.load(
    call.workdir.root,
    method=(call.flags["method"] or [""])[0],
    k=call.flags["k"],
    config=config,
  )


def _lines(answerer, as_json: bool) -> Iterator[str]:
  """Yields the text to print for every line of standard input."""
  nothing = "null" if as_json else ""
  for number, line in enumerate(streams.lines(), start=1):
    try:
      if line is None:
        raise errors.InputError("is not UTF-8")
      yield _answer(answerer, line, as_json)
    except errors.InputError as error:
      log_lines.failure(f"line {number}: {error}")
      yield nothing


def _answer(answerer, question: str, as_json: bool) -> str:
  """The answer as text or JSON; "" or "null" for a blank question."""
  if not question.strip():
    return "null" if as_json else ""
  reply = answerer.ask(question.strip())
  if not as_json:
    return reply.text()
  line = reply.json()
  # The backslash escapes of `streams.escape_what_cannot_be_shown` are not
  # valid JSON; JSON's own escapes are ASCII.
  return line if streams.can_show(line) else json.dumps(json.loads(line))


def _print(text: str) -> None:
  if text:
    print(text, flush=True)
