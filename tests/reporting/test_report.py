"""The report's figures, worked out by hand; what is missing, hostile, large."""

import base64
import hashlib
import json
import re

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation.ranked_results import Ranks
from dpr_jax.reporting import questions, report, run_sections, runs
from tests.reporting.parsed_page import Page

HOSTILE = "</script><img src=x onerror='hostile=1'>\"&\u202ebidi\0<!--"


def written(workdir, **options):
  """The parsed page, and its text."""
  path = report.write(workdir, **options)
  text = path.read_text(encoding="utf-8")
  return Page(text), text


def test_verdict_and_tests_are_those_of_the_ranks(page):
  """Trained 1, 1, 1/2, 0 against the start's 1, 1/3, 0, 0."""
  page, _ = page
  rows = page.tables["dense against dense-start, 4 questions"]
  by_name = {row[0]: row[1:] for row in rows}
  # One question of four more, with (1 + 1) / 6 - (0 + 1) / 6 in the middle of
  # an interval of 1.96 x sqrt((3 / 6 - 1 / 36) / 6); p of one coin is 1.
  assert by_name["answer top-1"] == [
    *("50.0", "25.0", "+25.0", "−38.3 to +71.7", "1", "0", "1.000"),
  ]
  # Differences 0, 2/3, 1/2, 0: of 16 swaps, 8 are as far apart.
  mean = by_name["answer reciprocal rank"]
  assert mean[:3] == ["62.5", "33.3", "+29.2"]
  assert mean[-1] == "0.500"
  assert by_name["gold top-3"][:3] == ["75.0", "50.0", "+25.0"]
  assert "answer top-100" not in by_name  # three passages were retrieved
  verdict = page.sections["verdict"]
  assert "dense: no significant difference from dense-start." in verdict
  assert "Answer top-1 50.0 against 25.0 (+25.0 points" in verdict
  assert verdict.index("from dense-start") < verdict.index("from bm25")


def test_figures_are_those_of_evaluate(page, small):
  """Top-k of every method, with Wilson's interval: 2 of 4 is 15 to 85 %."""
  page, _ = page
  config = config_lib.read(small.root / "config.json")
  measures = evaluate_lib.evaluate(config, small)
  head, *rows = page.tables[
    "Share of questions, with its 95 % interval (Wilson)"
  ]
  assert head == ["percent", *(f"answer top\u2011{k}" for k in (1, 3))] + [
    f"gold top\u2011{k}" for k in (1, 3)
  ]
  assert [row[0] for row in rows] == ["dense", "dense-start", "bm25"]
  assert rows[0][1] == "50.0 15.0 to 85.0"
  for method, *cells in rows:
    names = ("top1", "top3", "gold_top1", "gold_top3")
    expected = [f"{100 * measures[method][name]:.1f}" for name in names]
    assert [cell.split()[0] for cell in cells] == expected


