"""What is counted of users' rows, and what is warned of."""

import json

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare

CORPUS = [
  {"_id": "d1", "title": "Ulm", "text": "Ulm lies on the Danube."},
  {"_id": "d2", "title": "Nothing", "text": " "},
  {"_id": "d3", "title": "Bern", "text": "Bern lies on the Aare."},
]
POSITIVE = {"passage_id": "d1", "text": "Ulm lies on the Danube."}
ROW = {"question": "Where is Ulm?", "answers": ["Danube"]}


@pytest.fixture
def prepared(tmp_path):
  """Prepares rows and a corpus; returns the manifest."""

  def prepared(rows, corpus=None, **settings):
    config = config_lib.base_config()
    text = corpus or "".join(json.dumps(row) + "\n" for row in CORPUS)
    for role, content in (
      ("passages", text),
      ("train", json.dumps(rows)),
      ("dev", json.dumps([ROW])),
    ):
      path = tmp_path / role
      path.write_text(content)
      config.data[role] = str(path)
    config.data.update(settings)
    workdir = workdir_lib.Workdir(tmp_path / "work")
    prepare.prepare(config, workdir)
    return workdir_lib.read_manifest(workdir.data, "prepare")

  return prepared


def test_empty_texts_are_counted(prepared, caplog):
  empty = {"passage_id": "d2", "text": " "}
  counts = prepared([ROW | {"positive_ctxs": [POSITIVE, empty]}])["counts"]
  assert counts["passages"] == 3
  assert counts["passages_without_text"] == 1
  assert counts["train_positives"] == 2
  assert counts["train_empty_positives"] == 1
  assert counts["train_without_answers"] == 0
  assert "1 of 2 positive passages have no text" in caplog.text


def test_answers_of_another_name_are_not_none_in_silence(prepared, caplog):
  row = {"question": "q", "targets": ["a"], "positive_ctxs": [POSITIVE]}
  counts = prepared([row, row])["counts"]
  assert counts["train_without_answers"] == 2
  assert (
    "no question has an answer, so passages are not searched for answers; they"
    " are read from answers or answer; other fields: targets"
  ) in caplog.text
  caplog.clear()
  prepared([row, ROW | {"positive_ctxs": [POSITIVE]}])
  assert "no question has an answer" not in caplog.text


def test_positives_of_another_name_are_named(prepared):
  row = {"question": "q", "positive_passages": [POSITIVE]}
  with pytest.raises(
    errors.InputError, match="1 no positive.*other fields: positive_passages"
  ):
    prepared([row])


def test_ids_of_another_corpus_are_warned_of(prepared, caplog):
  row = ROW | {"positive_ctxs": [POSITIVE | {"passage_id": "17"}]}
  counts = prepared([row])["counts"]
  assert counts["train_gold_not_in_corpus"] == 1
  (record,) = [r for r in caplog.records if "none of the 1 ids" in r.message]
  assert record.levelname == "WARNING"
  assert "(17, ...) is in the corpus" in record.message
  caplog.clear()
  prepared([row, ROW | {"positive_ctxs": [POSITIVE]}])  # some are there
  assert "none of the" not in caplog.text


def test_positives_without_ids_are_warned_of(prepared, caplog):
  row = ROW | {"positive_ctxs": [{"text": "Ulm lies here.", "key": "d1"}]}
  assert prepared([row])["counts"]["train_gold_without_id"] == 1
  assert "no positive passage has an id: ids are read from _id" in caplog.text
  assert "other fields: key" in caplog.text


def test_an_empty_id_does_not_hide_a_good_one(prepared, caplog):
  row = ROW | {"positive_ctxs": [POSITIVE | {"passage_id": "", "psg_id": "d1"}]}
  counts = prepared([row])["counts"]
  assert counts["train_gold_without_id"] == 0
  assert counts["train_gold_not_in_corpus"] == 0
  assert not [r for r in caplog.records if r.levelname == "WARNING"]


UNQUOTED = (
  "id\ttext\ttitle\n"
  "d1\tUlm lies on the Danube.\tUlm\n"
  'd2\t"Many words\tSpeech\n'
  'd3\tand more"\tSpeech\n'
)


def test_a_table_without_quoting_keeps_its_rows(prepared, caplog):
  rows = [ROW | {"positive_ctxs": [POSITIVE]}]
  manifest = prepared(rows, UNQUOTED)
  assert manifest["counts"]["passages"] == 3
  assert manifest["quoting"] == "none"
  assert "is read without quoting (as csv it would lose" in caplog.text
  caplog.clear()
  manifest = prepared(rows, UNQUOTED, quoting="csv")
  assert manifest["counts"]["passages"] == 2
  assert manifest["counts"]["passages_with_tab_and_line_break"] == 1
  assert "1 passages contain both a tab and a line break" in caplog.text
  assert "swallowed the next rows: d2; if quotation" in caplog.text
  manifest = prepared(rows, UNQUOTED, quoting="none", max_passages=2)
  assert manifest["counts"]["passages"] == 2
  assert manifest["counts"]["passages_beyond_max"] == 1
  with pytest.raises(errors.InputError, match=r"data\.quoting='mine'"):
    prepared(rows, UNQUOTED, quoting="mine")


def test_workdirs_from_before_the_setting_stay_current(prepared, caplog):
  """What the default says is not recorded, and so it changes nothing."""
  manifest = prepared([ROW | {"positive_ctxs": [POSITIVE]}])
  assert "quoting" not in manifest["config"]["data"]
  assert manifest["quoting"] == ""  # the corpus is JSON
