"""BM25 in parts: the same as one part, as bm25s, and as an older index."""

import numpy as np
import pytest

from dpr_jax.benchmarking import bm25_peer
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.retrieval import bm25, bm25_build, bm25_parameters, bm25_parts

PARAMETERS = bm25.Parameters(0.9, 0.4, "", "")


class _Passages(list):
  def take(self, rows):
    return [self[row] for row in rows]


def _corpus(count, seed=0):
  """Texts of frequent and rare words, many of them equal; every 11th empty."""
  random = np.random.default_rng(seed)
  return _Passages(
    records.Passage(
      str(row),
      "",
      " ".join(f"w{n}" for n in random.zipf(1.3, random.integers(1, 9)) % 40)
      if row % 11
      else "",
    )
    for row in range(count)
  )


def _write(folder, passages, **options):
  folder.mkdir()
  bm25_build.build(
    folder, passages, PARAMETERS.splitter(), k1=0.9, b=0.4, **options
  )
  return bm25.BM25Index(*bm25_parts.open_folder(folder), PARAMETERS)


QUESTIONS = ["w1 w2", "w1", "w7 w7 w3", "w39 w12 w1 w5", "w38", "zz w2", "zz"]


@pytest.mark.parametrize("k", [1, 5, 40, 300])
def test_parts_equal_one_part(tmp_path, k):
  passages = _corpus(200)
  one = _write(tmp_path / "one", passages)
  parts = _write(tmp_path / "parts", passages, unit=3)  # 9 parts of 24 rows
  assert [part.count for part in parts._parts] == [24] * 8 + [8]
  assert [part.count for part in one._parts] == [200]
  expected = one.search(QUESTIONS, k)
  assert (expected[0][:6] >= 0).any(axis=1).all()
  for ours, theirs in zip(parts.search(QUESTIONS, k), expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_scores_and_order_are_those_of_bm25s(tmp_path):
  passages = _corpus(150)
  index = _write(tmp_path / "parts", passages, unit=4)
  library = bm25_peer.index(passages, index.vocabulary, PARAMETERS)
  rows, scores = index.search(QUESTIONS[:6], 150)
  for number, question in enumerate(QUESTIONS[:6]):
    known = [word for word in question.split() if word in index.vocabulary]
    expected = library.get_scores(known)
    order = np.argsort(-expected, kind="stable")
    order = order[expected[order] > 0]
    np.testing.assert_array_equal(rows[number][: len(order)], order)
    np.testing.assert_array_equal(scores[number][: len(order)], expected[order])
    assert (rows[number][len(order) :] == -1).all()


def test_ties_across_parts_are_by_row(tmp_path):
  passages = _Passages(records.Passage("", "", "aa") for _ in range(60))
  index = _write(tmp_path / "parts", passages, unit=2)  # parts of 16 rows
  rows, scores = index.search(["aa"], 40)
  assert rows[0].tolist() == list(range(40))
  assert len(set(scores[0].tolist())) == 1


@pytest.mark.processes
def test_child_processes_write_the_same_bytes(tmp_path, make_table):
  passages = make_table(_corpus(100))
  _write(tmp_path / "alone", passages, unit=5, workers=1)
  _write(tmp_path / "together", passages, unit=5, workers=2)
  files = sorted(path.name for path in (tmp_path / "alone").iterdir())
  assert len(files) == 3 * 6 + 3  # three parts; no temporary files
  for name in files:
    ours, theirs = (tmp_path / f / name for f in ("alone", "together"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_an_index_of_the_library_opens(tmp_path):
  """As older versions wrote it."""
  passages = _corpus(50)
  index = _write(tmp_path / "new", passages)
  old = tmp_path / "old"
  # Another numbering of the words, that of the first occurrence.
  words = dict.fromkeys(w for p in passages for w in p.text.split())
  vocabulary = {word: number for number, word in enumerate(words)}
  bm25_peer.index(passages, vocabulary, PARAMETERS).save(
    old, show_progress=False
  )
  workdir_lib.write_json(old / bm25_parameters.FILE, vars(PARAMETERS))
  opened = bm25.BM25Index.load(old)
  assert len(opened) == 50
  for ours, theirs in zip(
    opened.search(QUESTIONS, 20), index.search(QUESTIONS, 20), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_vocabulary_finds_words_by_their_bytes(tmp_path):
  words = sorted(word.encode() for word in ("a", "ab", "b", "\u00e9", "\u6771"))
  bm25_parts.write_vocabulary(tmp_path, words)
  text, ends = (np.load(tmp_path / f) for f in ("words.npy", "word_ends.npy"))
  vocabulary = bm25_parts.Vocabulary(text, ends)
  assert dict(vocabulary) == {"a": 0, "ab": 1, "b": 2, "\u00e9": 3, "\u6771": 4}
  for unknown in ("", "aa", "abc", "\u6772", "0"):
    assert unknown not in vocabulary
    assert vocabulary.get(unknown) is None


@pytest.mark.parametrize("passages", [1, 2, 7])
def test_weights_are_lucenes(passages):
  found = bm25_build.weights(np.array([1, passages, 1]), passages)
  # ln(1 + (N - n + 0.5) / (n + 0.5)) = ln((N + 1) / (n + 0.5))
  expected = np.log((passages + 1) / (np.array([1, passages, 1]) + 0.5))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
