"""Encodes texts with ONNX Runtime and weights in 8 bits: `embed.backend`.

The graph is that of `export --format=onnx --int8` (`models/onnx_int8.py`), for
the vector alone.  Every CPU computes tiles of its own with one thread, as with
JAX.  Vectors differ a little from those in float32, to which they can be
compared: questions keep float32.

Inputs of a product are quantised with one scale per tile.  So a vector depends
a little on the other texts of its tile; tiles depend only on the lengths of the
texts, and the vectors of a shard are the same in every run.
"""

import importlib.metadata
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dpr_jax.core import forks, memory, setting_rules
from dpr_jax.data import arguments
from dpr_jax.inference import length_tiles, tiled_encoder
from dpr_jax.models import (
  export_onnx,
  onnx_graph,
  onnx_int8,
  retriever_model,
)

BACKEND = "onnx-int8"


class OnnxEncoder(tiled_encoder.TiledEncoder):
  """Encodes texts on all CPUs of this process, with ONNX Runtime."""

  compiles = False
  independent = False

  def __init__(
    self,
    model: retriever_model.Towers,
    *,
    tokens_per_core: arguments.Count = 0,
    length_step: arguments.Count = 32,
  ):
    """Graphs are built when they are first needed.

    Args:
      model: towers and tokenizer.
      tokens_per_core: tokens that a CPU encodes at once; 0 = as many as fit
        into its cache.
      length_step: tiles of `collect` are planned for multiples of it, in
        tokens; every tile is then cut to its longest text.

    Raises:
      InputError: a library is not installed.
    """
    setting_rules.embedding_backend(BACKEND)
    tokens = arguments.count("tokens_per_core", tokens_per_core, 0)
    self._length_step = arguments.count("length_step", length_step)
    self.model = model
    self.work = tiled_encoder.Work()
    self._tokens = tokens or length_tiles.CPU_TOKENS
    self._home = forks.Home()
    self._sessions: dict[str, Any] = {}

  @property
  def backend(self) -> dict[str, str]:
    """Backend and versions, for the manifest of vectors."""
    names = ("onnx", "onnxruntime")
    return {"backend": BACKEND} | {
      name: importlib.metadata.version(name) for name in names
    }

  def widths(
    self, histogram: Int[np.ndarray, " lengths"], shapes: int
  ) -> tuple[int, ...]:
    """All multiples of 8 that occur: no shape has to be compiled."""
    return length_tiles.choose_widths(histogram, len(histogram))

  def _encode(
    self,
    kind: str,
    tokens: tiled_encoder.Tokens,
    lengths: Int[np.ndarray, " texts"],
    tiles: Sequence[length_tiles.Tile],
    first: int,
  ) -> Iterator[
    tuple[
      Int[np.ndarray, " rows"],
      Float[np.ndarray, "rows dim"],
      tiled_encoder.Work,
    ]
  ]:
    """See `TiledEncoder`."""
    session = self._session(kind)
    padding = self.model.tokenizer.padding

    def call(some: list[length_tiles.Tile]):
      rows = some[0].rows
      counts = lengths[rows]
      mask = np.arange(counts.max())[None] < counts[:, None]
      ids = np.full(mask.shape, padding, np.int64)
      for place, row in enumerate(rows):
        ids[place, : counts[place]] = tokens.ids(first + int(row))
      inputs = ids, mask.astype(np.int64), np.zeros_like(ids)
      names = dict(zip(onnx_graph.INPUTS, inputs, strict=True))
      vectors = session.run([onnx_graph.VECTOR], names)[0]
      return rows, vectors, tiled_encoder.Work(int(counts.sum()), ids.size)

    return length_tiles.run(tiles, 1, call, memory.usable_cpus())

  def _session(self, kind: str) -> Any:
    """The graph of a tower, loaded once; towers may share it."""
    name = "shared" if self._same_towers else kind
    if name not in self._sessions:
      self._sessions[name] = session(self.model, kind)
    return self._sessions[name]

  @property
  def _same_towers(self) -> bool:
    encoder = self.model.encoder
    return encoder.shared and encoder.question_skip == encoder.passage_skip


def session(model: retriever_model.Towers, kind: str) -> Any:
  """An `onnxruntime.InferenceSession` of a tower with 8 bits and one thread.

  Args:
    model: the towers.
    kind: "question" or "passage".

  Raises:
    InputError: the encoder cannot be written as an ONNX graph.
  """
  import onnxruntime

  graph = onnx_graph.build(model, kind, onnx_int8.Graph(), states=False)
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.log_severity_level = 3  # errors
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.onnx"
    export_onnx.save(graph, path)
    return onnxruntime.InferenceSession(
      str(path), options, providers=["CPUExecutionProvider"]
    )
