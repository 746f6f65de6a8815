"""Reads the settings a model was trained with and checks the config by them.

Pooling, lengths, prefixes: settings that determine a vector are fixed when
training begins and are stored next to the checkpoints.  Every later stage takes
them from there; a config or an override that contradicts them is refused, and
the key is named.  This module does not import JAX, so that the check takes less
than a second.
"""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import auto_settings, model_files

FOLDER = "model"  # in `training/`, `reader/` and `embeddings/passages*/`
# Keys of `config.model` and of `config.reader` that determine what the model
# computes: with another value it is another model.
DECIDING = (
  *("pooling", "normalize", "shared_towers", "title"),
  *("question_prefix", "passage_prefix", "question_length", "passage_length"),
)
READER_DECIDING = ("length", "question_length", "overlap", "layout")
# Keys that determine how a model is computed, not what: free in every call.
FREE = ("compute_dtype", "attention")
TRAINED = "the training's"
# Keys that determine the parameters at step 0.
CHECKPOINTS = ("checkpoint", "question_checkpoint", "passage_checkpoint")
BEGINNING = (*CHECKPOINTS, "random_layers", "random_width", "random_heads")


def fix_of(folder: pathlib.Path) -> str:
  """What to do about a damaged model folder in a workdir, for messages."""
  return (
    "copy it from an undamaged workdir, or remove the folder"
    f" {folder}: then the checkpoint that training started from is used"
  )


def of_towers(where: workdir_lib.Workdir) -> dict[str, Any] | None:
  """Section `model` of the training in a workdir; None where there is none.

  In a workdir of an older version the manifest of training has it.

  Raises:
    InputError: a file is damaged.
  """
  folder = where.training / FOLDER
  if model_files.is_sealed(folder):
    kind = model_files.TOWERS
    record = model_files.read(folder, kind, fix_of(folder))
    _check_link(where.training)
    return record["model"]
  return _recorded(where.training, "model")


def _check_link(training: pathlib.Path) -> None:
  """`InputError` if the manifest of a finished training names other files."""
  manifest = training / workdir_lib.MANIFEST
  if not manifest.exists():
    return
  named = workdir_lib.read_record(manifest).get("model_files")
  sha256 = workdir_lib.fingerprint_file(training / FOLDER / model_files.FILE)
  if named and named != sha256:  # older versions name none
    raise errors.InputError(
      f"{training / FOLDER} is not of this training: its {model_files.FILE} is"
      f" {workdir_lib.short(sha256)}, {manifest} names"
      f" {workdir_lib.short(named)}; {fix_of(training / FOLDER)}"
    )


def of_start_in(embeddings: pathlib.Path) -> dict[str, Any] | None:
  """Section `model` of the towers beside their vectors; None = not stored.

  Args:
    embeddings: the folder with the vectors.
  """
  folder = embeddings / FOLDER
  if not model_files.is_sealed(folder):
    return None
  kind = model_files.TOWERS
  return model_files.read(folder, kind, fix_of(folder))["model"]


def start_folder(
  where: workdir_lib.Workdir, model: str = "dense-start"
) -> pathlib.Path:
  """Folder of the untrained towers, next to the vectors of `model`."""
  return where.embeddings(model) / FOLDER


def is_untrained(where: workdir_lib.Workdir) -> bool:
  """True where "dense" is a pretrained model, stored beside its vectors.

  That is so with `data.train=none`, and where a named checkpoint made the
  imported vectors, until a training begins.
  """
  stored = model_files.is_sealed(start_folder(where, "dense"))
  return stored and of_towers(where) is None


def folders(where: workdir_lib.Workdir) -> dict[pathlib.Path, str]:
  """The folders that hold a model in a workdir, with their kinds."""
  kinds = {
    where.training / FOLDER: model_files.TOWERS,
    where.reader / FOLDER: model_files.READER,
    start_folder(where): model_files.TOWERS,
    start_folder(where, "dense"): model_files.TOWERS,
  }
  return {
    folder: kind
    for folder, kind in kinds.items()
    if model_files.is_sealed(folder)
  }


