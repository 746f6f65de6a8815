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
