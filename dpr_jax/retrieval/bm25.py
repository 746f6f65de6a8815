"""BM25 index of the corpus, for the baseline and for mining hard negatives.

Input: the passages of `data/passages`.  Output: the folder `bm25/`, and from it
the best rows for a question.  `bm25_build.py` writes the files, which
`bm25_parts.py` describes; this file has the search, the order of equal scores,
and the checks.  BM25 scores depend on k1 and b, which are therefore stored with
the index (`bm25_parameters.py`).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.retrieval import (
  bm25_build,
  bm25_parameters,
  bm25_parts,
  bm25_reuse,
  text_analysis,
)
from dpr_jax.retrieval.bm25_parameters import Parameters

_MOST_WITHOUT_HITS = 0.05  # share of questions without a hit, for a warning


class BM25Index:
  """A BM25 index on disk, made by `write`, opened by `load`.

  Attributes:
    parameters: what its scores depend on besides the corpus.
    vocabulary: number of each word.
  """

  def __init__(
    self,
    vocabulary: Mapping[str, int],
    parts: Sequence[bm25_parts.Part],
    parameters: Parameters,
  ):
    """Callers use `load`."""
    self.parameters = parameters
    self.vocabulary = vocabulary
    self._parts = parts
    self._splitter = parameters.splitter()

  def word_ids(self, question: str) -> list[int]:
    """Numbers of the question's words that occur in the corpus, in order."""
    words = self._splitter.words(question)
    ids = [n for word in words if (n := self.vocabulary.get(word)) is not None]
    # A question of a single character matches every bigram that contains it.
    return ids or [i for word in words for i in self._bigrams.get(word, ())]

  @functools.cached_property
  def _bigrams(self) -> dict[str, list[int]]:
    """Numbers of the bigrams that contain a character, by character."""
    bigrams: dict[str, list[int]] = {}
    for word, number in self.vocabulary.items():
      for character in dict.fromkeys(text_analysis.characters_of(word)):
        bigrams.setdefault(character, []).append(number)
    return bigrams

  def __len__(self) -> int:
    """Number of passages in the index."""
    return sum(part.count for part in self._parts)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "BM25Index":
    """Opens what `write` wrote, also of an older version; nothing is unpickled.

    Raises:
      InputError: a file is missing or is not what `write` writes.
    """
    stored = workdir_lib.read_json(pathlib.Path(folder) / bm25_parameters.FILE)
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
      vocabulary, parts = bm25_parts.open_folder(pathlib.Path(folder))
    except errors.InputError:
      raise
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
      raise errors.InputError(
        f"{folder} is not a BM25 index ({error}): delete it and run"
        " `dpr-jax mine` again"
      ) from error
    return cls(vocabulary, parts, parameters)

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
        best, best_scores = self._best(ids, columns)
        rows[i, : len(best)] = best
        scores[i, : len(best)] = best_scores
    return rows, scores

  def score(
    self, question: str, rows: Sequence[int]
  ) -> Float[np.ndarray, " rows"]:
    """Scores of any rows for a question, as `search` gives them to its hits."""
    ids = self.word_ids(question)
    scores = np.zeros(len(rows), np.float32)
    for place, row in enumerate(rows):
      for part in self._parts:
        local = row - part.first_row
        if ids and 0 <= local < part.count:
          scores[place] = part.score(part.hits(ids), local)
    return scores

  def _best(
    self, ids: Sequence[int], k: int
  ) -> tuple[Int[np.ndarray, " hits"], Float[np.ndarray, " hits"]]:
    """At most k rows with a score above 0, best first, ties by row."""
    rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for part in self._parts:
      hits = part.hits(ids)
      if not hits:
        continue
      sums = part.sums(hits)
      # Rows of later parts lose ties: they must have more than the k-th best.
      above = scores[-1] if len(scores) == k else np.float32(0)
      more, values = bm25_parts.best_rows(
        sums, k, above, part.rows[bm25_parts.rarest(hits, k)]
      )
      if len(more):
        rows = np.concatenate([rows, more + part.first_row])
        scores = np.concatenate([scores, values])
        order = np.argsort(-scores, kind="stable")[:k]
        rows, scores = rows[order], scores[order]
    return rows, scores


def write(
  folder: pathlib.Path,
  passages: bm25_build.Passages,
  parameters: Parameters,
  **reuse: Any,
) -> int:
  """Writes the index of `title text` of every passage; row i is passage i.

  The vocabulary is sorted, so that the same corpus always gives the same bytes.

  Args:
    folder: existing empty folder.
    passages: the corpus.
    parameters: parameters of the index.
    **reuse: `digests` and `earlier` of `bm25_build.build`.

  Returns:
    The number of passages that were split into words.

  Raises:
    InputError: no passages, passages without words, or an unknown stemmer or
      stop word list.
  """
  split = bm25_build.build(
    folder,
    passages,
    parameters.splitter(),
    k1=parameters.k1,
    b=parameters.b,
    **reuse,
  )
  workdir_lib.write_json(
    folder / bm25_parameters.FILE, dataclasses.asdict(parameters)
  )
  return split


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
  from dpr_jax.data import passage_digests, prepare

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
  parameters = Parameters(
    float(settings.k1),
    float(settings.b),
    settings.stopwords,
    settings.stemmer,
    settings.one_letter_words,
  )
  passages = prepare.open_passages(workdir)
  with workdir_lib.replace_folder(folder, "bm25") as temporary:
    split = write(
      temporary,
      passages,
      parameters,
      digests=passage_digests.load(workdir),
      earlier=None
      if overwrite
      else bm25_reuse.find(folder, parameters.splitting()),
    )
    index = BM25Index.load(temporary)
    files = {
      path.name: workdir_lib.fingerprint_file(path)
      for path in sorted(temporary.iterdir())
    }
    stage.finish(
      {
        "passages": len(index),
        "words": len(index.vocabulary),
        "split_in_this_run": split,
      },
      folder=temporary,
      files=files,
    )
  logging.info(
    "bm25: indexed %d passages with k1 %g and b %g%s",
    len(index),
    settings.k1,
    settings.b,
    f"; {split} of them were split into words, the counts of the others are"
    " those of the earlier index"
    if split < len(index)
    else "",
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


def check_size(index: BM25Index, passages: bm25_build.Passages) -> None:
  """Raises `InputError` if index and corpus differ in size."""
  if len(index) != len(passages):
    raise errors.InputError(
      f"the BM25 index holds {len(index)} passages, the corpus"
      f" {len(passages)}: run `dpr-jax mine --overwrite`"
    )
