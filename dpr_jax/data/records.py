"""The records that flow through every stage: passages and questions.

`dpr_files.py` reads them from users' files, `tfds_builders.py` stores them, the
other rooms only ever see these two classes.
"""

import dataclasses
import re

_SPACE = re.compile(r"\s+")


def trec_id(identifier: str) -> str:
  """An id as a TREC run can hold it: `_` stands for white space.

  Runs are written with it and judgements compared through it, so that an id
  with a space is the same one on both sides.
  """
  return _SPACE.sub("_", identifier)


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """One retrievable block of text (about 100 words in DPR's Wikipedia).

  Attributes:
    id: the corpus's own identifier; "" for a passage that is in no corpus.
    title: the article's title; "" where the source has none.
    text: the body that retrieval returns and answers are looked for in.
  """

  id: str
  title: str
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
  """A question with what is known about its answer.

  Attributes:
    question: the question's text.
    answers: accepted answer strings; may be empty.
    positives: passages that answer it, the first is the gold passage; empty
      for a bare question file.
    hard_negatives: passages that look right and are not (DPR:
      `hard_negative_ctxs`).
    negatives: other negatives (DPR: `negative_ctxs`).
  """

  question: str
  answers: tuple[str, ...] = ()
  positives: tuple[Passage, ...] = ()
  hard_negatives: tuple[Passage, ...] = ()
  negatives: tuple[Passage, ...] = ()
