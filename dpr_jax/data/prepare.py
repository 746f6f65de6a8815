"""The stage `prepare`: user files become `data/{passages,train,dev}`.

Input: the corpus and the question files that section `data` of the config
names.  Output: three TFDS datasets, which every later stage opens with
`open_passages` and `open_questions`, judgements of dev (`gold_qrels`), and a
manifest.  Rows that are left out
are counted by reason in the manifest and logged.
"""

import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_module
from dpr_jax.data import (
  datasets,
  gold_qrels,
  kept_passages,
  kept_rows,
  kept_splits,
  own_passages,
  passage_digests,
  passage_sources,
  question_sources,
  same_passages,
  tfds_builders,
  tsv_corpus,
)

SPLITS = ("train", "dev")
NONE = "none"  # as `data.train`: no training questions, only a corpus to search

Source = question_sources.QuestionSource | passage_sources.PassageSource

# Left out of the manifest at their defaults.
_NEW_SETTINGS = ("quoting", "title_line", "train_prefixes")
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
  quoting = config_lib.one_of("data.quoting", data.quoting, tsv_corpus.QUOTING)
  sources = _sources(data)
  for role, opened in sources.items():
    for path in [file for one in opened for file in one.files]:
      workdir_module.refuse_inside(f"config.data.{role}", path, workdir.data)
  stage = workdir_module.Stage(
    name="prepare",
    folder=workdir.data,
    config=_settings(config, workdir),
    inputs={role: _fingerprint(opened) for role, opened in sources.items()},
  )
  if stage.is_current(overwrite):
    return
  with workdir_module.replace_folder(workdir.data, "prepare") as folder:
    splits = _splits(data, sources)
    for split, kept in splits.items():
      tfds_builders.write_questions(kept, folder / split)
    corpus = kept_passages.KeptPassages(
      _corpus(sources, folder, splits),
      data.max_passages,
      [gold for kept in splits.values() for gold in kept.gold],
      passage_sources.Reading(quoting, data.title_line),
    )
    collector = passage_digests.Collector()
    tfds_builders.write_passages(collector.collect(corpus), folder / "passages")
    np.save(folder / passage_digests.FILE, collector.digests())
    changes = passage_digests.compare(folder, workdir.data)
    copies = corpus.finder.copies()
    np.save(folder / same_passages.FILE, copies)
    counts = {**corpus.counts, "passages_copies": len(copies)}
    table = datasets.PassageTable.open(folder / "passages")
    for split, kept in splits.items():
      counts |= kept.complete(folder / split, table, corpus.finder.ids)
    counts["dev_judgements"] = gold_qrels.write(
      folder / gold_qrels.FILE,
      datasets.QuestionTable.open(folder / "dev"),
      table,
      same_passages.Copies(copies[:, 0], copies[:, 1]),
    )
    stage.finish(
      counts,
      folder=folder,
      files=_file_hashes(folder),
      quoting=corpus.quoting,
      sources={split: kept.manifest() for split, kept in splits.items()}
      | {"passages": corpus.manifest()},
      **({} if changes is None else {"changes": changes}),
    )
  corpus.log()
  if changes is not None:
    passage_digests.log(changes)
  for kept in splits.values():
    kept.log()
  corpus.warn()
  for kept in splits.values():
    kept.warn()


def _settings(
  config: ml_collections.ConfigDict, workdir: workdir_module.Workdir
) -> dict[str, Any]:
  """Section `data` as it is recorded.

  Settings at their defaults that older versions did not have are left out, so
  that workdirs of those versions stay current.
  """
  settings = config_lib.sections(config, "data")
  defaults = config_lib.plain(config_lib.base_config())["data"]
  for name in _NEW_SETTINGS:
    if settings["data"][name] == defaults[name]:
      del settings["data"][name]
  return config_lib.as_recorded(
    settings, workdir.data / workdir_module.MANIFEST
  )


def _fingerprint(sources: Sequence[Source]) -> str:
  """Fingerprint of the sources of a role."""
  hashes = [source.fingerprint() for source in sources]
  return hashes[0] if len(hashes) == 1 else workdir_module.fingerprint(hashes)


