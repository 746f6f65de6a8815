"""`bench search` with tiny sizes: structure and recall, no seconds."""

import json
import types

import numpy as np
import pytest

from dpr_jax.benchmarking import clusters, harness, search, search_cell
from dpr_jax.core import errors
from dpr_jax.data import records
from dpr_jax.retrieval import bm25
from tests import retrieval_world


@pytest.mark.slow
def test_indexes_in_processes_of_their_own(tiny_config, tmp_path, capsys):
  path = tmp_path / "report.json"
  report = search.bench(
    tiny_config,
    None,
    vectors=800,
    dim=16,
    factories=["IVF8,Flat", search_cell.EXACT],
    cpu_devices=2,
    json_file=str(path),
  )
  assert json.loads(path.read_text()) == report
  assert list(report["indexes"]) == ["IVF8,Flat", "exact"]
  for found in report["indexes"].values():
    assert found["recall@20"] >= 0.98
    assert found["build_seconds"] > 0
    assert set(found["questions_per_second"]) == {"1 thread", "all threads"}
    assert found["peak_bytes"] is None or found["peak_bytes"] >= 0
  assert report["indexes"]["IVF8,Flat"]["search"]["nprobe"] <= 8
  assert report["indexes"]["exact"]["bytes_per_vector"] == 64
  printed = capsys.readouterr().out
  assert "800 synthetic vectors of dimension 16 in clusters" in printed


def test_a_failed_index_is_a_row(capsys):
  report = {
    "machine": harness.machine(),
    "versions": harness.versions(),
    "settings": {
      "vectors": "9 vectors",
      "questions": 2,
      "recall_target": 0.98,
      "encode_questions_per_second": 12.3,
    },
    "indexes": {"Flat": {"failure": "exit -9: killed"}},
    "against": {
      "index": "Flat",
      "speedup": {"bm25s": harness.speedup([1.0, 2.0], [3.0, 8.0])},
    },
  }
  search.print_report(report)
  printed = capsys.readouterr().out
  assert "exit -9: killed" in printed
  assert "12 questions/s" in printed
  assert "One thread each, top 100:\n  Flat is 3.67 times as fast" in printed


class _Passages(list):
  def take(self, rows):
    return [self[row] for row in rows]


@pytest.mark.compiles
@pytest.mark.parametrize("against", search.PEERS)
def test_turns_with_bm25s(against, tiny_config, tmp_path, monkeypatch):
  """The fastest index that finds enough, our BM25 and the library's own."""
  if against == search.NUMBA:
    pytest.importorskip("numba", reason="compares with bm25s on numba")
  path, asked = clusters.write(tmp_path, 120, 8, 6)
  passages = _Passages(
    records.Passage(str(i), f"title {i}", f"word{i % 7} and word{i % 5}")
    for i in range(120)
  )
  sparse = retrieval_world.bm25_index(
    passages, k1=0.9, b=0.4, stopwords="en", stemmer=""
  )
  monkeypatch.setattr(bm25, "build_or_load", lambda *_: sparse)
  monkeypatch.setattr(search.prepare, "open_passages", lambda _: passages)
  source = types.SimpleNamespace(
    vectors=clusters.FileVectors(path),
    questions=np.load(asked),
    asked=[records.Question(f"what is word{i}?") for i in range(6)],
  )

  def row(recall, speed):
    return {
      "recall@20": recall,
      "questions_per_second": {"1 thread": speed},
      "search": {},
    }

  report = {
    "indexes": {
      "Flat": row(1.0, 5.0),
      "SQ8": row(0.99, 9.0),
      "SQ4": row(0.5, 99.0),
      "exact": row(1.0, 99.0),
    }
  }
  found = search._against_bm25s(tiny_config, None, source, report, 2, against)
  assert found["index"] == "SQ8"
  others = {search.OURS, "bm25s", against}
  assert set(found["questions_per_second"]) == {"SQ8", *others}
  assert set(found["speedup"]) == others
  assert len(found["speedup"][against]["pairs"]) == 2
  report["indexes"] = {"SQ4": row(0.5, 99.0)}
  with pytest.raises(errors.InputError, match=r"no index reaches recall@20"):
    search._against_bm25s(tiny_config, None, source, report, 2)


@pytest.mark.processes
@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({}, "--workdir, or --vectors"),
    ({"vectors": 5, "against": "bm25s"}, "needs the text"),
    ({"vectors": 5, "against": "lucene"}, "--against=lucene"),
    ({"vectors": 300, "dim": 8, "factories": ["PQ3"]}, "PQ3"),
  ],
)
def test_mistakes(tiny_config, options, words):
  with pytest.raises(errors.InputError, match=words):
    search.bench(tiny_config, None, **options)
