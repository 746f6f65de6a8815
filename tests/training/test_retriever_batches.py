"""The run's batches: negatives of every kind, from here or elsewhere."""

import copy
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  negative_rounds,
  prepare,
  records,
)
from dpr_jax.embedding import embed
from dpr_jax.index import faiss_stage
from dpr_jax.models import checkpoints, retriever_model, stored_towers
from dpr_jax.retrieval import mine
from dpr_jax.training import retriever_batches, retriever_inputs


@pytest.fixture(scope="module")
def model(tiny_config):
  """The towers, for their tokenizer."""
  return retriever_model.start(tiny_config)


@pytest.fixture(scope="module")
def trained_workdir(tiny_config, mined_workdir, model, tmp_path_factory):
  """A workdir that the model has mined in; training itself is not needed."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("trained") / "work")
  shutil.copytree(mined_workdir.root, place.root)
  saved = checkpoints.Checkpoints(place.training / "checkpoints")
  saved.save(6, model.params, {"count": np.zeros(1, np.int32)})
  saved.finish()
  workdir_lib.Stage("train", place.training, {}, {}).finish({"steps": 6})
  embed.embed(tiny_config, place)
  faiss_stage.index(tiny_config, place)
  mine.mine(tiny_config, place, ranker="model")
  return place


def _config(config, **settings):
  config = copy.deepcopy(config)
  config.train.update(settings)
  return config


def _ids(source):
  """Ids of every question's negatives in epoch 0."""
  count = len(source.questions)
  sampler = source.sampler
  keys = sampler.keys_of_batch(range(count), [0] * count)
  return [
    [sampler.passages[int(key)].id for key in row if key >= 0]
    for row in keys.reshape(count, -1)[:, 1:]
  ]


def test_the_model_of_another_workdir_mines_for_ours(
  tiny_config, fresh_workdir, trained_workdir, model
):
  """Fingerprints of its model and of the file stand in the inputs."""
  config = _config(
    tiny_config, negatives="model", negatives_from=str(trained_workdir.root)
  )
  mined = mined_negatives.read(trained_workdir.negatives / "model.jsonl.gz")
  source = retriever_batches.make_source(config, fresh_workdir, model)
  assert _ids(source) == [ids[:1] for ids in mined]
  path = trained_workdir.negatives / "model.jsonl.gz"
  trained = stored_towers.trained(tiny_config, trained_workdir)
  manifest = mined_negatives.manifest_of(path)
  assert manifest["inputs"]["model"] == trained.fingerprint
  assert retriever_inputs.inputs(config.train, fresh_workdir) == {
    "negatives": workdir_lib.manifest_fingerprint(
      fresh_workdir.negatives, "mine"
    ),
    "model_negatives_from": mined_negatives.fingerprint_of(path),
  }
  # In its own workdir the file is found without being pointed at.
  config.train.negatives_from = ""
  assert _ids(
    retriever_batches.make_source(config, trained_workdir, model)
  ) == [ids[:1] for ids in mined]


def test_mixtures_of_all_kinds(tiny_config, trained_workdir, model):
  """Each column is of its kind; the keys of a batch are the sampler's."""
  config = _config(
    tiny_config, negatives="bm25:1,model:2,random:1", hard_negatives=4
  )
  source = retriever_batches.make_source(config, trained_workdir, model)
  pools = {
    kind: mined_negatives.read(
      trained_workdir.negatives / mined_negatives.files(kind)["train"]
    )
    for kind in ("bm25", "model")
  }
  for number, ids in enumerate(_ids(source)):
    assert len(set(ids)) == len(ids)
    assert ids[0] == pools["bm25"][number][0]
    assert set(ids[1:3]) <= set(pools["model"][number]) - {ids[0]}
  batch = source[2]
  indexes, epochs = source.plan.rows(2)
  keys = source.sampler.keys_of_batch(indexes, epochs)
  np.testing.assert_array_equal(
    batch["passage_keys"], keys[batch["passage_rows"]]
  )
  assert set(retriever_inputs.inputs(config.train, trained_workdir)) == {
    "negatives",
    "model_negatives",
  }


