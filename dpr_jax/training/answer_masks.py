"""Finds the passages with an answer, which must not count as negatives.

Input: the training questions, the corpus, and the corpus rows that can occur in
a batch.  Output: `AnswerRows`, which gives for the questions and passages of a
batch the mask of pairs to exclude from the softmax.  The rule is that of
`data.answer_matching` (match="string"): the answer's tokens occur in the
passage's text, one directly after the other.

One pass over the passages finds all answers: these form a trie of tokens, which
is walked from every token of a text.
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
_END = ""  # key in a trie node: the number of the answer that ends there


@dataclasses.dataclass(frozen=True)
class AnswerRows:
  """The passages that contain an answer, for every question.

  Questions share answers.  Therefore each distinct answer has a list of rows
  (`rows[row_starts[a]:row_starts[a + 1]]`, ascending), and each question a list
  of answers (`answers[answer_starts[q]:answer_starts[q + 1]]`).

  Attributes:
    answer_starts: offsets into `answers`, [questions + 1].
    answers: numbers of distinct answers, question by question.
    row_starts: offsets into `rows`, [distinct answers + 1].
    rows: corpus rows, answer by answer.
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
    """Searches the text of every passage of `rows` for every answer.

    Args:
      questions: the training questions, a QuestionTable.
      passages: the corpus, a PassageTable.
      rows: corpus rows that can occur in a batch, ascending.

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
    hit_answers, hit_rows = array.array("i"), array.array("i")
    label = "train: searching for answers"
    with progress.Progress(len(rows), label, "passages") as bar:
      for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        for row, passage in zip(
          block.tolist(), passages.take(block), strict=True
        ):
          for number in _find(tree, passage.text):
            hit_answers.append(number)
            hit_rows.append(row)
        bar.update(len(block))
    by_answer = np.array(hit_answers, np.int32)
    order = np.argsort(by_answer, kind="stable")  # rows stay ascending
    counts = np.bincount(by_answer, minlength=different)
    logging.info(
      "train: %d passages searched for %d distinct answers of %d questions:"
      " %d matches (%.0f s)",
      len(rows),
      different,
      len(questions),
      len(by_answer),
      time.monotonic() - started,
    )
    return cls(
      np.array(starts, np.int64),
      np.array(numbers, np.int32),
      np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
      np.array(hit_rows, np.int32)[order],
    )

  def rows_of(self, question: int) -> Int[np.ndarray, " rows"]:
    """Corpus rows of the passages with an answer of a question, ascending."""
    return np.unique(self._rows_of_many(np.array([question]))[0])

  def excluded(
    self,
    question_indexes: Int[np.ndarray, " questions"],
    keys: Int[np.ndarray, " passages"],
    labels: Int[np.ndarray, " questions"],
  ) -> Bool[np.ndarray, "questions passages"]:
    """True where a passage has an answer and is not the question's positive.

    Args:
      question_indexes: numbers of training questions.
      keys: corpus rows of the global batch's passages; -1 = not in the
        corpus, never excluded.
      labels: column of each question's positive.
    """
    # A passage may occur in several columns: search once for each distinct row,
    # then copy the result to all of its columns.
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
    """Rows of several questions, and the index in `questions` of each row."""
    numbers, owners = _gather(self.answer_starts, self.answers, questions)
    rows, places = _gather(self.row_starts, self.rows, numbers)
    return rows, owners[places]


def _gather(
  starts: np.ndarray, values: np.ndarray, lists: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Concatenates some of many lists, without a Python loop.

  Args:
    starts: list i is `values[starts[i]:starts[i + 1]]`.
    values: of all lists.
    lists: numbers of the wanted lists.

  Returns:
    The values, and for each the index in `lists` of the list it is from.
  """
  counts = starts[lists + 1] - starts[lists]
  places = np.repeat(np.arange(len(lists)), counts)
  before = np.cumsum(counts) - counts
  offsets = np.arange(len(places)) - before[places]
  return values[starts[lists][places] + offsets], places


def _enter(tree: dict, answer: str, unused: int) -> int | None:
  """Adds an answer to the trie and returns its number.

  It is `unused` for a new answer, None for one without a token.
  """
  tokens = answer_matching.answer_tokens(answer)
  if not tokens:
    return None  # matches no passage, as in `answer_matching`
  node = tree
  for token in tokens:
    node = node.setdefault(token, {})
  return node.setdefault(_END, unused)


def _find(tree: dict, text: str) -> set[int]:
  """Numbers of the answers that occur in a text."""
  tokens = answer_matching.answer_tokens(text)
  numbers = set()
  for place, token in enumerate(tokens):
    node = tree.get(token)
    if node is None:
      continue
    after = place + 1
    while node is not None:
      if _END in node:
        numbers.add(node[_END])
      node = node.get(tokens[after]) if after < len(tokens) else None
      after += 1
  return numbers
