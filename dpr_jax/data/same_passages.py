"""Detects passages with the same title and text, whatever their ids.

While `prepare` writes the corpus, `Finder` hashes every passage.  It finds the
corpus row of a positive that has no id, or an id of another corpus, and the
rows that repeat the title and text of an earlier row
(`data/passages/copies.npy`).  Training, validation and mining then compare
passages by `Copies.first` of their rows, so that a copy of a question's
positive is not used as its negative.

White space is ignored.  Texts are compared by 64 bits of BLAKE2b: the
probability that any two different texts among the 21 million passages of
Wikipedia have the same bits is 1e-5.
"""

import array
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records

FILE = "passages/copies.npy"


def digest(passage: records.Passage) -> int:
  """64-bit hash of title and text; ignores white space."""
  words = (*passage.title.split(), "\0", *passage.text.split())
  return _digest(words)


def made_id(same: int) -> str:
  """An id for a passage without one of its own, from its `digest`."""
  return f"text-{same:016x}"


def text_digest(text: str) -> int:
  """64-bit hash of any text; ignores white space."""
  return _digest(text.split())


def _digest(words: Iterable[str]) -> int:
  packed = hashlib.blake2b(" ".join(words).encode("utf-8"), digest_size=8)
  return int.from_bytes(packed.digest(), "little")


class Finder:
  """Hashes the passages of a corpus, to find passages by their text.

  Attributes:
    ids: id of the first row with each wanted digest, for those seen.
  """

  def __init__(self, wanted: Iterable[int] = ()):
    """Searches for passages with the `wanted` digests, and for all copies."""
    self.ids: dict[int, str] = {}
    self._wanted = frozenset(wanted)
    self._digests = array.array("Q")

  def see(self, passage: records.Passage) -> None:
    """Adds the next row of the corpus."""
    hashed = digest(passage)
    self._digests.append(hashed)
    if hashed in self._wanted:
      self.ids.setdefault(hashed, passage.id)

  def copies(self) -> Int[np.ndarray, "copies 2"]:
    """(row, first row with the same title and text) of every copy."""
    digests = np.frombuffer(self._digests, np.uint64)
    order = np.argsort(digests, kind="stable")  # equal ones stay ascending
    ordered = digests[order]
    # Equal digests are now consecutive, their first row at the front: spread
    # the position of each front over its group.
    begins = np.ones(len(ordered), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    first = order[
      np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    ]
    pairs = np.stack([order[~begins], first[~begins]], axis=1)
    return pairs[np.argsort(pairs[:, 0])].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Copies:
  """The rows of the corpus that are copies of an earlier row.

  Attributes:
    rows: rows of the copies, ascending.
    firsts: first row with the same title and text, per copy.
  """

  rows: Int[np.ndarray, " copies"]
  firsts: Int[np.ndarray, " copies"]

  @classmethod
  def none(cls) -> "Copies":
    """The value for a corpus without copies."""
    return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

  def first(self, rows: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The first row with the same title and text; keeps negative values."""
    rows = np.asarray(rows, np.int64)
    if not len(self.rows):
      return rows
    # Binary search; a row that is not a copy finds another row's place.
    places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
    return np.where(self.rows[places] == rows, self.firsts[places], rows)

  def all_of(self, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " all"]:
    """These rows and all their copies, ascending, each once."""
    firsts = np.unique(self.first(rows))
    return np.union1d(firsts, self.rows[np.isin(self.firsts, firsts)])

  def ids_of_all(self, ids: Sequence[str], passages) -> list[str]:
    """These ids, then those of the copies of their passages.

    Args:
      ids: ids of passages; they need not be in the PassageTable.
      passages: PassageTable that the rows of these copies refer to.
    """
    if not len(self.rows) or not ids:
      return list(ids)
    rows = passages.rows_of(ids)
    rows = rows[rows >= 0]
    others = np.setdiff1d(self.all_of(rows), rows)
    return [*ids, *(copy.id for copy in passages.take(others))]


def open_copies(workdir: workdir_lib.Workdir) -> Copies:
  """The copies that `prepare` found; none if an older version ran it.

  Raises:
    InputError: the file is damaged.
  """
  manifest = workdir_lib.read_manifest(workdir.data, "prepare")
  if FILE not in manifest["files"]:
    return Copies.none()
  workdir_lib.check_files(workdir.data, manifest, [FILE])
  pairs = load(workdir.data / FILE)
  return Copies(pairs[:, 0], pairs[:, 1])


def load(path: pathlib.Path) -> Int[np.ndarray, "copies 2"]:
  """The pairs in a file `copies.npy`; `InputError` for any other content."""
  try:
    pairs = np.load(path)
  except (OSError, ValueError, EOFError) as error:
    raise errors.InputError(
      f"{path}: {error}; run `dpr-jax prepare --overwrite`"
    ) from error
  if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != np.int64:
    raise errors.InputError(
      f"{path} holds {pairs.dtype}{list(pairs.shape)} instead of int64"
      " [copies, 2]; run `dpr-jax prepare --overwrite`"
    )
  return pairs
