"""Stores the training questions as token ids, in `tokens/questions/`.

Input: the training questions, the corpus and a tokenizer.  Output, in blocks of
questions: memory-mapped token ids of the questions and of their own passages
(`ids-*.npy`, `ends-*.npy`), and where each passage of a question is: a row of
the corpus, or one of these texts (`passages-*.npy`, `starts-*.npy`).  A
question's own passages are those of its record that the corpus does not have
with the same title and text.  Together with `token_store`, this gives the
tokens and lengths of all texts of a training run.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt

from dpr_jax.core import sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  datasets,
  negative_sampling,
  records,
  token_blocks,
  token_store,
  tokenization,
)

BLOCK = 8192  # questions
_KINDS = ("ids", "ends", "passages", "starts")


@dataclasses.dataclass(frozen=True)
class Depth:
  """How many passages of each question's record may be needed.

  Attributes:
    positives: number of first positives.
    given: number of first hard negatives and negatives.
  """

  positives: int
  given: int

  @classmethod
  def of(cls, sampler: negative_sampling.Sampler) -> "Depth":
    """The passages that a sampler may choose."""
    positives = given = 1
    if sampler.drawn:
      positives = max((len(one.own) for one in sampler.candidates), default=1)
    if not sampler.are_given.any():
      return cls(positives, 0)
    for one in sampler.candidates:
      given = max(given, sampler.given_depth(one))
    return cls(positives, given)


@dataclasses.dataclass(frozen=True)
class QuestionTokens:
  """Token ids of the training questions and their own passages.

  Attributes:
    folder: `tokens/questions`.
    manifest: manifest of the store.
    question_length: maximum tokens of a question; longer ones are cut.
    passage_length: maximum tokens of a passage.
  """

  folder: pathlib.Path
  manifest: dict[str, Any]
  question_length: int
  passage_length: int

  def __len__(self) -> int:
    return self.manifest["count"]

  def __reduce__(self):
    return QuestionTokens, (
      self.folder,
      self.manifest,
      self.question_length,
      self.passage_length,
    )

  @functools.cached_property
  def _blocks(self) -> list[dict[str, np.ndarray]]:
    return [
      {
        kind: np.load(
          self.folder / _name(kind, number),
          mmap_mode="r" if kind == "ids" else None,
        )
        for kind in _KINDS
      }
      for number in range(len(self.manifest["parts"]))
    ]

  def _joined(self, arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *arrays])

  @functools.cached_property
  def lengths(self) -> Int[np.ndarray, " questions"]:
    """Number of tokens of every question."""
    found = self._joined(
      [np.diff(b["ends"])[: len(b["starts"]) // 2] for b in self._blocks]
    )
    return np.minimum(found, self.question_length)

  @functools.cached_property
  def own_lengths(self) -> Int[np.ndarray, " texts"]:
    """Number of tokens of every own passage."""
    found = self._joined(
      [np.diff(b["ends"])[len(b["starts"]) // 2 :] for b in self._blocks]
    )
    return np.minimum(found, self.passage_length)

  @functools.cached_property
  def _firsts(self) -> list[int]:
    """Number of the first own passage of each block, and their total."""
    owns = [len(b["ends"]) - 1 - len(b["starts"]) // 2 for b in self._blocks]
    return [0, *itertools.accumulate(owns)]

  @functools.cached_property
  def _passages(self) -> tuple[np.ndarray, np.ndarray]:
    """Passages of all questions; [questions, 2] where each one's begin."""
    passages, starts, before = [], [np.zeros((0, 2), np.int64)], 0
    for block, first in zip(self._blocks, self._firsts, strict=False):
      found = block["passages"]
      passages.append(np.where(found < 0, found - first, found))
      starts.append(block["starts"][:-1].reshape(-1, 2) + before)
      before += len(found)
    return self._joined(passages), np.concatenate(starts)

  def positives(
    self,
    questions: Int[np.ndarray, " batch"],
    numbers: Int[np.ndarray, " batch"],
  ) -> Int[np.ndarray, " batch"]:
    """Where positives are: rows of the corpus, or -1 - number of an own text.

    Args:
      questions: indexes of training questions.
      numbers: number of a positive of each question.
    """
    passages, starts = self._passages
    return passages[starts[questions, 0] + numbers]

  def given(self, question: int, place: int) -> int:
    """Where a hard negative or negative is; as in `positives`."""
    passages, starts = self._passages
    return int(passages[starts[question, 1] + place])

  def question(self, index: int) -> UInt[np.ndarray, " tokens"]:
    """Token ids of a question."""
    number, place = divmod(int(index), self.manifest["block"])
    return self._text(number, place, self.question_length)

  def own(self, text: int) -> UInt[np.ndarray, " tokens"]:
    """Token ids of an own passage."""
    number = int(np.searchsorted(self._firsts, text, side="right")) - 1
    place = len(self._blocks[number]["starts"]) // 2
    place += text - self._firsts[number]
    return self._text(number, place, self.passage_length)

  def _text(self, number: int, place: int, limit: int) -> np.ndarray:
    block = self._blocks[number]
    tokens = block["ids"][block["ends"][place] : block["ends"][place + 1]]
    return token_store.cut(tokens, limit, self.manifest["separator"])


