"""Passages by row, kept in memory."""

from dpr_jax.data import records
from dpr_jax.retrieval import passage_cache


def test_cache_reads_each_passage_once(make_table):
  class Counting(make_table):
    taken = []

    def take(self, rows):
      self.taken.extend(rows)
      return super().take(rows)

  table = Counting(records.Passage(str(i), "", "") for i in range(10))
  cache = passage_cache.PassageCache(table, size=4)
  assert cache.take([3, 1, 3])[3].id == "3"
  assert list(cache.take([1, 2])) == [1, 2]
  assert table.taken == [1, 3, 2]
  found = cache.take([0, 1, 5])  # full: it starts anew
  assert {row: passage.id for row, passage in found.items()} == {
    0: "0",
    1: "1",
    5: "5",
  }
