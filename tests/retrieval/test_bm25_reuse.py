"""BM25 of a changed corpus: only new passages are split into words."""

import numpy as np
import pytest

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import passage_digests, records
from dpr_jax.retrieval import bm25, bm25_build, bm25_reuse

PARAMETERS = bm25.Parameters(0.9, 0.4, "", "")


class _Passages(list):
  def take(self, rows):
    self.taken = getattr(self, "taken", 0) + len(rows)
    return [self[row] for row in rows]


def _passages(texts):
  return _Passages(records.Passage("", "", text) for text in texts)


def _texts(first, last):
  """Each of frequent words, often twice, and of a word of its own."""
  return [
    f"w{row} v{row % 3} u{row % 7} " + f"v{row % 2} " * (row % 5)
    for row in range(first, last)
  ]


def _build(folder, texts, earlier=None, k1=0.9, unit=3, **options):
  """Builds an index; returns the number of passages read to be split."""
  folder.mkdir()
  passages = _passages(texts)
  passages.taken = 0
  split = bm25_build.build(
    folder,
    passages,
    PARAMETERS.splitter(),
    k1=k1,
    b=0.4,
    unit=unit,
    workers=1,
    digests=np.array([passage_digests.digest(p) for p in passages], np.uint64),
    earlier=None if earlier is None else bm25_reuse.Earlier(earlier),
    **options,
  )
  assert split == passages.taken
  return split


def _files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_changed_corpus_equals_a_fresh_build(tmp_path):
  """Removed, moved, changed, added, repeated and empty; byte by byte."""
  texts = [*_texts(0, 100), "", "w5 and more of them " * 300]
  assert _build(tmp_path / "old", texts) == 102  # 5 parts, of 24 rows each
  new = [
    *_texts(200, 205),  # 5 new ones; no row is where it was
    *texts[60:65],  # moved from another part
    texts[63],  # the same text again
    *texts[:30],
    "w30 changed",
    *texts[31:50],  # without 50 to 69 (60 to 64 are further up)
    *texts[70:],
    *_texts(300, 302),
  ]
  for name, options in (
    ("same units", {}),
    ("other units", {"unit": 4}),
    ("other scores", {"k1": 1.5}),
    ("one unit", {"unit": 200}),
  ):
    reused, fresh = tmp_path / name, tmp_path / f"{name}, fresh"
    assert _build(reused, new, tmp_path / "old", **options) == 8
    assert _build(fresh, new, **options) == len(new)
    assert _files(reused) == _files(fresh)
  # Reused once more, and back to the first corpus: 51 to 59, 65 to 69, 30, 50.
  assert _build(tmp_path / "back", texts, tmp_path / "other units") == 16
  assert _files(tmp_path / "back") == _files(tmp_path / "old")


def test_a_unit_is_not_collected_from_too_many_parts(tmp_path):
  """A part must have a 32nd of the unit's passages: 2 of 64."""
  texts = _texts(0, 96)
  _build(tmp_path / "old", texts)  # rows 0 to 23, 24 to 47, 48 to 71, 72 to 95
  new = [*_texts(200, 259), *texts[:2], texts[30], *texts[94:]]
  assert len(new) == 64
  assert _build(tmp_path / "new", new, tmp_path / "old", unit=64) == 59 + 1
  _build(tmp_path / "fresh", new, unit=64)
  assert _files(tmp_path / "new") == _files(tmp_path / "fresh")


def test_counts_are_as_narrow_as_they_can_be(tmp_path):
  _build(tmp_path / "few", ["bb bb", "cc bb"])
  counts = np.load(tmp_path / "few" / "counts-00000.npy")
  assert (counts.dtype, counts.tolist()) == (np.uint8, [2, 1, 1])
  _build(tmp_path / "many", ["bb " * 300, "cc bb"])
  counts = np.load(tmp_path / "many" / "counts-00000.npy")
  assert (counts.dtype, counts.tolist()) == (np.uint16, [300, 1, 1])
  lengths = np.load(tmp_path / "many" / "lengths-00000.npy")
  assert (lengths.dtype, lengths.tolist()) == (np.int32, [300, 2])


@pytest.mark.processes
def test_child_processes_reuse(tmp_path, make_table):
  texts = _texts(0, 60)
  _build(tmp_path / "old", texts)
  new = make_table(_passages(texts[10:] + _texts(60, 65)))
  digests = np.array([passage_digests.digest(p) for p in new], np.uint64)
  (tmp_path / "new").mkdir()
  split = bm25_build.build(
    tmp_path / "new",
    new,
    PARAMETERS.splitter(),
    k1=0.9,
    b=0.4,
    unit=3,
    workers=2,
    digests=digests,
    earlier=bm25_reuse.Earlier(tmp_path / "old"),
  )
  assert split == 5
  _build(tmp_path / "fresh", [p.text for p in new])
  assert _files(tmp_path / "new") == _files(tmp_path / "fresh")


def test_the_stage_reuses_its_index(world, monkeypatch, caplog):
  """Another corpus, other scores; killed; damaged; other words."""
  folder, count = world.workdir.bm25, len(world.passages)
  digests = np.array(
    [passage_digests.digest(p) for p in world.passages], np.uint64
  )
  monkeypatch.setattr(passage_digests, "load", lambda workdir: digests)

  def build(**options):
    bm25.build_or_load(world.config, world.workdir, **options)
    manifest = workdir_lib.read_manifest(folder, "bm25")
    return manifest["counts"]["split_in_this_run"], manifest["files"]

  assert build()[0] == count
  world.prepare("2")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(bm25_build, "_join", None)
    with pytest.raises(TypeError):
      build()
  assert not list(folder.parent.glob("bm25.*"))
  world.config.bm25.k1 = 1.2
  split, files = build()
  assert split == 0
  assert build(overwrite=True) == (count, files)
  world.config.bm25.k1 = 0.9
  (folder / "rows-00000.npy").write_bytes(b"")
  assert build()[0] == count
  assert "bm25: not reused" in caplog.text
  world.config.bm25.stemmer = ""
  assert build()[0] == count
