"""Hard negatives: what is kept, what is left out, and the file."""

import gzip
import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  records,
  same_passages,
)
from dpr_jax.index import faiss_stage
from dpr_jax.retrieval import bm25, dense_rankers, mine

PARIS = "What is the capital of France?"


def _mine(world):
  mine.mine(world.config, world.workdir)
  manifest = workdir_lib.read_manifest(world.workdir.negatives, "mine")
  return manifest, {
    split: mined_negatives.read(world.workdir.negatives / name, count)
    for split, name in mined_negatives.FILES.items()
    for count in [len(world.questions[split])]
  }


def test_negatives_hold_no_answer_and_no_gold(world):
  manifest, negatives = _mine(world)
  texts = {passage.id: passage.text for passage in world.passages}
  first, second, third, fourth = negatives["train"]
  assert not {"p0", "p5", "p7"} & set(first)  # "Paris" is in all of them
  assert first[0] == "p1"  # not Paris, and France and capital are in it
  assert set(first) == {"p1", "p2", "p4", "p8"}
  assert "p3" not in second  # "in the north"
  assert third == []  # no word is known
  assert "p2" in fourth  # nothing is known to be wrong about it
  for ids, question in zip(
    negatives["train"], world.questions["train"], strict=True
  ):
    for identifier in ids:
      assert not answer_matching.has_answer(question.answers, texts[identifier])
  assert negatives["dev"] == negatives["train"][:2]
  assert manifest["counts"] == {
    "train_questions": 4,
    "train_fewer_than_keep": 4,
    "train_without_negatives": 1,
    "train_no_answers": 1,
    "dev_questions": 2,
    "dev_fewer_than_keep": 2,
    "dev_without_negatives": 0,
    "dev_no_answers": 0,
  }


def test_gold_is_left_out_by_id_and_by_text(world):
  """Without answers only the gold passage and its copy are left out."""
  gold = world.passages[0]
  # Four questions with the same words for BM25.
  world.questions["train"][:] = [
    records.Question(PARIS, (), (gold,)),
    records.Question(f"{PARIS}!", (), (records.Passage("", "", gold.text),)),
    records.Question(f"{PARIS}!!", (), (records.Passage("p0", "", "other"),)),
    records.Question(f"{PARIS}!!!", (), ()),
  ]
  world.prepare("2")
  by_both, by_text, by_id, neither = _mine(world)[1]["train"]
  assert {"p0", "p7"} <= set(neither)
  assert by_both == by_text == [i for i in neither if i not in ("p0", "p7")]
  assert by_id == [i for i in neither if i != "p0"]


def test_positives_of_every_row_with_the_question_are_left_out(world):
  """Whatever its white space; another question has negatives of its own.

  "capital" or "France" are in p0, p1, p2, p4, p7 and p8.
  """
  paris, rome = world.passages[0], world.passages[2]
  far = records.Passage(
    "", "elsewhere", "LYON is a large city of France, not the capital."
  )
  world.questions["train"][:] = [
    records.Question(PARIS, (), (paris,)),
    records.Question("What is the  capital of France? ", (), (rome, far)),
    records.Question(PARIS.upper(), (), (rome,)),
  ]
  world.prepare("2")
  first, second, other = _mine(world)[1]["train"]
  # Left out: p0 and p2 by their rows, p7 and p1 by their texts.
  assert sorted(first) == sorted(second) == ["p4", "p8"]
  assert sorted(other) == ["p0", "p1", "p4", "p7", "p8"]


def test_copies_of_positives_are_left_out(world, monkeypatch):
  """By `prepare`'s list: row 8 is a copy of row 4, row 7 of row 0."""
  copies = same_passages.Copies(np.array([7, 8]), np.array([0, 4]))
  monkeypatch.setattr(same_passages, "open_copies", lambda place: copies)
  world.questions["train"][:] = [
    records.Question(PARIS, (), (records.Passage("p8", "", "other"),)),
    records.Question(PARIS, (), (records.Passage("p7", "", "another"),)),
    records.Question("Is Rome the capital of Italy?", (), (world.passages[2],)),
  ]
  world.prepare("2")
  first, second, third = _mine(world)[1]["train"]
  assert sorted(first) == sorted(second) == ["p1", "p2"]
  assert sorted(third) == ["p0", "p1", "p3", "p4", "p7", "p8"]  # p3: "Italy"


def test_keep_and_depth(world):
  full = _mine(world)[1]["train"]
  world.config.mine.keep = 2
  assert _mine(world)[1]["train"] == [ids[:2] for ids in full]
  world.config.mine.update(keep=30, depth=3)
  index = bm25.build_or_load(world.config, world.workdir)
  rows, _ = index.search([PARIS], 3)
  seen = {f"p{row}" for row in rows[0]}
  assert _mine(world)[1]["train"][0] == [i for i in full[0] if i in seen]


