"""Paired tests against their definitions; reports of what differs."""

import io
import math

import numpy as np
import pytest

from dpr_jax.evaluation import significance, tables


def test_mcnemar_counts_coins():
  """9 of 10 disagreements for one side: both tails of 10 coins."""
  one = [True] * 9 + [False] + [True] * 5 + [False] * 5
  other = [False] * 9 + [True] + [True] * 5 + [False] * 5
  found = significance.mcnemar(one, other)
  assert (found["only_one"], found["only_other"]) == (9, 1)
  assert found["p"] == pytest.approx(2 * (1 + 10) / 2**10)
  assert found["difference"] == pytest.approx(8 / 20)
  assert significance.mcnemar(one, one)["p"] == 1.0


def test_interval_of_a_share():
  """Wilson's, as in Newcombe (1998), table I: 81 of 263, 0 of 20, 1 of 29."""
  for hits, total, low, high in (
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ):
    found = significance.share_interval(hits, total)
    assert found == pytest.approx((low, high), abs=5e-5)
  assert significance.share_interval(20, 20)[1] == 1.0
  with pytest.raises(ValueError, match="no questions"):
    significance.share_interval(0, 0)


def test_interval_of_paired_shares():
  """9 and 1 of 20 apart: 8 / 22, plus and minus 1.96 standard errors."""
  one = [True] * 9 + [False] + [True] * 5 + [False] * 5
  other = [False] * 9 + [True] + [True] * 5 + [False] * 5
  half = 1.959964 * math.sqrt((12 / 22 - (8 / 22) ** 2) / 22)
  found = significance.mcnemar(one, other)["interval"]
  assert found == pytest.approx([8 / 22 - half, 8 / 22 + half], abs=1e-6)
  low, high = significance.mcnemar(one, one)["interval"]
  assert low == -high < 0


def test_permutation_equals_all_sign_changes():
  """Few questions: every swap is tried, so p is exact."""
  one = [0.9, 0.8, 0.7, 0.9, 0.6, 0.8]
  other = [0.1, 0.2, 0.3, 0.2, 0.5, 0.4]
  found = significance.permutation(one, other)
  assert found["p"] == pytest.approx(2 / 2**6)
  low, high = found["interval"]
  assert low < found["difference"] < high
  same = significance.permutation(one, one)
  assert (same["p"], same["interval"]) == (1.0, [0.0, 0.0])


def test_permutation_of_noise_is_not_significant():
  generator = np.random.default_rng(0)
  one, other = generator.uniform(size=(2, 300))
  assert significance.permutation(one, other)["p"] > 0.05
  assert significance.permutation(one + 0.1, one)["p"] < 0.001


def test_the_smallest_p_is_said():
  """Of 40 questions all of which say the same: 2 / (9,999 + 1), not 2^-39."""
  found = significance.permutation(np.ones(40), np.zeros(40))
  assert found["p"] == pytest.approx(0.0002)
  assert significance.FLOOR == 0.0002
  assert "9,999 resamples: never below 0.0002" in significance.NOTE
  assert "not corrected for multiple testing" in significance.NOTE
  # Of four questions all 16 swaps are tried: two of them are as far apart.
  few = significance.permutation(np.ones(4), np.zeros(4))
  assert few["p"] == pytest.approx(2 / 16)


_BOTH = ("one", "other")
ONE = [0, None, 3, 1]
OTHER = [2, 0, None, 1]


def test_report_of_two_methods():
  found = significance.compare(
    ("dense", "bm25"), (ONE, OTHER), ([0], [None]), [1, 5]
  )
  assert set(found["tests"]) == {
    "top1",
    "top5",
    "reciprocal_rank",
    "gold_top1",
    "gold_top5",
    "gold_reciprocal_rank",
  }
  assert found["tests"]["top5"]["only_one"] == 1
  assert found["tests"]["reciprocal_rank"]["one"] == pytest.approx(
    (1 + 1 / 4 + 1 / 2) / 4
  )
  file = io.StringIO()
  tables.print_table(significance.table(found), file)
  shown = file.getvalue()
  assert "dense against bm25, 4 questions" in shown
  assert "gold reciprocal rank" in shown


def test_disagreements_name_the_questions():
  questions = [{"question": f"q{i}", "answers": ["a"]} for i in range(4)]
  found = significance.disagreements(questions, (ONE, OTHER), 5)
  assert found["only_one"] == [
    {
      "row": 2,
      "question": "q2",
      "answers": ["a"],
      "rank_one": 4,
      "rank_other": None,
    }
  ]
  assert [each["row"] for each in found["only_other"]] == [1]
  assert not math.isnan(found["only_other"][0]["rank_other"])
  found = significance.disagreements(questions, (ONE, OTHER), 1)
  assert [each["row"] for each in found["only_one"]] == [0]


def test_a_rank_of_k_is_behind_the_first_k():
  """Ranks count from 0: the first 3 are 0, 1 and 2."""
  one, other = [0, 2, 3, 5], [3, 3, 3, 3]
  found = significance.compare(("a", "b"), (one, other), ([], []), [1, 3, 4])
  shares = [(found["tests"][f"top{k}"][m]) for k in (1, 3, 4) for m in _BOTH]
  assert shares == [0.25, 0.0, 0.5, 0.0, 0.75, 1.0]
  assert [found["tests"][f"top{k}"]["only_one"] for k in (1, 3, 4)] == [1, 2, 0]
  questions = [{"question": "q", "answers": []}] * 4
  apart = significance.disagreements(questions, (one, other), 3)
  assert [each["row"] for each in apart["only_one"]] == [0, 1]
  assert apart["only_other"] == []
