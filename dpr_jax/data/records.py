"""Defines the records that all stages use: `Passage` and `Question`.

`dpr_files.py` reads them from users' files, `tfds_builders.py` stores them; all
other modules only use these two classes.
"""

import dataclasses
import re

_SPACE = re.compile(r"\s+")


def trec_id(identifier: str) -> str:
  """An id for a TREC run: white space is replaced by `_`.

  Runs are written with it, and judgements are compared through it, so that an
  id with a space matches.
  """
  return _SPACE.sub("_", identifier)


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """One retrievable block of text (about 100 words in DPR's Wikipedia).

  Attributes:
    id: identifier in the corpus; "" = the passage has none.
    title: title of the article; "" = none.
    text: the text that is retrieved and searched for answers.
  """

  id: str
  title: str
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
  """A question with its answers and passages.

  Attributes:
    question: text of the question.
    answers: accepted answer strings; may be empty.
    positives: passages that answer the question, the gold passage first; empty
      if the question file has no passages.
    hard_negatives: similar passages that do not answer it (DPR:
      `hard_negative_ctxs`).
    negatives: other negatives (DPR: `negative_ctxs`).
  """

  question: str
  answers: tuple[str, ...] = ()
  positives: tuple[Passage, ...] = ()
  hard_negatives: tuple[Passage, ...] = ()
  negatives: tuple[Passage, ...] = ()
