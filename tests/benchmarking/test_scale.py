"""`bench scale`: generated corpora, slopes, projections, and resuming."""

import csv
import json
import math

import numpy as np
import pytest

from dpr_jax.benchmarking import (
  cells,
  harness,
  scale,
  scale_cell,
  scale_texts,
)
from dpr_jax.core import errors, memory
from dpr_jax.core import workdir as workdir_lib

WORDS = ["the", "of", "river", "city", "stone"]


def _files(folder, passages, questions=2):
  folder.mkdir()
  texts = scale_texts.Texts(WORDS, ranks=30_000)
  scale_texts.write(folder, texts, passages, questions)
  paths = scale_texts.paths(folder)
  with open(paths["passages"], encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t"))
  asked = {}
  for split in ("train", "dev"):
    with open(paths[split], encoding="utf-8") as file:
      asked[split] = json.load(file)
  return rows, asked


def test_a_small_corpus_begins_a_large_one(tmp_path):
  rows, asked = _files(tmp_path / "small", 40)
  more, _ = _files(tmp_path / "large", 60)
  assert more[:40] == rows
  assert [row["id"] for row in more] == [str(n) for n in range(1, 61)]
  assert all(5 <= len(row["text"].split()) <= 100 for row in more)
  assert all(1 <= len(row["title"].split()) <= 15 for row in more)
  # 4 questions about rows 0, 10, 20 and 30, in turns train and dev.
  ids = [
    [entry["positive_ctxs"][0]["passage_id"] for entry in asked[split]]
    for split in ("train", "dev")
  ]
  assert ids == [["1", "21"], ["11", "31"]]
  for entry in asked["train"]:
    (gold,) = entry["positive_ctxs"]
    assert rows[int(gold["passage_id"]) - 1]["text"] == gold["text"]
    words = gold["text"].split()
    assert entry["answers"][0] in words
    assert set(entry["question"].split()) <= set(words)


def test_frequent_words_have_the_measured_shares():
  found = scale_texts.shares(10)
  known = [0.078, 0.037, 0.022, 0.008]  # of ranks 1, 2, 5, 10
  np.testing.assert_allclose(
    found[[0, 1, 4, 9]] / found[0], np.array(known) / known[0], rtol=1e-9
  )
  assert found.sum() == pytest.approx(1)
  tail = scale_texts.shares(160_000)
  # 8 times the rank in the tail: 8 ** 1.5 times as rare.
  assert tail[19_999] / tail[159_999] == pytest.approx(8**1.5)


def test_every_rank_has_a_word_of_its_own():
  words = [scale_texts.word_of(rank, WORDS) for rank in range(20_000)]
  assert words[:5] == WORDS
  assert len(set(words)) == 20_000
  assert words[5] == "beba"  # 1, 0 to the base of the syllables
  assert all(word.isalpha() for word in words)


def test_slope_and_extrapolation_by_hand():
  assert scale.slope([10, 100], [1, 100]) == pytest.approx(2)
  assert scale.slope([10], [1]) is None
  assert scale.slope([10, 20], [0, 1]) is None
  # Line: 3 + (1 / 10) x 20 = 5; power law: 3 x 2 ** log2(1.5) = 4.5.
  assert scale.extrapolate([10, 20], [2, 3], 40) == pytest.approx(5)
  # Line: 4 + (3 / 10) x 20 = 10; power law: 4 x 2 ** 2 = 16.
  assert scale.extrapolate([10, 20], [1, 4], 40) == pytest.approx(16)
  assert scale.extrapolate([10], [3], 40) == pytest.approx(12)


def _cell(seconds, gigabytes, disk=1e6):
  return {
    "seconds": seconds,
    "cpu_seconds": seconds,
    "anonymous_bytes": int(gigabytes * 1e9),
    "resident_bytes": 0,
    "disk_bytes": int(disk),
  }


def test_marks():
  steady = scale.project({"100": _cell(10, 0.1), "200": _cell(20, 0.1)})
  assert steady["marks"] == []
  assert steady["time"]["slope"] == pytest.approx(1)
  assert steady["time"]["at_wikipedia"] == pytest.approx(2_101_532.4)
  assert steady["memory"]["at_wikipedia"] == pytest.approx(0.1e9)
  steep = scale.project({"100": _cell(10, 0.1), "200": _cell(40, 0.1)})
  assert steep["marks"] == ["time grows faster than the input"]
  short = scale.project({"100": _cell(1, 0.1), "200": _cell(4, 0.1)})
  assert short["marks"] == []  # too short to tell
  # 1 GB more for each 1,000,000 passages: about 21 GB more at 21 million.
  large = scale.project({"1000000": _cell(9, 4.0), "2000000": _cell(9, 5.0)})
  assert large["memory"]["at_wikipedia"] == pytest.approx(24.015e9, rel=1e-4)
  assert large["marks"] == ["more than 24 GB"]
  failed = scale.project({"100": _cell(9, 1), "200": {"failure": "killed"}})
  assert failed["marks"] == ["failed"]
  assert "memory" not in failed  # of one size: nothing follows


def test_an_interrupted_run_is_resumed(tmp_path, monkeypatch, capsys):
  done, failures = [], [1]

  def run(module, spec, result):
    assert module == "scale_cell"
    done.append((spec["passages"], spec["stage"]))
    if spec["stage"] == "mine" and failures:
      failures.pop()
      return {"failure": "exit -9: killed"}
    found = _cell(spec["passages"] / 100, 0.5)
    workdir_lib.write_json(result, found)
    return found

  monkeypatch.setattr(harness, "run_cell", run)
  folder, file = tmp_path / "out", tmp_path / "report.json"
  stages = list(scale_cell.STAGES)
  report = scale.bench([2000], str(folder), json_file=str(file))
  assert done == [(2000, name) for name in ["texts", *stages[:5]]]
  assert "exit -9: killed" in capsys.readouterr().out
  assert report["projection"]["mine"]["marks"] == ["failed"]
  done.clear()
  report = scale.bench([4000, 2000], str(folder), json_file=str(file))
  assert done == [
    *((2000, name) for name in stages[4:]),
    *((4000, name) for name in ["texts", *stages]),
  ]
  scale.bench([2000, 4000], str(folder), json_file=str(file))
  report = json.loads(file.read_text())
  assert report["settings"]["passages"] == [2000, 4000]
  for stage in stages:
    found = report["projection"][stage]
    assert found["time"]["slope"] == pytest.approx(1)
    assert not found["marks"]
  printed = capsys.readouterr().out
  assert "20.0 / 20.0 / 0.50 / 0.001" in printed
  with pytest.raises(errors.InputError, match="give another folder"):
    scale.bench([2000], str(folder), questions=10)


def test_refusals(tmp_path):
  with pytest.raises(errors.InputError, match="give at least 2000"):
    scale.bench([1999], str(tmp_path))
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.InputError, match="has other files"):
    scale.bench([2000], str(tmp_path))


