"""Dev questions of the reader: those whose right answer is known."""

import copy
import dataclasses
import json

import jax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import reader_model
from dpr_jax.training import reader_data


def _squad(path, *rows):
  """A question a paragraph: (context, fields of the question)."""
  paragraphs = [
    {"context": context, "qas": [{"id": "1", "question": "Which?"} | fields]}
    for context, fields in rows
  ]
  article = {"title": "Ulm", "paragraphs": paragraphs}
  path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
  return path


@pytest.fixture
def dev(tiny_config, tmp_path):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  config.read.tokens_per_core, config.read.length_step = 128, 64
  reader = dataclasses.replace(reader_model.start(config), ranks=True)

  def dev(*rows):
    path = _squad(tmp_path / "dev.json", *rows)
    config.reader.train = config.reader.dev = str(path)
    workdir = workdir_lib.Workdir(tmp_path)
    found = reader_data.DevQuestions.make(
      config.reader, config.read, workdir, reader, True
    )
    return found.evaluate(
      devices_lib.replicate(reader.params, jax.local_devices())
    )

  return dev


ANSWER = {"answers": [{"text": "Ulm", "answer_start": 0}]}


def test_no_answer_is_right_where_there_is_none(dev, caplog):
  """Two of three: of the empty paragraph, and of Ulm alone."""
  none = {"is_impossible": True, "answers": []}
  found = dev(("", none), ("Bern", none), ("Ulm", ANSWER), ("Rome", {}))
  assert found == {
    "dev_em": pytest.approx(2 / 3),
    "dev_f1": pytest.approx(2 / 3),
    "dev_questions": 3,
  }
  assert "1 of 4 questions have no answer to compare with" in caplog.text


def test_a_test_set_cannot_choose_a_checkpoint(dev):
  with pytest.raises(errors.InputError, match="none of the first 1 questions"):
    dev(("Ulm", {}))
