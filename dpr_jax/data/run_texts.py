"""Token ids and lengths of all texts that a training run reads.

Input: the token stores of the corpus and of the training questions.  Every
process can look up the length of any text of any batch, so all of them can work
out the same layout of a batch.  A text is a number: a row of the corpus, from
the size of the corpus on a passage that only a question's record has, or -1 for
the missing negative of a question, whose tokens are those of an empty passage.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from dpr_jax.data import negative_sampling, question_tokens, token_store

NONE = -1


@dataclasses.dataclass(frozen=True)
class RunTexts:
  """The texts of a run.

  Attributes:
    corpus: token ids of the corpus.
    questions: token ids of the training questions and their own passages.
    empty: token ids of an empty passage.
  """

  corpus: token_store.TokenStore
  questions: question_tokens.QuestionTokens
  empty: tuple[int, ...]

  def passages_of_batch(
    self,
    sampler: negative_sampling.Sampler,
    indexes: Int[np.ndarray, " batch"],
    epochs: Int[np.ndarray, " batch"],
  ) -> tuple[
    Int[np.ndarray, "batch columns"], Int[np.ndarray, "batch columns"]
  ]:
    """Keys and text numbers of some questions' passages, the positive first.

    Args:
      sampler: chooses the passages.
      indexes: indexes of training questions.
      epochs: epoch of each question.
    """
    keys, numbers = sampler.chosen(indexes, epochs)
    texts = np.where(keys >= 0, keys, NONE)
    texts[:, 0] = self._number(self.questions.positives(indexes, numbers))
    for column in np.flatnonzero(sampler.are_given).tolist():
      for row in np.flatnonzero(keys[:, column] >= 0).tolist():
        index = int(indexes[row])
        place = sampler.given_place(index, int(keys[row, column]))
        texts[row, column] = self._number(self.questions.given(index, place))
    return keys, texts

  def _number(self, place):
    """Number of a text from its place in `QuestionTokens`."""
    return np.where(np.less(place, 0), len(self.corpus) - 1 - place, place)

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    """Length of every text by its number; the last is that of `NONE`."""
    every = (
      self.corpus.lengths(0, len(self.corpus)),
      self.questions.own_lengths,
      [len(self.empty)],
    )
    # 21 million passages take 84 MB.
    return np.concatenate([np.asarray(some, np.int32) for some in every])

  def passage_lengths(
    self, texts: Int[np.ndarray, "*shape"]
  ) -> Int[np.ndarray, "*shape"]:
    """Number of tokens of passages, by their text numbers."""
    return self._lengths[texts].astype(np.int64)

  def question_lengths(
    self, indexes: Int[np.ndarray, "*shape"]
  ) -> Int[np.ndarray, "*shape"]:
    """Number of tokens of questions."""
    return self.questions.lengths[indexes]

  def passage(self, text: int) -> np.ndarray:
    """Token ids of a passage."""
    if text == NONE:
      return np.asarray(self.empty, np.int32)
    if text < len(self.corpus):
      return self.corpus.ids(text)
    return self.questions.own(text - len(self.corpus))

  def question(self, index: int) -> np.ndarray:
    """Token ids of a question."""
    return self.questions.question(index)
