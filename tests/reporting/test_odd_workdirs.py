"""Reports of workdirs with odd, old or unreadable files."""

import json

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate
from dpr_jax.reporting import (
  plots,
  questions,
  report,
  runs,
  training_sections,
)
from tests.reporting.parsed_page import Page

pytestmark = pytest.mark.usefixtures("without_plots")
_SHARES = "Share of questions, with its 95 % interval (Wilson)"


def page_of(workdir, **options):
  return Page(report.write(workdir, **options).read_text(encoding="utf-8"))


def edit_results(workdir, method, edit):
  """Makes them results of other software, with each question edited."""
  path = workdir.results("dev", method)
  path.with_suffix(".manifest.json").unlink()
  rows = json.loads(path.read_text())
  for row in rows:
    edit(row)
  path.write_text(json.dumps(rows))


def test_passages_without_ids_and_questions_without_texts(small):
  def without_ids(row):
    for hit in row["ctxs"]:
      del hit["id"]

  edit_results(small, "dense-start", without_ids)
  edit_results(small, "bm25", lambda row: row.pop("question"))
  page = page_of(small)
  assert page.questions["systems"] == ["dense", "dense-start"]
  assert "dense against dense-start, 4 questions" in page.tables
  said = "dense is not compared with bm25: their questions or"
  assert said in page.sections["verdict"]


def test_other_answers_to_the_same_questions_are_not_compared(small):
  edit_results(small, "bm25", lambda row: row["answers"].append("more"))
  edit_results(small, "dense-start", lambda row: None)
  page = page_of(small)
  said = "dense is not compared with bm25: their questions or answers differ"
  assert said in page.sections["verdict"]
  assert "dense against dense-start, 4 questions" in page.tables


def test_a_shallow_method_hides_no_figures_of_the_others(small):
  """BM25 with one passage: 3 of 4 and 2 of 4 in the first three stay."""
  edit_results(small, "bm25", lambda row: row.update(ctxs=row["ctxs"][:1]))
  page = page_of(small)
  head, *rows = page.tables[_SHARES]
  column = head.index("answer top\u20113")
  assert [row[column].split()[0] for row in rows] == ["75.0", "50.0", "–"]
  names = [row[0] for row in page.tables["dense against bm25, 4 questions"]]
  assert "answer top-3" not in names
  assert page.questions["ks"] == [1]


def test_judged_measures_of_older_results_are_left_out(small, results):
  config = config_lib.read(small.root / "config.json")
  evaluate.evaluate(config, small)
  path = small.evaluation("dev")
  manifest = path.with_suffix(".manifest.json")
  inputs = workdir_lib.read_record(manifest)["inputs"]
  measures = workdir_lib.read_json(path)
  for found in measures.values():
    found["nDCG@10"] = 0.5
  workdir_lib.write_json(path, measures)
  workdir_lib.Stage(
    "evaluate", path.parent, {}, inputs, manifest_name=manifest.name
  ).finish({}, files={path.name: workdir_lib.fingerprint_file(path)})
  caption = "Over judged passages, as evaluate --qrels has measured"
  rows = page_of(small).tables[caption]
  assert sorted(row[0] for row in rows[1:]) == ["bm25", "dense", "dense-start"]
  results(small, "bm25", (0, 0, 0, 0))
  page = page_of(small)
  assert sorted(row[0] for row in page.tables[caption][1:]) == [
    *("dense", "dense-start"),
  ]
  assert "the results of bm25 have changed since" in page.text


@pytest.mark.parametrize("measures", [[], {"dense": 3}])
def test_measures_that_are_none_are_said(small, measures):
  small.evaluation("dev").parent.mkdir()
  workdir_lib.write_json(small.evaluation("dev"), measures)
  assert "dev.json has no measures by method" in page_of(small).text


def test_files_that_cannot_be_read_are_said(small):
  path = small.results("dev", "bm25")
  path.unlink()
  path.symlink_to(small.root / "nowhere")
  metrics = small.training / "metrics.jsonl"
  with metrics.open("a") as file:
    file.write('{"step": Infinity}\n')
  page = page_of(small)
  assert page.questions["systems"] == ["dense", "dense-start"]
  assert "bm25.json: No such file" in page.text
  assert "metrics.jsonl, line 5 is not a row of metrics" in page.text
  metrics.unlink()
  metrics.mkdir()
  assert "Is a directory" in page_of(small).text


def test_a_line_of_what_was_left_out_is_not_repeated(small):
  manifest = small.negatives / workdir_lib.MANIFEST
  run = runs.read(small)
  for _ in range(2):
    run.attempt(lambda: (manifest / "below").read_text(), None)
  assert len(run.warnings) == 1


def test_other_settings_and_another_match_make_a_new_page(small):
  path = report.write(small)

  def is_new(match=None):
    before = path.stat().st_mtime_ns
    report.write(small, match=match, overwrite=False)
    return path.stat().st_mtime_ns != before

  assert not is_new()
  config = config_lib.read(small.root / "config.json")
  config.train.batch_size = 48
  workdir_lib.write_json(small.root / "config.json", config_lib.plain(config))
  assert is_new()
  assert is_new(match="regex")
  assert not is_new(match="regex")


def test_each_part_of_a_passage_is_measured_once(monkeypatch):
  """Otherwise a long passage with many answers takes minutes."""
  measured = []
  units = questions._units
  monkeypatch.setattr(
    questions, "_units", lambda text: measured.append(len(text)) or units(text)
  )
  passage = "𝔘 to Paris, " * 50
  spans = list(questions._spans(["Paris"], passage, "string"))
  # One character of two units more in every repetition of 13 units.
  assert spans == [(13 * n + 6, 13 * n + 11) for n in range(50)]
  assert sum(measured) <= len(passage)


def test_shares_end_at_one_and_the_readers_accuracy_is_named(monkeypatch):
  drawn = {}
  monkeypatch.setattr(
    plots,
    "curves",
    lambda title, *_, most=None, **__: drawn.update({title: most}) or "",
  )
  rows = {"run": [{"step": n, "loss": 1.0, "accuracy": 1.0} for n in (1, 2)]}
  training_sections._curves(rows, training_sections._READER)
  assert drawn == {
    "Loss of the training batches": None,
    "Training questions whose positive passage ranks first": 1,
  }
  training_sections._curves(rows, training_sections._TRAINING)
  assert drawn["In-batch accuracy"] == 1
