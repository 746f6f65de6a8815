"""Shares of candidates with an answer, counted by hand."""

import numpy as np

from dpr_jax.retrieval import false_negatives, negative_filters

HITS = negative_filters.Hits(
  np.array([[0, 1, 2, 3, 4, 5], [6, 7, -1, -1, -1, -1]]),
  np.array([[20, 19.5, 19, 18, 12, 11], [3, 2, 0, 0, 0, 0]], np.float32),
  np.array([20, np.nan], np.float32),
)
ANSWERS, GOLD = {0, 1, 3, 5, 7}, {0}


def _excluded(rows):
  return [(row in ANSWERS, row in GOLD) for row in rows]


def test_candidates_are_counted_before_answers_are_left_out(caplog):
  """Of question 0 the passage 0 is its positive, and no candidate.

  No margin: the best are 1 (answer), 2; margin 0 (<= 20): the same; 0.05 (<=
  19): 2, 3 (answer); 0.1 (<= 18): 3 (answer), 4.  Question 1 has no positive's
  score: 6, 7 (answer) always.
  """
  filters = negative_filters.Filters(keep=2, relative_margin=0.05)
  measured = false_negatives.Measured.of(filters, 2)
  for place in (0, 1):
    assert measured.wants(place)
    measured.add(HITS, place, _excluded)
  found = measured.plain()
  assert found["questions"] == 2
  assert found["questions_with_positive_score"] == 1
  assert [tuple(row.values()) for row in found["best"]] == [
    ("relative margin 0.05", 1, 2, 0),
    ("relative margin 0.05", 2, 4, 2),
    ("no margin", 1, 2, 1),
    ("no margin", 2, 4, 2),
    ("relative margin 0", 1, 2, 1),
    ("relative margin 0", 2, 4, 2),
    ("relative margin 0.1", 1, 2, 1),
    ("relative margin 0.1", 2, 4, 2),
  ]
  assert set(found["best"][0]) == {
    *("filters", "passages", "candidates", "with_answer")
  }
  with caplog.at_level("INFO"):
    measured.log("mine dev")
  assert caplog.messages[:3] == [
    "mine dev: candidates that contain an answer (left out), of 2 questions:",
    "mine dev: relative margin 0.05 (as set): 0.0 % of the best 1, 50.0 % of"
    " the best 2; 2.0 candidates per question",
    "mine dev: no margin: 50.0 % of the best 1, 50.0 % of the best 2; 2.0"
    " candidates per question",
  ]


def test_other_filters_stay_and_margins_are_named():
  """Rank 0 is left out, and the score 11 is too low; keep is 9: all of 5."""
  filters = negative_filters.Filters(
    keep=9, range_min=1, min_score=12.0, absolute_margin=1.0
  )
  measured = false_negatives.Measured.of(filters, 1)
  measured.add(HITS, 0, _excluded)
  best = {
    (row["filters"], row["passages"]): (row["candidates"], row["with_answer"])
    for row in measured.plain()["best"]
  }
  assert best["absolute margin 1", 9] == (3, 1)  # <= 19: 2, 3, 4
  assert best["no margin", 9] == best["no margin", 5] == (4, 2)  # 1 to 4
  assert best["no margin", 1] == (1, 1)
  assert best["relative margin 0.1", 9] == (2, 1)  # 3, 4


def test_questions_are_evenly_spaced():
  """All of a thousand; the first, the last, and every second one of more."""
  filters = negative_filters.Filters(keep=2)
  assert false_negatives.Measured.of(filters, 3).numbers == {0, 1, 2}
  spaced = false_negatives.Measured.of(filters, 1999)
  assert spaced.numbers == set(range(0, 1999, 2))
  assert not spaced.wants(3)