def _splits(
  data: ml_collections.ConfigDict, sources: Mapping[str, Sequence[Source]]
) -> dict[str, kept_splits.KeptSplit]:
  """The questions to keep of each split that has sources."""
  return {
    split: kept_splits.KeptSplit(
      split,
      [
        kept_rows.KeptQuestions(split, source, data[f"max_{split}"], prefix)
        for source, prefix in zip(
          sources[split], _prefixes(data, split, sources), strict=True
        )
      ],
    )
    for split in SPLITS
    if split in sources
  }


def _prefixes(
  data: ml_collections.ConfigDict,
  split: str,
  sources: Mapping[str, Sequence[Source]],
) -> Sequence[str]:
  """The text before the questions of each source of a split."""
  count = len(sources[split])
  if split != "train" or not data.train_prefixes:
    return ("",) * count
  if len(data.train_prefixes) != count:
    raise errors.InputError(
      f"config.data.train_prefixes={tuple(data.train_prefixes)}:"
      f" {len(data.train_prefixes)} prefixes for {count} sources in"
      " config.data.train: give one per source, '' for none"
    )
  return data.train_prefixes


def _corpus(
  sources: Mapping[str, Sequence[Source]],
  folder: pathlib.Path,
  splits: Iterable[str],
) -> passage_sources.PassageSource:
  """The corpus, which may be the passages of the questions in a folder."""
  (source,) = sources["passages"]
  if source.where != passage_sources.FROM_TRAIN:
    return source
  return own_passages.source([folder / split for split in splits])


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


def source_sizes(workdir: workdir_module.Workdir) -> dict[str, int]:
  """Number of training questions of each source, by its name, in order.

  Sources of the same name are numbered.

  Raises:
    InputError: the training questions are missing, or do not match.
  """
  questions = len(open_questions(workdir, "train"))
  sizes: dict[str, int] = {}
  for name, count in kept_splits.read_sources(
    workdir.data / "train", questions
  ):
    sizes[f"{name} ({len(sizes) + 1})" if name in sizes else name] = count
  return sizes


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


def _sources(data: ml_collections.ConfigDict) -> dict[str, list[Source]]:
  """The sources of each role, in order; only `train` may have several."""
  sources: dict[str, list[Source]] = {}
  for role, sample_file in _SAMPLE_FILES.items():
    if role == "train" and data[role] == NONE:
      logging.info("prepare: no train questions, as config.data.train says")
      continue
    if not data[role]:
      raise errors.InputError(
        f"config.data.{role} is empty: give a path, or"
        f" --config.data.{role}=sample for the embedded sample"
      )
    values = [data[role]]
    if role == "train":
      values = config_lib.several_paths(data[role])
    embedded = importlib.resources.files("dpr_jax.data.sample") / sample_file
    values = [str(embedded) if one == "sample" else one for one in values]
    if role != "passages":
      sources[role] = [question_sources.open_source(v, role) for v in values]
    elif values == [passage_sources.FROM_TRAIN]:
      sources[role] = [own_passages.source([])]  # not written yet
    else:
      sources[role] = [passage_sources.open_source(values[0])]
  _check_has_texts(sources)
  return sources


def _check_has_texts(sources: Mapping[str, Sequence[Source]]) -> None:
  """`InputError` if the corpus is to be made of questions with ids only."""
  if sources["passages"][0].where != passage_sources.FROM_TRAIN:
    return
  for role in SPLITS:
    for source in sources.get(role, ()):
      if source.by_id:
        raise errors.InputError(
          f"config.data.passages={passage_sources.FROM_TRAIN}: {source.where}"
          f" (config.data.{role}, {source.format}) has ids of passages, and no"
          " texts: give a corpus"
        )


def _file_hashes(folder: pathlib.Path) -> dict[str, str]:
  """sha256 of every file below `folder`, by its name relative to it."""
  files: Iterable[pathlib.Path] = sorted(
    path for path in folder.rglob("*") if path.is_file()
  )
  return {
    path.relative_to(folder).as_posix(): workdir_module.fingerprint_file(path)
    for path in files
  }
