"""One sharded index on several processes: each holds and searches its own.

The first process leads the others (`processes.first_leads`): out of its hands
go question vectors, back come every process's best hits, and their merge is
what one process with all shards would have found.  Shard n is at home in
process n modulo their number.
"""

import io
import json
from typing import Any

import faiss
import numpy as np

from dpr_jax import errors, processes
from dpr_jax import workdir as workdir_lib
from dpr_jax.retrieval import faiss_index_files, faiss_index_search

OPEN, SEARCH = "open an index", "search an index"  # what others are asked for


class SpreadIndex(faiss_index_search.ShardedIndex):
  """An index of which this process holds some shards; only the first has one.

  Attributes:
    shards: those of this process.
    ntotal: vectors in the shards of all processes.
  """

  def __init__(
    self, own: faiss_index_search.ShardedIndex, manifest: dict[str, Any]
  ):
    """Takes the shards of this process, and the manifest of all."""
    super().__init__(own.shards, own.first_rows, own.d)
    self.ntotal = manifest["count"]

  def search(
    self, questions: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of all processes, as FAISS returns them."""
    header = {
      "k": k,
      "parameters": self.parameters,
      "threads": faiss.omp_get_max_threads(),
    }
    answers = processes.ask(SEARCH, _packed(header, questions=questions))
    scores, rows = super().search(questions, k)
    found = [{"rows": rows, "scores": scores}]
    found += [_unpacked(answer)[1] for answer in answers()]
    rows, scores = faiss_index_search.in_order(
      np.hstack([each["rows"] for each in found]),
      np.hstack([each["scores"] for each in found]),
      k,
    )
    return scores, rows


def open_index(
  workdir: workdir_lib.Workdir, factory: str, model: str, *, mmap: bool = True
) -> tuple[faiss_index_search.Index, dict[str, Any]]:
  """As `faiss_index_files.load_index`; where others are led, with their help.

  Every process then reads and checks the files of its own shards alone.

  Args:
    workdir: of this process; the others look into theirs.
    factory: the index.
    model: whose vectors, "dense" or "dense-start".
    mmap: as of `load_index`.

  Raises:
    InputError: as `load_index`.
  """
  folder = workdir.index(factory, model)
  shards = workdir_lib.read_manifest(folder, "index").get("shards")
  if not shards or not processes.leading():
    return faiss_index_files.load_index(folder, mmap=mmap)
  header = {"factory": factory, "model": model, "mmap": mmap, "shards": shards}
  answers = processes.ask(OPEN, _packed(header))
  own, manifest = faiss_index_files.load_index(
    folder, mmap=mmap, processes=processes.count()
  )
  answers()
  return SpreadIndex(own, manifest), manifest


class Helper:
  """What another process than the first does of the above."""

  def __init__(self, workdir: workdir_lib.Workdir):
    """Holds nothing yet, and one index at a time."""
    self._workdir = workdir
    self._index: faiss_index_search.ShardedIndex | None = None
    self.tasks = {OPEN: self._open, SEARCH: self._search}

  def _open(self, asked: bytes) -> bytes:
    header, _ = _unpacked(asked)
    self._index = None
    folder = self._workdir.index(header["factory"], header["model"])
    opened, manifest = faiss_index_files.load_index(
      folder,
      mmap=header["mmap"],
      process=processes.number(),
      processes=processes.count(),
    )
    if manifest.get("shards") != header["shards"]:
      raise errors.InputError(
        f"{folder}: the index on the machine of process"
        f" {processes.number()} is not that of process 0: copy its manifest"
        " and shards anew"
      )
    self._index = opened
    return b""

  def _search(self, asked: bytes) -> bytes:
    header, arrays = _unpacked(asked)
    faiss_index_search.set_parameters(self._index, header["parameters"])
    with faiss_index_search.threads(header["threads"]):
      scores, rows = self._index.search(arrays["questions"], header["k"])
    return _packed({}, rows=rows, scores=scores)


def _packed(header: dict[str, Any], **arrays: np.ndarray) -> bytes:
  file = io.BytesIO()
  text = np.frombuffer(json.dumps(header).encode(), np.uint8)
  np.savez(file, header=text, **arrays)
  return file.getvalue()


def _unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  with np.load(io.BytesIO(message), allow_pickle=False) as file:
    arrays = dict(file)
  return json.loads(arrays.pop("header").tobytes()), arrays
