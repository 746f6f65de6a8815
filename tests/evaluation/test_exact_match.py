"""Exact match and F1, by a table of hard cases."""

import pytest

from dpr_jax.evaluation import exact_match

# prediction, answers, exact match, F1: by SQuAD v1.1's own evaluation.
CASES = [
  ("Ulm", ["Ulm"], 1, 1),
  ("the Ulm.", ["ulm"], 1, 1),
  ("A.D. 70", ["ad 70"], 1, 1),
  ("ad70", ["AD 70"], 0, 0),
  ("well-known", ["well known"], 0, 0),  # punctuation goes, no space comes
  ("well-known", ["wellknown"], 1, 1),
  ("The The", ["the"], 1, 0),  # nothing is left: equal, and without a token
  ("", ["the"], 1, 0),
  ("", ["Ulm"], 0, 0),
  ("", [""], 1, 0),
  ("Ulm", [], 0, 0),
  ("theatre", ["atre"], 0, 0),  # an article is a word
  ("an apple a day", ["apple day"], 1, 1),
  ("É. Zola", ["é zola"], 1, 1),
  ("É. Zola", ["E. Zola"], 0, 0.5),  # accents stay
  ("Zu\u0308rich", ["Z\u00fcrich"], 0, 0),  # no normal form is taken
  ("\u201cUlm\u201d", ["Ulm"], 0, 0),  # curly marks are no ASCII punctuation
  ("$5,000", ["5000"], 1, 1),
  ("5\u00a0000", ["5 000"], 1, 1),  # a hard space is white space
  ("\u0399\u03a3", ["\u03b9\u03c2"], 1, 1),  # a final sigma
  ("in Ulm, Germany", ["Ulm", "Ulm Germany"], 0, 0.8),
  ("Paris Paris", ["Paris"], 0, 2 / 3),  # bags, not sets
  ("Paris", ["London", "the Paris"], 1, 1),  # the best counts
  ("\u5317\u4eac", ["\u5317\u4eac\u5e02"], 0, 0),
]


@pytest.mark.parametrize(("prediction", "answers", "em", "f1"), CASES)
def test_hard_cases(prediction, answers, em, f1):
  assert exact_match.exact_match(prediction, answers) == em
  assert exact_match.f1(prediction, answers) == pytest.approx(f1)


def test_means_over_all_questions():
  scores = exact_match.mean_scores(["Ulm", ""], [["Ulm"], ["Bern"]])
  assert scores == {"em": 0.5, "f1": 0.5}
  with pytest.raises(ValueError, match="no questions"):
    exact_match.mean_scores([], [])
  with pytest.raises(ValueError, match="longer|shorter"):
    exact_match.mean_scores(["Ulm"], [])
