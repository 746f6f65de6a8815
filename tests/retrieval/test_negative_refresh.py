"""Rounds: negatives of the very model at each boundary."""

import copy
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  negative_rounds,
  prepare,
)
from dpr_jax.embedding import embed
from dpr_jax.index import faiss_stage
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model
from dpr_jax.retrieval import negative_refresh
from dpr_jax.training import retriever_batches


@pytest.fixture(scope="module")
def model(tiny_config):
  """One for all tests: its functions are compiled once."""
  return retriever_model.start(tiny_config)


@pytest.fixture(scope="module")
def params(model):
  """Parameters as after some steps, replicated."""
  generator = np.random.default_rng(0)
  moved = jax.tree.map(
    lambda x: x + 0.05 * generator.normal(size=x.shape).astype(np.float32),
    model.params,
  )
  return devices_lib.replicate(moved)


@pytest.fixture
def config(tiny_config):
  """Two rounds of three steps, half of the negatives the model's."""
  config = copy.deepcopy(tiny_config)
  config.train.rounds = 2
  config.train.negatives = "bm25:1,model:1"
  config.train.hard_negatives = 2
  return config


def _negatives(config, place, number=1):
  rounds = negative_rounds.Rounds.of(config, [config.data.max_train])
  return rounds.read(place, number)


@pytest.fixture
def encoded(monkeypatch):
  """The first rows of the shards that were encoded, in order."""
  rows_seen = []
  encode_rows = embed._encode_rows

  def counts(encoder, tokens, rows, *rest):
    rows_seen.append(int(rows[0]))
    return encode_rows(encoder, tokens, rows, *rest)

  monkeypatch.setattr(embed, "_encode_rows", counts)
  return rows_seen


def _brute_force(config, place, model, params):
  """Every question's best passages without an answer, one by one."""
  encoder = encoder_lib.Encoder(model, length_step=48, params=params)
  passages = prepare.open_passages(place)
  passages = passages.take(range(len(passages)))
  table = prepare.open_questions(place, "train")
  questions = table.take(range(len(table)))
  scores = (
    encoder.encode_questions([q.question for q in questions])
    @ encoder.encode_passages(passages).T
  )
  found = []
  for question, row in zip(questions, scores, strict=True):
    ids = {p.id for p in question.positives}
    found.append(
      [
        passages[n].id
        for n in np.argsort(-row, kind="stable")[: config.mine.depth]
        if passages[n].id not in ids
        and not answer_matching.has_answer(question.answers, passages[n].text)
      ][: config.mine.keep]
    )
  return found


@pytest.mark.compiles
def test_a_round_mines_with_the_parameters_of_its_step(
  config, fresh_workdir, model, params, encoded
):
  """As by brute force; batches use them; nothing is done twice."""
  place = fresh_workdir
  negative_refresh.refresh(config, place, model, params, 1)
  found = _negatives(config, place)
  assert found == _brute_force(config, place, model, params)
  folder = place.training / "rounds" / "1"
  assert sorted(path.name for path in folder.iterdir()) == [
    "manifest.json",
    "negatives.jsonl.gz",
  ]
  manifest = workdir_lib.read_json(folder / "manifest.json")
  assert manifest["config"]["step"] == 3
  assert set(manifest["inputs"]) == {"passages", "train", "model"}
  assert manifest["counts"]["questions"] == 64
  assert encoded == [0, 50, 100]

  # Round 0 has BM25's twice, round 1 each in its column.
  mined = mined_negatives.read(place.negatives / mined_negatives.FILES["train"])
  for number, second in ((0, [ids[1:2] for ids in mined]), (1, found)):
    source = retriever_batches.make_source(config, place, model, number)
    indexes, epochs = np.arange(64), np.zeros(64, int)
    keys = source.sampler.keys_of_batch(indexes, epochs).reshape(64, 3)
    for row, best, other in zip(keys, mined, second, strict=True):
      names = [source.sampler.passages[int(k)].id for k in row if k >= 0]
      assert names[1:2] == best[:1]
      assert set(names[2:]) <= set(other)

  # The same again: done; another model: again.
  time = (folder / "manifest.json").stat().st_mtime_ns
  negative_refresh.refresh(config, place, model, params, 1)
  assert (folder / "manifest.json").stat().st_mtime_ns == time
  other = devices_lib.replicate(jax.tree.map(lambda x: -x, params))
  negative_refresh.refresh(config, place, model, other, 1)
  assert encoded == [0, 50, 100] * 2
  assert _negatives(config, place) != found


