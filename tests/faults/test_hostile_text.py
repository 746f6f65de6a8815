"""Texts that are long, nested or strange: the same results, in bounds."""

import json
import os
import random
import signal
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax import errors
from dpr_jax.data import (
  long_texts,
  reader_inputs,
  records,
  tokenization,
)
from tests.faults import amounts

MB = 1_000_000
SECONDS, BYTES = 1.0, 200 * MB


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
  return tokenization.load_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="module")
def starter(starter_folder):
  return tokenization.load_tokenizer(starter_folder)


def in_child(function):
  """CPU seconds and more memory that a call takes, in a process of its own.

  A child that hangs or dies of a signal fails the test.
  """
  reading, writing = os.pipe()
  child = os.fork()
  if not child:
    status = 1
    try:
      signal.alarm(120)
      with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is forgotten
      before, began = _peak(), time.process_time()
      function()
      report = [time.process_time() - began, _peak() - before]
      os.write(writing, json.dumps(report).encode())
      status = 0
    finally:
      os._exit(status)
  os.close(writing)
  with os.fdopen(reading) as file:
    report = file.read()
  _, status = os.waitpid(child, 0)
  assert status == 0, f"the child ended with {status}"
  return json.loads(report)


def _peak():
  with open("/proc/self/status") as file:
    words = file.read().split("VmHWM:")[1].split()
  return 1024 * int(words[0])


def within_bounds(function, seconds=SECONDS, size=BYTES):
  """Asserts that a call takes no more; a slow machine gets a second try."""
  for last in (False, True):
    took, grew = in_child(function)
    if took <= seconds or last:
      break
  assert took <= seconds, f"{took:.2f} s of CPU"
  assert grew <= size, f"{grew / MB:.0f} MB"


HOSTILE = {
  "a word of 1 MB": lambda: "a" * MB,
  "a word of 10 MB": lambda: "a" * 10 * MB,
  "a word of many letters": lambda: "aB9é" * (10 * MB // 4),
  "500k marks": lambda: "\u0301" * 500_000,
  "500k other marks": lambda: "".join(
    map(chr, random.Random(0).choices(range(0x300, 0x370), k=500_000))
  ),
  "letters and marks": lambda: "e\u0301" * (2 * MB),
  "NUL": lambda: "\0" * 10 * MB,
  "white space and NUL": lambda: "\0\u3000 \n" * MB,
  "right to left": lambda: "\u202e\u05d0\u05b7" * MB,
  "long words": lambda: ("a" * 101 + " ") * 99_000,
  "Chinese": lambda: "漢字" * 5 * MB,
  "a passage of 10 MB": lambda: "Who is Ulm? " * (10 * MB // 12),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tokenizing_is_bounded(starter, name):
  """As a question, and as title and text of a passage."""
  text = HOSTILE[name]()
  tokenizer = tokenization.TextTokenizer(starter)
  tokenizer._long_texts.shortens  # noqa: B018

  def call():
    tokenizer.question_ids([text])

  within_bounds(call)
  passage = records.Passage("1", text, text)
  within_bounds(lambda: tokenizer.passage_ids([passage]), 2 * SECONDS)


@pytest.mark.parametrize(
  "name", [n for n in HOSTILE if n not in ("Chinese", "a passage of 10 MB")]
)
def test_reading_is_bounded(starter, name):
  """All tokens of a text with their characters; those two have millions."""
  text = HOSTILE[name]()
  reader = reader_inputs.ReaderTokenizer(starter, overlap=64)
  within_bounds(lambda: reader.tokenize([text]), 3 * SECONDS)


def test_a_lone_surrogate_is_named(tiny):
  """Also behind a long word."""
  tokenizer = tokenization.TextTokenizer(tiny)
  reader = reader_inputs.ReaderTokenizer(tiny, overlap=64)
  for text in ("a\ud800", "a" * MB + "\udfff"):
    for call in (tokenizer.question_ids, reader.tokenize, reader.question_ids):
      with pytest.raises(errors.InputError, match="is a lone surrogate"):
        call([text])


UNITS = strategies.sampled_from(
  [
    "a", "Ab9", "é", "e\u0301", "\u0301", "\u034f", "\u302e", "\u0344",
    "\0", "\x07", "\u200b", "\u202e", "\ue000", "\u0378", "\ufffd", "\xad",
    " ", "\n", "\u3000", " \u0301", "\0 ", "city ", "ulm.", "!", "[", "]",
    "[SEP]", "[S\u0301EP]", "[MASK] ", "[", "SEP", "漢", "漢字 ", "\u0903",
    "\u05d0", "가", "\u1100", "İ", "ß", "ﬁ", "①", "´", "😀", "the ",
  ]
)  # fmt: skip
TEXTS = strategies.lists(
  strategies.tuples(
    strategies.lists(UNITS, min_size=1, max_size=4).map("".join),
    strategies.sampled_from([1, 1, 2, 3, 90, 101, 102, 210, 1500]),
  ),
  min_size=1,
  max_size=8,
).map(lambda parts: "".join(text * times for text, times in parts))


@pytest.mark.parametrize("which", ["tiny", "starter"])
@hypothesis.given(data=strategies.data())
@hypothesis.settings(max_examples=amounts.amount(3000, 150))
def test_ids_are_those_of_the_whole_text(request, which, data):
  """Cut and shortened texts give the ids and the characters of whole ones."""
  backend = request.getfixturevalue(which)
  text = data.draw(TEXTS)
  tokenizer = tokenization.TextTokenizer(backend, question_length=5)
  whole = backend.encode(text).ids
  wanted = whole if len(whole) <= 5 else [*whole[:4], tokenizer.separator]
  assert tokenizer.question_ids([text]) == [wanted]
  reader = reader_inputs.ReaderTokenizer(backend, overlap=64)
  (plain,) = reader._tokenize([text])
  assert reader.question_ids([text])[0].tolist() == plain.ids[:65].tolist()
  pieces = list(reader._long_texts.pieces(text, 150))
  assert "".join(piece for _, piece in pieces) == text
  long = reader._tokenize_long(text)
  for name in ("ids", "starts", "ends"):
    np.testing.assert_array_equal(getattr(long, name), getattr(plain, name))


def test_long_texts_become_short(starter):
  """The rule, worked out by hand: 101 characters of a word, and its last."""
  short = long_texts.LongTexts(starter).shorten
  assert short("a" * 5000).text == "a" * 102
  assert short("x " + "a" * 5000 + "bc!").text == "x " + "a" * 101 + "c!"
  assert short("a" * 102).text == "a" * 102
  assert short("漢" * 300).text == "漢" * 300
  assert short("a \0 \n b").text == "a b"
  assert short("[S" + "\u0301" * 9 + "EP]").text == "[S\u0301EP]"
  found = short("x " + "a" * 5000 + "bc!")
  assert found.original(np.array([0, 2, 102, 103, 104])).tolist() == [
    0, 2, 102, 5003, 5004,
  ]  # fmt: skip


def test_other_tokenizers_are_let_be(tiny):
  """A token that white space can make or undo, another normalizer."""
  import tokenizers

  copied = tokenizers.Tokenizer.from_str(tiny.to_str())
  assert long_texts.LongTexts(copied).shortens
  copied.add_tokens(["abc"])
  assert not long_texts.LongTexts(copied).shortens
  assert long_texts.LongTexts(copied).shorten("a" * 999).text == "a" * 999
  copied = tokenizers.Tokenizer.from_str(tiny.to_str())
  copied.normalizer = tokenizers.normalizers.NFKC()
  assert not long_texts.LongTexts(copied).shortens
