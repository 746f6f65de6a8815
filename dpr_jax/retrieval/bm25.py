"""BM25 index of the corpus, for the baseline and for mining hard negatives.

Input: the passages of `data/passages`.  Output: the folder `bm25/`, and from it
the best rows for a question.  The library bm25s computes and stores the scores.
This file defines what is indexed (`title text`, split into words by
`text_analysis.py`), the order of equal scores, and the checks.  BM25 scores
depend on k1 and b, which are therefore stored with the index.

Importing bm25s initialises JAX, which must not happen before the command line
has set devices and processes: it is imported in the functions that use it.
"""

import array
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.retrieval import text_analysis

METHOD = "lucene"  # idf = ln(1 + (N - n + 0.5) / (n + 0.5)), no (k1 + 1)
PARAMETERS = "parameters.json"
_BLOCK = 10_000  # passages read at once
_MOST_WITHOUT_HITS = 0.05  # share of questions without a hit, for a warning


@runtime_checkable
class Passages(Protocol):
  """The part of `data.datasets.PassageTable` that BM25 uses."""

  def __len__(self) -> int: ...

  def blocks(self, size: int) -> Iterator[tuple[int, list[records.Passage]]]:
    """Yields (first row, passages) in order, `size` passages at a time."""
    ...


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

  def splitter(self) -> text_analysis.Splitter:
    """The splitter of texts; `InputError` for an unknown list or stemmer."""
    return text_analysis.Splitter(
      stopwords=self.stopwords,
      stemmer=self.stemmer,
      one_letter_words=self.one_letter_words,
    )