def test_a_cell_measures_its_stage(tmp_path, monkeypatch):
  """`prepare`, whose files do not need a tokenizer."""
  _files(tmp_path / "texts", 40)
  found = scale_cell.measure(
    {
      "stage": "prepare",
      "passages": 40,
      "questions": 2,
      "texts": str(tmp_path / "texts"),
      "workdir": str(tmp_path / "w"),
    }
  )
  data = tmp_path / "w" / "data"
  manifest = workdir_lib.read_manifest(data, "prepare")
  assert manifest["counts"]["passages"] == 40
  files = [path for path in data.rglob("*") if path.is_file()]
  assert found["disk_bytes"] == sum(path.stat().st_size for path in files)
  assert found["seconds"] > 0
  assert math.isfinite(found["cpu_seconds"])
  assert found["questions"] == 0
  if memory.status("RssAnon") is not None:
    assert found["resident_bytes"] >= found["anonymous_bytes"] > 0


def test_memory_of_children_is_counted(monkeypatch):
  sizes = {"self": 100, 7: 20, 9: 3}
  monkeypatch.setattr(memory, "children", lambda: [7, 8, 9])
  monkeypatch.setattr(
    memory, "status", lambda name, process="self": sizes.get(process)
  )
  with cells.PeakMemory(children=True) as peak:
    pass
  assert peak.anonymous == 123  # 8 has ended