def test_previous_are_those_of_the_round_before(
  tiny_config, fresh_workdir, model
):
  """Of round 0 BM25's, later those that the model had mined."""
  place = fresh_workdir
  config = _config(
    tiny_config,
    rounds=3,
    negatives="previous:1,passage:1,model:2,bm25:1",
    hard_negatives=5,
  )
  table = prepare.open_questions(place, "train")
  questions, passages = table.take(range(64)), prepare.open_passages(place)
  rounds = negative_rounds.Rounds.of(config, [64])
  assert rounds.kinds == ("model", "passage")
  of_round = {}
  for number in (1, 2):
    stage, files = rounds.stage(place, number), {}
    stage.folder.mkdir(parents=True)
    for kind, first in (("model", 10 * number), ("passage", 10 * number + 5)):
      own = passages.take(range(first, first + 5))
      of_round[kind, number] = list(range(first, first + 5))
      path = stage.folder / negative_rounds.FILES[kind]
      rows = (mined_negatives.Row(q, own, [1.0] * 5, 2.0) for q in questions)
      mined_negatives.write(path, rows, 64, "mine", 5)
      files[path.name] = workdir_lib.fingerprint_file(path)
    stage.finish({}, files=files)
  path = place.negatives / mined_negatives.FILES["train"]
  of_bm25 = [passages.rows_of(i).tolist() for i in mined_negatives.read(path)]
  for number in (1, 2):
    source = retriever_batches.make_source(
      config, place, model, number, store=False
    )
    for row, candidate in enumerate(source.sampler.candidates):
      pools = {kind: keys.tolist() for kind, keys in candidate.pools.items()}
      before = of_bm25[row] if number == 1 else of_round["model", 1]
      assert pools == {
        "previous": before,
        "passage": of_round["passage", number],
        "model": of_round["model", number],
        "bm25": of_bm25[row],
      }
  first = retriever_batches.make_source(config, place, model, 0, store=False)
  assert first.sampler.mixture.parts == (("bm25", 5),)
  assert set(retriever_inputs.inputs(config.train, place)) == {"negatives"}


def test_given_negatives_have_rows(
  tiny_config, mined_workdir, model, monkeypatch
):
  """Of those in the data that are in the corpus, too; else a number of its own.

  The same one wherever the same text stands.
  """
  table = prepare.open_questions(mined_workdir, "train")
  passages = prepare.open_passages(mined_workdir)
  given = passages.take([5, 6])
  take = table.take

  def with_given(rows):
    return [
      dataclasses.replace(
        question,
        hard_negatives=(records.Passage("?", "", "unknown"), given[0]),
        negatives=(question.positives[0], given[1]),
      )
      for question in take(rows)
    ]

  monkeypatch.setattr(table, "take", with_given)
  monkeypatch.setattr(prepare, "open_questions", lambda *_: table)
  config = _config(tiny_config, negatives="given", hard_negatives=3)
  source = retriever_batches.make_source(config, mined_workdir, model)
  for number, question in enumerate(with_given(range(8))):
    found, keys = source.sampler.passages_of_batch([question], [number], [0])
    wanted = [
      passage
      for passage in (*question.hard_negatives, *question.negatives)
      if passage.id != question.positives[0].id
    ]
    assert found[1:] == wanted + [None] * (3 - len(wanted))
    rows = passages.rows_of([passage.id for passage in wanted[1:]]).tolist()
    assert keys[1:] == [len(passages), *rows] + [-1] * (2 - len(rows))


@pytest.mark.parametrize("kind", ["bm25", "random"])
def test_answers_are_masked(tiny_config, mined_workdir, model, kind):
  """As the matcher says, for every pair of a batch; labels stay."""
  config = _config(tiny_config, negatives=kind, mask_answers=True)
  source = retriever_batches.make_source(config, mined_workdir, model)
  matcher = answer_matching.AnswerMatcher()
  masked = 0
  for step in range(2):
    batch = source[step]
    indexes, _ = source.plan.rows(step)
    asked = source.questions.take(indexes[batch["question_rows"]])
    keys = batch["passage_keys"].tolist()
    read = source.sampler.passages.take(batch["passage_keys"])
    for question, row, label in zip(
      asked, batch["excluded"], batch["labels"], strict=True
    ):
      wanted = matcher.hits(question.answers, keys, [p.text for p in read])
      wanted[label] = False
      assert row.tolist() == wanted
      masked += sum(wanted)
  assert masked


