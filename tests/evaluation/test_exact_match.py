"""Exact match and F1, by a table of hard cases."""

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

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
  ("Zu\u0308rich", ["Z\u00fcrich"], 1, 1),  # one letter, encoded in two ways
  ("Z\u00fcrich See", ["Zu\u0308rich"], 0, 2 / 3),
  ("\u1112\u1161\u11ab", ["\ud55c"], 1, 1),  # a syllable of Hangul
  ("\u0958", ["\u0915\u093c"], 1, 1),  # a Hindi letter with a dot
  ("\u212bngstr\u00f6m", ["\u00e5ngstro\u0308m"], 1, 1),
  ("I\u0307stanbul", ["\u0130stanbul"], 1, 1),
  ("J\u030c", ["\u01f0"], 1, 1),  # a capital that has no code of its own
  ("a\u0301 la", ["\u00e1 la"], 1, 1),  # no article
  ("a\u0330 la", ["la"], 0, 2 / 3),  # nor here, where no code has both
  ("who\u037e", ["who;"], 1, 1),  # the Greek question mark is a semicolon
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


@hypothesis.given(strategies.text(), strategies.text())
def test_the_encoding_of_accents_makes_no_difference(prediction, answer):
  forms = [unicodedata.normalize(form, prediction) for form in ("NFC", "NFD")]
  for other in (unicodedata.normalize("NFD", answer), answer):
    assert len({exact_match.f1(form, [other]) for form in forms}) == 1
  assert exact_match.exact_match(forms[0], [forms[1]]) == 1


def test_means_over_all_questions():
  scores = exact_match.mean_scores(["Ulm", ""], [["Ulm"], ["Bern"]])
  assert scores == {"em": 0.5, "f1": 0.5}
  with pytest.raises(ValueError, match="no questions"):
    exact_match.mean_scores([], [])
  with pytest.raises(ValueError, match="longer|shorter"):
    exact_match.mean_scores(["Ulm"], [])
