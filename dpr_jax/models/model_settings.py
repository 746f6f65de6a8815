"""Which settings a trained model was made with, and who may say otherwise.

Pooling, lengths, prefixes: whatever decides a vector is decided when training
begins, and is written beside the checkpoints.  Every later stage takes it from
there; a config or an override that says otherwise is refused by its name.
Nothing here needs JAX, so that the answer comes in the first second.
"""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_files

FOLDER = "model"  # in `training/`, `reader/` and `embeddings/passages-start/`
# Of `config.model` and of `config.reader`: another value is another model.
DECIDING = (
  *("pooling", "normalize", "shared_towers", "title"),
  *("question_prefix", "passage_prefix", "question_length", "passage_length"),
)
READER_DECIDING = ("length", "question_length", "overlap", "layout")
# How a model is computed, not what: the call's own, whatever was trained with.
FREE = ("compute_dtype", "attention")
TRAINED = "the training's"
# Where training starts from.
BEGINNING = ("checkpoint", "random_layers", "random_width", "random_heads")


def fix_of(folder: pathlib.Path) -> str:
  """What to do where a model's folder in a workdir is damaged."""
  return (
    "copy it from where it is whole, or remove the folder"
    f" {folder}: then the checkpoint that training started from is asked"
  )


def of_towers(where: workdir_lib.Workdir) -> dict[str, Any] | None:
  """Section `model` of the training in a workdir; None where there is none.

  A workdir of an older version has it in the manifest of training.

  Raises:
    InputError: what is there is damaged.
  """
  folder = where.training / FOLDER
  if model_files.is_sealed(folder):
    kind = model_files.TOWERS
    record = model_files.read(folder, kind, fix_of(folder))
    _check_link(where.training)
    return record["model"]
  return _recorded(where.training, "model")


def _check_link(training: pathlib.Path) -> None:
  """`InputError` where a finished training's manifest names other files."""
  manifest = training / workdir_lib.MANIFEST
  if not manifest.exists():
    return
  named = workdir_lib.read_record(manifest).get("model_files")
  found = workdir_lib.fingerprint_file(training / FOLDER / model_files.FILE)
  if named and named != found:  # older versions name none
    raise errors.InputError(
      f"{training / FOLDER} is not of this training: its {model_files.FILE} is"
      f" {workdir_lib.short(found)}, {manifest} names"
      f" {workdir_lib.short(named)}; {fix_of(training / FOLDER)}"
    )


def of_start(where: workdir_lib.Workdir) -> dict[str, Any] | None:
  """Section `model` that "dense-start" was embedded with; None: not kept."""
  return of_start_in(where.embeddings("dense-start"))


def of_start_in(embeddings: pathlib.Path) -> dict[str, Any] | None:
  """The same of the folder with the vectors."""
  folder = embeddings / FOLDER
  if not model_files.is_sealed(folder):
    return None
  kind = model_files.TOWERS
  return model_files.read(folder, kind, fix_of(folder))["model"]


def start_folder(where: workdir_lib.Workdir) -> pathlib.Path:
  """Where the towers before training are kept beside their vectors."""
  return where.embeddings("dense-start") / FOLDER


def folders(where: workdir_lib.Workdir) -> dict[pathlib.Path, str]:
  """The folders that hold a model in a workdir, with their kinds."""
  found = {
    where.training / FOLDER: model_files.TOWERS,
    where.reader / FOLDER: model_files.READER,
    start_folder(where): model_files.TOWERS,
  }
  return {
    folder: kind
    for folder, kind in found.items()
    if model_files.is_sealed(folder)
  }


