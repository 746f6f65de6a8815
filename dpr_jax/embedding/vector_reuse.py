"""Reuses the vectors of an earlier state of the corpus.

Beside the vectors of a shard, `embed` writes `digests-*.npy`: a hash, for each
row, of all that its vector depends on besides the model.  That is its token
ids, the shape of the tile that it is encoded in (sums in another shape have
another order), and the backend; where a vector depends on the other texts of
its tile (`embed.backend=onnx-int8`), all of these.  If the corpus changes and
the model does not, the vectors are set aside, and a new run copies those with
the same digest (`core.earlier_output`).  The result is that of a fresh run.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Int, UInt64

from dpr_jax.core import earlier_output, errors, manifests, sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from dpr_jax.inference import length_tiles, tiled_encoder
from dpr_jax.models import model_settings


def set_aside(stage: workdir_lib.Stage) -> bool:
  """Moves the vectors in a stage's folder aside, if it can reuse them.

  They must be complete, of the same model and settings, and of another corpus.

  Returns:
    Whether the folder may have unfinished vectors of another corpus, which are
    to be replaced: complete ones that can be reused were set aside before.
  """
  earlier_output.restore_target(stage)
  if not stage.manifest.exists():
    return _reusable(stage) is not None and all(
      _is_of_same_model(stage, record)
      for record in sharded_output.Parts(stage, 0, ()).unfinished()
    )
  manifest = _manifest(stage.folder)
  if (
    manifest is not None
    and not vector_shards.is_imported(manifest)
    and earlier_output.is_of_another_corpus(stage, manifest)
    and manifest["config"] == stage.config
    and vector_shards.digests_of(manifest)
  ):
    # With files of the user in it, the stage refuses or keeps the folder.
    earlier_output.set_aside(stage, manifest, (model_settings.FOLDER,))
  return False


def _is_of_same_model(
  stage: workdir_lib.Stage, record: Mapping[str, Any]
) -> bool:
  """Whether vectors have the model and settings of a stage."""
  return record["config"] == stage.config and (
    record["inputs"] == stage.inputs
    or earlier_output.is_of_another_corpus(stage, record)
  )


def _reusable(stage: workdir_lib.Stage) -> dict | None:
  """The manifest of vectors that were set aside; None = none of this model."""
  manifest = _manifest(earlier_output.folder_of(stage))
  if manifest is None or not _is_of_same_model(stage, manifest):
    return None
  return manifest


def _manifest(folder: pathlib.Path) -> dict | None:
  try:
    return vector_shards.read_manifest(folder)
  except errors.InputError:  # missing, or damaged: of no use
    return None


class Earlier:
  """Vectors that were set aside, by digest; perhaps none."""

  def __init__(self, stage: workdir_lib.Stage):
    """Opens what `set_aside` left of the same model.

    Shards with a damaged file are not reused, and named in a warning.
    """
    folder = earlier_output.folder_of(stage)
    manifest = _reusable(stage)
    digests, shards, count = [np.zeros(0, np.uint64)], [], 0
    names = [] if manifest is None else vector_shards.digests_of(manifest)
    for number, name in enumerate(names):
      shard = manifest["shards"][number]
      files = {each: manifest["files"][each] for each in (shard["file"], name)}
      if wrong := manifests.damaged_files(folder, files):
        for file, what in wrong.items():
          logging.warning("embed: not reused: %s %s", folder / file, what)
        continue
      digests.append(np.load(folder / name))
      shards.append({**shard, "first_row": count})
      count += shard["rows"]
    self._rows = earlier_output.RowsByDigest(np.concatenate(digests))
    self._vectors = vector_shards.Vectors(
      folder, {**(manifest or {}), "shards": shards, "count": count}
    )

  def find(
    self, digests: UInt64[np.ndarray, " rows"]
  ) -> Int[np.ndarray, " rows"]:
    """The earlier row with each digest; -1 = none."""
    return self._rows.find(digests)

  def take(self, rows: Int[np.ndarray, " some"]) -> np.ndarray:
    """Vectors of earlier rows, in float32, exact in the stored dtype."""
    return self._vectors.take(rows)


def row_digests(
  tiles: Sequence[length_tiles.Tile],
  tokens: tiled_encoder.Tokens,
  first: int,
  independent: bool = True,
) -> UInt64[np.ndarray, " rows"]:
  """64-bit hashes of what the vectors of a shard's rows depend on.

  As in `data.same_passages`, any two of 21 million have the same with a
  probability of 1e-5.

  Args:
    tiles: the tiles that contain every row of the shard once.
    tokens: source of the ids of the corpus.
    first: row of the corpus of the shard's first row.
    independent: see `TiledEncoder`; False = a row's hash is that of its whole
      tile and its place there.
  """
  digests = np.empty(sum(len(tile.rows) for tile in tiles), np.uint64)
  for tile in tiles:
    shape = (jax.default_backend(), tile.size, tile.width, tile.full)
    common = hashlib.blake2b(repr(shape).encode(), digest_size=8)
    texts = [
      np.asarray(tokens.ids(first + row), "<u4").tobytes()
      for row in tile.rows.tolist()
    ]
    if not independent:
      for text in texts:
        common.update(len(text).to_bytes(8, "little") + text)
    for place, (row, text) in enumerate(zip(tile.rows, texts, strict=True)):
      hashed = common.copy()
      hashed.update(text if independent else place.to_bytes(8, "little"))
      digests[row] = int.from_bytes(hashed.digest(), "little")
  return digests
