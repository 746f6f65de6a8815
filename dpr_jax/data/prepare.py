"""The stage `prepare`: from the user's files to `data/{passages,train,dev}`.

In come the corpus and the question files that the config's `data` section
names; out come three TFDS datasets, which every later stage opens with
`open_passages` and `open_questions`, and a manifest.  What is left out, and
why, is counted in the manifest and logged: nothing is dropped silently.
"""

import dataclasses
import hashlib
import importlib.resources
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_module
from dpr_jax.data import (
  answer_matching,
  datasets,
  dpr_files,
  records,
  same_passages,
  tfds_builders,
)

SPLITS = ("train", "dev")
NONE = "none"  # as `data.train`: a corpus to search, nothing to train on

_SAMPLE_FILES = {
  "passages": "passages.tsv",
  "train": "train.json",
  "dev": "dev.json",
}
_BLOCK = 1000


def prepare(
  config: ml_collections.ConfigDict,
  workdir: workdir_module.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Writes the corpus and the questions into the workdir.

  Questions come first: with `max_passages`, the passages that answer those kept
  must be in the corpus, and the rest of it fills up in file order.

  Args:
    config: reads the section `data`.
    workdir: writes `data/`, all of it or nothing.
    overwrite: again, even if it is done and unchanged.

  Raises:
    InputError: a file is missing, malformed or empty, or a limit too low.
  """
  data = config.data
  for name in ("max_passages", "max_train", "max_dev"):
    config_lib.at_least(f"data.{name}", data[name], 0)
  sources = _sources(data)
  for role, path in sources.items():
    workdir_module.refuse_inside(f"config.data.{role}", path, workdir.data)
  stage = workdir_module.Stage(
    name="prepare",
    folder=workdir.data,
    config=config_lib.as_recorded(
      config_lib.sections(config, "data"),
      workdir.data / workdir_module.MANIFEST,
    ),
    inputs={
      role: workdir_module.fingerprint_file(path)
      for role, path in sources.items()
    },
  )
  if stage.is_current(overwrite):
    return
  with workdir_module.replace_folder(workdir.data, "prepare") as folder:
    counts = {}
    questions = {}
    splits = [split for split in SPLITS if split in sources]
    for split in splits:
      questions[split] = _KeptQuestions(
        split, sources[split], data[f"max_{split}"]
      )
      tfds_builders.write_questions(questions[split], folder / split)
    corpus = _KeptPassages(
      sources["passages"],
      data.max_passages,
      [gold for split in splits for gold in questions[split].gold],
    )
    tfds_builders.write_passages(corpus, folder / "passages")
    copies = corpus.finder.copies()
    np.save(folder / same_passages.FILE, copies)
    counts.update({**corpus.counts, "passages_copies": len(copies)})
    table = datasets.PassageTable.open(folder / "passages")
    for split in splits:
      counts.update(questions[split].counts)
      gold = questions[split].gold
      named = _named_by_text(gold, table, corpus.finder.ids)
      counts[f"{split}_gold_found_by_text"] = len(named)
      if named:
        _write_named(folder / split, gold, named)
      counts.update(_compare_gold(split, gold, table))
    stage.finish(counts, folder=folder, files=_file_hashes(folder))
  _log_summary(counts, sources)


def open_passages(
  workdir: workdir_module.Workdir,
) -> datasets.PassageTable:
  """Opens the corpus that `prepare` left in a workdir.

  Raises:
    InputError: it is not there, or not what the manifest says.
  """
  return _open(workdir, "passages", datasets.PassageTable)


def open_questions(
  workdir: workdir_module.Workdir, split: str
) -> datasets.QuestionTable:
  """Opens the questions of `split`, "train" or "dev"; errors as above."""
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
  return _open(workdir, split, datasets.QuestionTable)


def _open(workdir: workdir_module.Workdir, name: str, table_class):
  """A table, after comparing what has no checksums of its own.

  The rows, in array_record, have: they are compared when they are read.
  """
  folder = workdir.data / name
  manifest = workdir_module.read_manifest(workdir.data, "prepare")
  expected = manifest["counts"].get(name)
  if expected is None:
    raise errors.InputError(
      f"{folder} is missing: the data of this workdir has no {name}; set"
      f" config.data.{name} and run `dpr-jax prepare`"
    )
  beside = [
    file
    for file in manifest["files"]
    if file.startswith(f"{name}/") and ".array_record" not in file
  ]
  workdir_module.check_files(workdir.data, manifest, beside)
  table = table_class.open(folder)
  if len(table) != expected:
    raise errors.InputError(
      f"{folder} holds {len(table)} rows, the manifest says {expected}: run"
      " `dpr-jax prepare --overwrite`"
    )
  return table


def _sources(data: ml_collections.ConfigDict) -> dict[str, pathlib.Path]:
  """Paths by role; "sample" stands for the files in this package."""
  sources = {}
  for role, sample_file in _SAMPLE_FILES.items():
    if role == "train" and data[role] == NONE:
      logging.info("prepare: no train questions, as config.data.train says")
      continue
    if not data[role]:
      raise errors.InputError(
        f"config.data.{role} is empty: give a path, or"
        f" --config.data.{role}=sample for the embedded sample"
      )
    if data[role] == "sample":
      folder = importlib.resources.files("dpr_jax.data.sample")
      sources[role] = pathlib.Path(str(folder / sample_file))
    else:
      sources[role] = pathlib.Path(os.path.expanduser(data[role]))
  return sources


@dataclasses.dataclass(slots=True)
class _Gold:
  """A positive of a kept question, as small as a comparison allows.

  Attributes:
    id: in the file, or as it was found by its text.
    digest: of the text alone.
    same: of title and text, see `same_passages.digest`.
  """

  id: str
  digest: bytes
  same: int


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


class _KeptQuestions:
  """Iterates over the questions of a file that are kept; counts the others.

  Attributes:
    counts: complete after the iteration.
    gold: the positives of the questions kept, after the iteration.
  """

  def __init__(self, split: str, path: pathlib.Path, limit: int):
    self.gold: list[_Gold] = []
    self._split = split
    self._path = path
    self._limit = limit
    self._counts = dict.fromkeys(
      (
        "read",
        "kept",
        "without_question",
        "without_positives",
        "beyond_max",
        "answers_without_tokens",
        "positives",
      ),
      0,
    )

  @property
  def counts(self) -> dict[str, int]:
    """As the manifest has them: `train` for those kept, `train_read`, …."""
    counts = {f"{self._split}_{key}": n for key, n in self._counts.items()}
    return {self._split: counts.pop(f"{self._split}_kept"), **counts}

  def __iter__(self) -> Iterator[records.Question]:
    counts = self._counts
    for question in dpr_files.read_questions(self._path):
      counts["read"] += 1
      if not question.question.strip():
        counts["without_question"] += 1
        continue
      if self._split == "train" and not question.positives:
        counts["without_positives"] += 1
        continue
      if self._limit and counts["kept"] == self._limit:
        counts["beyond_max"] += 1
        continue
      counts["kept"] += 1
      counts["without_positives"] += not question.positives
      counts["positives"] += len(question.positives)
      self.gold.extend(
        _Gold(passage.id, _digest(passage.text), same_passages.digest(passage))
        for passage in question.positives
      )
      yield self._with_real_answers(question)
    if not counts["kept"]:
      raise errors.InputError(
        f"{self._path}: no question is left for {self._split}: of"
        f" {counts['read']} rows, {counts['without_question']} have an empty"
        f" question and {counts['without_positives']} no positive passage"
      )

  def _with_real_answers(self, question: records.Question) -> records.Question:
    """Drops answers without a token: they would match every passage."""
    kept = tuple(
      a for a in question.answers if answer_matching.answer_tokens(a)
    )
    if len(kept) == len(question.answers):
      return question
    self._counts["answers_without_tokens"] += len(question.answers) - len(kept)
    return dataclasses.replace(question, answers=kept)


class _KeptPassages:
  """Iterates over the passages of a corpus that are kept, in file order.

  With a limit the file is read twice: first to learn which of the gold passages
  it holds, for these are kept before all others.

  Attributes:
    counts: complete after the iteration.
    finder: has read along.
  """

  def __init__(self, path: pathlib.Path, limit: int, gold: Sequence[_Gold]):
    self.counts = {"passages": 0, "passages_read": 0, "passages_beyond_max": 0}
    self.finder = same_passages.Finder(one.same for one in gold)
    self._path = path
    self._limit = limit
    self._gold = gold
    self._gold_ids = {one.id for one in gold if one.id}

  def __iter__(self) -> Iterator[records.Passage]:
    room = self._room_for_others()
    counts = self.counts
    for passage in dpr_files.read_passages(self._path):
      counts["passages_read"] += 1
      if room is not None and passage.id not in self._gold_ids:
        if not room:
          counts["passages_beyond_max"] += 1
          continue
        room -= 1
      counts["passages"] += 1
      self.finder.see(passage)
      yield passage
    if not counts["passages_read"]:
      raise errors.InputError(
        f"{self._path}: the corpus is empty, there is only a header"
      )

  def _room_for_others(self) -> int | None:
    """How many passages that are no gold ones may be kept; None = all."""
    if not self._limit:
      return None
    found, finder = set(), same_passages.Finder(one.same for one in self._gold)
    for passage in dpr_files.read_passages(self._path):
      finder.see(passage)
      if passage.id in self._gold_ids:
        found.add(passage.id)
    for one in self._gold:
      if one.id not in found and one.same in finder.ids:
        found.add(finder.ids[one.same])
    self._gold_ids = found
    if len(found) > self._limit:
      raise errors.InputError(
        f"config.data.max_passages={self._limit}: the questions kept have"
        f" {len(found)} different positive passages in {self._path}, and all"
        f" of them are needed: set it to at least {len(found)}, or lower"
        " config.data.max_train and max_dev"
      )
    return self._limit - len(found)


def _named_by_text(
  gold: Sequence[_Gold], table: datasets.PassageTable, ids: Mapping[int, str]
) -> set[int]:
  """Gives positives that no id leads to the id of the passage that they are.

  Args:
    gold: of all questions of a split, in order; their ids are changed.
    table: the corpus.
    ids: of the passages in it, by `same_passages.digest`.

  Returns:
    Places in `gold` of those that were found.
  """
  rows = table.rows_of([positive.id for positive in gold])
  found = set()
  for place in np.flatnonzero(rows < 0).tolist():
    if gold[place].same in ids:
      gold[place].id = ids[gold[place].same]
      found.add(place)
  return found


def _write_named(
  folder: pathlib.Path, gold: Sequence[_Gold], named: set[int]
) -> None:
  """Writes the questions again, with the ids that were found by text."""

  def questions() -> Iterator[records.Question]:
    place = 0
    for _, block in datasets.QuestionTable.open(folder).blocks(_BLOCK):
      for question in block:
        positives = [
          dataclasses.replace(passage, id=gold[place + number].id)
          if place + number in named
          else passage
          for number, passage in enumerate(question.positives)
        ]
        place += len(positives)
        yield dataclasses.replace(question, positives=tuple(positives))

  again = folder.with_name(f"{folder.name}.named")
  tfds_builders.write_questions(questions(), again)
  shutil.rmtree(folder)
  again.rename(folder)


def _compare_gold(
  split: str, gold: list[_Gold], table: datasets.PassageTable
) -> dict[str, int]:
  """Counts positives that the corpus does not have, or has otherwise."""
  named = [positive for positive in gold if positive.id]
  rows = table.rows_of([positive.id for positive in named])
  differs = 0
  known = np.flatnonzero(rows >= 0)
  for first in range(0, len(known), _BLOCK):
    block = known[first : first + _BLOCK]
    passages = table.take(rows[block])
    differs += sum(
      _digest(passage.text) != named[i].digest
      for i, passage in zip(block, passages, strict=True)
    )
  return {
    f"{split}_gold_without_id": len(gold) - len(named),
    f"{split}_gold_not_in_corpus": len(named) - len(known),
    f"{split}_gold_text_differs": differs,
  }


def _file_hashes(folder: pathlib.Path) -> dict[str, str]:
  """sha256 of every file below `folder`, by its name relative to it."""
  files: Iterable[pathlib.Path] = sorted(
    path for path in folder.rglob("*") if path.is_file()
  )
  return {
    path.relative_to(folder).as_posix(): workdir_module.fingerprint_file(path)
    for path in files
  }


def _log_summary(
  counts: Mapping[str, int], sources: Mapping[str, pathlib.Path]
) -> None:
  """One line a file: how many rows are kept, and what else was counted."""
  for role, path in sources.items():
    notes = [
      f"{count} {key.removeprefix(f'{role}_').replace('_', ' ')}"
      for key, count in counts.items()
      if key.startswith(f"{role}_") and key != f"{role}_read" and count
    ]
    logging.info(
      "prepare: %s: %d kept of %d in %s%s",
      role,
      counts[role],
      counts[f"{role}_read"],
      path,
      f" ({', '.join(notes)})" if notes else "",
    )
