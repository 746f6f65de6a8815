"""`dpr-jax check`: what is whole is called so, and every damage is found."""

import numpy as np
import pytest

from dpr_jax.cli import workdir_check
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.embedding import vector_formats
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.retrieval import mine
from dpr_jax.retrieval import retrieve as retrieve_lib


@pytest.fixture
def finished(tiny_config, fresh_workdir, tmp_path):
  """Data, negatives, BM25's results and their evaluation, and some vectors."""
  retrieve_lib.retrieve(tiny_config, fresh_workdir, methods=["bm25"])
  evaluate_lib.evaluate(tiny_config, fresh_workdir)
  table = prepare.open_passages(fresh_workdir)
  rows = range(len(table))
  source = tmp_path / "vectors"
  source.mkdir()
  vectors = np.arange(4 * len(table), dtype=np.float32).reshape(-1, 4)
  np.save(source / "vectors-0.npy", vectors)
  (source / "ids-0.txt").write_text("".join(f"{i}\n" for i in table.ids(rows)))
  vector_formats.import_(source, fresh_workdir.embeddings())
  return fresh_workdir


def _found(place, deep=False):
  return {
    (finding.name, finding.state): finding.text
    for finding in workdir_check.check(place, deep=deep)
  }


def _not_ok(place, deep=False):
  return {
    name: (state, text)
    for (name, state), text in _found(place, deep).items()
    if state != workdir_check.OK
  }


def test_a_whole_workdir(finished):
  """A line for everything, and nothing is written."""
  before = {p: p.stat().st_mtime_ns for p in finished.root.rglob("*")}
  found = _found(finished, deep=True)
  assert not _not_ok(finished, deep=True)
  assert {name for name, _ in found} == {
    *("data", "data/passages", "data/train", "data/dev", "bm25", "negatives"),
    *("embeddings/passages", "results/dev.bm25", "evaluation/dev"),
  }
  assert "120 vectors of 4, all finite, ids as in" in str(found)
  assert found["data", "ok"].startswith("120 passages, 64 train, 24 dev; ")
  assert before == {p: p.stat().st_mtime_ns for p in finished.root.rglob("*")}


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("data/passages/ids.npy", "data"),
    ("bm25/parts.json", "bm25"),
    ("negatives/bm25.jsonl.gz", "negatives"),
    ("embeddings/passages/vectors-00000.npy", "embeddings/passages"),
    ("embeddings/passages/manifest.json", "embeddings/passages"),
    ("results/dev.bm25.trec", "results/dev.bm25"),
    ("results/dev.bm25.manifest.json", "results/dev.bm25"),
    ("evaluation/dev.json", "evaluation/dev"),
  ],
)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_is_found_and_named(finished, path, name, how):
  """One bit, the last byte, the whole file."""
  target = finished.root / path
  data = bytearray(target.read_bytes())
  if how == "flip":
    data[len(data) // 2] ^= 1
  target.write_bytes(data if how == "flip" else data[:-2])
  if how == "remove":
    target.unlink()
  wrong = _not_ok(finished)
  if path.endswith("manifest.json") and how == "remove":
    if name.startswith("results"):  # a file from elsewhere has none either
      assert not wrong
    else:
      assert wrong[name][0] == workdir_check.UNFINISHED
    return
  assert wrong[name][0] == workdir_check.DAMAGED
  assert target.name in wrong[name][1]


def test_what_was_made_from_something_else_is_stale(finished, tiny_config):
  """Other data: all that came from the old one, with both fingerprints."""
  before = workdir_lib.dataset_inputs(finished, "passages")["passages"]
  config = tiny_config.copy_and_resolve_references()
  config.data.max_passages = 119
  prepare.prepare(config, finished)
  after = workdir_lib.dataset_inputs(finished, "passages")["passages"]
  wrong = _not_ok(finished)
  for name in ("bm25", "negatives", "results/dev.bm25"):
    state, text = wrong[name]
    assert state == workdir_check.STALE
    assert f"passages (was {before[:12]}…, is {after[:12]}…)" in text
  mine.mine(config, finished)
  assert "negatives" not in _not_ok(finished)


def test_deep_reads_what_no_sum_shows(finished):
  """Vectors that are not finite, and ids of another order, written whole."""
  stage = workdir_lib.Stage("embed", finished.embeddings(), {}, {})
  old = workdir_lib.read_manifest(stage.folder, "embed")

  def rewrite(name, array):
    np.save(stage.folder / name, array)
    sha256 = workdir_lib.fingerprint_file(stage.folder / name)
    old["files"][name] = sha256
    old["shards"][0]["sha256"] = old["files"]["vectors-00000.npy"]
    workdir_lib.write_record(stage.manifest, old)

  vectors = np.load(stage.folder / "vectors-00000.npy")
  ids = np.load(stage.folder / "ids-00000.npy")
  bad = vectors.copy()
  bad[17, 2] = np.nan
  rewrite("vectors-00000.npy", bad)
  assert not _not_ok(finished)
  _, text = _not_ok(finished, deep=True)["embeddings/passages"]
  assert "vector of row 17 is not finite" in text
  rewrite("vectors-00000.npy", vectors)
  rewrite("ids-00000.npy", ids[::-1])
  _, text = _not_ok(finished, deep=True)["embeddings/passages"]
  assert "are not those of the passages" in text


def test_leftovers_are_named_unless_somebody_is_at_work(finished):
  """A temporary file is a killed process's, or that of the holder."""
  (finished.root / "results" / "x.dprjax-tmp-1.json").write_text("half")
  (finished.root / "data.dprjax-tmp-7").mkdir()
  assert {name: state for name, (state, _) in _not_ok(finished).items()} == {
    "results/x.dprjax-tmp-1.json": workdir_check.LEFT,
    "data.dprjax-tmp-7": workdir_check.LEFT,
  }
  with workdir_lib.locked(finished):
    (finished.root / "results" / "x.dprjax-tmp-1.json").write_text("half")
    assert not _not_ok(finished)


def test_what_is_no_workdir_is_refused(tmp_path):
  """A folder of something else, or none."""
  with pytest.raises(errors.InputError, match="holds nothing"):
    list(workdir_check.check(workdir_lib.Workdir(tmp_path)))
  with pytest.raises(errors.InputError, match="no such folder"):
    list(workdir_check.check(workdir_lib.Workdir(tmp_path / "no")))
