"""Every pair of values is in the rows, whatever the factors."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies

from tests import pairwise


@hypothesis.given(strategies.lists(strategies.integers(1, 4), min_size=2))
@hypothesis.settings(max_examples=30)
@hypothesis.example([3, 5, 3, 2, 2])  # those of the equivalence matrix
def test_every_pair_of_values_occurs(sizes):
  factors = [[f"{n}{value}" for value in range(s)] for n, s in enumerate(sizes)]
  factors = factors[:5]
  rows = pairwise.rows(*factors)
  for one, other in itertools.combinations(range(len(factors)), 2):
    found = {(row[one], row[other]) for row in rows}
    assert found == set(itertools.product(factors[one], factors[other]))


def test_by_hand():
  """Two values each: 4 rows are the fewest, and they are these."""
  assert pairwise.rows("ab", "ab", "ab") == [
    ("a", "a", "a"),
    ("a", "b", "b"),
    ("b", "a", "b"),
    ("b", "b", "a"),
  ]


def test_much_fewer_than_the_product():
  """15 of 180 is the least: the two largest factors have 15 pairs."""
  rows = pairwise.rows(range(3), range(5), range(3), range(2), range(2))
  assert 15 <= len(rows) <= 20
  assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("first", [["a"], ["a", "b"]])
def test_two_factors_are_their_product(first):
  assert pairwise.rows(first, [1, 2]) == list(itertools.product(first, [1, 2]))
