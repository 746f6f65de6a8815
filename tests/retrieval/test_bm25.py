"""BM25: the formula by hand, ties, files, and the published figures."""

import csv
import gzip
import json
import math
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, records
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.retrieval import (
  bm25,
  bm25_parameters,
  bm25_parts,
  mine,
  text_analysis,
)
from tests import retrieval_world

DEFAULTS = {"k1": 0.9, "b": 0.4, "stopwords": "en", "stemmer": "english"}
PLAIN = {**DEFAULTS, "stopwords": "", "stemmer": ""}


def _build(make_table, texts, **parameters):
  passages = make_table(
    records.Passage(str(i), "", text) for i, text in enumerate(texts)
  )
  return retrieval_world.bm25_index(passages, **(PLAIN | parameters))


def _by_hand(documents, question, k1, b):
  """Lucene's formula, word by word."""
  documents = [document.split() for document in documents]
  mean = sum(map(len, documents)) / len(documents)
  scores = []
  for document in documents:
    score = 0.0
    for word in question.split():
      n = sum(word in other for other in documents)
      idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
      tf = document.count(word)
      norm = k1 * (1 - b + b * len(document) / mean)
      score += idf * tf / (tf + norm) if tf else 0.0
    scores.append(score)
  return np.array(scores)


_WORDS = ["aa", "bb", "cc", "dd", "ee", "ff"]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  documents=strategies.lists(
    strategies.lists(strategies.sampled_from(_WORDS), max_size=8),
    min_size=1,
    max_size=6,
  ).filter(any),
  question=strategies.lists(strategies.sampled_from(_WORDS), max_size=4),
  k1=strategies.floats(0.1, 3),
  b=strategies.floats(0, 1),
)
def test_scores_are_those_of_the_formula(documents, question, k1, b):
  texts = [" ".join(document) for document in documents]
  table = _Passages(records.Passage("", "", text) for text in texts)
  index = retrieval_world.bm25_index(table, **(PLAIN | {"k1": k1, "b": b}))
  rows, scores = index.search([" ".join(question)], 10)
  expected = _by_hand(texts, " ".join(question), k1, b)
  assert rows.shape == scores.shape == (1, len(documents))
  found = rows[0][rows[0] >= 0]
  assert set(found) == set(np.flatnonzero(expected))
  np.testing.assert_allclose(
    scores[0][: len(found)], expected[found], rtol=1e-5
  )
  assert (np.diff(scores[0]) <= 0).all()


class _Passages(list):
  def take(self, rows):
    return [self[row] for row in rows]


def test_title_is_searched_and_words_are_stemmed(make_table):
  passages = make_table(
    [
      records.Passage("a", "Running", "something else"),
      records.Passage("b", "", "the other one"),
    ]
  )
  index = retrieval_world.bm25_index(passages, **DEFAULTS)
  rows, scores = index.search(["Who RUNS?", "the", "others"], 2)
  assert rows.tolist() == [[0, -1], [-1, -1], [1, -1]]
  assert scores[0, 0] > 0
  assert scores[0, 1] == scores[1, 0] == 0


def test_equal_scores_stand_in_the_order_of_rows(make_table):
  index = _build(make_table, ["aa bb", "aa", "cc aa", "aa bb", "aa"] * 50)
  rows, scores = index.search(["aa", "bb"], 120)
  assert rows[0, :100].tolist() == [r for r in range(250) if r % 5 in (1, 4)]
  # The list is cut within equal scores: the first rows are in it.
  assert (
    rows[0, 100:].tolist() == [r for r in range(250) if r % 5 in (0, 2, 3)][:20]
  )
  assert rows[1, :100].tolist() == [r for r in range(250) if r % 5 in (0, 3)]
  assert rows[1, 100:].tolist() == [-1] * 20
  again = index.search(["aa", "bb"], 7)
  np.testing.assert_array_equal(again[0], rows[:, :7])
  np.testing.assert_array_equal(again[1], scores[:, :7])


@hypothesis.given(
  scores=strategies.lists(strategies.sampled_from([0.0, 0.5, 1.0, 2.0])),
  k=strategies.integers(1, 8),
)
def test_best_rows_equals_a_full_sort(scores, k):
  scores = np.array(scores, np.float32)
  order = sorted(np.flatnonzero(scores), key=lambda row: (-scores[row], row))
  rows, values = bm25_parts.best_rows(scores, k)
  assert rows.tolist() == order[:k]
  assert values.tolist() == scores[order[:k]].tolist()


