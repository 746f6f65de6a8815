"""The comparison of a sweep, on figures worked out by hand."""

import json
import math

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import verdict
from dpr_jax.reporting import sweep_table


def _trained(folder, ranks, questions="d"):
  """A workdir after a training, with these ranks of its dev questions."""
  place = workdir_lib.Workdir(folder)
  found = verdict.of_ranks(ranks, [4] * len(ranks), 9)
  inputs = {"dev": questions}
  stage = workdir_lib.Stage("train", place.training, {}, inputs)
  place.training.mkdir(parents=True)
  stage.finish({"steps": 1}, verdict=found)
  return place


def _with_results(place, method, ranks):
  """Results whose answers are at these ranks from 0; None = nowhere."""
  path = place.results("dev", method)
  path.parent.mkdir(exist_ok=True)
  rows = [
    {
      "question": "where",
      "answers": ["Ulm"],
      "ctxs": [
        {
          "id": str(n),
          "title": "",
          "text": "Ulm." if n == rank else "Berlin.",
          "score": "1.0",
        }
        for n in range(4)
      ],
    }
    for rank in ranks
  ]
  path.write_text(json.dumps(rows))
  file = place.evaluation("dev")
  file.parent.mkdir(exist_ok=True)
  measures = json.loads(file.read_text()) if file.exists() else {}
  hits = sum(rank == 0 for rank in ranks) / len(ranks)
  file.write_text(json.dumps(measures | {method: {"top1": hits, "count": 8}}))


@pytest.fixture
def rows(tmp_path):
  """Two settings with two seeds; of the second, one seed more failed.

  Eight questions.  Setting a has rank 2 everywhere; b has rank 1 everywhere
  with seed 0, and with seed 1 rank 1 for half of them, else 2.
  """
  ranks = {
    ("a", 0): [2] * 8,
    ("a", 1): [2] * 8,
    ("b", 0): [1] * 8,
    ("b", 1): [1, 2] * 4,
  }
  found = [
    sweep_table.Row(
      setting,
      {"train.epochs": 1.0},
      seed,
      _trained(tmp_path / f"{setting}{seed}", own),
    )
    for (setting, seed), own in ranks.items()
  ]
  return [*found, sweep_table.Row("b", {"train.epochs": 1.0}, 2, None)]


def test_means_errors_and_tests_of_the_pool(rows):
  """Top-1 of b: (1 + 1/2) / 2 = 3/4, standard error 1/4."""
  found = sweep_table.compare(rows, whole=False)
  assert found["against"] == "a"
  assert found["settings"] == {
    "a": {"values": {"train.epochs": 1.0}, "seeds": [0, 1], "failed": []},
    "b": {"values": {"train.epochs": 1.0}, "seeds": [0, 1], "failed": [2]},
  }
  (pool,) = found["methods"].values()
  measures = pool["b"]["measures"]
  assert measures["gold_top1"]["mean"] == 0.75
  # Deviations of 1/4 each: sqrt(2/16 / 1) / sqrt(2) = 1/4.
  error = math.sqrt((2 * 0.25**2) / 1) / math.sqrt(2)
  assert measures["gold_top1"]["standard_error"] == pytest.approx(error)
  assert error == pytest.approx(0.25)
  assert measures["gold_top1"]["by_seed"] == {"0": 1.0, "1": 0.5}
  assert measures["average_rank"]["mean"] == 1.25
  assert measures["gold_reciprocal_rank"]["mean"] == 0.875
  assert pool["a"]["measures"]["gold_reciprocal_rank"] == {
    "mean": 0.5,
    "standard_error": 0.0,
    "by_seed": {"0": 0.5, "1": 0.5},
  }
  assert pool["a"]["tests"] == {}
  # Means over seeds: 1 and 3/4 in turns, against 1/2: all eight are better.
  test = pool["b"]["tests"]["gold"]
  assert test["difference"] == pytest.approx(0.375)
  assert test["p"] == pytest.approx(2 / 2**8)
  assert (test["outcome"], test["questions"], test["seeds"]) == (
    "better",
    8,
    [0, 1],
  )


