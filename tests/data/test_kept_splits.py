"""Several sources, passages by id, and a corpus of the questions' passages."""

import json

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import kept_splits, prepare
from dpr_jax.data.records import Passage, Question

CORPUS = [
  Passage("d1", "Ulm", "Ulm lies on the Danube."),
  Passage("d2", "Bern", "Bern lies on the Aare."),
  Passage("d3", "", "Nothing."),
]
ULM, BERN, NOTHING = CORPUS
DPR = {
  "question": "Ulm?",
  "answers": ["Danube"],
  "positive_ctxs": [{"id": "d1", "title": "Ulm", "text": ULM.text}],
}
KNOWN = {
  "query": "Bern?",
  "query_text": "Bern?",
  "positive_document_ids": ["d9", "d2"],
  "negative_document_ids": ["d3", "d8"],
}
UNKNOWN = KNOWN | {"query_text": "x", "positive_document_ids": ["d7"]}
TRIPLET = {"anchor": "Aare?", "positive": NOTHING.text, "negative": "new"}


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def log(monkeypatch):
  """The lines that are logged as information."""
  lines = []
  monkeypatch.setattr(
    prepare.logging, "info", lambda text, *args: lines.append(text % args)
  )
  return lines


@pytest.fixture
def run(tmp_path):
  """Prepares sources; returns the workdir and the manifest."""

  def run(*sources, dev=(DPR,), passages="", **settings):
    config = config_lib.base_config()
    paths = [
      lines(tmp_path / f"{number}.jsonl", rows)
      for number, rows in enumerate(sources)
    ]
    corpus = [{"_id": p.id, "title": p.title, "text": p.text} for p in CORPUS]
    config.data.train = ",".join(paths)
    config.data.dev = lines(tmp_path / "dev.jsonl", dev)
    config.data.passages = passages or lines(tmp_path / "corpus", corpus)
    config.data.update(settings)
    workdir = workdir_lib.Workdir(tmp_path / "work")
    prepare.prepare(config, workdir)
    return workdir, workdir_lib.read_manifest(workdir.data, "prepare")

  return run


def questions(workdir, split="train"):
  table = prepare.open_questions(workdir, split)
  return table.take(range(len(table)))


def passages(workdir):
  table = prepare.open_passages(workdir)
  return table.take(range(len(table)))


FILLED = Question("Bern?", (), (BERN,), (NOTHING,))


def test_passages_by_id_get_their_texts(run, log):
  workdir, manifest = run([KNOWN, UNKNOWN])
  assert questions(workdir) == [FILLED]
  counts = manifest["counts"]
  expected = {
    "train": 1,
    "train_read": 2,
    "train_positives": 1,
    "train_positives_not_in_corpus": 2,
    "train_negatives_not_in_corpus": 2,
    "train_without_positives_in_corpus": 1,
    "train_empty_positives": 0,
    "train_gold_not_in_corpus": 0,
    "train_gold_text_differs": 0,
    "train_without_answers": 1,
  }
  assert {key: counts[key] for key in expected} == expected
  assert "train: Tevatron with ids JSONL, 1 kept of 2 in" in "\n".join(log)
  assert "2 positives not in corpus" in "\n".join(log)


def test_no_id_in_the_corpus_is_refused(run):
  with pytest.raises(
    errors.InputError,
    match="no questions are left for train: none of their 2 positive passages"
    " .d7, .* is in the corpus",
  ):
    run([UNKNOWN, UNKNOWN])


def test_dev_keeps_questions_whose_passages_are_missing(run):
  workdir, manifest = run([DPR], dev=[UNKNOWN])
  assert questions(workdir, "dev") == [
    Question("x", (), (Passage("d7", "", ""),), (NOTHING,))
  ]
  assert manifest["counts"]["dev_gold_not_in_corpus"] == 1


def test_a_limited_corpus_keeps_gold_passages_that_are_ids(run):
  workdir, _ = run([KNOWN], max_passages=2)
  assert passages(workdir) == [ULM, BERN]
  assert questions(workdir)[0].hard_negatives == ()