def make(
  where: workdir_lib.Workdir,
  questions: datasets.QuestionTable,
  passages: datasets.PassageTable,
  tokenizer: tokenization.TextTokenizer,
  depth: Depth,
  *,
  process: int = 0,
  processes: int = 1,
) -> QuestionTokens:
  """Opens the store of a workdir; makes or completes it if necessary.

  The store is replaced for another tokenizer or other data, and if it has not
  enough tokens or passages.  With several processes all of them must call it.

  Args:
    where: the workdir; the store is its `tokens/questions`.
    questions: training questions of the workdir.
    passages: corpus of the workdir.
    tokenizer: tokenizer and text format.
    depth: number of passages of each question's record that are stored.
    process: index of this process; blocks are dealt to all processes.
    processes: number of processes.
  """
  at_least = {
    "question_length": tokenizer.question_length,
    "passage_length": tokenizer.passage_length,
    **dataclasses.asdict(depth),
  }
  stage = workdir_lib.Stage(
    token_store.STAGE,
    where.question_tokens,
    {"block": BLOCK, **at_least},
    workdir_lib.dataset_inputs(where, "passages", "train")
    | {
      "tokenizer": workdir_lib.fingerprint(
        [token_store.fingerprint(tokenizer), tokenizer.question_prefix]
      )
    },
  )
  lengths = tokenizer.question_length, tokenizer.passage_length
  found = token_store.find_stored(stage, tuple(at_least))
  if found is not None:
    return QuestionTokens(stage.folder, found, *lengths)
  blocks = sharded_output.Parts(
    stage,
    -(-len(questions) // BLOCK),
    tuple(f"{kind}-*.npy" for kind in _KINDS),
    process,
    processes,
  )
  blocks.begin(replace=True)
  started = time.monotonic()
  for number in blocks.mine:
    if blocks.find(number) is None:
      first = number * BLOCK
      block = questions.take(range(first, min(first + BLOCK, len(questions))))
      arrays = _block(block, passages, tokenizer, depth)
      files = {
        _name(kind, number): sharded_output.write_array(
          stage.folder / _name(kind, number), array
        )
        for kind, array in arrays.items()
      }
      texts = len(arrays["ends"]) - 1
      blocks.finish(number, files, own_passages=texts - len(block))
  parts = blocks.collect()
  if parts is not None:
    own = sum(part["own_passages"] for part in parts)
    blocks.close(
      parts,
      {"questions": len(questions), "own_passages": own},
      count=len(questions),
      block=BLOCK,
      separator=tokenizer.separator,
    )
    logging.info(
      "tokens: %d training questions and %d of their passages that are not in"
      " the corpus, in %.0f s",
      len(questions),
      own,
      time.monotonic() - started,
    )
  manifest = workdir_lib.read_record(stage.manifest)
  return QuestionTokens(stage.folder, manifest, *lengths)


def _name(kind: str, number: int) -> str:
  return f"{kind}-{number:05d}.npy"


def _block(
  questions: list[records.Question],
  passages: datasets.PassageTable,
  tokenizer: tokenization.TextTokenizer,
  depth: Depth,
) -> dict[str, np.ndarray]:
  """The arrays of a block, by kind.

  `starts` has, per question, where its positives and its negatives begin in
  `passages`, then the end of all.  A passage is a row of the corpus, or -1 -
  number of an own text; in `ends`, these are after the questions.
  """
  lists = []
  for question in questions:
    negatives = (*question.hard_negatives, *question.negatives)
    lists += [question.positives[: depth.positives], negatives[: depth.given]]
  wanted = [passage for passages in lists for passage in passages]
  places = passages.rows_of([passage.id for passage in wanted])
  known = np.unique(places[places >= 0])
  stored = dict(zip(known.tolist(), passages.take(known), strict=True))
  own: dict[tuple[str, str], int] = {}
  for number, (row, passage) in enumerate(
    zip(places.tolist(), wanted, strict=True)
  ):
    text = passage.title, passage.text
    same = stored.get(row)
    if same is None or (same.title, same.text) != text:
      places[number] = -1 - own.setdefault(text, len(own))
  ids = tokenizer.question_ids([each.question for each in questions])
  ids += tokenizer.passage_ids([records.Passage("", *text) for text in own])
  flat = itertools.chain.from_iterable(ids)
  counts = [len(each) for each in lists]
  return {
    "ids": np.fromiter(flat, token_blocks.id_dtype(tokenizer)),
    "ends": np.cumsum([0, *map(len, ids)]),
    "passages": places,
    "starts": np.cumsum([0, *counts]),
  }
