"""Training of the reader: exact resume, its figures, and every bad setting."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_sources, checkpoints, reader_model
from dpr_jax.reading import answerer as answerer_lib
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import rerank
from dpr_jax.retrieval import retrieve as retrieve_lib
from dpr_jax.training import train_reader
from tests.training import power_cuts

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def config(tiny_config):
  config = copy.deepcopy(tiny_config)
  reader = config.reader
  reader.train, reader.method = "results", "bm25"
  reader.length, reader.question_length, reader.overlap = 64, 16, 8
  reader.passages, reader.batch_size, reader.max_steps = 3, 8, 4
  reader.sort_batches = 2
  reader.learning_rate, reader.log_every = 1e-3, 1
  reader.checkpoint_every, reader.dev_every = 2, 2
  reader.dev_questions, reader.dev_passages = 8, 3
  config.read.methods, config.read.passages = ("bm25",), (1, 3)
  config.read.length_step = 64
  return config


@pytest.fixture(scope="module")
def retrieved(config, mined_workdir, tmp_path_factory):
  """A workdir with BM25's results for dev."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("retrieved") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  retrieve_lib.retrieve(config, place, methods=["bm25"])
  return place


@pytest.fixture(scope="module")
def trained(config, retrieved, tmp_path_factory):
  """The same, with a reader that nothing disturbed."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("trained") / "w")
  shutil.copytree(retrieved.root, place.root)
  workdir_lib.write_json(place.root / "config.json", _plain(config))
  _train(config, place)
  return place


def _train(config, place):
  """As `dpr-jax train-reader` does: it retrieves what is missing."""
  train_reader.train_reader(config, place, retrieve=retrieve_lib.retrieve)


def _copy(place, tmp_path):
  shutil.copytree(place.root, tmp_path / "copy")
  return workdir_lib.Workdir(tmp_path / "copy")


def _rows(place):
  lines = (place.reader / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_interrupted_training_ends_bit_equal(
  config, retrieved, trained, tmp_path, monkeypatch
):
  """Dies after step 3, resumes from step 2, ends as if nothing had been."""
  place = _copy(retrieved, tmp_path)
  with monkeypatch.context() as patch:
    power_cuts.dies_after(3, patch)
    with pytest.raises(RuntimeError, match="power cut"):
      _train(config, place)
  with pytest.raises(errors.InputError, match="run `dpr-jax train-reader`"):
    reader_model.trained(config, place)
  _train(config, place)
  found, wanted = (
    checkpoints.load_params(each.reader / "checkpoints", 4)
    for each in (place, trained)
  )
  jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
  keys = ("step", "loss", "rank_loss", "span_loss", "dev_em", "dev_f1")
  found, wanted = (
    [{key: row.get(key) for key in keys} for row in _rows(each)]
    for each in (place, trained)
  )
  assert found == wanted
  assert [row["step"] for row in wanted if row["loss"]] == [1, 2, 3, 4]
  dev = [row["step"] for row in wanted if row["dev_em"] is not None]
  assert dev == [0, 2, 4]
  # Another setting is refused, with the setting.
  changed = copy.deepcopy(config)
  changed.reader.learning_rate = 5e-4
  with pytest.raises(errors.InputError, match=r"learning_rate was 0.001, is"):
    _train(changed, place)


def test_manifest_says_what_was_read_and_selected(config, trained):
  manifest = workdir_lib.read_manifest(trained.reader, reader_model.STAGE)
  counts = manifest["counts"]
  assert counts["questions"] == 64
  assert counts["kept"] > 40
  left_out = ("without_answers", "without_positive", "unalignable")
  assert counts["kept"] + sum(counts[key] for key in left_out) == 64
  assert manifest["ranks"] is True
  assert manifest["selected"]["why"] == "best dev_em"
  reader = reader_model.trained(config, trained)
  assert reader.step == manifest["selected"]["steps"][0]
  best = max(
    row["dev_em"]
    for row in _rows(trained)
    if row["step"] > 0 and "dev_em" in row
  )
  assert manifest["selected"]["value"] == best


def test_read_sweeps_and_does_nothing_twice(config, trained, tmp_path):
  place = _copy(trained, tmp_path)
  read_lib.read(config, place)
  path = place.answers("dev", "bm25")
  rows = json.loads(path.read_text())
  assert rows == json.loads(place.answers("dev").read_text())
  results = json.loads(place.results("dev", "bm25").read_text())
  assert len(rows) == len(results) == 24
  for row, entry in zip(rows, results, strict=True):
    assert row["answers"] == entry["answers"]
    texts = {hit["id"]: hit["text"] for hit in entry["ctxs"]}
    for found in (row, *row["by_passages"].values()):
      assert found["prediction"] in texts[found["passage_id"]]
    assert row["by_passages"]["1"]["passage_id"] == entry["ctxs"][0]["id"]
    assert row["prediction"] == row["by_passages"]["3"]["prediction"]
  before = path.stat().st_mtime_ns
  read_lib.read(config, place)
  assert path.stat().st_mtime_ns == before


def test_the_reader_opens_without_what_it_started_from(
  config, trained, tmp_path, monkeypatch
):
  """In a copy, with no checkpoint to be had; a contrary setting is refused."""
  place = _copy(trained, tmp_path)
  retrieve_lib.retrieve(config, place, methods=["bm25"])
  wanted = answerer_lib.Answerer.load(trained.root, k=3).ask("Where was it?")
  fingerprint = reader_model.trained(config, trained).fingerprint

  def gone(name):
    raise AssertionError(f"{name} was asked for")

  for name in ("checkpoint_folder", "checkpoint_path"):
    monkeypatch.setattr(checkpoint_sources, name, gone)
  for reader in (
    reader_model.trained(config, place),
    reader_model.trained(None, place),
    reader_model.from_folder(place.root),
  ):
    assert reader.fingerprint == fingerprint
  found = answerer_lib.Answerer.load(place.root, k=3).ask("Where was it?")
  assert (found.answer, found.score) == (wanted.answer, wanted.score)
  assert found.passage == wanted.passage
  changed = copy.deepcopy(config)
  changed.reader.length, changed.reader.layout = 62, "squad"
  line = (
    "config.reader.length=62, config.reader.layout='squad': the reader in"
    f" {place.reader} was trained with 64, 'dpr'; leave --config out"
  )
  for call in (
    lambda: read_lib.read(changed, place),
    lambda: reader_model.trained(changed, place),
    lambda: answerer_lib.Answerer.load(place.root, config=changed),
    lambda: rerank.rerank(changed, place, name="dev", method="bm25"),
  ):
    with pytest.raises(errors.InputError) as refused:
      call()
    assert line in str(refused.value)
  (place.reader / "model" / "tokenizer.json").write_text("{}")
  with pytest.raises(errors.InputError, match=r"model/tokenizer\.json is dam"):
    reader_model.from_folder(place.root)
  # As an older version left it: its checkpoint is asked for.
  shutil.rmtree(place.reader / "model")
  with pytest.raises(AssertionError, match="was asked for"):
    reader_model.from_folder(place.root)
  monkeypatch.undo()
  assert reader_model.from_folder(place.root).fingerprint == fingerprint


def test_squad_then_results(config, retrieved, tmp_path):
  """Padded, from SQuAD's format; and from results, starting from that."""
  passages = ["The city of Ulm is old.", "Bern is a town in the Alps."] * 4
  qas = [
    {
      "context": text,
      "qas": [
        {
          "id": str(number),
          "question": "Which city?",
          "answers": [{"text": name, "answer_start": text.index(name)}],
        }
      ],
    }
    for number, text in enumerate(passages)
    for name in [("Ulm", "Bern")[number % 2]]
  ]
  path = tmp_path / "squad.json"
  path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": qas}]}))
  place = _copy(retrieved, tmp_path)
  first = copy.deepcopy(config)
  first.reader.train = first.reader.dev = str(path)
  first.reader.passages, first.reader.max_steps = 1, 2
  first.reader.packing, first.reader.length_groups = False, 2
  workdir_lib.write_json(place.root / "config.json", _plain(first))
  _train(first, place)
  reader = reader_model.trained(first, place)
  assert not reader.ranks
  read_lib.read(first, place, name="own", questions_file=path)
  rows = json.loads(place.answers("own").read_text())
  assert [row["id"] for row in rows] == [str(n) for n in range(8)]
  with pytest.raises(errors.InputError, match="is not in SQuAD's format"):
    read_lib.read(first, place, questions_file=place.results("dev", "bm25"))

  second = copy.deepcopy(config)
  second.reader.checkpoint = str(place.root)
  start = reader_model.start(second)
  jax.tree.map(np.testing.assert_array_equal, start.params, reader.params)


