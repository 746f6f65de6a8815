"""Corpora of any size for `bench scale`, with the statistics of real passages.

Passages have the lengths, and words have the frequencies, of the 99,999
Wikipedia passages described in docs/scale.md, as numbers; no text is theirs.
The most frequent words are English stop words, the next ones are words of the
tokenizer, the rare ones are syllables, of which a larger corpus has more.  A
smaller corpus is the beginning of a larger one.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from dpr_jax.core import atomic_files

# Percentiles of the number of words: of a text, and of a title.
_TEXT = ((0, 1, 5, 10, 100), (5, 35, 71, 100, 100))
_TITLE = ((0, 25, 50, 75, 95, 99, 100), (1, 1, 2, 3, 5, 7, 15))
# (rank, share of all words) of the most frequent words; between two of them
# the share is a power of the rank.
_SHARES = (
  *((1, 7.8e-2), (2, 3.7e-2), (5, 2.2e-2), (10, 8.0e-3), (20, 3.9e-3)),
  *((50, 1.45e-3), (100, 7.2e-4), (200, 3.8e-4), (500, 1.9e-4)),
  *((1000, 1.13e-4), (5000, 2.1e-5), (20_000, 2.8e-6)),
)
_TAIL = 1.5  # the share falls with this power of the rank after the last pair
_RANKS = 4_000_000  # number of distinct words
_BLOCK = 1000  # passages generated at once
_QUESTION_WORDS = 9  # mean of the real questions
_SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]


def shares(ranks: int = _RANKS) -> Float[np.ndarray, " ranks"]:
  """Share of all words that each rank has, most frequent first; sums to 1."""
  known, values = np.array(_SHARES).T
  rank = np.arange(1, ranks + 1)
  found = np.exp(np.interp(np.log(rank), np.log(known), np.log(values)))
  tail = rank > known[-1]
  found[tail] = values[-1] * (rank[tail] / known[-1]) ** -_TAIL
  return found / found.sum()


def word_of(rank: int, frequent: Sequence[str]) -> str:
  """The word of a rank from 0; after the `frequent` ones, syllables."""
  if rank < len(frequent):
    return frequent[rank]
  number, word = rank - len(frequent) + len(_SYLLABLES), ""
  while number:
    number, syllable = divmod(number, len(_SYLLABLES))
    word = _SYLLABLES[syllable] + word
  return word


class Texts:
  """Generates passages and questions; all follow from the seed."""

  def __init__(
    self, frequent: Sequence[str], seed: int = 0, ranks: int = _RANKS
  ):
    """Prepares the distribution of words.

    Args:
      frequent: the most frequent words, stop words first.
      seed: seed of all random choices.
      ranks: number of distinct words.
    """
    self._frequent = frequent
    self._known = {word: rank for rank, word in enumerate(frequent)}
    self._seed = seed
    self._ends = np.cumsum(shares(ranks))

  def passages(self, count: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yields (row, words of the title, words of the text) in order."""
    for first in range(0, count, _BLOCK):
      random = np.random.default_rng((self._seed, first))
      titles, texts = (
        np.interp(random.random(_BLOCK) * 100, *table).round().astype(int)
        for table in (_TITLE, _TEXT)
      )
      words = self._words(random, int(titles.sum() + texts.sum()))
      end = 0
      for row in range(first, min(first + _BLOCK, count)):
        begin, middle = end, end + titles[row - first]
        end = middle + texts[row - first]
        yield row, words[begin:middle], words[middle:end]

  def _words(self, random: np.random.Generator, count: int) -> list[str]:
    ranks = np.searchsorted(self._ends, random.random(count))
    return [word_of(int(rank), self._frequent) for rank in ranks]

  def question(self, row: int, text: Sequence[str]) -> tuple[str, str]:
    """A question of words of a passage, and its answer, the rarest of them."""
    random = np.random.default_rng((self._seed, row, 1))
    known = self._known
    answer = max(text, key=lambda word: known.get(word, len(known)))
    words = random.choice(list(text), min(_QUESTION_WORDS, len(text)))
    return " ".join(words), answer


def question_rows(count: int, passages: int) -> Int[np.ndarray, " questions"]:
  """Rows of the passages that are asked about: at equal distances."""
  return np.arange(count, dtype=np.int64) * passages // count


def paths(folder: str | os.PathLike) -> dict[str, str]:
  """The files that `write` writes into a folder, as `config.data` has them."""
  names = {"passages": "passages.tsv", "train": "train.json"}
  names["dev"] = "dev.json"
  return {key: str(pathlib.Path(folder) / name) for key, name in names.items()}


def frequent_words(vocabulary: Mapping[str, int]) -> list[str]:
  """English stop words, then the words of a WordPiece vocabulary, by id."""
  from dpr_jax.retrieval import text_analysis

  first = sorted(text_analysis.stop_words("en"))
  words = sorted(vocabulary, key=vocabulary.__getitem__)
  return [
    *first,
    *(w for w in words if w.isascii() and w.isalpha() and w not in first),
  ]


def write(
  folder: str | os.PathLike,
  texts: Texts,
  passages: int,
  questions: int,
) -> None:
  """Writes a corpus, and as many train as dev questions about it.

  Args:
    folder: existing folder for the files.
    texts: generator of the words.
    passages: number of passages.
    questions: number of questions of each split; at most `passages` / 2.
  """
  files = paths(folder)
  asked = set(question_rows(2 * questions, passages).tolist())
  entries = []
  with (
    atomic_files.replace_file(files["passages"]) as temporary,
    open(temporary, "w", encoding="utf-8") as file,
  ):
    file.write("id\ttext\ttitle\n")
    for row, title, text in texts.passages(passages):
      file.write(f"{row + 1}\t{' '.join(text)}\t{' '.join(title)}\n")
      if row in asked:
        question, answer = texts.question(row, text)
        gold = {"passage_id": str(row + 1), "title": " ".join(title)}
        entries.append(
          {
            "question": question,
            "answers": [answer],
            "positive_ctxs": [{**gold, "text": " ".join(text)}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [],
          }
        )
  for begin, split in enumerate(("train", "dev")):
    with atomic_files.replace_file(files[split]) as temporary:
      temporary.write_text(json.dumps(entries[begin::2]), encoding="utf-8")
