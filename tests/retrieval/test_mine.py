"""Hard negatives: what is kept, what is left out, and the file."""

import gzip
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, records
from dpr_jax.index import faiss_stage
from dpr_jax.retrieval import bm25, mine, retrievers

PARIS = "What is the capital of France?"


def _mine(world):
  mine.mine(world.config, world.workdir)
  manifest = workdir_lib.read_manifest(world.workdir.negatives, "mine")
  return manifest, {
    split: mine.read_negatives(world.workdir.negatives / name, count)
    for split, name in mine.FILES.items()
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
  world.questions["train"][:] = [
    records.Question(PARIS, (), (gold,)),
    records.Question(PARIS, (), (records.Passage("", "", gold.text),)),
    records.Question(PARIS, (), (records.Passage("p0", "", "other"),)),
    records.Question(PARIS, (), ()),
  ]
  world.prepare("2")
  by_both, by_text, by_id, neither = _mine(world)[1]["train"]
  assert {"p0", "p7"} <= set(neither)
  assert by_both == by_text == [i for i in neither if i not in ("p0", "p7")]
  assert by_id == [i for i in neither if i != "p0"]


def test_keep_and_depth(world):
  full = _mine(world)[1]["train"]
  world.config.mine.keep = 2
  assert _mine(world)[1]["train"] == [ids[:2] for ids in full]
  world.config.mine.update(keep=30, depth=3)
  index = bm25.build_or_load(world.config, world.workdir)
  rows, _ = index.search([PARIS], 3)
  seen = {f"p{row}" for row in rows[0]}
  assert _mine(world)[1]["train"][0] == [i for i in full[0] if i in seen]


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
    split: mine.read_negatives(
      world.workdir.negatives / name, len(world.questions[split])
    )
    for split, name in mine.files("model").items()
  }


def test_the_model_mines_beside_bm25(world):
  """The same filters on the order of its index; BM25's stay as they are."""
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  world.config.mine.depth = 5
  of_bm25 = _mine(world)[1]
  found = _mine_from_model(world)
  ranker = retrievers.load_dense(world.workdir, "dense", "Flat", 9)
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
  for ranker in mine.RANKERS:
    path = folder / mine.files(ranker)["train"]
    assert set(mine.manifest_of(path)["files"]) == set(
      mine.files(ranker).values()
    )
  manifest = mine.manifest_of(folder / "model.jsonl.gz")
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
    mine.fingerprint_of(path)
  _mine_from_model(world)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(
    errors.InputError, match="run `dpr-jax mine --from=model --overwrite`"
  ):
    mine.read_negatives(path)


def test_fingerprint_is_of_the_work_not_of_the_day(world):
  """As of a stage's manifest; another when the settings are others."""
  _mine(world)
  folder = world.workdir.negatives
  path = folder / "bm25.jsonl.gz"
  first = mine.fingerprint_of(path)
  assert first == workdir_lib.manifest_fingerprint(folder, "mine")
  manifest = workdir_lib.read_record(folder / "manifest.json")
  workdir_lib.write_record(
    folder / "manifest.json", manifest | {"created": "now"}
  )
  assert mine.fingerprint_of(path) == first
  world.config.mine.keep = 3
  _mine(world)
  assert mine.fingerprint_of(path) != first


def test_bad_settings_are_refused(world):
  world.config.mine.depth = 0
  with pytest.raises(errors.InputError, match=r"mine\.depth=0"):
    mine.mine(world.config, world.workdir)


def test_damaged_negatives_are_refused(world):
  _mine(world)
  path = world.workdir.negatives / "bm25.jsonl.gz"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.InputError, match="is not the file"):
    mine.read_negatives(path)


def test_read_negatives_of_other_questions(tmp_path):
  path = tmp_path / "mine.jsonl"
  path.write_text('{"hard_negatives": ["a"]}\n')
  assert mine.read_negatives(path) == mine.read_negatives(path, 1)
  with pytest.raises(errors.InputError, match="1 lines for 2 questions"):
    mine.read_negatives(path, 2)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("nonsense\n", "line 1: 'nonsense'"),
    ('{"hard_negatives": []}\n{"x": 1}\n', "line 2"),
    ("[]\n", "line 1"),
    ('{"hard_negatives": [3]}\n', r"hard_negatives=\[3\] must be a list"),
    ('{"hard_negatives": "ab"}\n', "hard_negatives=ab must be a list"),
  ],
)
def test_malformed_lines_are_refused(tmp_path, content, message):
  path = tmp_path / "mine.jsonl"
  path.write_text(content)
  with pytest.raises(errors.InputError, match=message):
    mine.read_negatives(path)


def test_missing_and_cut_off_files_are_refused(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  with pytest.raises(errors.InputError, match="dpr-jax mine"):
    mine.read_negatives(path)
  path.write_bytes(gzip.compress(b'{"hard_negatives": []}\n' * 99)[:-12])
  with pytest.raises(errors.InputError, match="after line"):
    mine.read_negatives(path)
  path.write_bytes(b"not gzip")
  with pytest.raises(errors.InputError, match="after line 0"):
    mine.read_negatives(path)


def test_cache_reads_each_passage_once(make_table):
  class Counting(make_table):
    taken = []

    def take(self, rows):
      self.taken.extend(rows)
      return super().take(rows)

  table = Counting(records.Passage(str(i), "", "") for i in range(10))
  cache = mine.PassageCache(table, size=4)
  assert cache.take([3, 1, 3])[3].id == "3"
  assert list(cache.take([1, 2])) == [1, 2]
  assert table.taken == [1, 3, 2]
  found = cache.take([0, 1, 5])  # full: it starts anew
  assert {row: passage.id for row, passage in found.items()} == {
    0: "0",
    1: "1",
    5: "5",
  }
