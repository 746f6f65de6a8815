"""From which score on an answer is given: worked out by hand."""

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.reading import null_threshold
from dpr_jax.reading.null_threshold import Candidate

NOTHING = float("-inf")


def test_the_threshold_with_the_most_exact_matches():
  questions = [
    Candidate(5.0, 1, 0),
    Candidate(1.0, 0, 1),
    Candidate(3.0, 1, 0),
    Candidate(2.0, 0, 1),
  ]
  assert null_threshold.tune(questions) == {
    "threshold": 2.5,
    "measure": 1.0,
    "without": 0.5,
    # 5 and 3 against the threshold 3 of the others, 1 and 2 against 2.
    "cross_fitted": 0.75,
    "questions": 4,
  }


@pytest.mark.parametrize(
  ("questions", "threshold", "measure"),
  [
    ([Candidate(4.0, 1, 0), Candidate(6.0, 1, 0)], 3.0, 1.0),  # all answered
    ([Candidate(4.0, 0, 1), Candidate(6.0, 0, 1)], 7.0, 1.0),  # none
    ([Candidate(4.0, 0, 0), Candidate(6.0, 0, 0)], 3.0, 0.0),  # the least
    ([Candidate(4.0, 0, 1), Candidate(4.0, 1, 0)], 3.0, 0.5),  # equal scores
    ([Candidate(NOTHING, 1, 1), Candidate(4.0, 1, 0)], 3.0, 1.0),
    ([Candidate(NOTHING, 1, 1), Candidate(4.0, 0, 1)], 5.0, 1.0),
    ([Candidate(NOTHING, 0, 0)], -1.0, 0.0),
    # 1e17 - 1 is 1e17: a score at the threshold is answered, as by `read`.
    ([Candidate(1e17, 1, 0)], 1e17, 1.0),
  ],
)
def test_thresholds_at_the_ends(questions, threshold, measure):
  found = null_threshold.tune(questions)
  assert (found["threshold"], found["measure"]) == (threshold, measure)


def test_it_is_stored_for_one_reader(tmp_path):
  place = workdir_lib.Workdir(tmp_path)
  questions = [Candidate(5.0, 1, 0), Candidate(1.0, 0, 1)]

  def threshold(null_answers, reader):
    return null_threshold.threshold(null_answers, place, "squad", reader)

  stored = null_threshold.choose(place, "squad", "a", questions)
  assert stored == threshold("tuned", "a") == 3.0
  assert threshold("never", "a") is None
  with pytest.raises(errors.InputError, match="has that of another reader"):
    threshold("tuned", "b")
  with pytest.raises(errors.InputError, match="null_answers='maybe'"):
    threshold("maybe", "a")