def _dies(function, when=lambda *_: True):
  """The function, but killed where `when` says so of its arguments."""

  def dies(*args, **kwargs):
    if when(*args):
      raise RuntimeError("power cut")
    return function(*args, **kwargs)

  return dies


@pytest.mark.compiles
def test_a_killed_refresh_goes_on_where_it_was(
  config, fresh_workdir, model, params, encoded, monkeypatch
):
  """Killed while embedding, searching and before the embeddings went."""
  place, folder = fresh_workdir, fresh_workdir.training / "rounds" / "1"
  shards = folder / "embeddings"
  last_shard = _dies(embed._encode_rows, lambda *args: args[2][0] > 90)
  removal = _dies(shutil.rmtree, lambda path: path == shards)
  for module, name, dies in (
    (embed, "_encode_rows", last_shard),
    (faiss_stage, "search_vectors", _dies(faiss_stage.search_vectors)),
    (shutil, "rmtree", removal),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(module, name, dies)
      with pytest.raises(RuntimeError, match="power cut"):
        negative_refresh.refresh(config, place, model, params, 1)
    assert shards.exists()
  assert encoded == [0, 50, 100]
  found = _negatives(config, place)
  negative_refresh.refresh(config, place, model, params, 1)
  assert encoded == [0, 50, 100]
  assert not shards.exists()
  assert found == _brute_force(config, place, model, params)

  # Another model's half is not gone on with.
  other = devices_lib.replicate(jax.tree.map(lambda x: -x, params))
  with monkeypatch.context() as patch:
    patch.setattr(embed, "_encode_rows", last_shard)
    with pytest.raises(RuntimeError, match="power cut"):
      negative_refresh.refresh(config, place, model, other, 1)
  assert len(list(shards.glob("vectors-*.npy"))) == 2
  negative_refresh.refresh(config, place, model, params, 1)
  assert encoded == [0, 50, 100, 0, 50, 0, 50, 100]
  assert _negatives(config, place) == found

  # Neither are damaged negatives.
  path = folder / "negatives.jsonl.gz"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.InputError, match="is not the file"):
    _negatives(config, place)
  negative_refresh.refresh(config, place, model, params, 1)
  assert _negatives(config, place) == found


@pytest.mark.compiles
def test_foreign_negatives_are_refused(config, fresh_workdir, model, params):
  """Of another step, seed or data; and where there are none."""
  place = fresh_workdir
  with pytest.raises(errors.InputError, match="negatives of round 1 and the"):
    retriever_batches.make_source(config, place, model, 1)
  negative_refresh.refresh(config, place, model, params, 1)
  retriever_batches.make_source(config, place, model, 1)
  for change in (
    {"train": {"max_steps": 8}},
    {"seed": 1},
    {"mine": {"keep": 4}},
  ):
    other = copy.deepcopy(config)
    other.update(change)
    with pytest.raises(errors.InputError, match="different step or settings"):
      retriever_batches.make_source(other, place, model, 1)
  for number in (0, 2):
    with pytest.raises(errors.InputError, match=f"no round {number} to mine"):
      negative_refresh.refresh(config, place, model, params, number)
  manifest_path = place.training / "rounds" / "1" / "manifest.json"
  manifest = workdir_lib.read_record(manifest_path)
  manifest["inputs"]["passages"] = "of another corpus"
  workdir_lib.write_record(manifest_path, manifest)
  with pytest.raises(
    errors.InputError, match=r"another run \(different passages"
  ):
    retriever_batches.make_source(config, place, model, 1)
  manifest_path.write_text(
    manifest_path.read_text().replace("another", "other")
  )
  with pytest.raises(
    errors.InputError, match="is damaged: .*; run `dpr-jax tra"
  ):
    retriever_batches.make_source(config, place, model, 1)
  negative_refresh.refresh(
    config, place, model, params, 1
  )  # where the round begins
  retriever_batches.make_source(config, place, model, 1)
