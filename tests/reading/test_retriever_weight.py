"""The weight of the retriever's score beside the reader's."""

from dpr_jax.inference import passage_reader
from dpr_jax.reading import retriever_weight


def _question(ranks, scores, right):
  readings = [passage_reader.Reading(rank, 0.0, 0, 1) for rank in ranks]
  return retriever_weight.Candidates(readings, scores, right)


# The reader takes the second passage, the retriever the first.
RETRIEVER_IS_RIGHT = _question((1.0, 2.0), (9.0, 8.0), (True, False))
READER_IS_RIGHT = _question((1.0, 2.0), (9.0, 8.0), (False, True))


def test_the_weight_with_the_most_exact_matches_is_chosen():
  found = retriever_weight.tune(
    [RETRIEVER_IS_RIGHT] * 6 + [READER_IS_RIGHT] * 2
  )
  # From a weight of 1 on the retriever decides; of equals the earlier passage.
  before = [each for each in found["tried"] if each["weight"] < 1]
  assert {each["measure"] for each in before} == {0.25}
  assert found["weight"] == next(
    each["weight"] for each in found["tried"] if each["weight"] >= 1
  )
  assert found["measure"] == 0.75
  # Both halves choose the retriever, which is right in 3 of 4.
  assert found["cross_fitted"] == 0.75


def test_without_use_of_the_retriever_the_weight_is_zero():
  found = retriever_weight.tune([READER_IS_RIGHT] * 2)
  assert (found["weight"], found["measure"]) == (0.0, 1.0)
  assert found["cross_fitted"] == 1.0
  nothing = _question((), (), ())
  assert retriever_weight.tune([nothing])["measure"] == 0.0


def test_cross_fitting_tells_chance_from_skill():
  """Each half would choose what is wrong for the other."""
  found = retriever_weight.tune([RETRIEVER_IS_RIGHT, READER_IS_RIGHT] * 4)
  assert (found["measure"], found["cross_fitted"]) == (0.5, 0.0)


def test_candidates():
  found = retriever_weight.candidates(
    ["the Ulm", "Bern", ""],
    ["ulm!"],
    [passage_reader.NOTHING] * 3,
    [3.0, 2.0, 1.0],
  )
  assert found.right == [True, False, False]
  assert not found.score(1.0)  # no passage has an answer


def test_each_half_is_answered_with_the_weight_of_the_other():
  """The reader is right on all even questions and on one odd one of three.

  The odd ones would choose the retriever, which is wrong on all even ones; the
  even ones the reader, which is right on one odd one: 1 of 6 in all.
  """
  even, odd = [READER_IS_RIGHT] * 3, [RETRIEVER_IS_RIGHT] * 2
  odd.append(READER_IS_RIGHT)
  questions = [one for pair in zip(even, odd, strict=True) for one in pair]
  found = retriever_weight.tune(questions)
  assert found["measure"] == 4 / 6
  assert found["cross_fitted"] == 1 / 6
