"""BEIR's three files from `prepare` to the table, with BM25."""

import json
import shutil

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.retrieval import retrieve as retrieve_lib

CORPUS = [
  {"_id": "d1", "title": "Curie", "text": "Marie Curie was born in Warsaw."},
  {"_id": "d2", "title": "Nothing", "text": ""},
  {"_id": "q1", "title": "", "text": "which town was marie curie born in"},
  {"_id": "my file.pdf", "title": "Rhine", "text": "The Rhine flows north."},
  {"_id": "d5", "title": "Twin", "text": "Twins look the same."},
  {"_id": "d6", "title": "Twin", "text": "Twins look the same."},
]
QUERIES = [
  {"_id": "q1", "text": "which town was marie curie born in"},
  {"_id": "q 2", "text": "rhine"},
  {"_id": "q3", "text": "twins"},
  {"_id": "q4", "text": "the of and"},  # finds nothing
  {"_id": "q5", "text": "curie"},  # nobody judged it
  {"_id": "q6", "text": ""},
]
QRELS = [
  ("q1", "d1", 2),
  ("q1", "q1", -1),
  ("q1", "gone", 1),  # not in the corpus
  ("q 2", "my file.pdf", 1),
  ("q3", "d6", 1),
  ("q3", "d5", 0),
  ("q4", "d5", 1),
  ("q6", "d1", 1),  # without a text it was not asked
  ("q99", "d1", 1),
]


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory):
  """A workdir with BM25's results of all queries, and the judgements."""
  folder = tmp_path_factory.mktemp("beir")
  for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines)
  qrels = folder / "test.tsv"
  lines = (f"{q}\t{p}\t{grade}\n" for q, p, grade in QRELS)
  qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
  config = config_lib.base_config()
  config.data.passages = str(folder / "corpus.jsonl")
  config.data.train = "none"
  config.data.dev = str(folder / "queries.jsonl")
  workdir = workdir_lib.Workdir(folder / "work")
  prepare.prepare(config, workdir)
  retrieve_lib.retrieve(
    config,
    workdir,
    questions_file=folder / "queries.jsonl",
    name="test",
    methods=["bm25"],
  )
  return config, workdir, qrels


def _measure(retrieved, **options):
  config, workdir, qrels = retrieved
  with config.unlocked():
    config.evaluate.drop_self = options.pop("drop_self", "auto")
  found = evaluate_lib.evaluate(
    config, workdir, name="test", qrels=qrels, **options
  )
  return found["bm25"]


COUNTS = {
  "judged_not_asked": 2,  # q6, q99
  "asked_not_judged": 1,  # q5
  "judged_passages_not_in_corpus": 1,
}


def test_over_those_asked_and_judged(retrieved, capsys):
  """q1 is dropped for q1; d6 stands behind d5; q4 has no hit: 1, 1, 1/2, 0."""
  found = _measure(retrieved)
  assert found["RR@10"] == found["AP@100"] == (1 + 1 + 1 / 2 + 0) / 4
  assert found["R@20"] == (1 + 1 + 1 + 0) / 4
  assert {key: found[key] for key in COUNTS} == COUNTS
  assert (found["judged_questions"], found["own_hits_dropped"]) == (4, 1)
  said = capsys.readouterr().out
  assert (
    "bm25: 4 questions in the judged measures; 2 judged but not asked; 1 asked"
    " but not judged; 1 judged passages not in the corpus; 1 hits dropped that"
    " are the question itself"
  ) in said
  assert _measure(retrieved) == found  # from the file, with the same note
  assert "2 judged but not asked" in capsys.readouterr().out


def test_over_all_that_are_judged(retrieved):
  found = _measure(retrieved, judged="all")
  # Of q1's two relevant passages one can never be found.
  assert found["AP@100"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 6)
  assert found["R@20"] == pytest.approx((1 / 2 + 1 + 1) / 6)
  assert {key: found[key] for key in COUNTS} == COUNTS
  assert found["judged_questions"] == 6


def test_the_question_s_own_passage_may_stay(retrieved):
  """Then it is the first hit of q1, and d1 the second."""
  found = _measure(retrieved, drop_self="off")
  assert found["RR@10"] == (1 / 2 + 1 + 1 / 2 + 0) / 4
  assert "own_hits_dropped" not in found
  assert _measure(retrieved, drop_self="on") == _measure(retrieved)


def test_what_is_asked_is_in_the_manifest(retrieved):
  _, workdir, _ = retrieved
  path = workdir.results("test", "bm25").with_suffix(".manifest.json")
  manifest = json.loads(path.read_text())
  assert manifest["ids"] == ["q1", "q 2", "q3", "q4", "q5"]
  assert manifest["counts"]["questions_without_text"] == 1
  assert manifest["counts"]["no_hits"] == 1
  counts = workdir_lib.read_manifest(workdir.data, "prepare")["counts"]
  assert counts["passages_without_text"] == 1
  assert counts["dev_without_question"] == 1


def test_wrong_words_are_refused(retrieved):
  config, workdir, _ = retrieved
  with pytest.raises(errors.InputError, match="--judged=some: must be one of"):
    _measure(retrieved, judged="some")
  with pytest.raises(errors.InputError, match=r"evaluate\.drop_self='yes'"):
    _measure(retrieved, drop_self="yes")
  with config.unlocked():
    config.evaluate.drop_self = "auto"
  with pytest.raises(errors.InputError, match="--judged=all: needs --qrels"):
    evaluate_lib.evaluate(config, workdir, name="test", judged="all")


def test_judgements_that_no_question_has(retrieved, tmp_path):
  config, workdir, _ = retrieved
  path = tmp_path / "other.tsv"
  path.write_text("x1\td1\t1\n")
  with pytest.raises(errors.InputError, match="none of its questions"):
    evaluate_lib.evaluate(config, workdir, name="test", qrels=path)


def test_results_of_an_older_version(retrieved, tmp_path):
  """Without the ids of questions: those in the run are what is known."""
  config, workdir, qrels = retrieved
  shutil.copytree(workdir.root, tmp_path / "work")
  old = workdir_lib.Workdir(tmp_path / "work")
  path = old.results("test", "bm25").with_suffix(".manifest.json")
  manifest = json.loads(path.read_text())
  stage = workdir_lib.Stage(
    "retrieve", path.parent, manifest["config"], manifest["inputs"], path.name
  )
  beside = {key: manifest[key] for key in ("depth", "match", "gold")}
  stage.finish(manifest["counts"], files=manifest["files"], **beside)
  found = _measure((config, old, qrels))
  assert found["judged_questions"] == 3  # q4, without a hit, is not in the run
  assert found["judged_not_asked"] == 3
  assert found["own_hits_dropped"] == 1
  assert found["RR@10"] == pytest.approx((1 + 1 + 1 / 2) / 3)
