"""Texts become vectors: questions and passages, one or millions.

They are encoded in tiles (`length_tiles.py`), which depend on the texts alone,
and so do the vectors.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, forks
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import arguments
from dpr_jax.inference import length_tiles
from dpr_jax.models import dual_encoder, retriever_model, stored_towers

QUESTION, PASSAGE = "question", "passage"
MODELS = ("best", "start")  # as trained, and before training


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


class Encoder:
  """Encodes texts on all cores of this process, in few fixed shapes."""

  def __init__(
    self,
    model: retriever_model.Towers,
    *,
    tokens_per_core: arguments.Count = 0,
    length_step: arguments.Count = 32,
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
    tokens_per_core = arguments.count("tokens_per_core", tokens_per_core, 0)
    length_step = arguments.count("length_step", length_step)
    self.model = model
    self.work = Work()
    self._home = forks.Home()
    self._devices = jax.local_devices()
    self._fuse = jax.jit(model.encoder.fuse)
    self._params = self._local(model.params if params is None else params)
    self._tokens = tokens_per_core or length_tiles.usual_tokens(self._devices)
    self._length_step = length_step
    self._programs = length_tiles.Programs()

  @classmethod
  def load(
    cls,
    folder: arguments.Path,
    which: arguments.Text = "best",
    **options: Any,
  ) -> "Encoder":
    """The encoder of a workdir, or of a Hugging Face folder.

    Args:
      folder: where `dpr-jax train` ran; or a BERT as Hugging Face or
        Sentence-Transformers save it, used as it is for both kinds of text.
      which: of a workdir: "best" = as trained, "start" = before training.
      **options: as of the constructor.

    Raises:
      InputError: nothing that can encode is there, or a bad argument.
    """
    folder = workdir_lib.user_path(arguments.path("folder", folder))
    which = arguments.choice("which", which, MODELS)
    path = folder / "config.json"
    if path.exists() and "hidden_size" in workdir_lib.read_json(path):
      return cls(stored_towers.from_folder(folder), **options)
    where = workdir_lib.Workdir(folder)
    return cls(load_towers(None, where, which), **options)

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
    return devices_lib.replicate(params, self._devices)

  @property
  def fingerprint(self) -> str:
    """Identifies the model; equal to "model" in an embeddings manifest."""
    return self.model.fingerprint

  @property
  def settings(self) -> dict[str, Any]:
    """Those of `config.model` that decide a vector."""
    return self.model.settings

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
    return devices_lib.replicate(
      jax.tree.map(lambda x: x.addressable_data(0), self._params),
      self._devices[:1],
    )

  def encode_questions(
    self, questions: arguments.Texts
  ) -> Float[np.ndarray, "questions dim"]:
    """float32 vectors of questions, a row each; of one question, one row.

    Args:
      questions: texts, or one text.

    Raises:
      InputError: something else is among them.
    """
    texts = arguments.texts("questions", questions)
    return self.collect(QUESTION, self.model.tokenizer.question_ids(texts))

  def encode_passages(
    self, passages: arguments.Passages
  ) -> Float[np.ndarray, "passages dim"]:
    """float32 vectors of passages, a row each; of one passage, one row.

    Args:
      passages: each is a text, a (title, text), a {"title", "text"}, a Passage
        or a Hit; or one of these.

    Raises:
      InputError: something else is among them.
    """
    found = arguments.passages("passages", passages)
    return self.collect(PASSAGE, self.model.tokenizer.passage_ids(found))

  def collect(
    self, kind: str, ids: list[list[int]], widths: Sequence[int] = ()
  ) -> Float[np.ndarray, "texts dim"]:
    """Vectors of tokenized texts, in their order.

    Args:
      kind: "question" or "passage".
      ids: token ids, cut but not padded.
      widths: see `length_tiles.plan`; () = the multiples of `length_step` that
      the
        texts need.
    """
    lengths = np.array([len(row) for row in ids], np.int64)
    if not widths:
      tokenizer = self.model.tokenizer
      limit = (
        tokenizer.question_length
        if kind == QUESTION
        else tokenizer.passage_length
      )
      widths = length_tiles.stepped_widths(lengths, self._length_step, limit)
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
      widths: see `length_tiles.plan`.
      first: row of the first text.
    """
    self._home.check(self)
    if not len(lengths):
      return
    devices, params = self._devices, self._params
    size = self._tokens
    if len(lengths) == 1:  # as fast as can be: one row on one core
      devices, params, size = devices[:1], self._first_params, 1

    def call(some: list[length_tiles.Tile]):
      return self._call(kind, tokens, lengths, some, first, devices, params)

    tiles = length_tiles.plan(lengths, widths, size)
    for rows, vectors, work in length_tiles.run(tiles, len(devices), call):
      self.work.tokens += work.tokens
      self.work.padded_tokens += work.padded_tokens
      yield rows, vectors

  def _call(self, kind, tokens, lengths, tiles, first, devices, params):
    """Encodes a tile on each core."""
    size, width = tiles[0].size, tiles[0].width
    padding = self.model.tokenizer.padding
    ids = np.full((len(devices), size, width), padding, np.int32)
    counts = np.ones((len(devices), size), np.int32)
    for core, tile in enumerate(tiles):
      for place, row in enumerate(tile.rows):
        ids[core, place, : lengths[row]] = tokens.ids(first + int(row))
      counts[core, : len(tile.rows)] = lengths[tile.rows]
    full = tiles[0].full
    program = self._programs.get(
      (kind, full),
      functools.partial(encode_tile, self.model.encoder, kind, full),
      params,
      (ids, counts),
      devices,
    )
    vectors = np.asarray(program(params, (ids, counts)))
    rows = np.concatenate([tile.rows for tile in tiles])
    vectors = np.concatenate(
      [vectors[core, : len(tile.rows)] for core, tile in enumerate(tiles)]
    )
    return rows, vectors, Work(int(lengths[rows].sum()), ids.size)


def load_towers(
  config: ml_collections.ConfigDict | None,
  where: workdir_lib.Workdir,
  which: str,
) -> retriever_model.Towers:
  """The towers `which` = "best" (as trained) or "start" (before training).

  `config` = None: as the workdir has them.
  """
  if which == "start":
    return stored_towers.before_training(config, where)
  if which == "best":
    return stored_towers.trained(config, where)
  raise errors.InputError(f"model {which!r}: must be best or start")


def sized(
  model: retriever_model.Towers,
  settings: ml_collections.ConfigDict,
  params: Any = None,
) -> Encoder:
  """An encoder whose calls are sized as section `embed` of a config says.

  Args:
    model: towers and tokenizer.
    settings: the section.
    params: replicated parameters to use in place of the model's own.
  """
  return Encoder(
    model,
    tokens_per_core=settings.tokens_per_core,
    length_step=settings.length_step,
    params=params,
  )
