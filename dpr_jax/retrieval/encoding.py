"""Texts become vectors: questions and passages, one or millions.

Texts are sorted by length and cut into tiles of so many rows of one width that
a tile is about `tokens_per_core` tokens; what does not fill a tile goes along
with the next width.  What a tile holds depends on the texts alone, not on the
number of cores, so that neither do the vectors.  A call encodes a tile on each
core; several are under way at once, so that no core waits for the host.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from dpr_jax import configuration, errors, parallel
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.models import dual_encoder, towers

QUESTION, PASSAGE = "question", "passage"
# Widths are multiples of it.
STEP = 8
# A tile that a CPU core's cache holds; one that fills a TPU's core.
_CPU_TOKENS, TPU_TOKENS = 640, 32_768
# Products of matrices on one thread each: cores get calls of their own, which
# costs no waiting, and no sum depends on how many threads there are.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_prefer_vector_width": 512,
}


@runtime_checkable
class Tokens(Protocol):
  """Where a row's token ids come from."""

  def ids(self, row: int) -> Sequence[int] | np.ndarray:
    """Token ids of one text, cut but not padded."""
    ...


class _Lists(list):
  """Token ids in lists."""

  def ids(self, row: int) -> Sequence[int]:
    """As of `Tokens`."""
    return self[row]


@dataclasses.dataclass(frozen=True)
class Tile:
  """Some texts that are encoded together on one core.

  Attributes:
    rows: which texts; at most `size` of them.
    size: rows of the array; what is missing is padded.
    width: its tokens per row.
    full: no token is padding, and the program need not ask.
  """

  rows: Int[np.ndarray, " rows"]
  size: int
  width: int
  full: bool = False


