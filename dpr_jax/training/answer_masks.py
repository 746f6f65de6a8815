"""Passages that hold an answer are no negatives, wherever they come from.

In come the training questions, the corpus and the rows that can come up in a
batch; out comes `AnswerRows`, which says of any questions and passages of a
batch which of them are to be left out of the softmax.  The rule is that of
`evaluation.answers` (match="string"): the answer's tokens stand in a row in
the passage's text.

All answers are looked for at once, in one pass over the passages: they form a
tree of tokens, which is entered at every token of a text.
"""

import array
import dataclasses
import time

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from dpr_jax.core import errors, progress
from dpr_jax.data import answer_matching, negative_sampling

_BLOCK = 4096  # questions or passages read at once
_END = ""  # in a node of the tree: the number of the answer that ends there


@dataclasses.dataclass(frozen=True)
class AnswerRows:
  """Which passages hold which question's answers.

  Questions share their answers: so each different answer has its list of rows
  (`rows[row_starts[a]:row_starts[a + 1]]`, ascending) and each question its
  list of answers (`answers[answer_starts[q]:answer_starts[q + 1]]`).

  Attributes:
    answer_starts: [questions + 1].
    answers: numbers of different answers.
    row_starts: [different answers + 1].
    rows: corpus rows.
  """

  answer_starts: Int[np.ndarray, " starts"]
  answers: Int[np.ndarray, " answers"]
  row_starts: Int[np.ndarray, " ends"]
  rows: Int[np.ndarray, " rows"]

  @classmethod
  def build(
    cls,
    questions: negative_sampling.Rows,
    passages: negative_sampling.Rows,
    rows: Int[np.ndarray, " possible"],
  ) -> "AnswerRows":
    """Looks for every answer in the text of every passage of `rows`.

    Args:
      questions: the training questions, a QuestionTable.
      passages: the corpus, a PassageTable.
      rows: corpus rows that can come up in a batch, ascending.

    Raises:
      InputError: no question has an answer.
    """
    started = time.monotonic()
    tree: dict = {}
    starts, numbers, different = [0], array.array("i"), 0
    for first in range(0, len(questions), _BLOCK):
      last = min(first + _BLOCK, len(questions))
      for question in questions.take(range(first, last)):
        own = set()
        for answer in question.answers:
          number = _enter(tree, answer, different)
          if number is not None:
            different = max(different, number + 1)
            own.add(number)
        numbers.extend(sorted(own))
        starts.append(len(numbers))
    if not different:
      raise errors.InputError(
        "config.train.mask_answers: none of the training questions has an"
        " answer: set config.train.mask_answers=False"
      )
    found_answers, found_rows = array.array("i"), array.array("i")
    with progress.Progress(len(rows), "answers in passages", "passages") as bar:
      for first in range(0, len(rows), _BLOCK):
        some = rows[first : first + _BLOCK]
        for row, passage in zip(
          some.tolist(), passages.take(some), strict=True
        ):
          for number in _find(tree, passage.text):
            found_answers.append(number)
            found_rows.append(row)
        bar.update(len(some))
    by_answer = np.array(found_answers, np.int32)
    order = np.argsort(by_answer, kind="stable")  # rows stay ascending
    counts = np.bincount(by_answer, minlength=different)
    logging.info(
      "train: %d different answers of %d questions stand %d times in %d"
      " passages (%.0f s)",
      different,
      len(questions),
      len(by_answer),
      len(rows),
      time.monotonic() - started,
    )
    return cls(
      np.array(starts, np.int64),
      np.array(numbers, np.int32),
      np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
      np.array(found_rows, np.int32)[order],
    )

  def rows_of(self, question: int) -> Int[np.ndarray, " rows"]:
    """Corpus rows of the passages that hold an answer, ascending."""
    return np.unique(self._rows_of_many(np.array([question]))[0])

  def excluded(
    self,
    question_indexes: Int[np.ndarray, " questions"],
    keys: Int[np.ndarray, " passages"],
    labels: Int[np.ndarray, " questions"],
  ) -> Bool[np.ndarray, "questions passages"]:
    """True where a passage holds an answer and is not the own positive.

    Args:
      question_indexes: numbers of training questions.
      keys: corpus rows of the global batch's passages; one that is unknown
        (-1) is never excluded.
      labels: column of each question's own positive.
    """
    distinct, columns = np.unique(keys, return_inverse=True)
    rows, owners = self._rows_of_many(np.asarray(question_indexes))
    places = np.minimum(np.searchsorted(distinct, rows), len(distinct) - 1)
    there = distinct[places] == rows
    held = np.zeros((len(question_indexes), len(distinct)), bool)
    held[owners[there], places[there]] = True
    held = held[:, columns]
    held[np.arange(len(labels)), labels] = False
    return held

  def _rows_of_many(self, questions: np.ndarray):
    """All rows of some questions, and which of them each row is of."""
    numbers, owners = _gather(self.answer_starts, self.answers, questions)
    rows, places = _gather(self.row_starts, self.rows, numbers)
    return rows, owners[places]


def _gather(
  starts: np.ndarray, values: np.ndarray, lists: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Values of some of the lists, and the place in `lists` of each."""
  counts = starts[lists + 1] - starts[lists]
  places = np.repeat(np.arange(len(lists)), counts)
  before = np.cumsum(counts) - counts
  offsets = np.arange(len(places)) - before[places]
  return values[starts[lists][places] + offsets], places


def _enter(tree: dict, answer: str, unused: int) -> int | None:
  """The answer's number: its own, or `unused`; None without a token."""
  tokens = answer_matching.answer_tokens(answer)
  if not tokens:
    return None  # in no passage, as `answers_lib` has it
  node = tree
  for token in tokens:
    node = node.setdefault(token, {})
  return node.setdefault(_END, unused)


def _find(tree: dict, text: str) -> set[int]:
  """Numbers of the answers that stand in a text."""
  tokens = answer_matching.answer_tokens(text)
  found = set()
  for place, token in enumerate(tokens):
    node = tree.get(token)
    if node is None:
      continue
    after = place + 1
    while node is not None:
      if _END in node:
        found.add(node[_END])
      node = node.get(tokens[after]) if after < len(tokens) else None
      after += 1
  return found
