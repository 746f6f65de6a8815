"""Top-k accuracy, its files and its table."""

import json
import math

import hypothesis
import pytest
from hypothesis import strategies

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate as evaluate_lib


def test_top_k_accuracy_counts_all_questions():
  shares = evaluate_lib.top_k_accuracy([0, 4, 5, None], [1, 5, 20])
  assert shares == {1: 0.25, 5: 0.5, 20: 0.75}
  assert evaluate_lib.top_k_accuracy([None], [1]) == {1: 0.0}


def test_no_questions_have_no_accuracy():
  with pytest.raises(ValueError, match="no questions"):
    evaluate_lib.top_k_accuracy([], [1])


@hypothesis.given(
  ranks=strategies.lists(
    strategies.none() | strategies.integers(0, 120), min_size=1
  )
)
def test_top_k_accuracy_grows_with_k(ranks):
  shares = list(evaluate_lib.top_k_accuracy(ranks, [1, 5, 20, 100]).values())
  assert shares == sorted(shares)
  found = sum(rank is not None and rank < 100 for rank in ranks)
  assert math.isclose(shares[-1], found / len(ranks))


def _hit(identifier, text, has_answer):
  return {
    "id": identifier,
    "title": "",
    "text": text,
    "score": "1.0",
    "has_answer": has_answer,
  }


RESULTS = [
  {
    "question": "capital of France",
    "answers": ["Paris"],
    "ctxs": [_hit("p1", "Paris.", True), _hit("p2", "Lyon.", False)],
  },
  {
    "question": "who",
    "answers": ["Ann[ae]"],
    "ctxs": [_hit("p3", "Bob", False), _hit("p4", "Anna", False)],
  },
  {"question": "nothing found", "answers": ["x"], "ctxs": []},
  {
    "question": "second",
    "answers": ["Lyon"],
    "ctxs": [_hit("p1", "Paris.", False), _hit("p2", "Lyon.", True)],
  },
]


def _config(**evaluate):
  config = config_lib.base_config()
  config.evaluate.ranks = (1, 2, 20)
  config.evaluate.update(evaluate)
  return config


def _write(folder, name="dev", method="bm25", results=RESULTS, **sidecar):
  place = workdir_lib.Workdir(folder)
  path = place.results(name, method)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(results), encoding="utf-8")
  if sidecar:
    stage = workdir_lib.Stage(
      "retrieve",
      path.parent,
      {},
      {},
      manifest_name=f"{name}.{method}.manifest.json",
    )
    files = {path.name: workdir_lib.fingerprint_file(path)}
    stage.finish({}, files=files, **sidecar)
  return place


GOLD = [["p2"], ["p3", "p9"], ["p9"], []]


def test_evaluate_writes_and_returns_fractions(tmp_path, capsys):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  measures = evaluate_lib.evaluate(_config(), place)
  expected = {
    "top1": 0.25,
    "top2": 0.5,
    "gold_top1": 1 / 3,  # of the three that have a gold passage
    "gold_top2": 2 / 3,
  }
  assert measures == {"bm25": pytest.approx(expected)}  # no top20: depth 2
  assert json.loads(place.evaluation("dev").read_text()) == measures
  shown = capsys.readouterr().out
  assert "answer top-1" in shown
  assert "66.7" in shown
  assert evaluate_lib.evaluate(_config(), place) == measures  # from the file
  assert capsys.readouterr().out == shown


def test_ranks_beyond_the_depth_are_left_out_with_a_reason(tmp_path, caplog):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  evaluate_lib.evaluate(_config(), place)
  assert "has 2 passages per question, so there is no top-20" in caplog.text


def test_other_match_looks_again(tmp_path):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  assert evaluate_lib.evaluate(_config(), place)["bm25"]["top2"] == 0.5
  again = evaluate_lib.evaluate(_config(), place, match="regex")
  assert again["bm25"]["top2"] == 0.75
  assert again["bm25"]["top1"] == 0.25


def test_results_from_elsewhere_are_not_trusted(tmp_path):
  wrong = [{**RESULTS[0], "ctxs": [_hit("p2", "Lyon.", True)]}]
  place = _write(tmp_path, results=wrong)
  assert evaluate_lib.evaluate(_config(), place) == {"bm25": {"top1": 0.0}}


def test_every_method_of_this_name_and_no_other(tmp_path):
  sidecar = {"match": "string", "depth": 2, "gold": GOLD}
  _write(tmp_path, **sidecar)
  _write(tmp_path, method="dense-start", **sidecar)
  _write(tmp_path, name="dev.more", **sidecar)
  place = _write(tmp_path, name="other", **sidecar)
  assert set(evaluate_lib.evaluate(_config(), place)) == {"bm25", "dense-start"}
  assert set(evaluate_lib.evaluate(_config(), place, name="dev.more")) == {
    "bm25"
  }


def test_changed_results_are_refused_with_their_manifest(tmp_path):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  place.results("dev", "bm25").write_text("[]")
  with pytest.raises(errors.InputError, match="dev.bm25.json is not the file"):
    evaluate_lib.evaluate(_config(), place)


def test_new_results_are_measured_again(tmp_path):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  evaluate_lib.evaluate(_config(), place)
  sidecar = {"match": "string", "depth": 2, "gold": [["p1"]] * 4}
  _write(tmp_path, **sidecar)  # the same results, other gold passages
  assert evaluate_lib.evaluate(_config(), place)["bm25"]["gold_top1"] == 0.5