def of_reader(
  where: workdir_lib.Workdir,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Section `reader` of the reader in a workdir; None where there is none.

  Returns:
    (as it was asked for, what came of it): "auto" is a layout in the second.
  """
  folder = where.reader / FOLDER
  if model_files.is_sealed(folder):
    kind = model_files.READER
    record = model_files.read(folder, kind, fix_of(folder))
    _check_link(where.reader)
    return record["reader"], record["reader"] | record["text_format"]
  section = _recorded(where.reader, "reader")
  return section and (section, section)


def _recorded(folder: pathlib.Path, section: str) -> dict[str, Any] | None:
  """A section as the manifest of a training has it, or its first file.

  The latter counts where there is a checkpoint: a training that has not begun
  decides nothing.
  """
  names = [workdir_lib.MANIFEST]
  if any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
    names.append("started.json")
  for name in names:
    if (folder / name).exists():
      record = workdir_lib.read_record(folder / name)
      found = record.get("config", {}).get(section)
      if isinstance(found, Mapping):
        return dict(found)
  return None


def differences(
  there: Mapping[str, Any], here: Mapping[str, Any], keys: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
  """(old, new) by key, of those that both have and that are not the same."""
  return {
    key: (there[key], here[key])
    for key in keys
    if key in there
    and key in here
    and there[key] != here[key]
    and not (key == "layout" and "auto" in (there[key], here[key]))
  }


def listed(
  differing: Mapping[str, tuple[Any, Any]], section: str = "model"
) -> str:
  """`config.model.pooling was 'mean', is 'cls'`, for every key."""
  return ", ".join(
    f"config.{section}.{key} was {old!r}, is {new!r}"
    for key, (old, new) in differing.items()
  )


def why_other(
  made_with: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> str:
  """Why a model's vectors are not another's, for the end of a clause.

  Args:
    made_with: "model_settings" of the vectors' manifest; None in those of older
      versions.
    settings: of the other model.
  """
  if not made_with:
    return ""
  found = differences(made_with, settings, DECIDING)
  if found:
    return f" ({listed(found)})"
  return " (of the same settings: the weights are others)"


def settle(
  config: ml_collections.ConfigDict,
  where: workdir_lib.Workdir,
  *,
  check: bool = True,
  reads: bool = False,
  starts: bool = False,
  keep: tuple[str, ...] = FREE,
) -> ml_collections.ConfigDict:
  """The config as later stages use it: what was trained decides.

  Args:
    config: as asked for.
    where: the workdir; where nothing was trained there, and nothing embedded
      with "dense-start", the config stays as it is.
    check: refuse what contradicts, else it is replaced without a word.
    reads: the trained reader is used: `config.reader` has to agree as well.
    starts: "dense-start" may be made anew; what is there decides nothing.
    keep: keys of `config.model` that stay as asked for.

  Returns:
    A copy.

  Raises:
    InputError: every key that says otherwise, in one line.
  """
  config = copy.deepcopy(config)
  section = of_towers(where)
  whose = TRAINED
  made = f"the towers in {where.training} were trained with"
  if section is None and not starts:
    section = of_start(where)
    made = f"the vectors in {where.embeddings('dense-start')} were made with"
    whose = "their"
  if section is not None:
    if check:
      asked = config_lib.plain(config.model)
      _refuse(section, asked, "model", DECIDING, made, whose)
    take(config.model, section, keep)
  reads = reads and not config.read.reader  # the workdir's own
  found = of_reader(where) if reads or not check else None
  if found:
    made = f"the reader in {where.reader} was trained with"
    if check:
      asked = config_lib.plain(config.reader)
      _refuse(found[1], asked, "reader", READER_DECIDING, made)
    keys = (*READER_DECIDING, "dropout")
    own = {key: found[0][key] for key in keys if key in found[0]}
    take(config.reader, own)
  return config


def _refuse(
  there: Mapping[str, Any],
  here: Mapping[str, Any],
  section: str,
  keys: tuple[str, ...],
  made: str,
  whose: str = TRAINED,
) -> None:
  found = differences(there, here, keys)
  if not found:
    return
  asked = ", ".join(
    f"config.{section}.{key}={new!r}" for key, (_, new) in found.items()
  )
  trained = ", ".join(repr(old) for old, _ in found.values())
  raise errors.InputError(
    f"{asked}: {made} {trained}; leave --config out to use {whose} own"
    " settings, or give another --workdir"
  )


def take(
  section: ml_collections.ConfigDict,
  values: Mapping[str, Any],
  keep: tuple[str, ...] = (),
) -> None:
  """Sets what both know in a section of a config, but for `keep`."""
  for key, value in values.items():
    if key in section and key not in keep:
      section[key] = value


def is_start_of(
  record: Mapping[str, Any], config: ml_collections.ConfigDict
) -> bool:
  """True where a stored "dense-start" is what a config begins with."""
  kept, model = record["model"], config.model
  keys = ("dropout", *DECIDING)
  if kept["checkpoint"] == "random":
    keys = (*keys, *BEGINNING)
    if record["seed"] != config.seed:
      return False
  return config_lib.same_path(kept["checkpoint"], model.checkpoint) and all(
    kept[key] == model[key] for key in keys
  )


def of_workdir(where: workdir_lib.Workdir) -> ml_collections.ConfigDict:
  """The config that a workdir holds, its models as they were trained.

  Raises:
    InputError: there is none, or it is malformed.
  """
  config = config_lib.read(where.root / config_lib.FILE)
  return settle(config, where, check=False, keep=())