def choose_widths(
  histogram: Int[np.ndarray, " lengths"], shapes: int, step: int = STEP
) -> tuple[int, ...]:
  """At most `shapes` widths, multiples of `step`, that pad the least.

  The greatest is the least that holds every text, at most the greatest length.

  Args:
    histogram: number of texts of each length from 0.
    shapes: how many, at least 1.
    step: of which they are multiples.
  """
  limit = len(histogram) - 1
  used = np.flatnonzero(histogram)
  longest = int(used[-1]) if len(used) else 1
  ends = [*range(step, longest, step), min(-(-longest // step) * step, limit)]
  counts = np.add.reduceat(
    histogram[: ends[-1] + 1], [0, *(end + 1 for end in ends[:-1])]
  )
  before = np.concatenate([[0], np.cumsum(counts)])
  # cost[e]: padded tokens of all texts up to ends[e - 1], in so many widths.
  cost = np.array([0, *(ends * before[1:])], float)
  cuts = []
  for _ in range(min(shapes, len(ends)) - 1):
    # Texts between the e-th and the later end f go to width ends[f - 1].
    steps = np.array([0, *ends])[:, None] * (before[:, None] - before[None])
    table = np.where(np.tri(len(cost), k=-1) > 0, cost[None] + steps, np.inf)
    table[0, 0] = 0
    cuts.append(table.argmin(axis=1))
    cost = table.min(axis=1)
  chosen, end = [], len(ends)
  while end:
    chosen.append(ends[end - 1])
    end = int(cuts.pop()[end]) if cuts else 0
  return tuple(sorted(chosen))


def plan(
  lengths: Int[np.ndarray, " texts"], widths: Sequence[int], tokens: int
) -> list[Tile]:
  """Tiles that hold every text once, the widest first.

  Args:
    lengths: tokens of each text.
    widths: ascending; the last holds every text.
    tokens: a tile has at most so many, or one row.
  """
  order = np.argsort(lengths, kind="stable")
  ordered = lengths[order]
  tiles, start = [], 0
  for width in widths:
    size = max(1, tokens // width)
    end = int(np.searchsorted(ordered, width, side="right"))
    if width == widths[-1]:
      exact = max(start, int(np.searchsorted(ordered, width, side="left")))
      whole = end - (end - exact) // size * size
      stops = [*range(start, whole, size), *range(whole, end, size), end]
    else:
      stops = list(range(start, end + 1, size))
    for one, other in zip(stops[:-1], stops[1:], strict=True):
      last = width == widths[-1]
      full = last and other - one == size and bool(ordered[one] == width)
      tiles.append(Tile(order[one:other], size, width, full))
    start = stops[-1] if stops else start
  return tiles[::-1]


def calls(tiles: Sequence[Tile], cores: int) -> Iterator[list[Tile]]:
  """Tiles of one shape, a core each; the last of a shape may be fewer."""
  waiting: dict[tuple[int, bool], list[Tile]] = collections.defaultdict(list)
  for tile in tiles:
    some = waiting[tile.width, tile.full]
    some.append(tile)
    if len(some) == cores:
      yield some
      waiting[tile.width, tile.full] = []
  yield from (some for some in waiting.values() if some)


@dataclasses.dataclass
class Work:
  """What has been encoded: tokens, and places in the arrays."""

  tokens: int = 0
  padded_tokens: int = 0

  @property
  def padding(self) -> float:
    """Share of padding, filled-up tiles and idle cores included."""
    return 1 - self.tokens / max(self.padded_tokens, 1)


def encode_tile(
  encoder: dual_encoder.DualEncoder, kind: str, full: bool, params: Any, batch
) -> Float[Array, "rows dim"]:
  """One core's step: vectors of a tile.

  Args:
    encoder: the towers' structure.
    kind: "question" or "passage".
    full: no text is padded.
    params: of the towers.
    batch: token ids [rows, width], and how many of them each text has.
  """
  ids, lengths = batch
  if full:  # a constant: the compiler drops the mask
    mask = jnp.ones(ids.shape, bool)
  else:
    mask = jnp.arange(ids.shape[-1])[None] < lengths[:, None]
  texts = dual_encoder.Texts(ids.astype(jnp.int32), mask)
  if kind == QUESTION:
    return encoder.encode_questions(params, texts)
  return encoder.encode_passages(params, texts)


class _Programs:
  """Compiled programs by shape; several threads may ask."""

  def __init__(self, encoder: dual_encoder.DualEncoder):
    self._encoder = encoder
    self._compiled: dict[Any, Any] = {}
    self._lock = threading.Lock()

  def get(
    self, kind: str, full: bool, params: Any, batch: Any, devices: Any
  ) -> Any:
    """The program for arrays like these; compiled when it is first needed."""
    shape = jax.tree.map(np.shape, batch)
    key = (kind, full, len(devices), *shape)
    with self._lock:
      if key not in self._compiled:
        options = _CPU_OPTIONS if devices[0].platform == "cpu" else {}
        self._compiled[key] = parallel.compile_over_cores(
          functools.partial(encode_tile, self._encoder, kind, full),
          (params, batch),
          devices,
          options,
        )
      return self._compiled[key]

  def __len__(self) -> int:
    return len(self._compiled)


class Encoder:
  """Encodes texts on all cores of this process, in few fixed shapes."""

  def __init__(
    self,
    model: towers.Towers,
    *,
    tokens_per_core: int = 0,
    length_step: int = 32,
    params: Any = None,
  ):
    """Prepares encoding; programs compile when they are first needed.

    Args:
      model: towers and tokenizer.
      tokens_per_core: tokens that a core encodes at once; 0 = what its cache
        holds on a CPU, 32,768 elsewhere.
      length_step: texts that come in lists are padded to a multiple of it.
      params: replicated parameters to use in place of the model's own.
    """
    configuration.at_least("embed.tokens_per_core", tokens_per_core, 0)
    configuration.at_least("embed.length_step", length_step, 1)
    self.model = model
    self.work = Work()
    self._devices = jax.local_devices()
    self._fuse = jax.jit(model.encoder.fuse)
    self._params = self._local(model.params if params is None else params)
    on_cpu = self._devices[0].platform == "cpu"
    usual = _CPU_TOKENS if on_cpu else TPU_TOKENS
    self._tokens = tokens_per_core or usual
    self._length_step = length_step
    self._programs = _Programs(model.encoder)

  @classmethod
  def load(
    cls, folder: str | os.PathLike, which: str = "best", **options: Any
  ) -> "Encoder":
    """The encoder of a workdir, or of a Hugging Face folder.

    Args:
      folder: where `dpr-jax train` ran; or a BERT as Hugging Face or
        Sentence-Transformers save it, used as it is for both kinds of text.
      which: of a workdir: "best" = as trained, "start" = before training.
      **options: as of the constructor.
    """
    path = pathlib.Path(folder) / "config.json"
    if path.exists() and "hidden_size" in workdir_lib.read_json(path):
      return cls(towers.from_folder(folder), **options)
    where = workdir_lib.Workdir(folder)
    config = configuration.read(path)
    return cls(load_towers(config, where, which), **options)

  def _local(self, params: Any) -> Any:
    """Parameters to encode with, on the devices of this process alone."""
    return self._fuse(self._replicated(params))

  def _replicated(self, params: Any) -> Any:
    if jax.process_count() == 1:
      leaves = jax.tree.leaves(params)
      if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return params
    else:
      params = jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x,
        params,
      )
    return parallel.replicate(params, self._devices)

  @property
  def fingerprint(self) -> str:
    """Identifies the model; equal to "model" in an embeddings manifest."""
    return self.model.fingerprint

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.model.encoder.config.hidden_size

  @property
  def programs(self) -> int:
    """How many shapes have been compiled."""
    return len(self._programs)

  def with_params(self, params: Any) -> "Encoder":
    """The same encoder, nothing recompiled, with other parameters."""
    other = object.__new__(Encoder)
    other.__dict__ |= self.__dict__
    other.__dict__.pop("_first_params", None)
    other._params = self._local(params)
    return other

  @functools.cached_property
  def _first_params(self) -> Any:
    """The parameters on one core, for a single text."""
    if len(self._devices) == 1:
      return self._params
    return parallel.replicate(
      jax.tree.map(lambda x: x.addressable_data(0), self._params),
      self._devices[:1],
    )

  def encode_questions(
    self, questions: Sequence[str]
  ) -> Float[np.ndarray, "questions dim"]:
    """float32 vectors of questions."""
    return self.collect(QUESTION, self.model.tokenizer.question_ids(questions))

  def encode_passages(
    self, passages: Sequence[records.Passage | tuple[str, str]]
  ) -> Float[np.ndarray, "passages dim"]:
    """float32 vectors of passages, or of (title, text) pairs."""
    passages = [
      p if isinstance(p, records.Passage) else records.Passage("", *p)
      for p in passages
    ]
    return self.collect(PASSAGE, self.model.tokenizer.passage_ids(passages))

  def collect(
    self, kind: str, ids: list[list[int]], widths: Sequence[int] = ()
  ) -> Float[np.ndarray, "texts dim"]:
    """Vectors of tokenized texts, in their order.

    Args:
      kind: "question" or "passage".
      ids: token ids, cut but not padded.
      widths: see `plan`; () = the multiples of `length_step` that there are.
    """
    lengths = np.array([len(row) for row in ids], np.int64)
    if not widths:
      step, tokenizer = self._length_step, self.model.tokenizer
      limit = (
        tokenizer.question_length
        if kind == QUESTION
        else tokenizer.passage_length
      )
      widths = np.unique(np.minimum(-(-lengths // step) * step, limit)).tolist()
    vectors = np.empty((len(ids), self.dim), np.float32)
    for rows, result in self.stream(kind, _Lists(ids), lengths, widths):
      vectors[rows] = result
    return vectors

  def stream(
    self,
    kind: str,
    tokens: Tokens,
    lengths: Int[np.ndarray, " texts"],
    widths: Sequence[int],
    first: int = 0,
  ) -> Iterator[tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]]:
    """Yields (some rows, their vectors), the longest texts first.

    Args:
      kind: "question" or "passage".
      tokens: has the ids of rows `first`, `first` + 1, ...
      lengths: of those rows; they are numbered from 0 in what is yielded.
      widths: see `plan`.
      first: row of the first text.
    """
    if not len(lengths):
      return
    devices, params = self._devices, self._params
    size = self._tokens
    if len(lengths) == 1:  # as fast as can be: one row on one core
      devices, params, size = devices[:1], self._first_params, 1
    tiles = plan(lengths, widths, size)
    workers = max(2, _processor_cores() // len(devices))
    pending: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      for some in calls(tiles, len(devices)):
        pending.append(
          pool.submit(
            self._call, kind, tokens, lengths, some, first, devices, params
          )
        )
        if len(pending) > workers:
          yield self._count(*pending.popleft().result())
      while pending:
        yield self._count(*pending.popleft().result())

  def _call(self, kind, tokens, lengths, tiles, first, devices, params):
    """Encodes a tile on each core."""
    size, width = tiles[0].size, tiles[0].width
    ids = np.zeros((len(devices), size, width), np.int32)
    counts = np.ones((len(devices), size), np.int32)
    for core, tile in enumerate(tiles):
      for place, row in enumerate(tile.rows):
        ids[core, place, : lengths[row]] = tokens.ids(first + int(row))
      counts[core, : len(tile.rows)] = lengths[tile.rows]
    program = self._programs.get(
      kind, tiles[0].full, params, (ids, counts), devices
    )
    vectors = np.asarray(program(params, (ids, counts)))
    rows = np.concatenate([tile.rows for tile in tiles])
    vectors = np.concatenate(
      [vectors[core, : len(tile.rows)] for core, tile in enumerate(tiles)]
    )
    return rows, vectors, Work(int(lengths[rows].sum()), ids.size)

  def _count(self, rows: np.ndarray, vectors: np.ndarray, work: Work):
    self.work.tokens += work.tokens
    self.work.padded_tokens += work.padded_tokens
    return rows, vectors


def _processor_cores() -> int:
  """Cores of this machine that the process may use; 1 where it has a TPU."""
  if jax.default_backend() != "cpu":
    return 1
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def load_towers(
  config: ml_collections.ConfigDict, where: workdir_lib.Workdir, which: str
) -> towers.Towers:
  """The towers `which` = "best" (as trained) or "start" (before training)."""
  if which == "start":
    return towers.start(config)
  if which == "best":
    return towers.trained(config, where)
  raise errors.InputError(f"model {which!r}: must be best or start")