class BM25Index:
  """A BM25 index in memory, made by `build` or `load`."""

  def __init__(self, model, parameters: Parameters):
    """Wraps a bm25s.BM25; callers use `build` or `load`."""
    self.parameters = parameters
    self._model = model
    self._splitter = parameters.splitter()

  @property
  def library(self):
    """The wrapped bm25s.BM25, for comparisons with the library."""
    return self._model

  def word_ids(self, question: str) -> list[int]:
    """Numbers of the question's words that occur in the corpus, in order."""
    words = self._splitter.words(question)
    ids = self._model.get_tokens_ids(words)
    # A question of a single character matches every bigram that contains it.
    return ids or [i for word in words for i in self._bigrams.get(word, ())]

  @functools.cached_property
  def _bigrams(self) -> dict[str, list[int]]:
    """Numbers of the bigrams that contain a character, by character."""
    bigrams: dict[str, list[int]] = {}
    for word, number in self._model.vocab_dict.items():
      for character in dict.fromkeys(text_analysis.characters_of(word)):
        bigrams.setdefault(character, []).append(number)
    return bigrams

  def __len__(self) -> int:
    """Number of passages in the index."""
    return int(self._model.scores["num_docs"])

  @classmethod
  def build(
    cls,
    passages: Passages,
    *,
    k1: float | int,
    b: float | int,
    stopwords: str,
    stemmer: str,
    one_letter_words: bool = False,
  ) -> "BM25Index":
    """Indexes `title text` of every passage; row i is passage i.

    The vocabulary is in the order of first occurrence, so that the same corpus
    always gives the same bytes.  The other arguments are those of `Parameters`.

    Raises:
      InputError: no passages, passages without words, or a bad parameter.
    """
    bm25s = text_analysis.library()

    parameters = Parameters(
      float(k1), float(b), stopwords, stemmer, one_letter_words
    )
    words = parameters.splitter().words
    if not len(passages):
      raise errors.InputError(
        "BM25: the corpus has no passages; check config.data.passages"
      )
    vocabulary: dict[str, int] = {}
    ids = []
    with progress.Progress(
      len(passages), "bm25: splitting into words", "passages"
    ) as bar:
      for _, block in passages.blocks(_BLOCK):
        for passage in block:
          row = array.array("i")
          for word in words(passage_text(passage)):
            row.append(vocabulary.setdefault(word, len(vocabulary)))
          ids.append(row)
        bar.update(len(block))
    if not vocabulary:
      raise errors.InputError(
        f"BM25: none of the {len(ids)} passages has a word that is not a stop"
        " word; check config.data.passages and config.bm25.stopwords"
      )
    logging.info(
      "bm25: computing the scores of %d distinct words in %d passages",
      len(vocabulary),
      len(ids),
    )
    model = bm25s.BM25(k1=parameters.k1, b=parameters.b, method=METHOD)
    model.index(
      bm25s.tokenization.Tokenized(ids=ids, vocab=vocabulary),
      create_empty_token=False,
      show_progress=sys.stderr.isatty(),
    )
    return cls(model, parameters)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes arrays (.npy), vocabulary and parameters (JSON) into `folder`."""
    try:
      self._model.save(folder, show_progress=False)
    except OSError as error:
      if error.errno is None:  # from NumPy, without the cause
        _write_plainly(pathlib.Path(folder), self._model.scores)
      raise
    workdir_lib.write_json(
      pathlib.Path(folder) / PARAMETERS, dataclasses.asdict(self.parameters)
    )

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "BM25Index":
    """Reads what `save` wrote; nothing is unpickled.

    Raises:
      InputError: a file is missing or is not what `save` writes.
    """
    bm25s = text_analysis.library()

    stored = workdir_lib.read_json(pathlib.Path(folder) / PARAMETERS)
    if isinstance(stored, dict) and "words" not in stored:
      stored["words"] = "of an older version"
    try:
      parameters = Parameters(**stored)
      if parameters.words != text_analysis.VERSION:
        raise errors.InputError(
          f"{folder}: this BM25 index was made with another text analysis"
          f" ({parameters.words!r}) than that of this version"
          f" ({text_analysis.VERSION!r}): run `dpr-jax retrieve --method=bm25`,"
          " which builds it again"
        )
      model = bm25s.BM25.load(folder, show_progress=False)
    except errors.InputError:
      raise
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
      raise errors.InputError(
        f"{folder} is not a BM25 index ({error}): delete it and run"
        " `dpr-jax mine` again"
      ) from error
    return cls(model, parameters)

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The best passages of each question.

    A passage that shares no word with the question is not a hit: row -1 and
    score 0 fill the places after the last hit.  Equal scores are in the order
    of their rows, also at the end of the list.  A word that occurs n times in
    the question counts n times.

    Args:
      questions: texts; one that is empty or has no known word has no hits.
      k: number of hits wanted; columns are min(k, passages).

    Returns:
      int64 rows and float32 scores, both [questions, columns], best first.
    """
    columns = min(k, len(self))
    rows = np.full((len(questions), columns), -1, np.int64)
    scores = np.zeros((len(questions), columns), np.float32)
    for i, question in enumerate(questions):
      ids = self.word_ids(question)
      if ids and columns:
        best, best_scores = best_rows(
          self._model.get_scores_from_ids(ids), columns
        )
        rows[i, : len(best)] = best
        scores[i, : len(best)] = best_scores
    return rows, scores


