"""`ask`: what is a question, and sessions that nothing ends."""

import io
import json
import sys
import types

import pytest

from dpr_jax.cli import ask
from dpr_jax.cli import main as main_lib
from dpr_jax.core import errors
from dpr_jax.reading import answerer as answerer_lib


class Reply:
  """Of the answerer below: the question itself, backwards."""

  def __init__(self, question):
    self._answer = question[::-1]

  def text(self):
    return self._answer

  def json(self):
    return json.dumps({"answer": self._answer}, ensure_ascii=False)


class Answerer:
  """Answers all but "bad"."""

  def ask(self, question):
    if question == "bad":
      raise errors.InputError("no such question")
    return Reply(question)


@pytest.mark.parametrize(
  ("words", "questions"),
  [
    # A space at the end of a word does not make it a question.
    (["Where ", "was", "he"], ["Where  was he"]),
    ([], []),
    (["Why?"], ["Why?"]),
    (["Where", "was", "Einstein", "born?"], ["Where was Einstein born?"]),
    (["Where was Einstein born?"], ["Where was Einstein born?"]),
    (["Where was it?", "Who?"], ["Where was it?", "Who?"]),
    (["Who?", "Where was it?"], ["Who?", "Where was it?"]),
    (["-1", "is", "what?"], ["-1 is what?"]),
    ([" "], [" "]),
  ],
)
def test_words_are_one_question_unless_one_was_quoted(words, questions):
  assert ask.questions_of(words) == questions


def test_a_question_that_is_no_text_is_refused():
  with pytest.raises(errors.InputError, match=r"'Wer\\udcff' is not UTF-8"):
    ask.questions_of(["Wer\udcff"])


@pytest.fixture
def session(monkeypatch, capsys, tmp_path):
  """`dpr-jax ask WORDS`, with bytes on standard input."""
  monkeypatch.setattr(
    answerer_lib.Answerer, "load", lambda *_, **__: Answerer()
  )

  def session(*words, stdin=b"", encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding)
    monkeypatch.setattr(sys, "stdin", file)
    line = ["dpr-jax", "ask", f"--workdir={tmp_path}", *words]
    ask.ask(main_lib.invocation(line))
    return capsys.readouterr()

  return session


def test_questions_of_the_command_line(session):
  assert session("Who", "is", "it").out == "ti si ohW\n"
  assert session("a b", "c").out == "b a\nc\n"
  assert session("--", "-1", "is").out == "si 1-\n"
  assert session("--json", "--", "--json").out == '{"answer": "nosj--"}\n'
  assert session("--json", " ").out == "null\n"
  with pytest.raises(errors.InputError, match="no such question"):
    session("bad")


def test_a_session_goes_on(session):
  """Blank and wrong lines are skipped; with --json each line has its own."""
  lines = b"ab\n\nWer\n" + b"\xff\xfe\nbad\r\n  \ncd"
  said = session(stdin=lines)
  assert said.out == "ba\nreW\ndc\n"
  assert said.err == (
    "dpr-jax: line 4: is not UTF-8\ndpr-jax: line 5: no such question\n"
  )
  said = session("--json", stdin=lines)
  assert [json.loads(line) for line in said.out.splitlines()] == [
    *({"answer": "ba"}, None, {"answer": "reW"}, None, None, None),
    {"answer": "dc"},
  ]
  assert session(stdin=b"") == ("", "")
  assert session("--json", stdin=b"\n\n").out == "null\nnull\n"


def test_a_line_in_the_terminals_own_encoding(session):
  """UTF-8 first; what is none is read as the terminal writes."""
  assert session(stdin="é".encode("latin-1"), encoding="latin-1").out == "é\n"
  assert session(stdin="é".encode(), encoding="ascii").out == "é\n"


def test_no_standard_input_at_all(session, monkeypatch):
  monkeypatch.setattr(
    io, "TextIOWrapper", lambda *_, **__: None
  )  # as after <&-
  assert session() == ("", "")


def test_json_stays_json_where_it_cannot_be_shown(session, monkeypatch):
  """A terminal's backslash escape would be no JSON."""
  monkeypatch.setattr(
    ask.streams,
    "sys",
    types.SimpleNamespace(
      stdout=types.SimpleNamespace(encoding="ascii"), stdin=sys.stdin
    ),
  )
  assert session("--json", "é").out == '{"answer": "\\u00e9"}\n'


def test_the_form_of_json(session):
  with pytest.raises(errors.InputError, match="--json=f: ask prints its"):
    session("--json=f", "Who?")
