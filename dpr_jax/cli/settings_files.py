"""Checks that files and folders named by settings exist and can be read.

Input: a setting's key and value.  Output: nothing, or an `InputError` whose one
line names both, and the most similar name in the same folder, if any.
"""

import os
import pathlib
import re
from typing import Any

from dpr_jax.cli.settings_call import Call
from dpr_jax.cli.settings_hints import closest, did_you_mean
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import config_json, encoder_config

_ORIGINAL = ("*.cp", "dpr_biencoder.*")  # files of the original DPR
# Weights of a checkpoint folder, or of its subfolders.
_WEIGHTS = (
  *("model*.safetensors", "pytorch_model*.bin", *_ORIGINAL),
  *("*/model*.safetensors", "*/pytorch_model*.bin"),
)
# Sizes of the checkpoint "starter".
_STARTER = {"max_position_embeddings": 512, "hidden_size": 384}


def embedding_libraries(config: Any, call: Call) -> None:
  """`InputError` if `embed.backend` needs a library that is not installed."""
  setting_rules.embedding_backend(config.embed.backend)


def readable(
  key: str,
  value: str,
  fix: str,
  words: tuple[str, ...] = (),
  folders: bool = False,
) -> None:
  """`InputError` unless a setting names a readable file.

  Args:
    key: key of the setting.
    value: its value.
    fix: end of the message, if no similar file name is found.
    words: values that are not files, such as "sample".
    folders: the value may also be a folder.
  """
  if value in words:
    return
  path = pathlib.Path(value).expanduser()
  reason = ""
  if path.is_dir():
    reason = "" if folders else "is a folder"
  elif not path.is_file():
    reason = "there is no such file"
  elif not os.access(path, os.R_OK):
    reason = "permission denied"
  if reason:
    near = did_you_mean(_beside(path)) if "no such" in reason else ""
    raise errors.InputError(f"config.{key}={value!r}: {reason}{near or fix}")


def _beside(path: pathlib.Path) -> list[str]:
  """Paths in the same folder whose names resemble a missing one's."""
  try:
    names = [each.name for each in path.parent.iterdir()]
  except OSError:
    return []
  return [str(path.parent / each) for each in closest(path.name, names, 0.8)]


def data(config: Any, call: Call) -> None:
  """Checks the files and folders that `prepare` reads."""
  words = {"passages": ("from-train",), "train": ("none",), "dev": ()}
  for role, own in words.items():
    value = config.data[role]
    if not value:
      raise errors.InputError(
        f"config.data.{role} is empty: give a path, or"
        f" --config.data.{role}=sample for the embedded sample"
      )
    values = [value]
    if role == "train":
      values = config_lib.several_paths(value)
    for one in values:
      if not one.startswith("ir_datasets:"):
        fix = ": give a file or a folder"
        readable(f"data.{role}", one, fix, ("sample", *own), folders=True)


def checkpoint(key: str, model: Any, value: str = "") -> dict[str, Any]:
  """Sizes of a checkpoint, as far as they are known without a network.

  Args:
    key: key of the setting that names the checkpoint.
    model: section `model` of the config.
    value: value of the setting; "" = `model.checkpoint`.

  Returns:
    Fields of `encoder_config.BertConfig`; {} if not known.

  Raises:
    InputError: the folder is missing, or is not a supported checkpoint.
  """
  name = value or model.checkpoint
  if name == "random":
    return {
      "max_position_embeddings": 512,
      "hidden_size": model.random_width,
    }
  if name == "starter":
    return _STARTER
  where = f"config.{key}={name!r}"
  if name.startswith("hf:"):
    if not re.fullmatch(r"hf:[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
      raise errors.InputError(
        f"{where}: must be hf:NAME or hf:OWNER/NAME, with @REVISION or without"
      )
    return {}
  folder = pathlib.Path(name).expanduser()
  if folder.is_file():
    return {}  # of the original DPR: the stage reads it
  if not folder.is_dir():
    near = _beside(folder) + closest(name, ("starter", "random"))
    fix = '; give a folder with a config.json, "starter", "random" or "hf:NAME"'
    raise errors.InputError(
      f"{where}: there is no such folder{did_you_mean(near) or fix}"
    )
  file = folder / "config.json"
  raw = config_json.read(file) if file.is_file() else {}
  if "retrieve" in raw or (folder / "training").is_dir():
    if not any((folder / "training" / "checkpoints").glob("[0-9]*")):
      raise errors.InputError(
        f"{where}: the workdir {folder} has no trained towers: run `dpr-jax"
        f" train --workdir={folder}` first"
      )
    return {}
  if not file.is_file():
    # A pair, modules in folders, a file of the original DPR.
    for name in ("modules.json", "*/config.json", *_ORIGINAL):
      if any(folder.glob(name)):
        return {}
    raise errors.InputError(
      f"{where}: {folder} has no config.json, so it is not a Hugging Face model"
      " folder"
    )
  if not any(map(any, map(folder.glob, _WEIGHTS))):
    raise errors.InputError(
      f"{where}: {folder} has no model.safetensors: a checkpoint folder needs"
      " its weights"
    )
  encoder = encoder_config.from_json(file, raw)
  sizes = {"max_position_embeddings": encoder.max_position_embeddings}
  if not (folder / "modules.json").is_file():  # else a dense layer may follow
    sizes["hidden_size"] = encoder.hidden_size
  return sizes


def reads(config: Any, call: Call) -> None:
  """Checks that the reader and the results that it reads exist."""
  name = config.read.reader
  if name:
    folder = pathlib.Path(name).expanduser()
    trained = folder / "reader" / workdir_lib.MANIFEST
    if not trained.is_file() and not (folder / "config.json").is_file():
      raise errors.InputError(
        f"config.read.reader={name!r}: there is no reader: give a workdir where"
        " `dpr-jax train-reader` has run, or a folder of a DPRReader or"
        " BertForQuestionAnswering"
      )
  if not call.whole or call.workdir is None or call.methods:
    return
  for method in config.read.methods:
    there = any((call.workdir.root / "results").glob(f"*.{method}.json"))
    if method not in config.retrieve.methods and not there:
      raise errors.InputError(
        f"config.read.methods={tuple(config.read.methods)}: {method!r} is not"
        f" retrieved: config.retrieve.methods is"
        f" {tuple(config.retrieve.methods)}: add it there"
      )