def of_reader(
  where: workdir_lib.Workdir,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Section `reader` of the reader in a workdir; None where there is none.

  Returns:
    (section as configured, section as resolved): only in the second, a layout
    replaces "auto".
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
  """A section from the manifest of a training, or from `started.json`.

  The latter counts only where there is a checkpoint: until then the settings
  may change.
  """
  names = [workdir_lib.MANIFEST]
  if any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
    names.append("started.json")
  for name in names:
    if (folder / name).exists():
      record = workdir_lib.read_record(folder / name)
      values = record.get("config", {}).get(section)
      if isinstance(values, Mapping):
        return dict(values)
  return None


def differences(
  there: Mapping[str, Any], here: Mapping[str, Any], keys: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
  """(old, new) by key, for keys that both have with different values.

  A value that leaves the setting to the checkpoint differs from none.
  """
  return {
    key: (there[key], here[key])
    for key in keys
    if key in there
    and key in here
    and there[key] != here[key]
    and not (key == "layout" and "auto" in (there[key], here[key]))
    and not auto_settings.is_auto(key, there[key])
    and not auto_settings.is_auto(key, here[key])
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
  """How the model of some vectors differs from another, for error messages.

  Args:
    made_with: "model_settings" of the vectors' manifest; None = the manifest is
      of an older version and has none.
    settings: settings of the other model.
  """
  if not made_with:
    return ""
  differing = differences(made_with, settings, DECIDING)
  if differing:
    return f" ({listed(differing)})"
  return " (same settings, different weights)"


def settle(
  config: ml_collections.ConfigDict,
  where: workdir_lib.Workdir,
  *,
  check: bool = True,
  reads: bool = False,
  starts: bool = False,
  keep: tuple[str, ...] = FREE,
) -> ml_collections.ConfigDict:
  """A copy of the config with the settings of the trained model.

  Args:
    config: the config of this call.
    where: the workdir; if nothing was trained in it, and no pretrained model
      is stored beside vectors, the config is returned unchanged.
    check: refuse contradictions; False = replace them silently.
    reads: the trained reader is used: `config.reader` has to agree as well.
    starts: a pretrained model may be embedded again, so its settings do not
      count.
    keep: keys of `config.model` that are taken from `config`.

  Returns:
    A copy.

  Raises:
    InputError: names every key that contradicts the training, in one line.
  """
  config = copy.deepcopy(config)
  section = of_towers(where)
  whose = TRAINED
  made = f"the towers in {where.training} were trained with"
  for name in ("dense-start", "dense") if not starts else ():
    if section is None:
      folder = where.embeddings(name)
      section = of_start_in(folder)
      made = f"the vectors in {folder} were made with"
      whose = "their"
  if section is not None:
    if check:
      asked = config_lib.plain(config.model)
      _refuse(section, asked, "model", DECIDING, made, whose)
    take(config.model, section, keep)
  reads = reads and not config.read.reader  # the workdir's own
  reader = of_reader(where) if reads or not check else None
  if reader:
    made = f"the reader in {where.reader} was trained with"
    if check:
      asked = config_lib.plain(config.reader)
      _refuse(reader[1], asked, "reader", READER_DECIDING, made)
    keys = (*READER_DECIDING, "dropout")
    own = {key: reader[0][key] for key in keys if key in reader[0]}
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
  differing = differences(there, here, keys)
  if not differing:
    return
  asked = ", ".join(
    f"config.{section}.{key}={new!r}" for key, (_, new) in differing.items()
  )
  trained = ", ".join(repr(old) for old, _ in differing.values())
  raise errors.InputError(
    f"{asked}: {made} {trained}; leave --config out to use {whose} own"
    " settings, or give another --workdir"
  )


def take(
  section: ml_collections.ConfigDict,
  values: Mapping[str, Any],
  keep: tuple[str, ...] = (),
) -> None:
  """Sets the keys that both have in a section of a config, except `keep`."""
  # In a copy without references, "auto" would hold no True or False.
  with section.ignore_type():
    for key, value in values.items():
      if key in section and key not in keep:
        section[key] = value


def is_start_of(
  record: Mapping[str, Any], config: ml_collections.ConfigDict
) -> bool:
  """True where a stored "dense-start" is the model at step 0 of a config."""
  kept, model = record["model"], config_lib.plain(config.model)
  if kept["checkpoint"] == "random":
    random = [key for key in BEGINNING if key not in CHECKPOINTS]
    if record["seed"] != config.seed or any(
      kept[key] != model[key] for key in random
    ):
      return False
  return same_checkpoint(kept, model) and not differences(
    kept, model, ("dropout", *DECIDING)
  )


def same_checkpoint(kept: Mapping[str, Any], model: Any) -> bool:
  """True where two sections `model` start from the same files."""
  # Of an older version a section has no pair.
  return all(
    config_lib.same_path(kept.get(key, ""), model[key]) for key in CHECKPOINTS
  )


def of_workdir(where: workdir_lib.Workdir) -> ml_collections.ConfigDict:
  """The config in a workdir, with the settings of its trained models.

  Raises:
    InputError: the workdir has no config, or a malformed one.
  """
  config = config_lib.read(where.root / config_lib.FILE)
  return settle(config, where, check=False, keep=())
