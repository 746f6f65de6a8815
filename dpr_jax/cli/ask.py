"""`dpr-jax ask`: questions of the command line, or one per line of stdin.

Words that stand behind the command unquoted are one question; where one of
several holds a space, somebody has quoted, and each is a question.  A session
goes on after a line that cannot be answered; with --json it prints `null`, so
that line n of the output belongs to line n of the input.
"""

import json
from collections.abc import Iterator, Sequence

from dpr_jax.cli import experiment, streams
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors, log_lines


def questions_of(words: Sequence[str]) -> list[str]:
  """The questions that words of the command line are.

  Raises:
    InputError: bytes that are no text.
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
      f"--json={call.flags['json']}: ask prints: --json alone"
    )
  questions, workdir = questions_of(call.words), call.workdir
  from dpr_jax.reading import answerer as answerer_lib

  config = None
  if call.has_config:
    config = experiment.settled(call, call.command)
  answerer = answerer_lib.Answerer.load(
    workdir.root,
    method=(call.flags["method"] or [""])[0],
    k=call.flags["k"],
    config=config,
  )
  if questions:
    for question in questions:
      _print(_answer(answerer, question, as_json))
    return
  for line in _lines(answerer, as_json):
    _print(line)


def _lines(answerer, as_json: bool) -> Iterator[str]:
  """What is printed for every line of standard input."""
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
  # A backslash escape of the terminal would be no JSON.
  return line if streams.can_show(line) else json.dumps(json.loads(line))


def _print(text: str) -> None:
  if text:
    print(text, flush=True)
