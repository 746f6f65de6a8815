"""The parameters of a BM25 index, stored with it."""

import dataclasses
from typing import Any

from dpr_jax.core import errors
from dpr_jax.retrieval import text_analysis

FILE = "parameters.json"


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Everything that BM25 scores depend on, besides the corpus.

  Attributes:
    k1: saturation of repeated words, >= 0; 0 = repetitions do not count.
    b: penalty of long passages, 0 (none) to 1 (full).
    stopwords: name of a bm25s stop word list; "" = none.
    stemmer: name of a Snowball stemmer; "" = none.
    one_letter_words: whether words of one letter count.
    words: version of `text_analysis` that split the texts.
  """

  k1: float
  b: float
  stopwords: str
  stemmer: str
  one_letter_words: bool = False
  words: str = text_analysis.VERSION

  def __post_init__(self):
    if not self.k1 >= 0:
      raise errors.InputError(f"config.bm25.k1={self.k1}: must be >= 0")
    if not 0 <= self.b <= 1:
      raise errors.InputError(f"config.bm25.b={self.b}: must be 0 to 1")

  def splitting(self) -> dict[str, Any]:
    """Those that say which words a text has."""
    settings = dataclasses.asdict(self)
    return {k: v for k, v in settings.items() if k not in ("k1", "b")}

  def splitter(self) -> text_analysis.Splitter:
    """The splitter of texts; `InputError` for an unknown list or stemmer."""
    return text_analysis.Splitter(
      stopwords=self.stopwords,
      stemmer=self.stemmer,
      one_letter_words=self.one_letter_words,
    )