def _plain(config):
  from dpr_jax.core import config as config_lib

  return config_lib.plain(config)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("train", "", "reader.train is empty"),
    ("train", "nowhere.json", "reader.train='nowhere.json'.*is missing"),
    ("method", "dense", "index/Flat"),
    ("batch_size", 7, "batch_size=7 questions .* multiple of the 8 devices"),
    ("batch_size", 0, "reader.batch_size=0: must be >= 1"),
    ("length", 30, "reader.length=30"),
    ("length", 128, "reader.length=128.*has 64 positions"),
    ("warmup_steps", 9, "reader.warmup_steps=9 is not below the 4 steps"),
    ("best_metric", "loss", "best_metric='loss': must be one of dev_em"),
    ("layout", "bert", "layout='bert'"),
    ("remat", "all", "reader.remat='all'"),
    ("profile_steps", (2, 9), "config.reader.profile_steps=.2, 9.: must be"),
  ],
)
def test_bad_settings(config, retrieved, tmp_path, key, value, message):
  """Each with its key and value."""
  changed = copy.deepcopy(config)
  changed.reader[key] = value
  place = _copy(retrieved, tmp_path)
  with pytest.raises(errors.InputError, match=message):
    _train(changed, place)


def test_results_for_training_are_retrieved_or_asked_for(
  config, retrieved, tmp_path
):
  """By what is handed over; without it, the message says who retrieves."""
  place = _copy(retrieved, tmp_path)
  with pytest.raises(errors.InputError, match="train.*run `dpr-jax train-read"):
    train_reader.train_reader(config, place)
  calls = []

  def retrieve(config, workdir, **options):
    calls.append((workdir, options))

  with pytest.raises(errors.InputError, match="train.*is missing"):
    train_reader.train_reader(config, place, retrieve=retrieve)
  options = {"name": "train", "methods": ["bm25"], "split": "train"}
  assert calls == [(place, options)]
  # A file is read as it is.
  changed = copy.deepcopy(config)
  changed.reader.train = "nowhere.json"
  with pytest.raises(errors.InputError, match="nowhere.json is missing"):
    train_reader.train_reader(changed, place, retrieve=retrieve)
  assert len(calls) == 1