def test_sources_have_weights(tiny_config, mined_workdir, model, monkeypatch):
  """The second part of the training questions, as if it were another file."""
  count = len(prepare.open_questions(mined_workdir, "train"))
  sizes = {"a": count - 8, "b": 8}
  monkeypatch.setattr(prepare, "source_sizes", lambda workdir: sizes)
  config = _config(
    tiny_config, source_weights=(1.0, 3.0), max_steps=0, epochs=1.0
  )
  source = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  assert source.plan.questions == count + 16
  assert len(source) == -(-(count + 16) // config.train.batch_size)
  config.train.one_source_batches = True
  source = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  for step in range(len(source)):
    indexes, _ = source.plan.rows(step)
    assert len(set((indexes >= count - 8).tolist())) == 1
  assert source[0]["question_rows"].shape == (config.train.batch_size,)


def test_bad_settings(tiny_config, fresh_workdir, model):
  """Each with its key, its value and what to do."""
  for settings, message in (
    ({"negatives": "model"}, "run `dpr-jax mine --from=model` with --workdir"),
    ({"negatives_from": "/nowhere"}, "negatives_from='/nowhere': /nowhere/neg"),
    ({"negatives": "bm25:2"}, "hard_negatives=1: set config.train.hard_nega"),
    ({"rounds": 2}, "would not be used by config.train.negatives='bm25'"),
    ({"rounds": 7, "negatives": "model"}, "rounds=7: the run has only 6"),
    ({"rounds": 0}, "rounds=0: must be >= 1"),
    ({"hard_negatives_from_top": 0}, "hard_negatives_from_top=0: must be >="),
  ):
    config = _config(tiny_config, **settings)
    with pytest.raises(errors.InputError, match=message):
      retriever_batches.make_source(config, fresh_workdir, model)
  config = _config(tiny_config, mask_answers=True)
  config.evaluate.match = "regex"
  with pytest.raises(errors.InputError, match="evaluate.match='regex': set"):
    retriever_batches.make_source(config, fresh_workdir, model)
  assert not fresh_workdir.training.exists()


def test_negatives_of_other_data(
  tiny_config, fresh_workdir, trained_workdir, model
):
  """Other bytes from the same sources will do; other sources will not."""
  path = fresh_workdir.data / "manifest.json"
  manifest = workdir_lib.read_record(path)
  manifest["files"] |= {  # of which none is compared before it is used
    name: "changed"
    for name in manifest["files"]
    if name.startswith("train/") and "array_record" in name
  }
  workdir_lib.write_record(path, manifest)
  elsewhere = str(trained_workdir.root)
  config = _config(tiny_config, negatives_from=elsewhere)
  retriever_batches.make_source(config, fresh_workdir, model)
  own = _config(tiny_config)
  with pytest.raises(errors.InputError, match="mined from other train data"):
    retriever_batches.make_source(own, fresh_workdir, model)
  for key, values in (
    ("inputs", {"train": "other"}),
    ("counts", {"train_read": 63}),
    ("config", {"data": {"max_passages": 7}}),
  ):
    workdir_lib.write_record(path, manifest | {key: manifest[key] | values})
    with pytest.raises(errors.InputError, match="the same files and limits"):
      retriever_batches.make_source(config, fresh_workdir, model)


def test_batches_from_the_store_are_those_from_texts(
  tiny_config, fresh_workdir, model
):
  """Token ids of the store, also cut shorter than it: the same bytes."""
  config = copy.deepcopy(tiny_config)
  for length in (0, 20):
    config.train.passage_length = length
    found, wanted = (
      retriever_batches.make_source(config, fresh_workdir, model, store=store)
      for store in (True, False)
    )
    assert found.tokens is not None
    assert wanted.tokens is None
    for step in (0, 5):
      jax.tree.map(np.testing.assert_array_equal, found[step], wanted[step])
  assert (fresh_workdir.tokens / "manifest.json").exists()
