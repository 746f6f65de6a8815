"""The stage `prepare`: user files become `data/{passages,train,dev}`.

Input: the corpus and the question files that section `data` of the config
names.  Output: three TFDS datasets, which every later stage opens with
`open_passages` and `open_questions`, and a manifest.  Rows that are left out
are counted by reason in the manifest and logged.
"""

import importlib.resources
import os
import pathlib
from collections.abc import Iterable, Mapping

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_module
from dpr_jax.data import (
  datasets,
  gold_passages,
  kept_rows,
  same_passages,
  tfds_builders,
  tsv_corpus,
)

SPLITS = ("train", "dev")
NONE = "none"  # as `data.train`: no training questions, only a corpus to search

_SAMPLE_FILES = {
  "passages": "passages.tsv",
  "train": "train.json",
  "dev": "dev.json",
}


def prepare(
  config: ml_collections.ConfigDict,
  workdir: workdir_module.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Writes the corpus and the questions into the workdir.

  Questions are written first: with `max_passages`, the gold passages of the
  kept questions must be in the corpus, which is then filled in file order.

  Args:
    config: config of the experiment; section `data` is read.
    workdir: its folder; `data/` is written completely or not at all.
    overwrite: run even if the stage is done and unchanged.

  Raises:
    InputError: a file is missing, malformed or empty, or a limit is too low.
  """
  data = config.data
  for name in ("max_passages", "max_train", "max_dev"):
    config_lib.at_least(f"data.{name}", data[name], 0)
  sources = _sources(data)
  for role, path in sources.items():
    workdir_module.refuse_inside(f"config.data.{role}", path, workdir.data)
  quoting = config_lib.one_of("data.quoting", data.quoting, tsv_corpus.QUOTING)
  settings = config_lib.sections(config, "data")
  if quoting == tsv_corpus.QUOTING[0]:
    # Workdirs from before this setting existed were made with its default.
    del settings["data"]["quoting"]
  stage = workdir_module.Stage(
    name="prepare",
    folder=workdir.data,
    config=config_lib.as_recorded(
      settings, workdir.data / workdir_module.MANIFEST
    ),
    inputs={
      role: workdir_module.fingerprint_file(path)
      for role, path in sources.items()
    },
  )
  if stage.is_current(overwrite):
    return
  with workdir_module.replace_folder(workdir.data, "prepare") as folder:
    counts: dict[str, int] = {}
    questions = {}
    splits = [split for split in SPLITS if split in sources]
    for split in splits:
      questions[split] = kept_rows.KeptQuestions(
        split, sources[split], data[f"max_{split}"]
      )
      tfds_builders.write_questions(questions[split], folder / split)
    corpus = kept_rows.KeptPassages(
      sources["passages"],
      data.max_passages,
      [gold for split in splits for gold in questions[split].gold],
      quoting,
    )
    tfds_builders.write_passages(corpus, folder / "passages")
    copies = corpus.finder.copies()
    np.save(folder / same_passages.FILE, copies)
    counts.update({**corpus.counts, "passages_copies": len(copies)})
    table = datasets.PassageTable.open(folder / "passages")
    for split in splits:
      counts.update(questions[split].counts)
      gold, ids = questions[split].gold, corpus.finder.ids
      counts.update(
        gold_passages.name_by_text(split, folder / split, gold, table, ids)
      )
      counts.update(gold_passages.compare(split, gold, table))
    stage.finish(
      counts,
      folder=folder,
      files=_file_hashes(folder),
      quoting=corpus.quoting,
    )
  _log_summary(counts, sources)
  corpus.warn()
  for split in splits:
    questions[split].warn(counts)


def open_passages(
  workdir: workdir_module.Workdir,
) -> datasets.PassageTable:
  """Opens the corpus that `prepare` wrote into a workdir.

  Raises:
    InputError: the corpus is missing, or does not match the manifest.
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
  """Opens a table after checking the sha256 of its files, except array_record.

  Array_record files have checksums of their own, which are checked when rows
  are read.
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
  """Paths by role; "sample" is the path of the files in this package."""
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
  """Logs one line per file: number of kept rows, and all counts above 0."""
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
