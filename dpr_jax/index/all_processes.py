"""Distributes a search over all processes, each with its own passages.

All processes call the same search at the same time.  Process 0 has the
questions: their vectors are broadcast, every process searches its own rows, and
the hits are gathered and merged, so that all processes get the result that one
process with all passages would get.  Shard n of an index belongs to process n
modulo the number of processes; in exact search every process has an equal range
of rows on its devices.
"""

from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from dpr_jax.index import faiss_files, faiss_search

Hits = tuple[np.ndarray, np.ndarray]  # rows and scores, [questions, hits]


class AllProcessesIndex(faiss_search.ShardedIndex):
  """An index whose shards are distributed over the processes.

  Attributes:
    shards: shards of this process.
    ntotal: number of vectors in the shards of all processes.
  """

  def __init__(self, own: faiss_search.ShardedIndex, count: int):
    """Takes this process's shards, and the number of vectors in all shards."""
    super().__init__(own.shards, own.first_rows, own.d)
    self.ntotal = count

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of process 0's questions, returned in all processes."""
    return self.search_for(*_of_first(questions, k, self.d))[::-1]

  def search_for(self, questions: np.ndarray, k: int) -> Hits:
    """Rows and scores; all processes have the same questions."""
    scores, rows = super().search(questions, k)
    return _merged(rows, scores, k)


class AllProcessesExact:
  """`exact_search.ExactSearch` over the devices of all processes.

  Attributes:
    d: width of a vector.
    streams: in some process, every call copies the vectors to devices again.
  """

  def __init__(self, own, count: int, dim: int):
    """Takes this process's search, the number of all vectors, their width."""
    self._own, self._count, self.d = own, count, dim
    self.streams = bool(multiprocess.gather(np.int32([own.streams])).any())

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> Hits:
    """As `ExactSearch.search`, for process 0's questions."""
    return self.search_for(*_of_first(questions, k, self.d))

  def search_for(self, questions: np.ndarray, k: int) -> Hits:
    """As `search`; all processes have the same questions."""
    k = min(k, self._count)
    wanted = min(self._own.candidates(k), self._count)
    rows, scores = _merged(*self._own.search_only(questions, wanted), wanted)
    # Each process computes float32 scores for the candidates in its own rows;
    # a second merge gives the best k.
    if self._own.scores_again:
      rows = np.where(self._own.holds(rows), rows, -1)
      rows, scores = self._own.score_again(questions, rows, k)
      rows, scores = _merged(rows, scores, k)
    return rows, scores


Search = AllProcessesIndex | AllProcessesExact


def open_index(
  workdir: workdir_lib.Workdir, factory: str, model: str, *, mmap: bool = True
) -> tuple[faiss_search.Index, dict[str, Any]]:
  """As `faiss_files.load_index`; all processes call it, for their shards.

  Each process only reads and checks the files of its own shards, in its own
  workdir.

  Args:
    workdir: workdir of this process.
    factory: factory string of the index.
    model: model of the vectors, "dense" or "dense-start".
    mmap: as in `load_index`.

  Returns:
    The index, and the manifest of process 0.

  Raises:
    InputError: as in `load_index`; or the index is not that of process 0.
  """
  folder = workdir.index(factory, model)
  if multiprocess.count() == 1:
    return faiss_files.load_index(folder, mmap=mmap)
  manifest = multiprocess.first_alone(
    lambda: workdir_lib.read_manifest(folder, "index")
  )
  if not manifest.get("shards"):
    return faiss_files.load_index(folder, mmap=mmap)
  own, own_manifest = faiss_files.load_index(
    folder,
    mmap=mmap,
    process=multiprocess.number(),
    processes=multiprocess.count(),
  )
  _check_same(folder, own_manifest["shards"], manifest["shards"])
  multiprocess.barrier()  # so that no process waits in a collective
  return AllProcessesIndex(own, manifest["count"]), manifest


def open_exact(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, model: str
):
  """Opens exact search; all processes call it, each for a range of the rows.

  Args:
    config: config of the experiment; section `exact` is read.
    workdir: workdir of this process; only files of its rows are read.
    model: model of the vectors, "dense" or "dense-start".

  Raises:
    InputError: there are no vectors, a file of these rows is damaged, or the
      vectors are not those of process 0.
  """
  from dpr_jax.index import exact_search  # starts JAX

  settings = exact_search.Settings.of(config)
  folder = workdir.embeddings(model)
  vectors = vector_shards.open_vectors(folder, check=False)
  processes, shards = multiprocess.count(), vectors.manifest["shards"]
  _check_same(folder, shards, multiprocess.first_alone(lambda: shards))
  own = exact_search.ExactSearch(
    vectors,
    settings,
    process=multiprocess.number() if processes > 1 else 0,
    processes=processes,
  )
  vectors.check(vector_shards.COMMAND, own.rows)
  if processes == 1:
    return own
  multiprocess.barrier()
  return AllProcessesExact(own, len(vectors), vectors.dim)


def follow(search: Search) -> None:
  """Takes part in every search of process 0, until that calls `end`.

  For all other processes, if only process 0 has the questions.
  """
  nothing = np.zeros((0, search.d), np.float32)
  while True:
    questions, k = _of_first(nothing, 0, search.d)
    if not k:
      return
    search.search_for(questions, k)


def end() -> None:
  """Ends `follow` in the other processes: process 0 has no more questions."""
  _of_first(np.zeros((0, 0), np.float32), 0, 0)


def _of_first(
  questions: np.ndarray, k: int, dim: int
) -> tuple[Float[np.ndarray, "questions dim"], int]:
  """The question vectors and the k of process 0, in all processes."""
  asked = [len(questions), int(k)]
  count, k = multiprocess.first_alone(lambda: asked)
  if not k:
    return questions, 0
  return multiprocess.array_of_first(
    lambda: questions, (count, dim), np.float32
  ), k


def _merged(
  rows: Int[np.ndarray, "questions hits"],
  scores: Float[np.ndarray, "questions hits"],
  k: int,
) -> Hits:
  """The best k hits of all processes, from the best hits of this one."""
  # Rows (int64, two words) and scores (float32, one word) are packed into one
  # uint32 array, so that one collective gathers both.
  shape = (len(rows), k)
  packed = np.empty((*shape, 3), np.uint32)
  packed[:, :, :2] = _padded(rows, shape, np.int64, -1).view(np.uint32)
  packed[:, :, 2:] = _padded(scores, shape, np.float32, 0).view(np.uint32)
  every = np.moveaxis(multiprocess.gather(packed), 0, 1)
  every = every.reshape(len(rows), -1, 3)
  rows, scores = (
    np.ascontiguousarray(words).view(dtype)[:, :, 0]
    for words, dtype in (
      (every[:, :, :2], np.int64),
      (every[:, :, 2:], np.float32),
    )
  )
  return faiss_search.in_order(rows, scores, k)


def _padded(
  array: np.ndarray, shape: tuple[int, int], dtype: Any, value: int
) -> np.ndarray:
  """Pads hits to [questions, k, 1] with `value`."""
  whole = np.full((*shape, 1), value, dtype)
  whole[:, : array.shape[1], 0] = array
  return whole


def _check_same(folder: Any, here: list[Any], there: list[Any]) -> None:
  if here != there:
    raise errors.InputError(
      f"{folder} on the machine of process {multiprocess.number()} differs from"
      " that of process 0: copy its manifest and files again"
    )