def test_a_question_without_known_words_has_no_hits(make_table):
  index = _build(make_table, ["aa bb", "cc"])
  rows, scores = index.search(["", "zz", "!?", "a"], 5)
  assert (rows == -1).all()
  assert (scores == 0).all()
  assert rows.shape == (4, 2)  # no more columns than passages
  assert index.search([], 5)[0].shape == (0, 2)


def test_saved_index_finds_the_same(make_table, tmp_path):
  texts = ["aa bb", "", "cc aa \u00e9t\u00e9", "bb bb \u6771\u4eac"]
  index = _build(make_table, texts)
  passages = make_table(records.Passage("", "", text) for text in texts)
  assert bm25.write(tmp_path, passages, bm25.Parameters(**PLAIN)) == 4
  loaded = bm25.BM25Index.load(tmp_path)
  assert loaded.parameters == index.parameters
  assert len(loaded) == 4
  questions = ["aa bb", "\u00c9T\u00c9", "\u6771\u4eac", "bb"]
  for ours, theirs in zip(
    index.search(questions, 4), loaded.search(questions, 4), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("texts", [[], [""], ["the of and", "a"]])
def test_a_corpus_without_words_is_refused(make_table, texts):
  with pytest.raises(errors.InputError, match=r"config\.data\.passages"):
    _build(make_table, texts, stopwords="en")


@pytest.mark.parametrize(
  ("parameter", "value", "message"),
  [
    ("stemmer", "klingon", "config.bm25.stemmer='klingon'.*english"),
    ("stopwords", "xx", "config.bm25.stopwords='xx'"),
    ("k1", -1.0, "config.bm25.k1=-1.0"),
    ("k1", math.nan, "config.bm25.k1=nan"),
    ("b", 1.5, "config.bm25.b=1.5"),
  ],
)
def test_bad_parameters_are_refused(make_table, parameter, value, message):
  with pytest.raises(errors.InputError, match=message):
    _build(make_table, ["aa"], **{parameter: value})


@pytest.mark.processes
def test_import_leaves_jax_alone(repository):
  """bm25s starts JAX when imported: too early for our command line."""
  code = (
    "import sys, dpr_jax.retrieval.mine;"
    "sys.exit('bm25s' in sys.modules or 'jax' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


@pytest.mark.processes
def test_the_bytes_do_not_depend_on_the_process(tmp_path, repository):
  code = """
import pathlib, sys
from dpr_jax.data import records
from dpr_jax.retrieval import bm25, mine, text_analysis
class Table(list):
  def take(self, rows):
    return [self[row] for row in rows]
words = "one two three four five six seven eight nine ten eleven".split()
table = Table(
  records.Passage("", "", " ".join(words[i % 4 :])) for i in range(9))
parameters = bm25.Parameters(0.9, 0.4, "en", "english")
assert bm25.write(pathlib.Path(sys.argv[1]), table, parameters) == 9
"""
  for seed in "01":
    (tmp_path / seed).mkdir()
    subprocess.run(
      [sys.executable, "-c", code, tmp_path / seed],
      check=True,
      cwd=repository,
      env={"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
    )
  for path in sorted((tmp_path / "0").iterdir()):
    assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes()


def test_build_or_load_builds_once(world, monkeypatch):
  index = bm25.build_or_load(world.config, world.workdir)
  manifest = workdir_lib.read_manifest(world.workdir.bm25, "bm25")
  assert manifest["config"]["bm25"]["k1"] == 0.9
  assert manifest["counts"]["passages"] == len(world.passages)
  assert set(manifest["files"]) >= {bm25_parameters.FILE, "words.npy"}
  with monkeypatch.context() as patch:
    patch.setattr(bm25, "write", None)
    loaded = bm25.build_or_load(world.config, world.workdir)
  for ours, theirs in zip(
    index.search(["capital of France"], 5),
    loaded.search(["capital of France"], 5),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)
  world.config.bm25.k1 = 1.2
  changed = bm25.build_or_load(world.config, world.workdir)
  assert changed.parameters.k1 == 1.2
  world.passages.pop()
  world.prepare("2")
  assert len(bm25.build_or_load(world.config, world.workdir)) == 8


def test_damaged_index_is_refused(world):
  bm25.build_or_load(world.config, world.workdir)
  path = world.workdir.bm25 / "scores-00000.npy"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(errors.InputError, match="scores-00000.npy is not"):
    bm25.load_checked(world.workdir)
  path.unlink()
  with pytest.raises(errors.InputError, match="scores-00000.npy is missing"):
    bm25.load_checked(world.workdir)
  bm25.build_or_load(world.config, world.workdir)  # which makes it again
  content[-1] ^= 1
  assert path.read_bytes() == content


def test_an_index_of_another_corpus_is_refused(world):
  """Of as many passages in another order: both fingerprints are named."""
  bm25.build_or_load(world.config, world.workdir)
  before = workdir_lib.dataset_inputs(world.workdir, "passages")["passages"]
  world.prepare("2")
  after = workdir_lib.dataset_inputs(world.workdir, "passages")["passages"]
  with pytest.raises(errors.InputError) as raised:
    bm25.load_checked(world.workdir)
  assert before[:12] in str(raised.value)
  assert after[:12] in str(raised.value)


def test_load_of_something_else_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match=bm25_parameters.FILE):
    bm25.BM25Index.load(tmp_path)
  parameters = {"k1": 1.0, "b": 0.4, "stopwords": "", "stemmer": ""}
  parameters["words"] = text_analysis.VERSION
  workdir_lib.write_json(tmp_path / bm25_parameters.FILE, parameters)
  with pytest.raises(errors.InputError, match="not a BM25 index"):
    bm25.BM25Index.load(tmp_path)
  workdir_lib.write_json(tmp_path / bm25_parameters.FILE, [1])
  with pytest.raises(errors.InputError, match="not a BM25 index"):
    bm25.BM25Index.load(tmp_path)


def _as_an_older_version_left_it(folder, stage):
  """Of one that split texts at spaces, and recorded no text analysis."""
  manifest = workdir_lib.read_manifest(folder, stage)
  del manifest["inputs"]["text_analysis"]
  path = folder / bm25_parameters.FILE
  if path.exists():
    older = workdir_lib.read_json(path)
    del older["words"], older["one_letter_words"]
    workdir_lib.write_json(path, older)
    manifest["files"][path.name] = workdir_lib.fingerprint_file(path)
  workdir_lib.write_record(folder / workdir_lib.MANIFEST, manifest)


def test_an_index_of_an_older_version(world, caplog):
  """It is refused by who only reads, and built again by who may."""
  caplog.set_level("INFO")
  place = world.workdir
  bm25.build_or_load(world.config, place)
  before = workdir_lib.read_manifest(place.bm25, "bm25")
  _as_an_older_version_left_it(place.bm25, "bm25")
  with pytest.raises(errors.InputError, match="retrieve --method=bm25`") as e:
    bm25.load_checked(place)
  assert "of an older version" in str(e.value)
  bm25.build_or_load(world.config, place)
  assert (
    "bm25: running again, because of text_analysis (was None, is"
    f" {workdir_lib.short(text_analysis.VERSION)})"
  ) in caplog.text
  after = workdir_lib.read_manifest(place.bm25, "bm25")
  assert after["inputs"]["text_analysis"] == text_analysis.VERSION
  assert after["files"] == before["files"]
  assert len(bm25.load_checked(place)) == len(world.passages)


def test_results_of_an_older_version_are_made_again(ready, caplog):
  caplog.set_level("INFO")
  ready.retrieve(methods=["bm25", "dense"])
  path = ready.workdir.results("dev", "bm25").with_suffix(".manifest.json")
  manifest = workdir_lib.read_record(path)
  del manifest["inputs"]["text_analysis"]
  workdir_lib.write_record(path, manifest)
  ready.retrieve(methods=["bm25", "dense"])
  assert caplog.text.count("running again, because of text_analysis") == 1


@pytest.mark.parametrize("trained", [False, True])
def test_negatives_of_an_older_version(world, caplog, trained):
  """They are mined again, unless a training has begun with them."""
  caplog.set_level("INFO")
  folder = world.workdir.negatives
  mine.mine(world.config, world.workdir)
  _as_an_older_version_left_it(folder, "mine")
  before = workdir_lib.manifest_fingerprint(folder, "mine")
  if trained:
    workdir_lib.write_record(world.workdir.training / "started.json", {})
  mine.mine(world.config, world.workdir)
  after = workdir_lib.manifest_fingerprint(folder, "mine")
  assert (before == after) == trained
  again = "mine: running again, because of text_analysis" in caplog.text
  stays = "because a training run uses it" in caplog.text
  assert (again, stays) == (not trained, trained)
  world.config.mine.keep = 2  # what is mined anew is of this version
  mine.mine(world.config, world.workdir)
  assert "running again, because of mine.keep (was" in caplog.text
  manifest = workdir_lib.read_manifest(folder, "mine")
  assert manifest["inputs"]["text_analysis"] == text_analysis.VERSION


def test_negatives_are_mined_again_where_a_user_says_so(world):
  folder = world.workdir.negatives
  mine.mine(world.config, world.workdir)
  _as_an_older_version_left_it(folder, "mine")
  workdir_lib.write_record(world.workdir.training / "started.json", {})
  mine.mine(world.config, world.workdir, overwrite=True)
  manifest = workdir_lib.read_manifest(folder, "mine")
  assert manifest["inputs"]["text_analysis"] == text_analysis.VERSION


def test_a_setting_that_is_new_changes_nothing_by_itself(world):
  settings, _ = bm25.depends_on(world.config)
  assert "one_letter_words" not in settings["bm25"]
  world.config.bm25.one_letter_words = True
  settings, _ = bm25.depends_on(world.config)
  assert settings["bm25"]["one_letter_words"] is True
  index = bm25.build_or_load(world.config, world.workdir)
  assert index.parameters.one_letter_words
  assert bm25.load_checked(world.workdir).parameters == index.parameters


@pytest.mark.parametrize(("without", "warns"), [(1, False), (2, True)])
def test_questions_without_hits_are_told(ready, caplog, without, warns):
  """One of 20 is 5 %, and as it should be; two are too many."""
  questions = [records.Question("Where is Paris?")] * (20 - without)
  questions += [records.Question("qqq zzz")] * without
  ready.questions["dev"][:] = questions
  ready.retrieve(methods=["bm25", "dense"])
  mine.mine(ready.config, ready.workdir)
  line = f"{without} of 20 questions share no word with any passage"
  assert caplog.text.count(f"retrieve: bm25: {line}") == warns
  assert caplog.text.count(f"mine: {line}") == warns


@pytest.mark.slow
def test_figures_on_real_data(data_folder):
  """The measured figures in the data's README, within half a point."""
  path = data_folder / "nq" / "psgs_w100.tsv.gz"
  with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
    reader = csv.DictReader(file, delimiter="\t")
    passages = _Passages(
      records.Passage(row["id"], row["title"], row["text"]) for row in reader
    )
  path = data_folder / "nq" / "nq-dev.json.gz"
  with gzip.open(path, "rt", encoding="utf-8") as file:
    questions = json.load(file)
  index = retrieval_world.bm25_index(passages, **DEFAULTS)
  rows, _ = index.search([entry["question"] for entry in questions], 100)
  matcher = answer_matching.AnswerMatcher()
  answer_ranks, gold_ranks = [], []
  for entry, ranked in zip(questions, rows, strict=True):
    ranked = ranked[ranked >= 0].tolist()
    texts = [passages[row].text for row in ranked]
    hits = matcher.hits(entry["answers"], ranked, texts)
    answer_ranks.append(hits.index(True) if any(hits) else None)
    gold = {str(positive["passage_id"]) for positive in entry["positive_ctxs"]}
    hits = [passages[row].id in gold for row in ranked]
    gold_ranks.append(hits.index(True) if any(hits) else None)
  ks = (1, 5, 20, 100)
  found = evaluate_lib.top_k_accuracy(answer_ranks, ks)
  expected = dict(zip(ks, (0.556, 0.771, 0.877, 0.950), strict=True))
  assert found == pytest.approx(expected, abs=0.005)
  found = evaluate_lib.top_k_accuracy(gold_ranks, ks)
  expected = dict(zip(ks, (0.483, 0.706, 0.826, 0.918), strict=True))
  assert found == pytest.approx(expected, abs=0.005)