@pytest.mark.parametrize(
  ("results", "message"),
  [
    ([], "the file has no questions"),
    ([3], "question 0: 3 is not a JSON object"),
    ([RESULTS[0], {"question": "q"}], "question 1: not in DPR's results"),
    ([{"ctxs": [{"id": "x"}], "answers": ["a"]}], "'text'"),
  ],
)
def test_malformed_results_are_refused(tmp_path, results, message):
  place = _write(tmp_path, results=results)
  with pytest.raises(errors.InputError, match=message):
    evaluate_lib.evaluate(_config(), place)


def test_cut_off_results_are_refused(tmp_path):
  place = _write(tmp_path)
  path = place.results("dev", "bm25")
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(
    errors.InputError, match="bm25.json: question 3, or .*is not JSON"
  ):
    evaluate_lib.evaluate(_config(), place)


def test_gold_of_other_questions_is_refused(tmp_path):
  place = _write(tmp_path, match="string", depth=2, gold=GOLD[:2])
  with pytest.raises(errors.InputError, match="4 questions, its manifest 2"):
    evaluate_lib.evaluate(_config(), place)


def test_missing_results_and_bad_match_are_refused(tmp_path):
  place = workdir_lib.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match="retrieve --name=dev"):
    evaluate_lib.evaluate(_config(), place)
  with pytest.raises(errors.InputError, match=r"evaluate\.match='fuzzy'"):
    evaluate_lib.evaluate(_config(), place, match="fuzzy")
  with pytest.raises(errors.InputError, match=r"evaluate\.ranks=0"):
    evaluate_lib.evaluate(_config(ranks=(0, 5)), place)


def test_methods_without_results_are_named(tmp_path, caplog):
  """Those of the config, and one whose file was deleted."""
  sidecar = {"match": "string", "depth": 2, "gold": GOLD}
  place = _write(tmp_path, **sidecar)
  _write(tmp_path, method="exact", **sidecar)
  place.results("dev", "exact").unlink()
  evaluate_lib.evaluate(_config(), place)
  assert "no results of dense, exact for dev: run `dpr-jax retr" in caplog.text


def test_a_lost_evaluation_is_made_again(tmp_path):
  """Done means that the file is there, whole."""
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  measures = evaluate_lib.evaluate(_config(), place)
  path = place.evaluation("dev")
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b"0.25", b"0.75"))
  assert evaluate_lib.evaluate(_config(), place) == measures
  path.unlink()
  assert evaluate_lib.evaluate(_config(), place) == measures
  assert path.read_bytes() == whole


def test_results_of_older_towers_or_data_are_refused(tmp_path):
  """What was retrained, indexed or prepared since is named, with the fix."""
  place = workdir_lib.Workdir(tmp_path)
  folders = {
    "train": place.training,
    "index": place.index("Flat"),
    "prepare": place.data,
  }

  def make(stage, version):
    workdir_lib.Stage(stage, folders[stage], {}, {}).finish(
      {"version": version}, files={"passages/rows": str(version)}
    )

  for stage in folders:
    make(stage, 1)
  path = place.results("dev", "dense")
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(RESULTS))
  before = {
    "training": workdir_lib.manifest_fingerprint(folders["train"], "train"),
    "index": workdir_lib.manifest_fingerprint(folders["index"], "index"),
    **workdir_lib.dataset_inputs(place, "passages"),
    "questions": "a file that is not looked at again",
  }
  config = {"method": "dense", "factory": "Flat"}
  stage = workdir_lib.Stage(
    "retrieve", path.parent, config, before, "dev.dense.manifest.json"
  )
  files = {path.name: workdir_lib.fingerprint_file(path)}
  stage.finish({}, files=files, match="string", depth=2, gold=GOLD)
  keys = {"train": "training", "index": "index", "prepare": "passages"}
  for name in folders:
    evaluate_lib.evaluate(_config(), place)
    make(name, 2)
    with pytest.raises(errors.InputError) as raised:
      evaluate_lib.evaluate(_config(), place, compare=None)
    said = str(raised.value)
    assert f"{keys[name]} (was {before[keys[name]][:12]}…, is " in said
    assert "dpr-jax retrieve --name=dev --method=dense` again" in said
    make(name, 1)
  (place.training / "manifest.json").unlink()  # cannot be compared
  evaluate_lib.evaluate(_config(), place)


def test_answers_of_other_results_or_damaged_ones_are_refused(tmp_path):
  """Exact match is of what was read in the results that are there."""
  place = _write(tmp_path, match="string", depth=2, gold=GOLD)
  path = place.answers("dev", "bm25")
  path.parent.mkdir()
  row = {"question": "q", "answers": ["a"], "prediction": "a"}
  path.write_text(json.dumps([row]))
  source = workdir_lib.fingerprint_file(place.results("dev", "bm25"))
  stage = workdir_lib.Stage(
    "read", path.parent, {}, {"questions": source}, "dev.bm25.manifest.json"
  )
  stage.finish({}, files={path.name: workdir_lib.fingerprint_file(path)})
  assert evaluate_lib.evaluate(_config(), place)["bm25"]["em"] == 1.0
  changed = [*RESULTS[:3], {**RESULTS[3], "question": "other"}]
  _write(tmp_path, results=changed, match="string", depth=2, gold=GOLD)
  with pytest.raises(errors.InputError, match=r"read --name=dev --method=bm25"):
    evaluate_lib.evaluate(_config(), place)
  _write(tmp_path, match="string", depth=2, gold=GOLD)
  path.write_text(json.dumps([row | {"prediction": "b"}]))
  with pytest.raises(errors.InputError, match="bm25.json is not the file"):
    evaluate_lib.evaluate(_config(), place)
