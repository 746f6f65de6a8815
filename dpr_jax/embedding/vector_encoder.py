"""The question encoder of imported vectors, stored beside them.

Vectors of `embed` name the towers that made them.  Imported ones cannot; the
user names the checkpoint, which is compared with the vectors of a few passages
and stored in `embeddings/<name>/model`, so that index and search use it and
need nothing outside of the workdir.
"""

import pathlib
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_files, model_settings

if TYPE_CHECKING:  # starts JAX: imported where it is used
  from dpr_jax.inference import encoder as encoder_lib

_COMPARED = 8  # passages
# Largest relative difference of a vector: bfloat16 differs by about 0.01,
# another text format or checkpoint by more than 0.3.
_TOLERANCE = 0.1


def is_stored(folder: pathlib.Path) -> bool:
  """Whether the encoder is stored beside the vectors in `folder`."""
  return model_files.is_sealed(folder / model_settings.FOLDER)


def settings(folder: pathlib.Path) -> dict[str, Any]:
  """Section `model` of the encoder beside the vectors; {} = there is none."""
  return model_settings.of_start_in(folder) or {}


def fingerprint(folder: pathlib.Path) -> str:
  """sha256 of the record of the encoder beside the vectors; "" = none."""
  record = folder / model_settings.FOLDER / model_files.FILE
  return workdir_lib.fingerprint_file(record) if record.exists() else ""


def load(folder: pathlib.Path, dim: int) -> "encoder_lib.Encoder":
  """The encoder of questions for the imported vectors in `folder`.

  Args:
    folder: `embeddings/passages`, or of another model.
    dim: width of the vectors.

  Raises:
    InputError: there is none, or it is damaged or of another width.
  """
  from dpr_jax.inference import encoder as encoder_lib
  from dpr_jax.models import stored_towers

  if not is_stored(folder):
    raise errors.InputError(
      f"{folder} has imported vectors without the model that encodes questions"
      " for them: run `dpr-jax import` again with --config.model.checkpoint=DIR"
    )
  stored = folder / model_settings.FOLDER
  fix = f"remove {stored}, and run `dpr-jax import` again with the checkpoint"
  encoder = encoder_lib.Encoder(stored_towers.from_sealed(stored, fix))
  if encoder.dim != dim:
    raise errors.InputError(
      f"{stored} makes vectors of width {encoder.dim}, those of {folder} have"
      f" {dim}: {fix}"
    )
  return encoder


def store(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  passages: Any,
  vectors: Any,
  *,
  verify: bool = True,
) -> None:
  """Stores the towers of `config.model` beside the vectors.

  Args:
    config: section `model` names the checkpoint.
    folder: folder of the vectors.
    passages: PassageTable of the corpus.
    vectors: the `vector_shards.Vectors` in `folder`.
    verify: compare the vectors of some passages with the checkpoint's.

  Raises:
    InputError: the checkpoint gives vectors of another width, or, with
      `verify`, other vectors.
  """
  from dpr_jax.inference import encoder as encoder_lib
  from dpr_jax.models import retriever_model, stored_towers

  towers = retriever_model.start(config)
  encoder = encoder_lib.sized(towers, config.embed)
  key = (
    "passage_checkpoint" if config.model.passage_checkpoint else "checkpoint"
  )
  name = f"config.model.{key}={config.model[key]}"
  if encoder.dim != vectors.dim:
    raise errors.InputError(
      f"{name} makes vectors of width {encoder.dim}, the imported ones have"
      f" {vectors.dim}: name the checkpoint that made them"
    )
  if verify:
    rows = np.linspace(0, len(vectors) - 1, min(_COMPARED, len(vectors)))
    rows = np.unique(rows.astype(np.int64))
    made = encoder.encode_passages(passages.take(rows))
    _compare(name, passages.ids(rows), made, vectors.take(rows))
  target = folder / model_settings.FOLDER
  stored_towers.store(towers, config, target, weights=True)
  logging.info("import: the question encoder is stored in %s", target)


def _compare(
  name: str,
  ids: list[str],
  made: Float[np.ndarray, "rows dim"],
  imported: Float[np.ndarray, "rows dim"],
) -> None:
  """`InputError` if the checkpoint's vectors are not the imported ones."""
  lengths = np.linalg.norm(imported, axis=1)
  off = np.linalg.norm(made - imported, axis=1) / np.maximum(lengths, 1e-9)
  logging.info(
    "import: %d passages encoded by %s differ from their imported vectors by at"
    " most %.2g of their length",
    *(len(ids), name, off.max()),
  )
  worst = int(off.argmax())
  if off[worst] <= _TOLERANCE:
    return
  cosine = made[worst] @ imported[worst]
  cosine /= max(np.linalg.norm(made[worst]) * lengths[worst], 1e-9)
  raise errors.InputError(
    f"{name} did not make the imported vectors: its vector of passage"
    f" {ids[worst]!r} has a cosine of {cosine:.3f} with the imported one, and"
    f" length {np.linalg.norm(made[worst]):.4g} instead of"
    f" {lengths[worst]:.4g}: name the checkpoint that made them, with its"
    " config.model settings (pooling, normalize, title, prefixes, lengths), or"
    " add --noverify if the question encoder alone is named"
  )
