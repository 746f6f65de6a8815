"""Shapes of JSON files: what is read, and how others are refused."""

import gzip
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.data import dpr_files, json_objects
from dpr_jax.data.records import Passage, Question
from dpr_jax.evaluation import evaluate as evaluate_lib

ROWS = [{"question": "a", "answers": ["x"]}, {"question": "b"}]
QUESTIONS = [Question("a", ("x",)), Question("b")]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.json.gz"])
def test_one_object_around_the_rows_is_refused(tmp_path, name, indent):
  path = tmp_path / name
  data = json.dumps({"version": "1", "data": ROWS}, indent=indent).encode()
  path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  with pytest.raises(errors.InputError) as caught:
    list(dpr_files.read_questions(path))
  said = str(caught.value)
  assert str(path) in said
  assert "a list [...] of objects, or one object per line, is expected" in said
  assert "jq .data FILE" in said
  assert "version" in said


def test_rows_over_several_lines_are_refused(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text("".join(json.dumps(row, indent=1) + "\n" for row in ROWS))
  with pytest.raises(
    errors.InputError, match=r"jsonl:1: .*question, answers, spans.*jq -c \."
  ):
    list(dpr_files.read_questions(path))
  path.write_text(json.dumps({"_id": "d", "text": "x" * 3_000_000}, indent=1))
  with pytest.raises(errors.InputError, match="_id, text, spans several lines"):
    list(dpr_files.read_passages(path))


def test_squad_is_no_file_of_questions(tmp_path):
  path = tmp_path / "train.json"
  article = {"title": "Ulm", "paragraphs": []}
  path.write_text(json.dumps({"data": [article]}, indent=1))
  with pytest.raises(errors.InputError, match="SQuAD's format, which"):
    list(dpr_files.read_questions(path))


def test_one_object_by_id_is_refused(tmp_path):
  path = tmp_path / "train.json"
  path.write_text(json.dumps({"q1": ROWS[0], "q2": ROWS[1]}, indent=1))
  with pytest.raises(
    errors.InputError,
    match=r"with the fields q1, q2: .*'\.\[\]' FILE",
  ):
    list(dpr_files.read_questions(path))


@pytest.mark.parametrize(
  "text",
  [
    *('{"question": "a", }', "{", '{"a" 1}'),
    '{"question": "a"},\n{"question": "b"}\n',  # a list without its brackets
    '{"question": "a"}{"question": "b"}',
  ],
)
def test_what_is_no_json_stays_that(tmp_path, text):
  path = tmp_path / "a.jsonl"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=r"row 1 \(line 1\) is not JSON"):
    list(dpr_files.read_questions(path))


def test_results_in_an_object_are_refused(tmp_path):
  """Pyserini's form, say."""
  path = tmp_path / "dev.x.json"
  path.write_text('{"0": {"question": "a", "contexts": []}}')
  with pytest.raises(
    errors.InputError, match=r"x\.json: starts with .*a list \[\.\.\.\] of"
  ):
    list(evaluate_lib.read_results(path))


def test_a_corpus_may_be_a_list(tmp_path):
  path = tmp_path / "corpus.json"
  path.write_text('[{"_id": "d1", "text": "x"}, {"id": "d2", "contents": "y"}]')
  assert list(dpr_files.read_passages(path)) == [
    Passage("d1", "", "x"),
    Passage("d2", "", "y"),
  ]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_no_numbers_in_unread_fields(tmp_path, constant):
  """Python writes them; the same in a list, in lines and in a corpus."""
  text = f'says NaN, -Infinity \\" {constant}'
  row = f'{{"question": "{text}", "score": {constant}, "answers": ["x"]}}'
  expected = Question(text.replace("\\", ""), ("x",))
  for name, content in (
    ("a.json", f"[{row},\n {row}]"),
    ("b.jsonl", f"{row}\n{row}\n"),
  ):
    path = tmp_path / name
    path.write_text(content)
    assert list(dpr_files.read_questions(path)) == [expected] * 2
  path = tmp_path / "corpus.jsonl"
  path.write_text(f'{{"_id": "d", "text": "{text}", "n": [{constant}]}}\n')
  (passage,) = dpr_files.read_passages(path)
  assert passage.text == expected.question
  for content in (
    f'[{{"question": {constant}}}]',
    f'{{"question": {constant}}}',
  ):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(errors.InputError, match="question: None is a NoneType"):
      list(dpr_files.read_questions(path))


def test_constants_at_every_place_of_a_chunk(tmp_path):
  path = tmp_path / "q.json"
  for padding in range(65_480, 65_560):
    text = "x" * padding + ", NaN"
    path.write_text(f'[{{"question": "{text}", "s": [NaN, {{"t": NaN}}]}}]')
    assert list(dpr_files.read_questions(path)) == [Question(text)]


def test_the_first_row_of_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('\n{"a": 1}\n{"b": 2}\n')
  assert json_objects.first(path) == {"a": 1}
  path.write_text("[1]")
  assert json_objects.first(path) is None
