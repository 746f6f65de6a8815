"""Texts that are long, nested or strange: the same results, in bounds."""

import json
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import (
  answer_matching,
  dpr_files,
  file_streams,
  long_texts,
  reader_tokenization,
  records,
  tokenization,
)
from dpr_jax.evaluation import evaluate as evaluate_lib
from tests.faults import amounts, children

pytestmark = pytest.mark.fault_row(14)

MB = 1_000_000
# Of CPU, the child's own start included.
SECONDS, BYTES = 1.0, 200 * MB


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
  return tokenization.load_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="module")
def starter(starter_folder):
  return tokenization.load_tokenizer(starter_folder)


def within_bounds(function, seconds=SECONDS):
  children.within_bounds(function, seconds, BYTES)


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
  # The shortest that are [UNK], of which nothing can be left out.
  "long words": lambda: ("a" * 101 + " ") * 50_000,
  "Chinese": lambda: "漢字" * 5 * MB,
  "a passage of 10 MB": lambda: "Who is Ulm? " * (10 * MB // 12),
}


@pytest.mark.processes
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


@pytest.mark.processes
@pytest.mark.parametrize(
  "name", [n for n in HOSTILE if n not in ("Chinese", "a passage of 10 MB")]
)
def test_reading_is_bounded(starter, name):
  """All tokens of a text with their characters; those two have millions."""
  text = HOSTILE[name]()
  reader = reader_tokenization.ReaderTokenizer(starter, overlap=64)
  within_bounds(lambda: reader.tokenize([text]), 3 * SECONDS)


def test_a_lone_surrogate_is_named(tiny):
  """Also behind a long word."""
  tokenizer = tokenization.TextTokenizer(tiny)
  reader = reader_tokenization.ReaderTokenizer(tiny, overlap=64)
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
  reader = reader_tokenization.ReaderTokenizer(backend, overlap=64)
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


def test_bad_patterns_are_counted_and_named(caplog):
  """Invalid, empty, endless: each once, with its first question."""
  matcher = answer_matching.AnswerMatcher(match="regex")
  text = "a" * 60 + "! Ulm"
  patterns = ["(", "x*", "(a|aa)+$", "ulm"]
  with caplog.at_level("WARNING"):
    for row in (4, 5):
      assert matcher.hits(patterns[:3], [0, 1], [text, text], row) == [
        False,
        False,
      ]
    assert matcher.hits(patterns, [0], [text], 6) == [True]
    matcher.warn("evaluate")
    matcher.warn("evaluate")  # has been said
  (line,) = [r.getMessage() for r in caplog.records]
  assert line == (
    "evaluate: 3 regular expressions of answers never match:"
    " '(' (is not a valid pattern, question 4),"
    " 'x*' (matches the empty string, question 4),"
    " '(a|aa)+$' (takes more than 0.5 s on a passage, question 4)"
  )


