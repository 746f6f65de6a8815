"""Cache of passages by row; many questions share their best passages."""

from collections.abc import Mapping, Sequence

from dpr_jax.data import records


class PassageCache:
  """Reads passages by row, and keeps them in memory.

  If it is full, all of it is dropped: simple, and rare.
  """

  def __init__(self, passages, size: int = 100_000):
    """Starts empty.

    Args:
      passages: a PassageTable.
      size: largest number of passages kept; one call may exceed it.
    """
    self._passages = passages
    self._size = size
    self._rows: dict[int, records.Passage] = {}

  def take(self, rows: Sequence[int]) -> Mapping[int, records.Passage]:
    """Passages by row, for the distinct rows of `rows`."""
    wanted = sorted({int(row) for row in rows})
    missing = [row for row in wanted if row not in self._rows]
    if len(self._rows) + len(missing) > self._size:
      self._rows.clear()
      missing = wanted
    if missing:
      self._rows.update(zip(missing, self._passages.take(missing), strict=True))
    return {row: self._rows[row] for row in wanted}
