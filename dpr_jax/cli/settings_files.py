"""Files and folders that settings name: are they there, are they what they say?

In come a setting's key and value, out comes nothing, or one line that names
both, with the nearest name in the same folder where there is one.
"""

import os
import pathlib
import re
from typing import Any

from dpr_jax.cli.settings_call import Call
from dpr_jax.cli.settings_hints import closest, did_you_mean
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

# Sizes of checkpoints that are no folder.
_STARTER = {"max_position_embeddings": 512, "hidden_size": 384}


def readable(
  key: str, value: str, fix: str, words: tuple[str, ...] = ()
) -> None:
  """`InputError` where a setting names no file that can be read."""
  if value in words:
    return
  path = pathlib.Path(value).expanduser()
  reason = ""
  if path.is_dir():
    reason = "is a folder"
  elif not path.is_file():
    reason = "there is no such file"
  elif not os.access(path, os.R_OK):
    reason = "may not be read"
  if reason:
    near = did_you_mean(_beside(path)) if "no such" in reason else ""
    raise errors.InputError(f"config.{key}={value!r}: {reason}{near or fix}")


def _beside(path: pathlib.Path) -> list[str]:
  """Names in the same folder that are most like a missing one's."""
  try:
    names = [each.name for each in path.parent.iterdir()]
  except OSError:
    return []
  return [str(path.parent / each) for each in closest(path.name, names, 0.8)]


def data(config: Any, call: Call) -> None:
  """What `prepare` reads."""
  words = ("sample",)
  for role in ("passages", "train", "dev"):
    value = config.data[role]
    if not value:
      raise errors.InputError(
        f"config.data.{role} is empty: give a path, or"
        f" --config.data.{role}=sample for the embedded sample"
      )
    none = ("none",) if role == "train" else ()
    readable(f"data.{role}", value, ": give a file", (*words, *none))


def checkpoint(key: str, model: Any, value: str = "") -> dict[str, Any]:
  """Sizes of a checkpoint, as far as they are known without a network.

  Raises:
    InputError: it is a folder that is not there, or not a BERT's.
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
  if not folder.is_dir():
    near = _beside(folder) + closest(name, ("starter", "random"))
    fix = '; give a folder with a config.json, "starter", "random" or "hf:NAME"'
    raise errors.InputError(
      f"{where}: there is no such folder{did_you_mean(near) or fix}"
    )
  if not (folder / "config.json").is_file():
    raise errors.InputError(
      f"{where}: {folder} has no config.json, so it is not a Hugging Face model"
      " folder"
    )
  if not any(folder.glob("model*.safetensors")):
    raise errors.InputError(
      f"{where}: {folder} has no model.safetensors: a checkpoint folder needs"
      " its weights"
    )
  return workdir_lib.read_json(folder / "config.json")


def reads(config: Any, call: Call) -> None:
  """The reader that reads, and the results that it reads."""
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
        f"config.read.methods={tuple(config.read.methods)}: nothing is"
        f" retrieved with {method!r}: config.retrieve.methods is"
        f" {tuple(config.retrieve.methods)}"
      )
