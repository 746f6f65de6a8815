"""What the tests of tables share: a corpus of any size."""

from dpr_jax.data.records import Passage


def corpus(size):
  """Ids with holes, in an order that is not theirs."""
  return [
    Passage(str((i * 7919) % 10_007 + 1), f"title {i % 5}", f"text {i} ü")
    for i in range(size)
  ]