def test_several_sources(run, log):
  workdir, manifest = run(
    [DPR, DPR | {"question": " "}],
    [UNKNOWN, KNOWN],
    [TRIPLET],
    train_prefixes=("nq: ", "", "st: "),
  )
  assert questions(workdir) == [
    Question("nq: Ulm?", ("Danube",), (ULM,)),
    FILLED,
    Question(
      "st: Aare?",
      (),
      (Passage("d3", "", NOTHING.text),),  # found by its text
      (Passage("", "", "new"),),
    ),
  ]
  folder = workdir.data / "train"
  assert [n for _, n in kept_splits.read_sources(folder, 3)] == [1, 1, 1]
  assert "train/sources.json" in manifest["files"]
  parts = manifest["sources"]["train"]
  assert [part["format"] for part in parts] == [
    "DPR JSONL",
    "Tevatron with ids JSONL",
    "sentence-transformers JSONL",
  ]
  assert [part["train_read"] for part in parts] == [2, 2, 1]
  assert [part["train"] for part in parts] == [1, 1, 1]
  counts = manifest["counts"]
  assert (counts["train"], counts["train_read"]) == (3, 5)
  assert counts["train_without_question"] == 1
  assert counts["train_gold_found_by_text"] == 1
  assert counts["train_positives"] == 3
  for said in (
    "train: DPR JSONL, 1 kept of 2 in",
    "train: sentence-transformers JSONL, 1 kept of 1 in",
    "passages: BEIR JSONL, 3 kept of 3 in",
  ):
    assert said in "\n".join(log)
  with pytest.raises(errors.InputError, match="do not have 4 questions"):
    kept_splits.read_sources(folder, 4)


def test_a_prefix_per_source(run):
  with pytest.raises(
    errors.InputError, match=r"train_prefixes=\('a',\): 1 prefixes for 2 sourc"
  ):
    run([DPR], [DPR], train_prefixes=("a",))


def test_one_source_has_no_file_of_sources(run):
  workdir, _ = run([DPR])
  assert not (workdir.data / "train" / "sources.json").exists()
  assert kept_splits.read_sources(workdir.data / "train", 7) == [("", 7)]


def test_a_corpus_of_the_passages_of_the_questions(run):
  other = {
    "question": "q",
    "positive_ctxs": [{"id": "d1", "text": "Another text."}],
    "negative_ctxs": [{"id": "d5", "text": "Five."}, {"id": "d6", "text": ""}],
  }
  workdir, manifest = run(
    [TRIPLET], [DPR], dev=[DPR, other], passages="from-train"
  )
  stored = passages(workdir)
  assert [(p.title, p.text) for p in stored] == [
    ("", "Nothing."),
    ("", "new"),
    ("Ulm", ULM.text),
    ("", "Another text."),
    ("", "Five."),
  ]
  assert [p.id for p in stored[2::2]] == ["d1", "d5"]
  made = [stored[0].id, stored[1].id, stored[3].id]
  assert len(set(made)) == 3
  assert all(one.startswith("text-") for one in made)
  counts = manifest["counts"]
  assert counts["passages"] == 5
  assert counts["passages_repeated"] == 1
  assert counts["passages_ids_of_other_texts"] == 1
  assert counts["passages_without_any_text"] == 1
  # Positives are in it, by id or by text.
  assert questions(workdir)[0].positives[0].id == stored[0].id
  # The text whose id another has already got is found by its new one.
  dev = prepare.open_questions(workdir, "dev")
  assert dev[1].positives[0].id == stored[3].id
  assert counts["train_gold_not_in_corpus"] == 0
  assert manifest["sources"]["passages"] == {
    "from": "from-train",
    "format": "passages of the questions",
  }


def test_ids_alone_make_no_corpus(run):
  with pytest.raises(
    errors.InputError,
    match="passages=from-train: .*0.jsonl .config.data.train, Tevatron with ids"
    " JSONL. has ids of passages, and no texts: give a corpus",
  ):
    run([KNOWN], passages="from-train")


def test_a_finished_stage_is_current(run):
  workdir, manifest = run([DPR], [TRIPLET])
  assert run([DPR], [TRIPLET])[1]["created"] == manifest["created"]
  assert "sources" in manifest
  assert run([DPR], [TRIPLET, TRIPLET])[1]["counts"]["train"] == 3
