"""Digests of passages, and the comparison with the corpus before."""

import hashlib

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import passage_digests, prepare
from dpr_jax.data.records import Passage


@pytest.fixture
def run(tmp_path, caplog):
  """Runs `prepare` on a corpus; returns its manifest and the log lines."""
  caplog.set_level("INFO")
  workdir = workdir_lib.Workdir(tmp_path / "work")

  def run(rows):
    (tmp_path / "corpus.tsv").write_text(
      "id\ttext\ttitle\n" + "".join("\t".join(row) + "\n" for row in rows)
    )
    (tmp_path / "dev.csv").write_text("who?\t['a']\n")
    config = config_lib.base_config()
    config.data.passages = str(tmp_path / "corpus.tsv")
    config.data.train, config.data.dev = "none", str(tmp_path / "dev.csv")
    caplog.clear()
    prepare.prepare(config, workdir)
    manifest = workdir_lib.read_manifest(workdir.data, "prepare")
    return manifest, [record.getMessage() for record in caplog.records]

  run.workdir = workdir
  return run


ROWS = [(f"p{i}", f"text {i}", f"title {i}") for i in range(8)]


def test_a_changed_corpus_is_compared_by_id(run):
  manifest, _ = run(ROWS)
  assert "changes" not in manifest
  changed = [
    ("x1", "new", "at the start"),
    ("p0", "text 0", "title 0"),  # one row further down
    ("p5", "text 5", "title 5"),
    ("p3", "text 3", "title 3"),  # in its row, 3
    ("p1", "text 1", "title"),
    ("p2", " text 2", "title 2"),  # white space is a change
    ("an id longer than all before", "text 4", "title 4"),
  ]
  manifest, lines = run(changed)
  assert manifest["changes"] == {
    "unchanged": 3,
    "in_another_row": 2,
    "changed": 2,
    "new": 2,
    "removed": 3,  # p4, p6, p7
  }
  assert (
    "prepare: compared with the earlier corpus: 3 passages unchanged, 2 of them"
    " in another row; 2 changed, 2 new, 3 removed"
  ) in lines


def test_an_earlier_corpus_that_cannot_be_compared(run):
  run(ROWS)
  path = run.workdir.data / passage_digests.FILE
  path.write_bytes(path.read_bytes()[:-8])
  manifest, lines = run(ROWS)
  assert "changes" not in manifest
  assert any("is not compared" in line and str(path) in line for line in lines)
  # Of an older version.
  path.unlink()
  record = workdir_lib.read_record(run.workdir.data / "manifest.json")
  del record["files"][passage_digests.FILE]
  workdir_lib.write_record(run.workdir.data / "manifest.json", record)
  assert passage_digests.load(run.workdir) is None
  manifest, lines = run(ROWS[1:])
  assert "changes" not in manifest
  assert any("older version" in line for line in lines)


def test_digests_are_of_title_and_text_apart(run):
  manifest, _ = run(ROWS)
  # Not below passages/: stages of older workdirs stay current.
  assert "digests.npy" in manifest["files"]
  digests = passage_digests.load(run.workdir)
  packed = (7).to_bytes(8, "little") + b"title 1text 1"
  expected = hashlib.blake2b(packed, digest_size=8).digest()
  assert digests[1].tobytes() == expected
  np.testing.assert_array_equal(
    digests, [passage_digests.digest(Passage(i, t, h)) for i, h, t in ROWS]
  )
  ours = {
    passage_digests.digest(Passage("", *pair))
    for pair in (
      ("ab", "c"),
      ("a", "bc"),
      ("", "abc"),
      ("abc", ""),
      ("ab", "c "),
    )
  }
  assert len(ours) == 5