def test_page_is_well_formed_and_loads_nothing(page, page_of_two):
  for parsed, path in (page, page_of_two):
    text = path.read_text(encoding="utf-8")
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not parsed.addresses
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", text)
    assert len(parsed.sections) == 10
    (policy,) = [
      attributes["content"]
      for _, attributes in parsed.elements
      if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = hashlib.sha256(parsed.scripts["code"].encode()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    drawings = [a for name, a in parsed.elements if name == "svg"]
    assert len(drawings) >= 8
    assert all(each["aria-label"] and "width" not in each for each in drawings)


def test_training_data_index_and_reader(page):
  page, _ = page
  assert page.tables["run"][1] == [
    *("small", "2", "3.5 → 1.25", "2 → 1.5", "2 (the last)", "10"),
  ]
  time = page.tables["Where the time of the training went"]
  assert time[1:] == [
    ["small: steps", "7.5", "75.0"],
    ["small: compile", "2.5", "25.0"],
  ]
  counts = {row[0]: row[1] for row in page.tables["count"]}
  assert counts["passages: kept"] == "9"
  assert counts["passages: without text"] == "3"
  assert "None of these: dev: without question." in page.sections["data"]
  assert page.tables["index"][1] == [
    *("Flat", "9", "97.5", "95.0", "1,234", "2,000", "2", "nprobe=4"),
  ]
  # One, then two of four questions; Wilson's intervals of 1/4 and 2/4.
  assert page.tables["results of"][1:] == [
    ["dense", "1", "25.0", "4.6 to 69.9", "25.0", "4"],
    ["dense", "2", "50.0", "15.0 to 85.0", "50.0", "4"],
  ]
  settings = {
    row[0]: row[1]
    for caption, rows in page.tables.items()
    if caption.startswith("Different from the default: 3 of ")
    for row in rows
  }
  assert settings["train.batch_size"] == "32"
  assert set(settings) == {
    *("setting", "train.batch_size", "evaluate.ranks", "data.train"),
  }


def test_negatives_by_rank(page):
  """BM25's ranks 1, 3, 1 and 3; two of the 8 candidates have an answer."""
  page, _ = page
  assert page.tables["negatives"][1] == ["small: BM25, dev", "4", "4", "0"]
  candidates = next(
    rows for name, rows in page.tables.items() if name.startswith("Candidates")
  )
  assert candidates[1] == ["bm25", "8", "1", "12.5"]


def test_the_config_file_of_the_page_gives_the_same_config(small):
  run = runs.read(small)
  scope = {}
  exec(run_sections.config_file(run), scope)  # as `--config` does
  assert scope["get_config"]().to_dict() == run.config.to_dict()


def test_questions_with_passages_and_why(page):
  page, _ = page
  value = page.questions
  assert value["systems"] == ["dense", "dense-start", "bm25"]
  question, answers, ranks, read = value["questions"][1]
  assert (question, answers) == ("River of Paris?", ["Seine"])
  assert (ranks, read) == ([1, 3, 1], ["Seine", 1])
  # The greatest difference of reciprocal ranks first: 2/3, 1/2, none.
  assert value["order"] == [1, 2, 0, 3]
  number, spans, words, gold, places = value["hits"]["1"][0]
  identifier, title, text = value["passages"][number]
  assert (identifier, title, gold) == ("g1", "A title", 1)
  assert [text[start:end] for start, end in spans] == ["Seine"]
  assert places == [[1, 3.0], [3, 1.0], [1, 3.0]]
  assert words == []


def test_places_of_answers_are_a_browsers():
  """Two UTF-16 units for a character beyond the first 65,536."""
  found = questions._spans(["Seine", "the Seine"], "𝔘 the Seine", "string")
  assert list(found) == [(3, 12)]


def test_two_runs_side_by_side(page_of_two):
  page, _ = page_of_two
  rows = page.tables["dense (small) against dense (second), 4 questions"]
  by_name = {row[0]: row for row in rows}
  # 1, 1, 1/2, 0 against 1/3, 1, 0, 0.
  assert by_name["answer reciprocal rank"][1:4] == ["62.5", "33.3", "+29.2"]
  assert "bm25 (small) against bm25 (second), 4 questions" in page.tables
  (unequal,) = [
    rows
    for name, rows in page.tables.items()
    if name == "Different in the two runs: 2"
  ]
  assert [row[:3] for row in unequal if row[0] == "train.batch_size"] == [
    ["train.batch_size", "32", "64"]
  ]
  # 2 of 4 more: (2 + 1) / 6 - (0 + 1) / 6 +- 1.96 x sqrt((4 / 6 - 1 / 9) / 6).
  assert page.tables["EM"][1] == [
    *("dense", "50.0", "0.0", "+50.0", "−26.3 to +93.0", "0.500"),
  ]
  assert page.tables["count"][1][-1] == "+0"
  (candidates,) = [
    rows for name, rows in page.tables.items() if name.startswith("Candidates")
  ]
  assert [row[0] for row in candidates[1:]] == [
    *("bm25 (small)", "bm25 (second)"),
  ]
  assert page.questions["systems"][:2] == ["dense (small)", "dense (second)"]


@pytest.mark.usefixtures("without_plots")
def test_other_questions_are_not_compared(small, second, results):
  names = ("A?", "B?", "C?", "D?")
  for method in ("dense", "dense-start", "bm25"):
    results(second, method, (0, 0, 0, 0), questions=names)
  page, _ = written(small, against=second)
  said = "dense (small) is not compared with dense (second): their questions"
  assert said in page.sections["verdict"]
  assert "dense (small) against dense (second), 4 questions" not in page.tables
  assert page.questions["systems"] == [
    f"{method} (small)" for method in ("dense", "dense-start", "bm25")
  ]


@pytest.mark.usefixtures("without_plots")
def test_judged_measures_and_results_of_other_software(small):
  """Scores may be missing or infinite there, and titles too."""
  measures = {"dense": {"top1": 0.5, "nDCG@10": 0.625, "judged_questions": 3}}
  small.evaluation("dev").parent.mkdir()
  workdir_lib.write_json(small.evaluation("dev"), measures)
  path = small.results("dev", "bm25")
  path.with_suffix(".manifest.json").unlink()
  rows = json.loads(path.read_text())
  for row in rows:
    row["ctxs"] = [
      {"id": hit["id"], "text": hit["text"], "score": "inf"}
      for hit in row["ctxs"]
    ]
  path.write_text(json.dumps(rows))
  page, _ = written(small)
  (judged,) = [
    rows for name, rows in page.tables.items() if name.startswith("Over judged")
  ]
  assert judged == [
    ["percent", "nDCG@10", "judged questions"],
    ["dense", "62.5", "3"],
  ]
  places = [hit[4][2] for hit in page.questions["hits"]["1"]]
  assert [1, None] in places
  assert "Infinity" not in page.scripts["question-data"]


@pytest.mark.usefixtures("without_plots")
def test_what_is_missing_is_named_with_its_command(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path / "w")
  workdir.data.mkdir(parents=True)
  workdir_lib.Stage("prepare", workdir.data, {}, {}).finish({"passages": 1})
  page, _ = written(workdir)
  for section, command in {
    "verdict": "retrieve",
    "questions": "retrieve",
    "training": "train",
    "negatives": "mine",
    "index": "index",
    "reader": "train-reader",
  }.items():
    assert f"dpr-jax {command} --workdir={workdir.root}" in " ".join(
      page.sections[section].split()
    )
  assert page.questions == {}


@pytest.mark.usefixtures("without_plots")
def test_damaged_and_stale_results_are_left_out_and_said(small):
  path = small.results("dev", "bm25")
  path.write_text(path.read_text().replace("Paris", "Parts"))
  page, _ = written(small)
  assert "bm25.json is not the file that" in page.text
  assert page.questions["systems"] == ["dense", "dense-start"]


@pytest.mark.usefixtures("without_plots")
def test_hostile_text_stays_text(tmp_path, results):
  """In titles, passages, questions, names of folders, counts and settings."""
  workdir = workdir_lib.Workdir(tmp_path / "<b>'\"&\u202e")
  workdir.root.mkdir()
  for method, ranks in {"dense": (0, 1), "bm25": (1, 0)}.items():
    results(
      workdir, method, ranks, title=HOSTILE, questions=(HOSTILE, "\ud800?")
    )
  config = config_lib.base_config()
  config.data.train = HOSTILE.replace("\0", "")
  workdir_lib.write_json(workdir.root / "config.json", config_lib.plain(config))
  page, text = written(workdir)
  names = {name for name, _ in page.elements}
  assert not names & {"img", "b"}
  assert not any(key.startswith("on") for _, a in page.elements for key in a)
  assert not set("\0\u202e") & set(text)
  assert text.count("</script>") == 2
  shown = HOSTILE.replace("\u202e", "").replace("\0", "\ufffd")
  assert page.questions["questions"][0][0] == shown
  assert page.questions["questions"][1][0] == "\ufffd?"
  assert {title for _, title, _ in page.questions["passages"]} == {shown}
  assert "<b>'\"&" in page.text


@pytest.mark.usefixtures("without_plots")
def test_limits_of_the_file_are_kept_and_said(small, monkeypatch):
  monkeypatch.setattr(questions, "MOST_QUESTIONS", 2)
  page, _ = written(small)
  assert set(page.questions["hits"]) == {"1", "2"}
  assert len(page.questions["questions"]) == 4
  assert (
    "All 4 questions are listed; passages are in this file for 2"
    in (page.sections["questions"])
  )
  monkeypatch.setattr(questions, "MOST_BYTES", 0)
  page, _ = written(small)
  assert set(page.questions["hits"]) == {"1"}


def test_wins_come_before_losses_of_the_same_size():
  ranks = [
    Ranks(answer, [], 3, 4) for answer in ([0, 1, 0, 2], [1, 0, 0, None])
  ]
  assert questions.most_different(*ranks) == [0, 1, 3, 2]
  assert questions.most_different(ranks[0]) == [0, 1, 2, 3]


@pytest.mark.usefixtures("without_plots")
def test_only_reports_are_replaced(small, tmp_path):
  path = report.write(small)
  assert path == small.root / "report" / "dev.html"
  before = path.stat().st_mtime_ns
  assert report.write(small, overwrite=False) == path
  assert path.stat().st_mtime_ns == before
  small.results("dev", "bm25").touch()
  report.write(small, overwrite=False)
  assert path.stat().st_mtime_ns != before
  other = tmp_path / "dev.html"
  other.write_text("mine")
  with pytest.raises(errors.InputError, match="is not a report of dpr-jax"):
    report.write(small, out=tmp_path)
  assert other.read_text() == "mine"


def test_bad_input_is_refused(small, tmp_path):
  empty = workdir_lib.Workdir(tmp_path / "empty")
  with pytest.raises(errors.InputError, match="--workdir=.*no such folder"):
    report.write(empty)
  with pytest.raises(errors.InputError, match="--against=.*no such folder"):
    report.write(small, against=empty)
  with pytest.raises(errors.InputError, match="is --workdir itself"):
    report.write(small, against=small)
  empty.root.mkdir()
  with pytest.raises(errors.InputError, match="holds nothing to report"):
    report.write(empty)


@pytest.mark.usefixtures("without_plots")
def test_lines_that_are_no_metrics_are_said(small):
  with (small.training / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "lo')
  page, _ = written(small)
  assert "metrics.jsonl, line 5 is not a row of metrics" in page.text
  assert json.dumps(page.questions)
