"""Reads questions whose passages are named by judgements: BEIR, MS MARCO.

Input: a folder of BEIR (`queries.jsonl`, `qrels/train.tsv`), of MS MARCO
(`queries.train.tsv`, `qrels.train.tsv`), or MS MARCO's triples.  Output:
questions whose positives (judged above 0) and negatives (judged 0 or less, or
the third column of triples) have only ids: `gold_passages.with_texts` adds the
texts from the corpus.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from dpr_jax.core import errors
from dpr_jax.data import beir_files, file_streams, json_records, records

SPLITS = {
  "train": ("train",),
  "dev": ("dev.small", "dev", "validation", "valid", "val", "test"),
}
MOST_NEGATIVES = 100  # of one question of MS MARCO's triples
_ENDS = ("", ".gz")


@dataclasses.dataclass(frozen=True)
class JudgedFiles:
  """A file of questions with ids, and one of judgements.

  Attributes:
    queries: `queries.jsonl` or `queries.*.tsv`.
    judgements: qrels of BEIR or TREC.
  """

  queries: pathlib.Path
  judgements: pathlib.Path

  def read(
    self, dropped: collections.Counter[str]
  ) -> Iterator[records.Question]:
    """Yields the judged questions, in the order of the queries.

    Args:
      dropped: counts of rows left out, updated: queries without a judgement,
        and judged ids without a query.

    Raises:
      InputError: a file is malformed, or no query is judged.
    """
    judgements = beir_files.read_qrels(self.judgements)
    rest = set(judgements)
    for identifier, question in read_queries(self.queries):
      if identifier not in rest:
        dropped["without_judgement"] += 1
        continue
      rest.discard(identifier)
      yield with_judged(question, judgements[identifier])
    dropped["judged_without_query"] += len(rest)
    if len(rest) == len(judgements):
      raise errors.InputError(
        f"{self.judgements}: none of its {len(rest)} questions"
        f" ({', '.join(sorted(rest)[:3])}, ...) is in {self.queries}: the files"
        " do not belong together"
      )


def with_judged(
  question: records.Question, grades: Mapping[str, int]
) -> records.Question:
  """A question with the passages of its judgements, by id, best first."""
  ranked = sorted(grades.items(), key=lambda item: -item[1])
  return dataclasses.replace(
    question,
    positives=tuple(
      records.Passage(passage, "", "") for passage, grade in ranked if grade > 0
    ),
    hard_negatives=tuple(
      records.Passage(passage, "", "")
      for passage, grade in ranked
      if grade <= 0
    ),
  )


def beir(folder: pathlib.Path, split: str) -> JudgedFiles | None:
  """The files of a split in a folder of BEIR; None = it is no such folder.

  Raises:
    InputError: the folder has no judgements of the split.
  """
  queries = with_ending(folder / "queries.jsonl")
  if queries is None or not (folder / "qrels").is_dir():
    return None
  names = [f"qrels/{name}.tsv" for name in SPLITS[split]]
  return JudgedFiles(queries, _first(folder, names, split))


def ms_marco(folder: pathlib.Path, split: str) -> JudgedFiles | None:
  """As `beir`, for a folder of MS MARCO."""
  if not any(folder.glob("queries.*.tsv*")):
    return None
  qrels = _first(folder, [f"qrels.{name}.tsv" for name in SPLITS[split]], split)
  name = qrels.name.removesuffix(".gz").removeprefix("qrels.")
  queries = with_ending(folder / f"queries.{name}")
  if queries is None:
    raise errors.InputError(
      f"{folder}: {qrels.name} needs queries.{name} beside it"
    )
  return JudgedFiles(queries, qrels)


def with_ending(path: pathlib.Path) -> pathlib.Path | None:
  """The path, or that of the gzipped file; None = neither is there."""
  paths = (path.with_name(path.name + end) for end in _ENDS)
  return next((one for one in paths if one.is_file()), None)


def _first(
  folder: pathlib.Path, names: Iterable[str], split: str
) -> pathlib.Path:
  paths = filter(None, (with_ending(folder / name) for name in names))
  path = next(paths, None)
  if path is None:
    files = [*folder.glob("qrels.*"), *(folder / "qrels").glob("*")]
    there = sorted(path.name for path in files)
    raise errors.InputError(
      f"{folder}: no judgements for config.data.{split}: one of"
      f" {', '.join(names)} is read; there are {', '.join(there) or 'none'}"
    )
  return path


def read_queries(
  path: str | os.PathLike,
) -> Iterator[tuple[str, records.Question]]:
  """Yields ids and questions of `queries.jsonl`, or of lines `id TAB text`."""
  if not str(path).removesuffix(".gz").endswith(".tsv"):
    yield from beir_files.read_queries(path)
    return
  for where, identifier, text in _pairs(path, "a question"):
    del where
    yield identifier, records.Question(json_records.straighten(text))


def read_collection(path: str | os.PathLike) -> Iterator[records.Passage]:
  """Yields the passages of MS MARCO's `collection.tsv`: `id TAB text`.

  Quotation marks are text there, and passages have no titles.

  Raises:
    InputError: a line has other columns; names the line.
  """
  for _, identifier, text in _pairs(path, "a passage"):
    yield records.Passage(identifier, "", text)


def _pairs(
  path: str | os.PathLike, what: str
) -> Iterator[tuple[str, str, str]]:
  """Yields (position, id, text) of the lines of a file."""
  for number, line in file_streams.text_lines(path):
    fields = line.rstrip("\r\n").split("\t")
    where = f"{path}:{number}"
    if len(fields) != 2 or not fields[0].strip():
      raise errors.InputError(
        f"{where}: {json_records.short(line.strip())}: must be an id, a tab and"
        f" {what}"
      )
    yield where, fields[0].strip(), fields[1]


def is_triples(path: str | os.PathLike) -> bool:
  """Whether a table is MS MARCO's `triples.*.tsv` or `qidpidtriples.*`."""
  return "triples" in pathlib.Path(path).name


