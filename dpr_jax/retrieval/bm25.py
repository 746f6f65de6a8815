"""BM25 over the corpus: the baseline, and the miner of hard negatives.

In come the passages of `data/passages`, out comes the folder `bm25/` and, from
it, the best rows for a question.  The library bm25s computes and stores the
scores; here are what is indexed (`title text`, as the words of
`text_analysis.py`), the order of equal scores, and the checks.  BM25 figures
mean nothing without k1 and b: they are kept with the index.

bm25s starts JAX when it is imported, before the command line has chosen
devices and processes: so it is imported where it is used, not here.
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
_MOST_WITHOUT_HITS = 0.05  # of the questions, before a warning


@runtime_checkable
class Passages(Protocol):
  """What BM25 needs of `data.datasets.PassageTable`."""

  def __len__(self) -> int: ...

  def blocks(self, size: int) -> Iterator[tuple[int, list[records.Passage]]]:
    """(first row, passages), in order."""
    ...


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Everything that BM25's scores depend on, besides the corpus.

  Attributes:
    k1: how slowly repeated words saturate, >= 0.
    b: how much long passages are held down, 0 to 1.
    stopwords: the name of a bm25s stop word list, "" for none.
    stemmer: the name of a Snowball stemmer, "" for none.
    one_letter_words: words of one letter count.
    words: the version of `text_analysis` that split the texts.
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
    """What splits texts; `InputError` for an unknown list or stemmer."""
    return text_analysis.Splitter(
      stopwords=self.stopwords,
      stemmer=self.stemmer,
      one_letter_words=self.one_letter_words,
    )


class BM25Index:
  """An index in memory, from `build` or `load`."""

  def __init__(self, model, parameters: Parameters):
    """Callers use `build` or `load`; `model` is a bm25s.BM25."""
    self.parameters = parameters
    self._model = model
    self._splitter = parameters.splitter()

  @property
  def library(self):
    """The bm25s.BM25 inside, for those who compare with it."""
    return self._model

  def word_ids(self, question: str) -> list[int]:
    """Numbers of the question's words that the corpus knows, in order."""
    words = self._splitter.words(question)
    ids = self._model.get_tokens_ids(words)
    # A character that is the whole question is looked for in every bigram.
    return ids or [i for word in words for i in self._bigrams.get(word, ())]

  @functools.cached_property
  def _bigrams(self) -> dict[str, list[int]]:
    """Numbers of the bigrams that have a character, by character."""
    found: dict[str, list[int]] = {}
    for word, number in self._model.vocab_dict.items():
      for character in dict.fromkeys(text_analysis.characters_of(word)):
        found.setdefault(character, []).append(number)
    return found

  def __len__(self) -> int:
    """Passages in the index."""
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

    The vocabulary is in the order of first occurrence, so the same corpus
    always gives the same bytes.

    Raises:
      InputError: no passages, no words in them, or a bad parameter.
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
    with progress.Progress(len(passages), "BM25 words", "passages") as bar:
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
      if error.errno is None:  # NumPy's, which does not say why
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
          f"{folder}: this BM25 index has other words ({parameters.words!r})"
          f" than this version ({text_analysis.VERSION!r}): run `dpr-jax"
          " retrieve --method=bm25`, which builds it again"
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

    A passage that shares no word with the question scores 0 and is no hit: its
    place holds row -1 and score 0, after all hits.  Equal scores stand in the
    order of their rows, also where the list is cut off.  A word that the
    question repeats counts as often as it stands there.

    Args:
      questions: texts; may be empty, or have no known word (no hits then).
      k: hits wanted; columns are min(k, passages).

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

  A partition finds the k-th best score; of the rows that have just this score
  the first ones fill the list.
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
  """What is indexed: `title text`."""
  return f"{passage.title} {passage.text}".strip()


def depends_on(
  config: ml_collections.ConfigDict,
) -> tuple[dict[str, Any], dict[str, str]]:
  """What BM25's answers depend on besides the corpus, for a `Stage`.

  Returns:
    (section `bm25`, the version of the text analysis for the inputs).  A
    setting that an older version did not have is left out at its default.
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
  """The workdir's index: loaded where `bm25/` is current, else built there.

  Raises:
    InputError: no corpus in the workdir, a bad parameter, or files that are
      not those the manifest describes.
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
    return _load(folder)  # its files have just been compared
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
    "bm25: %d passages, k1 %g, b %g", len(index), settings.k1, settings.b
  )
  return index


def load_checked(workdir: workdir_lib.Workdir) -> BM25Index:
  """Loads an index of `build_or_load` after comparing its sha256 sums.

  Raises:
    InputError: there is no index, its files are damaged, or it is of another
      corpus than the workdir's.
  """
  folder = workdir.bm25
  manifest = workdir_lib.read_manifest(folder, "bm25")
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  if (found := manifest["inputs"].get("passages")) != corpus:
    raise errors.InputError(
      f"{folder} is the BM25 index of other passages"
      f" ({workdir_lib.short(found)}) than those in {workdir.data}"
      f" ({workdir_lib.short(corpus)}): run `dpr-jax mine`"
    )
  workdir_lib.check_files(folder, manifest)
  return _load(folder)


def _load(folder: pathlib.Path) -> BM25Index:
  manifest = workdir_lib.read_manifest(folder, "bm25")
  index = BM25Index.load(folder)
  if len(index) != manifest["counts"]["passages"]:
    raise errors.InputError(
      f"{folder} holds {len(index)} passages, its manifest says"
      f" {manifest['counts']['passages']}: run `dpr-jax mine --overwrite`"
    )
  return index


def _write_plainly(folder: pathlib.Path, scores: dict) -> None:
  """Writes arrays where there was no room for them: the system says why."""
  with open(folder / "scores", "wb") as file:
    for value in scores.values():
      if isinstance(value, np.ndarray):
        file.write(value)


def warn_without_hits(where: str, without: int, questions: int) -> None:
  """Warns where more than 5 % of questions found no passage at all.

  Args:
    where: what was done with them; begins the line.
    without: questions without a hit.
    questions: all of them.
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
  """`InputError` where the index is not of this many passages."""
  if len(index) != len(passages):
    raise errors.InputError(
      f"the BM25 index holds {len(index)} passages, the corpus"
      f" {len(passages)}: run `dpr-jax mine --overwrite`"
    )