def test_output_of_versions_without_filters_stays(world):
  """Their record is that of the defaults; their file has no scores."""
  manifest, negatives = _mine(world)
  assert manifest["config"] == {
    "bm25": {"k1": 0.9, "b": 0.4, "stemmer": "english", "stopwords": "en"},
    "mine": {"depth": 100, "keep": 30},
    "match": "string",
  }
  folder = world.workdir.negatives
  path = folder / "bm25.jsonl.gz"
  lines = [{"question": "q", "hard_negatives": i} for i in negatives["train"]]
  older = gzip.compress("".join(f"{json.dumps(x)}\n" for x in lines).encode())
  path.write_bytes(older)
  del manifest["false_negatives"]
  manifest["files"][path.name] = workdir_lib.fingerprint_file(path)
  workdir_lib.write_record(folder / "manifest.json", manifest)
  assert _mine(world)[1] == negatives
  assert path.read_bytes() == older


def test_filters_choose_among_the_ranks(world):
  """The first two ranks are left out, then the best scores, then a draw."""
  index = bm25.build_or_load(world.config, world.workdir)
  rows, scores = index.search([PARIS], 9)
  full = set(_mine(world)[1]["train"][0])  # p1, p2, p4 and p8
  ranked = [
    (f"p{row}", score)
    for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
  ]
  assert "p1" in dict(ranked[:3])
  world.config.mine.range_min = 3
  wanted = [name for name, _ in ranked[3:] if name in full]
  assert 0 < len(wanted) < 4
  assert _mine(world)[1]["train"][0] == wanted
  world.config.mine.update(range_min=0, max_score=dict(ranked)["p1"] - 1e-3)
  wanted = [name for name, _ in ranked if name in full and name != "p1"]
  assert _mine(world)[1]["train"][0] == wanted
  world.config.mine.update(max_score="none", sampling="random", keep=2)
  left = [name for name, _ in ranked if name in full]
  drawn = []
  for world.config.seed in range(9):
    key = (world.config.seed, 7, same_passages.text_digest(PARIS))
    places = np.random.default_rng(key).choice(4, 2, replace=False)
    drawn.append([left[place] for place in sorted(places)])
    assert _mine(world)[1]["train"][0] == drawn[-1]
  assert len({tuple(ids) for ids in drawn}) > 2


def test_false_negatives_are_in_the_manifest(world):
  """Of train the first two questions have answers, of dev both: p1 has one."""
  lyon = records.Question(PARIS, ("Lyon",), (world.passages[0],))
  world.questions["train"][0] = world.questions["dev"][0] = lyon
  world.questions["train"][2] = records.Question("zzz", ())
  world.prepare("2")
  measured = _mine(world)[0]["false_negatives"]
  assert measured["train"]["questions"] == 2
  assert measured["dev"]["questions_with_positive_score"] == 1
  index = bm25.build_or_load(world.config, world.workdir)
  candidates = answered = 0
  for question, gold in zip(world.questions["dev"], (0, -1), strict=True):
    rows, _ = index.search([question.question], 9)
    # p7 has the text of the positive of the first question.
    rows = [r for r in rows[0] if r >= 0 and not (gold == 0 and r in (0, 7))]
    candidates += len(rows)
    answered += sum(
      answer_matching.has_answer(question.answers, world.passages[r].text)
      for r in rows
    )
  assert answered == 1
  assert measured["dev"]["best"][2] == {
    "filters": "no margin",
    "passages": 30,
    "candidates": candidates,
    "with_answer": answered,
  }


def test_order_is_that_of_bm25(world):
  ids = _mine(world)[1]["train"][0]
  index = bm25.build_or_load(world.config, world.workdir)
  rows, _ = index.search([PARIS], 100)
  ranked = [f"p{row}" for row in rows[0]]
  assert ids == [identifier for identifier in ranked if identifier in ids]


def test_regex_answers_are_matched_as_such(world):
  world.questions["train"][0] = records.Question(PARIS, ("Lyo+n",))
  world.prepare("2")
  assert "p1" in _mine(world)[1]["train"][0]
  world.config.evaluate.match = "regex"
  assert "p1" not in _mine(world)[1]["train"][0]


def test_same_bytes_and_skipped_when_done(world):
  _mine(world)
  path = world.workdir.negatives / "bm25.jsonl.gz"
  before, time = path.read_bytes(), path.stat().st_mtime_ns
  mine.mine(world.config, world.workdir)
  assert path.stat().st_mtime_ns == time
  mine.mine(world.config, world.workdir, overwrite=True)
  assert path.stat().st_mtime_ns != time
  assert path.read_bytes() == before
  lines = gzip.decompress(before).decode().splitlines()
  assert json.loads(lines[0])["question"] == PARIS
  assert sorted(p.name for p in world.workdir.negatives.iterdir()) == [
    "bm25-dev.jsonl.gz",
    "bm25.jsonl.gz",
    "manifest.json",
  ]


