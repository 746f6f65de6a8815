"""Search spread over processes: each holds and searches its own passages.

The first process leads the others (`multiprocess.first_leads`): out of its
hands go question vectors, back come every process's best hits, and their merge
is what one process with all passages would have found.  Of an index, shard n is
at home in process n modulo their number; for exact search every process has an
even range of rows on its cores.
"""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import ml_collections
import numpy as np
from jaxtyping import Float

from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from dpr_jax.index import faiss_build, faiss_files, faiss_search, faiss_stage

# What others are asked for.
BUILD, OPEN_INDEX, OPEN_EXACT, SEARCH = "build", "open", "open exact", "search"
_openings = itertools.count()  # of the first process
Found = tuple[np.ndarray, np.ndarray]  # rows and scores, [questions, hits]


class SpreadIndex(faiss_search.ShardedIndex):
  """An index of which this process holds some shards; only the first has one.

  Attributes:
    shards: those of this process.
    ntotal: vectors in the shards of all processes.
  """

  def __init__(self, own: faiss_search.ShardedIndex, count: int, opened: int):
    """Takes this process's shards, all vectors, and its number for others."""
    super().__init__(own.shards, own.first_rows, own.d)
    self.ntotal = count
    self._opened = opened

  def search(
    self, questions: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of all processes, as FAISS returns them."""
    header = {
      "opened": self._opened,
      "parameters": self.parameters,
      "threads": faiss.omp_get_max_threads(),
    }
    rows, scores = _search_all(
      lambda: super(SpreadIndex, self).search(questions, k)[::-1],
      questions,
      k,
      header,
    )
    return scores, rows


class SpreadExact:
  """`exact_search.ExactSearch` over the cores of all processes.

  Attributes:
    streams: whether vectors go through the cores anew for every call.
  """

  def __init__(self, own, count: int, opened: int):
    """Takes this process's search, all vectors, and its number for others."""
    self._own, self._count, self._opened = own, count, opened
    self.streams = own.streams

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `ExactSearch.search`."""
    k = min(k, self._count)
    return _search_all(
      lambda: self._own.search(questions, k),
      questions,
      k,
      {"opened": self._opened},
    )


def build_shards(
  model: str, numbers: Sequence[int], write: Callable[[list[int]], None]
) -> None:
  """Builds shards; where others are led, each process those that it searches.

  Args:
    model: whose vectors.
    numbers: of the shards.
    write: builds some of them here.
  """
  if not multiprocess.leading():
    write(list(numbers))
    return
  header = {"model": model, "numbers": list(numbers)}
  answers = multiprocess.ask(BUILD, _packed(header))
  write(_own_shards(numbers))
  answers()


def open_index(
  workdir: workdir_lib.Workdir, factory: str, model: str, *, mmap: bool = True
) -> tuple[faiss_search.Index, dict[str, Any]]:
  """As `faiss_files.load_index`; where others are led, with their help.

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
  if not shards or not multiprocess.leading():
    return faiss_files.load_index(folder, mmap=mmap)
  opened = next(_openings)
  header = {
    "opened": opened,
    "factory": factory,
    "model": model,
    "mmap": mmap,
    "shards": shards,
  }
  answers = multiprocess.ask(OPEN_INDEX, _packed(header))
  own, manifest = faiss_files.load_index(
    folder, mmap=mmap, processes=multiprocess.count()
  )
  answers()
  return SpreadIndex(own, manifest["count"], opened), manifest


def open_exact(
  config: ml_collections.ConfigDict,
  vectors: faiss_build.Vectors,
  model: str,
):
  """Exact search over vectors, with the cores of all that are led.

  Args:
    config: reads `exact`.
    vectors: opened and checked; the others look into their workdirs.
    model: whose they are.
  """
  from dpr_jax.index import exact_search  # starts JAX

  settings = exact_search.Settings.of(config)
  if not multiprocess.leading():
    return exact_search.ExactSearch(vectors, settings)
  opened, shards = next(_openings), vectors.manifest["shards"]
  header = {"opened": opened, "model": model, "shards": shards}
  answers = multiprocess.ask(OPEN_EXACT, _packed(header))
  own = exact_search.ExactSearch(vectors, settings, _own_rows(len(vectors)))
  answers()
  return SpreadExact(own, len(vectors), opened)


class Helper:
  """What another process than the first does of the above.

  Attributes:
    tasks: for `multiprocess.first_leads`.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
  ):
    """Holds nothing yet, and one index, or the vectors, at a time."""
    self._config, self._workdir = config, workdir
    self._search_own: Callable[[dict, np.ndarray], Found] | None = None
    self._opened = -1  # its number
    self.tasks = {
      BUILD: self._build,
      OPEN_INDEX: self._open_index,
      OPEN_EXACT: self._open_exact,
      SEARCH: self._search,
    }

  def _build(self, asked: bytes) -> bytes:
    header, _ = _unpacked(asked)
    own = _own_shards(header["numbers"])
    faiss_stage.write_shards(self._config, self._workdir, header["model"], own)
    return b""

  def _open_index(self, asked: bytes) -> bytes:
    header, _ = _unpacked(asked)
    self._search_own = None  # the memory goes before more is taken
    folder = self._workdir.index(header["factory"], header["model"])
    index, manifest = faiss_files.load_index(
      folder,
      mmap=header["mmap"],
      process=multiprocess.number(),
      processes=multiprocess.count(),
    )
    _check_same(folder, manifest, header)

    def search(how: dict[str, Any], questions: np.ndarray) -> Found:
      faiss_search.set_parameters(index, how["parameters"])
      with faiss_search.threads(how["threads"]):
        return index.search(questions, how["k"])[::-1]

    self._opened, self._search_own = header["opened"], search
    return b""

  def _open_exact(self, asked: bytes) -> bytes:
    from dpr_jax.index import exact_search

    header, _ = _unpacked(asked)
    self._search_own = None
    folder = self._workdir.embeddings(header["model"])
    vectors = vector_shards.open_vectors(folder, check=False)
    _check_same(folder, vectors.manifest, header)
    rows = _own_rows(len(vectors))
    vectors.check(vector_shards.COMMAND, rows)
    settings = exact_search.Settings.of(self._config)
    exact = exact_search.ExactSearch(vectors, settings, rows)
    self._opened = header["opened"]
    self._search_own = lambda how, questions: exact.search(questions, how["k"])
    return b""

  def _search(self, asked: bytes) -> bytes:
    how, arrays = _unpacked(asked)
    if how["opened"] != self._opened:
      raise ValueError(
        f"asked to search number {how['opened']}, opened last is number"
        f" {self._opened}: others hold one index at a time"
      )
    rows, scores = self._search_own(how, arrays["questions"])
    return _packed({}, rows=rows, scores=scores)


def _search_all(
  own: Callable[[], Found], questions: np.ndarray, k: int, how: dict[str, Any]
) -> Found:
  """The best k of all processes."""
  message = _packed({**how, "k": k}, questions=questions)
  answers = multiprocess.ask(SEARCH, message)
  rows, scores = ([each] for each in own())
  for answer in answers():
    _, found = _unpacked(answer)
    rows.append(found["rows"])
    scores.append(found["scores"])
  return faiss_search.in_order(np.hstack(rows), np.hstack(scores), k)


def _own_shards(numbers: Sequence[int]) -> list[int]:
  """Of this process: as `faiss_files.load_index` deals them."""
  me, among = multiprocess.number(), multiprocess.count()
  return [number for number in numbers if number % among == me]


def _own_rows(count: int) -> range:
  """Of this process, for exact search: an even part."""
  number, among = multiprocess.number(), multiprocess.count()
  return range(count * number // among, count * (number + 1) // among)


def _check_same(
  folder: Any, manifest: dict[str, Any], header: dict[str, Any]
) -> None:
  if manifest.get("shards") != header["shards"]:
    raise errors.InputError(
      f"{folder} on the machine of process {multiprocess.number()} is not what"
      " process 0 has there: copy its manifest and files anew"
    )


def _packed(header: dict[str, Any], **arrays: np.ndarray) -> bytes:
  file = io.BytesIO()
  text = np.frombuffer(json.dumps(header).encode(), np.uint8)
  np.savez(file, header=text, **arrays)
  return file.getvalue()


def _unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  with np.load(io.BytesIO(message), allow_pickle=False) as file:
    arrays = dict(file)
  return json.loads(arrays.pop("header").tobytes()), arrays