def test_only_common_seeds_are_tested(rows):
  """Without seed 0 of the first, that of seed 1 is left: half are equal."""
  found = sweep_table.compare(rows[1:], whole=False)
  test = found["methods"]["dev pool"]["b"]["tests"]["gold"]
  assert test["seeds"] == [1]
  assert test["difference"] == pytest.approx(0.25)
  assert test["p"] == pytest.approx(2 / 2**4)  # four questions differ
  assert test["outcome"] == "even"


def test_results_over_the_corpus(rows):
  """Answers at rank 0 and none: means of 1 and 0; counts are no measures."""
  for row in rows[:2]:
    _with_results(row.workdir, "dense", [None] * 8)
  for row in rows[2:4]:
    _with_results(row.workdir, "dense", [0] * 8)
  found = sweep_table.compare(rows, whole=True)
  assert set(found["methods"]) == {"dense", "dev pool"}
  dense = found["methods"]["dense"]
  assert set(dense["b"]["measures"]) == {"top1", "answer_reciprocal_rank"}
  assert dense["a"]["measures"]["top1"]["mean"] == 0
  assert dense["b"]["measures"]["answer_reciprocal_rank"]["mean"] == 1
  assert dense["b"]["tests"]["answer"]["p"] == pytest.approx(2 / 2**8)


def test_of_other_questions_there_is_no_test(rows):
  """Their numbers differ: nothing is paired."""
  for row, count in zip(rows[:4], (8, 8, 7, 7), strict=True):
    _with_results(row.workdir, "dense", [0] * count)
  dense = sweep_table.compare(rows, whole=True)["methods"]["dense"]
  assert dense["b"]["tests"] == {}


def test_the_files(rows, tmp_path):
  """Both, and only where they replace a sweep's."""
  folder = tmp_path / "sweep"
  folder.mkdir()
  sweep_table.check_ours(folder)
  text = sweep_table.write(folder, rows, whole=False)
  assert (folder / "sweep.md").read_text() == text
  lines = text.splitlines()
  assert "## dev pool" in lines
  assert lines[lines.index("## dev pool") + 2 :][:4] == [
    "| setting | seeds | gold top-1, % | average rank | gold reciprocal rank |"
    " gold RR: difference, p |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
    "| `a` | 2 | 0.0 ± 0.0 | 2.000 ± 0.000 | 0.500 ± 0.000 | – |",
    "| `b` | 2 | 75.0 ± 25.0 | 1.250 ± 0.250 | 0.875 ± 0.125 | +0.375, 0.0078:"
    " better |",
  ]
  assert lines[-1] == "- `b`: seed 2"
  record = workdir_lib.read_record(folder / "sweep.json")
  assert record["settings"]["b"]["failed"] == [2]
  sweep_table.check_ours(folder)
  (folder / "sweep.json").write_text("{}")
  with pytest.raises(errors.InputError, match="sweep.json is not of a sweep"):
    sweep_table.check_ours(folder)
  (folder / "sweep.json").unlink()
  with pytest.raises(errors.InputError, match="sweep.md exists without sweep"):
    sweep_table.check_ours(folder)


def test_other_questions_are_not_paired(tmp_path):
  """Eight questions each, of two files (`--over=data.dev=...`): no test."""
  rows = [
    sweep_table.Row(
      name, {"data.dev": name}, 0, _trained(tmp_path / name, [rank] * 8, file)
    )
    for name, rank, file in (("a", 2, "f"), ("b", 1, "f"), ("c", 1, "g"))
  ]
  (pool,) = sweep_table.compare(rows, whole=False)["methods"].values()
  assert [list(pool[name]["tests"]) for name in "abc"] == [[], ["gold"], []]
  assert pool["c"]["measures"]["gold_top1"]["mean"] == 1.0
