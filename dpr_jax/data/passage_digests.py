"""Digests of passages, by which later runs recognise unchanged ones.

While `prepare` writes the corpus, it hashes title and text of every row
(`data/digests.npy`).  If it had written a corpus before, it compares both, by
id.  The token store and BM25 keep the digests of their rows, so that they find
them again in another corpus, whatever was prepared in between.

Unlike in `same_passages`, white space counts: passages with equal digests have
equal tokens and words.
"""

import array
import hashlib
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging
from jaxtyping import UInt64

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import datasets, records, tfds_builders

FILE = "digests.npy"
_BLOCK = 1 << 16  # passages compared at once
_KINDS = ("unchanged", "in_another_row", "changed", "new", "removed")


def digest(passage: records.Passage) -> int:
  """64-bit hash of title and text, white space included.

  As in `same_passages`, any two of 21 million have the same with a probability
  of 1e-5.
  """
  title, text = passage.title.encode("utf-8"), passage.text.encode("utf-8")
  packed = len(title).to_bytes(8, "little") + title + text
  hashed = hashlib.blake2b(packed, digest_size=8)
  return int.from_bytes(hashed.digest(), "little")


class Collector:
  """Hashes the passages of a corpus while they are written."""

  def __init__(self):
    self._digests = array.array("Q")

  def collect(
    self, passages: Iterable[records.Passage]
  ) -> Iterator[records.Passage]:
    """Yields the passages, and collects their digests."""
    for passage in passages:
      self._digests.append(digest(passage))
      yield passage

  def digests(self) -> UInt64[np.ndarray, " rows"]:
    """The digests in row order."""
    return np.frombuffer(self._digests, np.uint64)


def load(
  workdir: workdir_lib.Workdir,
) -> UInt64[np.ndarray, " rows"] | None:
  """The digests of the corpus, memory-mapped; None if an older version ran.

  Raises:
    InputError: the corpus is missing, or the file is damaged.
  """
  manifest = workdir_lib.read_manifest(workdir.data, "prepare")
  if FILE not in manifest["files"]:
    return None
  workdir_lib.check_files(workdir.data, manifest, [FILE])
  return np.load(workdir.data / FILE, mmap_mode="r")


def compare(
  folder: pathlib.Path, earlier: pathlib.Path
) -> dict[str, int] | None:
  """Compares a corpus with an earlier one, by id; None if that is impossible.

  Args:
    folder: `data/` that is being written, with its digests.
    earlier: `data/` of the last run, if there is any.

  Returns:
    Numbers of passages: "unchanged" have the same id, title and text, of which
    some are "in_another_row"; "changed" have the same id; the ids of "new" ones
    are not in the earlier corpus, those of "removed" ones only there.
  """
  if not earlier.exists():
    return None
  files = [f"passages/{tfds_builders.IDS}", FILE]
  files.append(f"passages/{tfds_builders.ID_ORDER}")
  try:
    manifest = workdir_lib.read_manifest(earlier, "prepare")
    if FILE not in manifest["files"]:
      logging.info(
        "prepare: the earlier corpus is of an older version, which stored no"
        " digests: it is not compared"
      )
      return None
    workdir_lib.check_files(earlier, manifest, files)
  except errors.InputError as error:
    logging.info("prepare: the earlier corpus is not compared: %s", error)
    return None
  ids, digests = (np.load(folder / name, mmap_mode="r") for name in files[:2])
  old_ids, old_digests, old_order = (
    np.load(earlier / name, mmap_mode="r") for name in files
  )
  counts = dict.fromkeys(_KINDS, 0)
  for first in range(0, len(ids), _BLOCK):
    some = slice(first, first + _BLOCK)
    rows = datasets.find_ids(old_ids, old_order, ids[some])
    known = np.flatnonzero(rows >= 0)
    same = known[old_digests[rows[known]] == digests[some][known]]
    counts["unchanged"] += len(same)
    counts["in_another_row"] += int((rows[same] != same + first).sum())
    counts["changed"] += len(known) - len(same)
    counts["new"] += len(rows) - len(known)
  kept = counts["unchanged"] + counts["changed"]
  counts["removed"] = len(old_ids) - kept
  return counts


def log(counts: dict[str, int]) -> None:
  """Logs what `compare` has found."""
  logging.info(
    "prepare: compared with the earlier corpus: %d passages unchanged, %d of"
    " them in another row; %d changed, %d new, %d removed",
    *(counts[kind] for kind in _KINDS),
  )
