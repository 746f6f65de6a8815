"""The sample corpus in dpr_jax/data/sample keeps the rules it was written by.

The files are read with csv and json only, so that a fault in the package's
own readers cannot hide one in the files.
"""

import ast
import csv
import importlib.resources
import json
import unicodedata

import pytest
import regex
import Stemmer

_FOLDER = importlib.resources.files("dpr_jax.data.sample")
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_STEMMER = Stemmer.Stemmer("english")
_STOP_WORDS = frozenset(
  """a an the of in on at to for by with from and or is are was were be been
  being but do does did done has have had who whom whose what which when where
  why how many much more most it its he him his she her they them their this
  that these those as into onto than about after before during under over
  between through not no can could would will there while s""".split()
)


def _rows(name):
  with _FOLDER.joinpath(name).open(encoding="utf-8", newline="") as file:
    return list(csv.reader(file, delimiter="\t"))


def _questions(split):
  text = _FOLDER.joinpath(f"{split}.json").read_text(encoding="utf-8")
  return json.loads(text)


def _passages():
  return _rows("passages.tsv")[1:]


def _tokens(text):
  return _TOKEN.findall(unicodedata.normalize("NFD", text))


def _lower(text):
  return [token.lower() for token in _tokens(text)]


def _has_answer(text, answer):
  """Whether the answer's tokens are a run of the text's, whatever the case."""
  tokens, wanted = _lower(text), _lower(answer)
  starts = range(len(tokens) - len(wanted) + 1)
  return bool(wanted) and any(
    tokens[start : start + len(wanted)] == wanted for start in starts
  )


def _capitalised(text):
  """The words with a capital that do not begin a sentence, lower-cased."""
  names, previous = set(), "."
  for token in _tokens(text):
    if token[0].isupper() and previous not in (".", "?", "!"):
      names.add(token.lower())
    previous = token
  return names


def _stems(words):
  return set(_STEMMER.stemWords(sorted(words)))


def _content(text):
  return {
    token
    for token in _lower(text)
    if token[0].isalnum() and token not in _STOP_WORDS
  }


def _shared(question, title, text):
  """The stems question and passage share, names left out."""
  names = set(_lower(title)) | _capitalised(text) | _capitalised(question)
  both = _stems(_content(question)) & _stems(_content(text))
  return both - _stems(names)


def test_passages_are_numbered_in_order():
  header, *rows = _rows("passages.tsv")
  assert header == ["id", "text", "title"]
  assert 250 <= len(rows) <= 260
  assert [row[0] for row in rows] == [
    str(number) for number in range(1, len(rows) + 1)
  ]
  assert all(len(row) == 3 for row in rows)


def test_passages_are_short_and_occur_once():
  texts = [text for _, text, _ in _passages()]
  assert len(set(texts)) == len(texts)
  assert [text for text in texts if not 30 <= len(text.split()) <= 80] == []


def test_a_third_of_the_titles_have_more_than_one_passage():
  titles = [title for _, _, title in _passages()]
  several = {title for title in titles if titles.count(title) > 1}
  assert len(several) >= 0.3 * len(set(titles))


def test_number_of_questions():
  train, dev = len(_questions("train")), len(_questions("dev"))
  assert 490 <= train + dev <= 520
  assert 90 <= dev <= 110


def test_no_question_occurs_twice():
  questions = [
    row["question"].casefold()
    for split in ("train", "dev")
    for row in _questions(split)
  ]
  assert len(set(questions)) == len(questions)
  assert all(question.endswith("?") for question in questions)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_questions_have_one_positive_out_of_the_corpus(split):
  corpus = {number: (title, text) for number, text, title in _passages()}
  for row in _questions(split):
    assert set(row) == {
      "question",
      "answers",
      "positive_ctxs",
      "negative_ctxs",
      "hard_negative_ctxs",
    }
    (positive,) = row["positive_ctxs"]
    assert set(positive) == {"title", "text", "passage_id"}
    assert corpus[positive["passage_id"]] == (
      positive["title"],
      positive["text"],
    )
    assert row["negative_ctxs"] == []
    assert row["hard_negative_ctxs"] == []


@pytest.mark.parametrize("split", ["train", "dev"])
def test_answers_are_in_the_passage_and_not_in_the_question(split):
  for row in _questions(split):
    assert 1 <= len(row["answers"]) <= 3
    text = row["positive_ctxs"][0]["text"]
    for answer in row["answers"]:
      assert _has_answer(text, answer), (row["question"], answer)
      assert not _has_answer(row["question"], answer), row["question"]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_third_of_the_questions_share_only_names(split):
  rows = _questions(split)
  paraphrases = 0
  for row in rows:
    positive = row["positive_ctxs"][0]
    paraphrases += not _shared(
      row["question"], positive["title"], positive["text"]
    )
  assert 3 * paraphrases >= len(rows)


def test_shared_words_are_found():
  # the rule above would pass anything if it found no shared word
  text = "Her father built ships. She was born in Ulm, on the Danube."
  assert _shared("Who was building a ship?", "Ann", text) == {"ship"}
  assert _shared("Where on the Danube was Ann born?", "Ann", text) == {"born"}
  assert _shared("What is Ann's birthplace?", "Ann", text) == set()


def test_dev_qa_equals_dev_json():
  pairs = [
    (question, ast.literal_eval(answers))
    for question, answers in _rows("dev.qa.csv")
  ]
  assert pairs == [
    (row["question"], row["answers"]) for row in _questions("dev")
  ]


def test_the_einstein_question_is_in_dev():
  (row,) = [
    row
    for row in _questions("dev")
    if row["question"] == "Where was Einstein born?"
  ]
  assert row["answers"] == ["Ulm"]
  assert row["positive_ctxs"][0]["title"] == "Albert Einstein"
