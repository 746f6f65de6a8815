"""Encodes questions and passages to vectors, from one text to millions.

Texts are encoded in tiles (`length_tiles.py`).  Tiles depend only on the texts,
not on the number of devices, and so do the vectors.  The names by which other
libraries call an encoder are in `encoder_calls.py`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, forks
from dpr_jax.data import arguments
from dpr_jax.inference import length_tiles, tiled_encoder
from dpr_jax.inference.tiled_encoder import Tokens, Work
from dpr_jax.models import dual_encoder, opened_towers, retriever_model
from dpr_jax.models.dual_encoder import QUESTION


def encode_tile(
  encoder: dual_encoder.DualEncoder, kind: str, full: bool, params: Any, batch
) -> Float[Array, "rows dim"]:
  """Computes the vectors of a tile, on one device.

  Args:
    encoder: structure of the towers.
    kind: "question" or "passage".
    full: no text is padded, so that no mask is needed.
    params: parameters of the towers.
    batch: token ids [rows, width], and the number of tokens [rows].
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


class Encoder(tiled_encoder.TiledEncoder):
  """Encodes texts on all devices of this process, in few fixed shapes."""

  compiles = True
  independent = True

  def __init__(
    self,
    model: retriever_model.Towers,
    *,
    tokens_per_core: arguments.Count = 0,
    length_step: arguments.Count = 32,
    params: Any = None,
  ):
    """Prepares encoding; programs are compiled when they are first needed.

    Args:
      model: towers and tokenizer.
      tokens_per_core: tokens that a device encodes at once; 0 = as many as fit
        into the cache of a CPU core, 32,768 on other devices.
      length_step: padded lengths are multiples of it, in tokens.
      params: replicated parameters; None = the model's own.
    """
    tokens_per_core = arguments.count("tokens_per_core", tokens_per_core, 0)
    length_step = arguments.count("length_step", length_step)
    self.model = model
    self.work = Work()
    self._sizes = {
      "tokens_per_core": tokens_per_core,
      "length_step": length_step,
    }
    self._of_model = params is None
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
    folder: arguments.Path = None,
    which: arguments.Text = "best",
    *,
    question: arguments.Path = None,
    passage: arguments.Path = None,
    pooling: arguments.Text = None,
    normalize: arguments.Switch = None,
    title: arguments.Text = None,
    question_prefix: arguments.Text = None,
    passage_prefix: arguments.Text = None,
    question_length: arguments.Count = None,
    passage_length: arguments.Count = None,
    **options: Any,
  ) -> "Encoder":
    """The encoder of a workdir, of a checkpoint, or of a pair of checkpoints.

    The settings are `config.model`'s; None = as trained, or as the checkpoint
    says, else as in DPR.

    Args:
      folder: workdir of `dpr-jax train`, or what `config.model.checkpoint` may
        name: a folder, "starter", "hf:NAME"; or a pair of those.
      which: model of a workdir: "best" = after training, "start" = before.
      question: checkpoint of the questions' encoder, instead of `folder`.
      passage: checkpoint of the passages' encoder.
      pooling: "cls", "mean", ...
      normalize: scale vectors to length 1.
      title: "pair", "joined" or "none".
      question_prefix: text before every question.
      passage_prefix: text before every passage.
      question_length: maximum tokens of a question.
      passage_length: maximum tokens of a passage.
      **options: keyword arguments of the constructor.

    Raises:
      InputError: the folder has no encoder, or an argument is bad.
    """
    name = opened_towers.named(folder, question, passage)
    values = opened_towers.checked(
      {
        "pooling": pooling,
        "normalize": normalize,
        "title": title,
        "question_prefix": question_prefix,
        "passage_prefix": passage_prefix,
        "question_length": question_length,
        "passage_length": passage_length,
      }
    )
    return cls(opened_towers.load(name, which, values), **options)

  def _local(self, params: Any) -> Any:
    """Prepares parameters for encoding, on this process's devices only."""
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
  def backend(self) -> dict[str, str]:
    """Backend and versions, for the manifest of vectors."""
    return {"backend": "jax", "jax": jax.__version__}

  def widths(
    self, histogram: Int[np.ndarray, " lengths"], shapes: int
  ) -> tuple[int, ...]:
    """At most `shapes` padded lengths, since each is compiled."""
    return length_tiles.choose_widths(histogram, shapes)

  @property
  def programs(self) -> int:
    """Number of compiled shapes."""
    return len(self._programs)

  def with_params(self, params: Any) -> "Encoder":
    """This encoder with other parameters; nothing is recompiled.

    Raises:
      ForkError: the encoder was loaded in another process.
    """
    self._home.check(self)
    other = object.__new__(Encoder)
    other.__dict__ |= self.__dict__
    other.__dict__.pop("_first_params", None)
    other._params = self._local(params)
    other._of_model = False
    return other

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles model and sizes; programs are compiled again where it is read.

    Raises:
      InputError: its parameters are those of a training in progress.
    """
    if not self._of_model:
      raise errors.InputError(
        "this Encoder has other parameters than its model, and cannot be"
        " copied to another process: load it there from the workdir"
      )
    return functools.partial(Encoder, self.model, **self._sizes), ()

  @functools.cached_property
  def _first_params(self) -> Any:
    """The parameters on the first device, for a single text."""
    if len(self._devices) == 1:
      return self._params
    return devices_lib.replicate(
      jax.tree.map(lambda x: x.addressable_data(0), self._params),
      self._devices[:1],
    )

  def _encode(
    self,
    kind: str,
    tokens: Tokens,
    lengths: Int[np.ndarray, " texts"],
    tiles: Sequence[length_tiles.Tile],
    first: int,
  ) -> Iterator[
    tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"], Work]
  ]:
    """See `TiledEncoder`."""
    devices, params = self._devices, self._params
    if len(lengths) == 1:  # one row on one device
      devices, params = devices[:1], self._first_params

    def call(some: list[length_tiles.Tile]):
      return self._call(kind, tokens, lengths, some, first, devices, params)

    return length_tiles.run(tiles, len(devices), call)

  def _call(self, kind, tokens, lengths, tiles, first, devices, params):
    """Encodes one tile on each device."""
    size, width = tiles[0].size, tiles[0].width
    padding = self.model.tokenizer.padding
    ids = np.full((len(devices), size, width), padding, np.int32)
    counts = np.ones((len(devices), size), np.int32)
    for device, tile in enumerate(tiles):
      for place, row in enumerate(tile.rows):
        ids[device, place, : lengths[row]] = tokens.ids(first + int(row))
      counts[device, : len(tile.rows)] = lengths[tile.rows]
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
      [vectors[device, : len(tile.rows)] for device, tile in enumerate(tiles)]
    )
    return rows, vectors, Work(int(lengths[rows].sum()), ids.size)


def sized(
  model: retriever_model.Towers,
  settings: ml_collections.ConfigDict,
  params: Any = None,
) -> Encoder:
  """An encoder with the sizes of section `embed` of a config.

  Args:
    model: towers and tokenizer.
    settings: section `embed`.
    params: replicated parameters; None = the model's own.
  """
  return Encoder(
    model,
    tokens_per_core=settings.tokens_per_core,
    length_step=settings.length_step,
    params=params,
  )
