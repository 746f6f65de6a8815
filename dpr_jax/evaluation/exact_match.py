"""Computes exact match and F1 of one answer, by SQuAD's rules.

Input: a prediction and the accepted answers.  Output: numbers from 0 to 1.  The
rules are those of SQuAD v1.1's own evaluation (Rajpurkar et al. 2016), and
exact match is what DPR reports.  Texts are lower-cased, ASCII punctuation is
deleted, the words a, an and the are replaced by a space, and white space is
collapsed; the best of the accepted answers counts, and a question without a
prediction counts as 0.  In addition, texts are normalised (NFC), so that the
encoding of accents does not matter, as in `data/answer_matching.py`.  F1 counts
tokens between spaces.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# NFC leaves two characters of a letter with a mark that has no composed form:
# an "a" before such a mark is not an article.
_ARTICLES = re.compile(
  r"\b(a|an|the)\b(?![\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff])"
)


def normalize(text: str) -> str:
  """The form in which answers are compared."""
  text = text.lower()
  if not text.isascii():
    text = unicodedata.normalize("NFC", text)
  text = text.translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """1.0 where the prediction equals an answer, both normalised, else 0.0."""
  normalized = normalize(prediction)
  return float(any(normalized == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
  """Best F1 over the answers, of bags of normalised tokens.

  It is 0.0 without a common token, even if both are empty, as in v1.1.
  """
  return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
  found, wanted = normalize(prediction).split(), normalize(answer).split()
  common = collections.Counter(found) & collections.Counter(wanted)
  same = common.total()
  if not same:
    return 0.0
  precision, recall = same / len(found), same / len(wanted)
  return 2 * precision * recall / (precision + recall)


def mean_scores(
  predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, float]:
  """{"em", "f1"}: means over all questions, as fractions.

  Raises:
    ValueError: there are no questions, or not one prediction for each.
  """
  if not predictions:
    raise ValueError("exact match of no questions is not defined")
  pairs = list(zip(predictions, answers, strict=True))
  return {
    "em": sum(exact_match(*pair) for pair in pairs) / len(pairs),
    "f1": sum(f1(*pair) for pair in pairs) / len(pairs),
  }
