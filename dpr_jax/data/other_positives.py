"""Keys of the other positives of a batch's questions.

A question's positives that are not trained on in a batch may be positives or
negatives of its other questions; the loss masks them by these keys.
"""

import numpy as np
from jaxtyping import Int

from dpr_jax.data import negative_sampling

_COLUMNS = 32  # at most so many columns of `question_positives`


def columns(sampler: negative_sampling.Sampler) -> int:
  """Columns of `question_positives` in all batches: a power of two, or 0.

  Enough for all other positives of a question, and at most `_COLUMNS`.
  """
  most = max((len(one.positives) for one in sampler.candidates), default=1) - 1
  if most < 1:
    return 0
  return 1 << (min(most, _COLUMNS) - 1).bit_length()


def table(
  sampler: negative_sampling.Sampler,
  width: int,
  indexes: Int[np.ndarray, " batch"],
  epochs: Int[np.ndarray, " batch"],
  rows: Int[np.ndarray, " questions"],
  own: Int[np.ndarray, " questions"],
) -> Int[np.ndarray, "questions columns"]:
  """Keys of questions' positives other than their own; -1 = none.

  A question with more of them than columns keeps those in the global batch.
  If these are too many, columns are doubled and the step recompiled.

  Args:
    sampler: chooses the passages of the batch.
    width: number of columns, from `columns`.
    indexes: question of each row of the global batch.
    epochs: epoch of each row.
    rows: rows of the wanted questions.
    own: key of the positive that each of these is trained on.
  """
  positives = {
    index: sampler.candidates[index].positives
    for index in np.unique(indexes).tolist()
  }
  many = [i for i, keys in positives.items() if len(keys) > width + 1]
  if many:
    here = set(sampler.keys_of_batch(indexes, epochs).tolist())
    for index in many:
      positives[index] = [key for key in positives[index] if key in here]
    while max(len(positives[index]) for index in many) > width + 1:
      width *= 2
  found = np.full((len(own), width), -1, np.int32)
  for place, (index, key) in enumerate(
    zip(indexes[rows].tolist(), own.tolist(), strict=True)
  ):
    others = [other for other in positives[index] if other != key]
    found[place, : len(others)] = others
  return found