LONG = {
  "a passage of 10 MB": lambda: "Who is Ulm? " * (10 * MB // 12),
  "punctuation": lambda: "!?" * 2 * MB,
  "Chinese": lambda: "漢字" * 5 * MB,
  "a word of 10 MB": lambda: "a" * 10 * MB,
  "500k marks": lambda: "\u0301" * 500_000,
  "right to left": lambda: "\u202e\u05d0\u05b7 " * MB,
  "NUL": lambda: "\0" * 10 * MB,
}


@pytest.mark.processes
@pytest.mark.parametrize("name", LONG)
def test_matching_is_bounded(name):
  """Answers in long passages, and where they stand."""
  text = LONG[name]() + " Zürich zoo"
  matcher = answer_matching.AnswerMatcher()

  def call():
    assert matcher.hits(["zürich zoo", "x"], [0], [text]) == [True]

  within_bounds(call)

  def spans():
    assert answer_matching.answer_spans(["zürich zoo"], text) == [
      (len(text) - 10, len(text))
    ]

  within_bounds(spans, 3 * SECONDS)
  regexes = answer_matching.AnswerMatcher(match="regex")

  def search():
    assert regexes.hits(["zu.rich", "(!+)+z", "[a-z]+1"], [0], [text]) == [True]

  within_bounds(search, 2 * SECONDS)


@pytest.mark.processes
def test_many_answers_are_bounded():
  """100,000 answers to one question."""
  many = [f"answer number {i}" for i in range(100_000)]
  text = "The passage holds answer number 99999, and more. " * 12

  def call():
    assert answer_matching.has_answer(many, text)

  def spans():
    assert answer_matching.answer_spans(many, text)[0] == (18, 37)

  within_bounds(call, 2 * SECONDS)  # half of it checks the types of arguments
  within_bounds(spans, 2 * SECONDS)


@pytest.mark.processes
def test_endless_patterns_end():
  def call():
    assert not answer_matching.has_answer(
      ["(a+)+$"], "a" * 100 + "!", match="regex"
    )

  within_bounds(call)


def _nested(depth, opening="[", closing="]"):
  return opening * depth + closing * depth


@pytest.mark.processes
@pytest.mark.parametrize("depth", [32_000, 100_000, 1_000_000])
def test_nested_json_is_refused(tmp_path, depth):
  """In every reader of JSON, at once and with its place."""
  from dpr_jax.data import mined_negatives, squad_files

  deep = _nested(depth)
  objects = _nested(depth, '{"a":', "}").replace(":}", ":1}")
  good = '{"question": "q", "answers": [], "ctxs": []}'
  nested = f'{{"question": "q", "x": {deep}}}'
  cases = [
    (
      dpr_files.read_questions,
      "a.json",
      f"[{good}, {nested}]",
      "a.json: row 2",
    ),
    (dpr_files.read_questions, "b.json", f"[{objects}]", "b.json: row 1"),
    (
      dpr_files.read_questions,
      "c.jsonl",
      f"{good}\n{nested}",
      r"row 2 \(line 2",
    ),
    (evaluate_lib.read_results, "d.json", f"[{good}, {nested}]", "question 1"),
    (dpr_files.read_passages, "e.jsonl", f'{{"_id": {deep}}}', "jsonl: row 1"),
    (squad_files.read_squad, "f.json", f'{{"data": {deep}}}', "f.json"),
    (mined_negatives.read, "g.jsonl", f"{{}}\n{nested}"[3:], "line 1"),
  ]
  for reader, name, content, where in cases:
    path = tmp_path / name
    path.write_text(content)

    def call(reader=reader, path=path, where=where):
      with pytest.raises(errors.InputError, match=f"{where}.*nested more than"):
        list(reader(path))

    within_bounds(call)
  path = tmp_path / "h.json"
  path.write_text(f'{{"data": {deep}}}')
  within_bounds(lambda: squad_files.is_squad(path))


def test_the_limit_is_exact(tmp_path):
  """100 brackets pass, 101 do not: array, row, field, and 97 or 98 within."""
  path = tmp_path / "a.json"
  for name, opening in (("a.json", "["), ("a.jsonl", "")):
    path = tmp_path / name
    # Brackets in strings do not count, however they are quoted.
    text = json.dumps("[" * 500 + '"{\\"' + "]" * 500)
    around = len(opening) + 1
    for more, passes in ((0, True), (1, False)):
      deep = _nested(100 - around + more)
      row = f'{{"question": {text}, "x": {deep}}}'
      closing = "]" if opening else ""
      path.write_text(f"{opening}{row}{closing}")
      if passes:
        assert len(list(dpr_files.read_questions(path))) == 1
      else:
        with pytest.raises(errors.InputError, match="row 1.*more than 100"):
          list(dpr_files.read_questions(path))


VALUES = strategies.recursive(
  strategies.sampled_from(["[", '"', "\\", '\\"[', "é]", "", "}{", 1, None]),
  lambda inner: (
    strategies.lists(inner, max_size=4)
    | strategies.dictionaries(strategies.sampled_from('["{\\'), inner)
  ),
)


def _depth(value):
  if isinstance(value, dict):
    value = list(value.values())
  if not isinstance(value, list):
    return 0
  return 1 + max(map(_depth, value), default=0)


@hypothesis.given(value=VALUES, cut=strategies.integers(1, 60))
@hypothesis.settings(max_examples=amounts.amount(2000, 200))
def test_depth_is_that_of_the_value(value, cut):
  """Whatever stands in strings, and wherever the chunks end."""
  data = json.dumps(value, ensure_ascii=False).encode()
  depth = _depth(value)
  for limit, expected in ((depth, False), (depth - 1, True)):
    if limit >= 0:
      nesting = file_streams.Nesting(limit)
      pieces = _safe_chunks(data, cut)
      assert any([nesting.too_deep(chunk) for chunk in pieces]) is expected


def _safe_chunks(data, size):
  """Chunks that end behind a comma or an opening bracket, as the reader's."""
  chunks, first = [], 0
  for end in range(len(data)):
    if end - first >= size and data[end : end + 1] in (b",", b"[", b"{"):
      chunks.append(data[first : end + 1])
      first = end + 1
  return [*chunks, data[first:]]
