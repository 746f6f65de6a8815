"""Training batches of random tokens with the shapes of real ones.

They come from the `batches.BatchSource` of real training, over tables of empty
records and a tokenizer that returns random tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpr_jax.core import config as config_lib
from dpr_jax.data import (
  batches,
  negative_mixture,
  negative_sampling,
  records,
  tokenization,
)
from dpr_jax.models import retriever_model

STEPS = 1000  # number of steps of the learning rate schedule


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of copies of one record.

  Attributes:
    rows: number of copies.
    record: the record.
  """

  rows: int
  record: Any

  def __len__(self) -> int:
    return self.rows

  def take(self, rows: Sequence[int] | np.ndarray) -> list[Any]:
    """The record, once for each row."""
    return [self.record] * len(rows)


@dataclasses.dataclass(frozen=True)
class RandomTokenizer(tokenization.TextTokenizer):
  """Returns random ids of half to full maximum length for any text."""

  def question_ids(self, questions: Sequence[str]) -> list[list[int]]:
    """Random ids, one list per question."""
    return self._random(len(questions), self.question_length)

  def passage_ids(self, passages: Sequence[records.Passage]) -> list[list[int]]:
    """Random ids, one list per passage."""
    return self._random(len(passages), self.passage_length)

  def _random(self, rows: int, limit: int) -> list[list[int]]:
    generator = np.random.default_rng((rows, limit))
    lengths = generator.integers((limit + 1) // 2, limit + 1, rows)
    top = self.backend.get_vocab_size()
    return [generator.integers(1, top, n).tolist() for n in lengths]


def make_source(
  config: ml_collections.ConfigDict, model: retriever_model.Towers
) -> batches.BatchSource:
  """Padded batches of the sizes in `config.train`."""
  train = config.train
  size, count = train.batch_size, train.hard_negatives
  config_lib.at_least("train.batch_size", size, 1)
  config_lib.at_least("train.hard_negatives", count, 0)
  passage = records.Passage("", "", "")
  corpus = np.arange(size * (1 + count), dtype=np.int64).reshape(size, -1)
  tokenizer = RandomTokenizer(
    **{
      field.name: getattr(model.tokenizer, field.name)
      for field in dataclasses.fields(model.tokenizer)
    }
    | {"passage_length": train.passage_length or model.tokenizer.passage_length}
  )
  return batches.BatchSource(
    plan=batches.Plan(config.seed, size, size),
    steps=STEPS,
    questions=Table(size, records.Question("", positives=(passage,))),
    sampler=negative_sampling.Sampler(
      passages=Table(corpus.size, passage),
      candidates=[
        negative_sampling.Candidate(int(rows[0]), {"bm25": rows[1:]})
        for rows in corpus
      ],
      mixture=negative_mixture.Mixture((("bm25", count),) if count else ()),
      from_top=count,
      seed=config.seed,
    ),
    tokenizer=tokenizer,
    cores=jax.local_device_count(),
  )