def has_ids(path: str | os.PathLike) -> bool:
  """Whether triples are ids; they are texts otherwise."""
  _, line = next(file_streams.text_lines(path), (1, ""))
  return all(field.strip().isdigit() for field in line.split("\t"))


def queries_of(path: str | os.PathLike) -> pathlib.Path:
  """The queries of triples of ids, beside them.

  Raises:
    InputError: there is no such file.
  """
  queries = with_ending(pathlib.Path(path).parent / "queries.train.tsv")
  if queries is None:
    raise errors.InputError(
      f"{path}: triples of ids need queries.train.tsv beside them"
    )
  return queries


def read_text_triples(path: str | os.PathLike) -> Iterator[records.Question]:
  """Yields a question per line `question TAB positive TAB negative`."""
  for _, (question, positive, negative) in _triples(path):
    yield records.Question(
      json_records.straighten(question),
      positives=(records.Passage("", "", positive),),
      hard_negatives=(records.Passage("", "", negative),),
    )


def read_id_triples(
  path: str | os.PathLike, dropped: collections.Counter[str]
) -> Iterator[records.Question]:
  """Yields a question per question id, with all its passages by id.

  The ids of a question's lines are kept in memory, because they are not
  consecutive; of its negatives the first `MOST_NEGATIVES`.

  Args:
    path: path of the triples; their queries are beside them.
    dropped: counts, updated: negatives beyond the first, queries without a
      line, and ids without a query.
  """
  names: dict[str, str] = {}  # one object per id, however often it occurs
  passages: dict[str, tuple[dict, dict]] = {}
  for _, (question, positive, negative) in _triples(path):
    positives, negatives = passages.setdefault(question.strip(), ({}, {}))
    positives[names.setdefault(positive, positive)] = None
    if negative in negatives:
      continue
    if len(negatives) == MOST_NEGATIVES:
      dropped["negatives_beyond_most"] += 1
      continue
    negatives[names.setdefault(negative, negative)] = None
  for identifier, question in read_queries(queries_of(path)):
    if identifier not in passages:
      dropped["without_triple"] += 1
      continue
    positives, negatives = passages.pop(identifier)
    yield dataclasses.replace(
      question,
      positives=tuple(records.Passage(i, "", "") for i in positives),
      hard_negatives=tuple(records.Passage(i, "", "") for i in negatives),
    )
  dropped["triples_without_query"] += len(passages)


def _triples(path: str | os.PathLike) -> Iterator[tuple[int, list[str]]]:
  for number, line in file_streams.text_lines(path):
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != 3:
      raise errors.InputError(
        f"{path}:{number}: {len(fields)} tab-separated fields instead of 3, a"
        f" question, a positive and a negative: {json_records.short(line)}"
      )
    yield number, fields