def best_rows(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """At most k rows with a score above 0, best first, ties by row.

  A partition finds the k-th best score in linear time; of the rows with exactly
  this score the first ones fill the list.
  """
  rows = np.flatnonzero(scores > 0)
  values = scores[rows]
  if len(rows) > k:
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    keep = values > threshold
    ties = np.flatnonzero(values == threshold)
    keep[ties[: k - int(keep.sum())]] = True
    rows, values = rows[keep], values[keep]
  order = np.argsort(-values, kind="stable")  # rows ascend: ties by row
  return rows[order], values[order]


def passage_text(passage: records.Passage) -> str:
  """The indexed text of a passage: `title text`."""
  return f"{passage.title} {passage.text}".strip()


def depends_on(
  config: ml_collections.ConfigDict,
) -> tuple[dict[str, Any], dict[str, str]]:
  """What BM25 results depend on besides the corpus, for a `Stage`.

  Returns:
    Section `bm25` of the config, and the version of the text analysis as an
    input.  A setting that an older version did not have is omitted at its
    default, so that the older version's output stays current.
  """
  settings = config_lib.sections(config, "bm25")
  if not settings["bm25"]["one_letter_words"]:
    del settings["bm25"]["one_letter_words"]
  return settings, {text_analysis.INPUT: text_analysis.VERSION}


def build_or_load(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> BM25Index:
  """The workdir's index: loaded if `bm25/` is current, else built there.

  Args:
    config: reads section `bm25`.
    workdir: workdir with the corpus.
    overwrite: builds it in any case.

  Raises:
    InputError: no corpus in the workdir, a bad parameter, or files that differ
      from the manifest.
  """
  from dpr_jax.data import prepare

  folder = workdir.bm25
  recorded, words = depends_on(config)
  stage = workdir_lib.Stage(
    name="bm25",
    folder=folder,
    config=recorded,
    inputs=workdir_lib.dataset_inputs(workdir, "passages") | words,
  )
  if stage.is_current(overwrite):
    return _load(folder)  # `is_current` has just compared its files
  settings = config.bm25
  index = BM25Index.build(
    prepare.open_passages(workdir),
    k1=settings.k1,
    b=settings.b,
    stopwords=settings.stopwords,
    stemmer=settings.stemmer,
    one_letter_words=settings.one_letter_words,
  )
  with workdir_lib.replace_folder(folder, "bm25") as temporary:
    index.save(temporary)
    files = {
      path.name: workdir_lib.fingerprint_file(path)
      for path in sorted(temporary.iterdir())
    }
    stage.finish(
      {"passages": len(index), "words": len(index._model.vocab_dict)},
      folder=temporary,
      files=files,
    )
  logging.info(
    "bm25: indexed %d passages with k1 %g and b %g",
    len(index),
    settings.k1,
    settings.b,
  )
  return index


def load_checked(workdir: workdir_lib.Workdir) -> BM25Index:
  """Loads the workdir's index after comparing its sha256 sums.

  Raises:
    InputError: there is no index, its files are damaged, or it was made from
      another corpus than the workdir's.
  """
  folder = workdir.bm25
  manifest = workdir_lib.read_manifest(folder, "bm25")
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  if (indexed := manifest["inputs"].get("passages")) != corpus:
    raise errors.InputError(
      f"{folder} is the BM25 index of other passages"
      f" ({workdir_lib.short(indexed)}) than those in {workdir.data}"
      f" ({workdir_lib.short(corpus)}): run `dpr-jax mine`"
    )
  workdir_lib.check_files(folder, manifest)
  return _load(folder)


def _load(folder: pathlib.Path) -> BM25Index:
  manifest = workdir_lib.read_manifest(folder, "bm25")
  logging.info(
    "bm25: loading the index of %d passages in %s",
    manifest["counts"]["passages"],
    folder,
  )
  index = BM25Index.load(folder)
  if len(index) != manifest["counts"]["passages"]:
    raise errors.InputError(
      f"{folder} holds {len(index)} passages, its manifest says"
      f" {manifest['counts']['passages']}: run `dpr-jax mine --overwrite`"
    )
  return index


def _write_plainly(folder: pathlib.Path, scores: dict) -> None:
  """Writes the arrays again without NumPy, for an OSError with a cause."""
  with open(folder / "scores", "wb") as file:
    for value in scores.values():
      if isinstance(value, np.ndarray):
        file.write(value)


def warn_without_hits(where: str, without: int, questions: int) -> None:
  """Warns if more than 5 % of the questions have no hit.

  Args:
    where: name of the work, at the beginning of the line.
    without: number of questions without a hit.
    questions: number of all questions.
  """
  if without > _MOST_WITHOUT_HITS * questions:
    logging.warning(
      "%s: %d of %d questions share no word with any passage: are they in the"
      " language of the corpus? config.bm25.stopwords, stemmer and"
      " one_letter_words say which words count",
      where,
      without,
      questions,
    )


def check_size(index: BM25Index, passages: Passages) -> None:
  """Raises `InputError` if index and corpus differ in size."""
  if len(index) != len(passages):
    raise errors.InputError(
      f"the BM25 index holds {len(index)} passages, the corpus"
      f" {len(passages)}: run `dpr-jax mine --overwrite`"
    )
