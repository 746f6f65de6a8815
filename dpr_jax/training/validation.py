"""How good the towers are during training: dev loss and average rank.

One pool of passages for all dev questions, as the paper selects its models
(section 4.2), so that the figures depend neither on the batch nor on the cores.
"""

import dataclasses
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.models import towers
from dpr_jax.retrieval import embedding, mining


@dataclasses.dataclass
class DevPool:
  """A pool of passages for the dev questions.

  Every question is ranked over the whole pool: its own gold passage, the hard
  and the other negatives of all questions.  The figures do not depend on the
  number of cores.

  Attributes:
    questions: texts.
    gold: index of each question's gold passage in the pool.
    passages: the pool.
    encoder: compiled once, used with the parameters of the moment.
    temperature: of the loss.
  """

  questions: list[str]
  gold: Int[np.ndarray, " questions"]
  passages: list[Any]
  encoder: embedding.Encoder
  temperature: float

  @classmethod
  def make(
    cls,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    model: towers.Towers,
  ) -> "DevPool | None":
    """Draws the pool; None where no dev question has a gold passage."""
    train_config = config.train
    table = prepare.open_questions(workdir, "dev")
    corpus = prepare.open_passages(workdir)
    mined = mining.read_negatives(
      workdir.negatives / mining.FILES["dev"], len(table)
    )
    questions, gold_ids, wanted = [], [], []
    for row, question in enumerate(table.take(range(len(table)))):
      if len(questions) == train_config.dev_questions:
        break
      if question.positives and question.positives[0].id:
        questions.append(question.question)
        gold_ids.append(question.positives[0].id)
        wanted += mined[row][: train_config.dev_hard_negatives]
    gold_rows = corpus.rows_of(gold_ids)
    if not len(gold_rows) or (gold_rows < 0).any():
      logging.warning("train: no dev pool, gold passages are not in the corpus")
      return None
    generator = np.random.default_rng((config.seed, 3))
    others = min(train_config.dev_other_negatives * len(questions), len(corpus))
    rows = np.unique(
      np.concatenate(
        [
          gold_rows,
          corpus.rows_of(wanted),
          generator.choice(len(corpus), others, replace=False),
        ]
      )
    )
    logging.info(
      "train: dev pool of %d passages for %d questions",
      len(rows),
      len(questions),
    )
    return cls(
      questions,
      np.searchsorted(rows, gold_rows),
      corpus.take(rows),
      embedding.Encoder(
        model,
        batch_size=config.embed.batch_size,
        length_step=config.embed.length_step,
        params={},
      ),
      config.model.temperature,
    )

  def evaluate(self, params: Any) -> dict[str, float]:
    """Loss over the pool and the gold passages' average rank, from 1."""
    encoder = self.encoder.with_params(params)
    scores = (
      encoder.encode_questions(self.questions)
      @ encoder.encode_passages(self.passages).T
    )
    loss, ranks = pool_figures(scores / self.temperature, self.gold)
    return {
      "dev_loss": loss,
      "dev_average_rank": float(ranks.mean()),
      "dev_top1": float((ranks == 1).mean()),
      "dev_pool": len(self.passages),
    }


def pool_figures(
  scores: Float[np.ndarray, "questions passages"],
  gold: Int[np.ndarray, " questions"],
) -> tuple[float, Int[np.ndarray, " questions"]]:
  """Mean NLL of the gold passages and their ranks, the best being 1.

  A passage that scores the same as the gold passage counts as ahead of it.
  """
  own = scores[np.arange(len(gold)), gold].astype(np.float64)
  highest = scores.max(axis=1)
  log_sum = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
  ranks = (scores >= own[:, None]).sum(axis=1)
  return float(np.mean(log_sum - own)), ranks
