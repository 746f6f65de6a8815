"""SQuAD's format: what is read, and what is refused with its place."""

import gzip
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.data import squad_files


def _file(path, answers, **extra):
  context = "Ulm lies on the Danube, Ulm is old."
  row = {"id": "q1", "question": "Where?", "answers": answers} | extra
  article = {
    "title": "Free_Cities",
    "paragraphs": [{"context": context, "qas": [row]}],
  }
  path.write_text(json.dumps({"data": [article], "version": "1.1"}))
  return path


def test_questions_with_their_paragraph(tmp_path):
  answers = [
    {"text": "Ulm", "answer_start": 24},
    {"text": "the Danube", "answer_start": 12},
  ]
  path = _file(tmp_path / "a.json", answers)
  assert squad_files.is_squad(path)
  (found,) = squad_files.read_squad(path)
  assert found.id == "q1"
  assert found.answers == ("Ulm", "the Danube")
  assert found.starts == (24, 12)
  assert (found.paragraph.id, found.paragraph.title) == ("0.0", "Free Cities")
  zipped = tmp_path / "a.json.gz"
  zipped.write_bytes(gzip.compress(path.read_bytes()))
  assert squad_files.is_squad(zipped)
  assert list(squad_files.read_squad(zipped)) == [found]


def test_questions_without_an_answer(tmp_path):
  answers = [{"text": "Ulm", "answer_start": 0}]
  path = _file(tmp_path / "a.json", answers, is_impossible=True)
  (found,) = squad_files.read_squad(path)
  assert found.answers == ()


ROW = {
  "id": "q1",
  "title": "Free_Cities",
  "context": "Ulm lies here.",
  "question": "Where?",
}


def _read(path, content):
  path.write_text(content)
  assert squad_files.is_squad(path)
  return list(squad_files.read_squad(path))


@pytest.mark.parametrize("shape", ["lines", "list", "data"])
def test_rows_of_datasets(tmp_path, shape):
  """A row a question, answers as two lists; an empty one is the right one."""
  rows = [
    ROW | {"answers": {"text": ["Ulm", "here"], "answer_start": [0, 9]}},
    ROW | {"id": "q2", "answers": {"text": [], "answer_start": []}},
    ROW | {"id": "q3", "context": "Bern.", "answers": None},
    ROW | {"id": "q4", "title": "", "answers": {"text": "", "answer_start": 0}},
  ]
  content = {
    "lines": "".join(json.dumps(row) + "\n" for row in rows),
    "list": json.dumps(rows),
    "data": json.dumps({"version": "1", "data": rows}),
  }[shape]
  found = _read(tmp_path / "a.json", content)
  assert [one.id for one in found] == ["q1", "q2", "q3", "q4"]
  assert (found[0].answers, found[0].starts) == (("Ulm", "here"), (0, 9))
  assert [one.impossible for one in found] == [False, True, False, False]
  assert [one.paragraph.id for one in found] == ["0.0", "0.0", "0.1", "1.0"]
  assert found[2].paragraph.text == "Bern."
  assert found[0].paragraph.title == "Free Cities"


def test_answers_as_two_lists_within_articles(tmp_path):
  answers = {"text": ["Ulm", "old"], "answer_start": [24, 31]}
  (found,) = squad_files.read_squad(_file(tmp_path / "a.json", answers))
  assert (found.answers, found.starts) == (("Ulm", "old"), (24, 31))
  for bad in ({"text": ["Ulm"], "answer_start": []}, {"text": ["Ulm"]}):
    path = _file(tmp_path / "a.json", bad)
    with pytest.raises(errors.InputError, match="'q1'.*not in SQuAD's format"):
      list(squad_files.read_squad(path))


def test_what_is_impossible_and_what_is_not_known(tmp_path):
  """By the file's own word; without it, an empty list among filled ones."""
  full = [{"text": "Ulm", "answer_start": 0}]

  def impossible(*fields):
    lines = (json.dumps(ROW | each) + "\n" for each in fields)
    return [
      one.impossible for one in _read(tmp_path / "a.jsonl", "".join(lines))
    ]

  assert impossible(
    {"is_impossible": True, "answers": []},
    {"is_impossible": True, "answers": full},  # its plausible ones, say
    {"is_impossible": False, "answers": []},
    {"is_impossible": False, "answers": full},
    {},
  ) == [True, True, False, False, False]
  assert impossible({"answers": full}, {"answers": []}, {}) == [
    *(False, True, False),
  ]
  assert impossible({"answers": []}, {}) == [False, False]  # a test set


@pytest.mark.parametrize(
  "text",
  [
    '{"question": "q", "answers": [], "x": {"context": "c"}}',
    '[{"question": "q", "ctxs": [{"context": "c"}]}, {"context": ""}]',
  ],
)
def test_dpr_s_rows_are_no_squad(tmp_path, text):
  path = tmp_path / "a.json"
  path.write_text(text)
  assert not squad_files.is_squad(path)


@pytest.mark.parametrize("text", ["[]", '{"question": "q"}', "", "x", "{"])
def test_other_files_are_no_squad(tmp_path, text):
  path = tmp_path / "a.json"
  path.write_text(text)
  assert not squad_files.is_squad(path)


@pytest.mark.parametrize(
  ("answers", "words"),
  [
    ([{"text": "Ulm", "answer_start": 1}], "'q1'.*holds 'lm ' at character 1"),
    ([{"text": "Ulm"}], "'q1'.*answer_start"),
    ("Ulm", "'q1'.*not in SQuAD's format"),
  ],
)
def test_mistakes_name_the_question(tmp_path, answers, words):
  path = _file(tmp_path / "a.json", answers)
  with pytest.raises(errors.InputError, match=words):
    list(squad_files.read_squad(path))


def test_no_json(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"data": [')
  with pytest.raises(errors.InputError, match=r"a\.json is not JSON"):
    list(squad_files.read_squad(path))
  for content in ("[]", "{}", '{"data": 3}'):
    path.write_text(content)
    with pytest.raises(errors.InputError, match="not in SQuAD's format"):
      list(squad_files.read_squad(path))


def test_real_file(data_folder):
  """Every answer of the dev file stands where it says: read_squad checks."""
  path = data_folder / "squad" / "squad-dev.json.gz"
  questions = list(squad_files.read_squad(path))
  assert len(questions) == 4961
  assert sum(len(one.answers) for one in questions) > 3 * 4000