def test_without_a_dev_set(world):
  (world.workdir.data / "dev").rmdir()
  mine.mine(world.config, world.workdir)
  assert not (world.workdir.negatives / "bm25-dev.jsonl.gz").exists()
  assert (world.workdir.negatives / "bm25.jsonl.gz").exists()


def _mine_from_model(world, **options):
  mine.mine(world.config, world.workdir, ranker="model", **options)
  return {
    split: mined_negatives.read(
      world.workdir.negatives / name, len(world.questions[split])
    )
    for split, name in mined_negatives.files("model").items()
  }


def test_the_model_mines_beside_bm25(world):
  """The same filters on the order of its index; BM25's stay as they are."""
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  world.config.mine.depth = 5
  of_bm25 = _mine(world)[1]
  found = _mine_from_model(world)
  ranker = dense_rankers.load_dense(world.workdir, "dense", "Flat", 9)
  texts = {passage.id: passage.text for passage in world.passages}
  for split, questions in world.questions.items():
    rows, _ = ranker.search([q.question for q in questions], 5)
    for question, ranked, ids in zip(
      questions, rows, found[split], strict=True
    ):
      assert ids == [
        f"p{row}"
        for row in ranked
        if not answer_matching.has_answer(question.answers, texts[f"p{row}"])
      ]
  assert found["train"] != of_bm25["train"]
  assert _mine(world)[1] == of_bm25
  folder = world.workdir.negatives
  assert sorted(path.name for path in folder.iterdir()) == [
    "bm25-dev.jsonl.gz",
    "bm25.jsonl.gz",
    "manifest.json",
    "model-dev.jsonl.gz",
    "model.jsonl.gz",
    "model.manifest.json",
  ]
  for ranker in ("bm25", "model"):
    path = folder / mined_negatives.files(ranker)["train"]
    assert set(mined_negatives.manifest_of(path)["files"]) == set(
      mined_negatives.files(ranker).values()
    )
  manifest = mined_negatives.manifest_of(folder / "model.jsonl.gz")
  assert manifest["inputs"]["model"] == "model-1"
  assert manifest["counts"]["train_questions"] == 4


def test_the_model_mines_again_when_it_is_another(world, monkeypatch):
  """Skipped when done; trained anew: first embed and index again."""
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  _mine_from_model(world)
  path = world.workdir.negatives / "model.jsonl.gz"
  time = path.stat().st_mtime_ns
  _mine_from_model(world)
  assert path.stat().st_mtime_ns == time
  world.embed(fingerprint="model-2")
  with pytest.raises(errors.InputError, match="made from other vectors"):
    _mine_from_model(world)
  with pytest.raises(errors.InputError, match="holds vectors of model model-2"):
    faiss_stage.index(world.config, world.workdir)
  monkeypatch.setattr(faiss_stage, "_encoder", lambda *_: None)
  faiss_stage.index(world.config, world.workdir)
  with pytest.raises(errors.InputError, match="vectors of model model-2"):
    _mine_from_model(world)  # whose encoder is model-1


def test_messages_name_the_command_that_mends(world):
  """For either ranker its own."""
  with pytest.raises(errors.InputError, match="'dense': must be one of bm25, "):
    mine.mine(world.config, world.workdir, ranker="dense")
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    _mine_from_model(world)
  world.embed()
  with pytest.raises(errors.InputError, match="run `dpr-jax index`"):
    _mine_from_model(world)
  faiss_stage.index(world.config, world.workdir)
  path = world.workdir.negatives / "model.jsonl.gz"
  with pytest.raises(
    errors.InputError, match="run `dpr-jax mine --from=model`"
  ):
    mined_negatives.fingerprint_of(path)
  _mine_from_model(world)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(
    errors.InputError, match="run `dpr-jax mine --from=model --overwrite`"
  ):
    mined_negatives.read(path)


def test_fingerprint_is_of_the_work_not_of_the_day(world):
  """As of a stage's manifest; another when the settings are others."""
  _mine(world)
  folder = world.workdir.negatives
  path = folder / "bm25.jsonl.gz"
  first = mined_negatives.fingerprint_of(path)
  assert first == workdir_lib.manifest_fingerprint(folder, "mine")
  manifest = workdir_lib.read_record(folder / "manifest.json")
  workdir_lib.write_record(
    folder / "manifest.json", manifest | {"created": "now"}
  )
  assert mined_negatives.fingerprint_of(path) == first
  world.config.mine.keep = 3
  _mine(world)
  assert mined_negatives.fingerprint_of(path) != first


def test_bad_settings_are_refused(world):
  world.config.mine.depth = 0
  with pytest.raises(errors.InputError, match=r"mine\.depth=0"):
    mine.mine(world.config, world.workdir)


def test_damaged_negatives_are_refused(world):
  _mine(world)
  path = world.workdir.negatives / "bm25.jsonl.gz"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.InputError, match="is not the file"):
    mined_negatives.read(path)
