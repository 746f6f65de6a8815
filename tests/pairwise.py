"""A few rows of a product in which every pair of values still occurs.

Most mistakes need two settings together, few need three; and a product of
settings grows much faster than the pairs in it.
"""

import itertools
from collections.abc import Hashable, Sequence


def _pairs(row: Sequence[Hashable]) -> set:
  """((factor, value), (factor, value)) for every two factors of a row."""
  return set(itertools.combinations(enumerate(row), 2))


def rows(*factors: Sequence[Hashable]) -> list[tuple]:
  """Rows that hold every pair of values of every two factors.

  Args:
    *factors: the values of each of them; at least two factors.

  Returns:
    Rows with one value a factor, in the order of the product.  They are chosen
    greedily: next is the row with the most pairs that no row has yet, of equal
    ones the first.  So they are the same every time, and about as many as the
    two largest factors have pairs.
  """
  product = list(itertools.product(*factors))
  missing = set().union(*map(_pairs, product))
  chosen = []
  while missing:
    best = max(product, key=lambda row: len(_pairs(row) & missing))
    missing -= _pairs(best)
    chosen.append(best)
  return sorted(chosen, key=product.index)
