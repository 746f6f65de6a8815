"""Vectors and questions for `bench search`: of a workdir, or synthetic.

The questions of a workdir have answers, so that answer top-20 can be reported.
"""

import pathlib
import time

import ml_collections
import numpy as np

from dpr_jax.benchmarking import clusters
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching

QUESTIONS = 500  # synthetic questions


class MadeUp:
  """Synthetic vectors in clusters.

  Attributes:
    name: description for the report.
    path: file or folder that a cell opens.
    vectors: the opened vectors.
    questions: question vectors, float32 [questions, dim].
    encode_seconds: seconds of encoding the questions; 0 = not encoded.
  """

  encode_seconds = 0.0

  def __init__(self, folder: pathlib.Path, count: int, dim: int):
    self.name = f"{count} synthetic vectors of dimension {dim} in clusters"
    self.path, asked = clusters.write(folder, count, dim, QUESTIONS)
    self.vectors = clusters.FileVectors(self.path)
    self.questions = np.load(asked)

  def answers(self, rows: np.ndarray) -> dict[str, float]:
    """{}: synthetic passages have no answers."""
    del rows
    return {}


class Real:
  """The vectors and dev questions of a workdir; attributes as above."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    folder: pathlib.Path,
  ):
    from dpr_jax.data import prepare
    from dpr_jax.embedding import vector_shards
    from dpr_jax.inference import encoder as encoder_lib

    self.path = workdir.embeddings("dense")
    self.vectors = vector_shards.open_vectors(self.path)
    self.name = f"{len(self.vectors)} vectors of dimension {self.vectors.dim}"
    self.passages = prepare.open_passages(workdir)
    dev = prepare.open_questions(workdir, "dev")
    self.asked = dev.take(range(len(dev)))
    encoder = encoder_lib.Encoder.load(workdir.root)
    texts = [question.question for question in self.asked]
    encoder.encode_questions(texts[:1])  # compiles
    started = time.perf_counter()
    self.questions = np.asarray(encoder.encode_questions(texts), np.float32)
    self.encode_seconds = time.perf_counter() - started
    self._matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)
    np.save(folder / "questions.npy", self.questions)

  def answers(self, rows: np.ndarray) -> dict[str, float]:
    """Share of the questions with an answer in the first 20 passages."""
    rows = rows[:, :20]
    distinct = np.unique(rows[rows >= 0]).tolist()
    texts = dict(zip(distinct, self.passages.take(distinct), strict=True))
    hits = [
      any(
        self._matcher.hits(
          question.answers,
          [int(row) for row in some if row >= 0],
          [texts[int(row)].text for row in some if row >= 0],
        )
      )
      for question, some in zip(self.asked, rows, strict=True)
    ]
    return {"answer_top20": float(np.mean(hits))}
