"""Opens whatever holds towers: a workdir, a checkpoint, a pair of checkpoints.

The towers are those that `config.model.checkpoint` gives for the same name, but
for one thing: a checkpoint with one encoder becomes one shared tower.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.core.settings_table import BY_KEY
from dpr_jax.data import arguments
from dpr_jax.models import (
  model_files,
  retriever_model,
  stored_towers,
  tower_sources,
)

MODELS = ("best", "start")  # after training, and before training
_NAMES = ("starter", "random")


def named(
  folder: arguments.Path, question: arguments.Path, passage: arguments.Path
) -> Any:
  """What `load` takes: a folder, or a pair of checkpoints.

  Args:
    folder: a workdir or a checkpoint; None = a pair.
    question: checkpoint of the questions' encoder; None = `folder`.
    passage: checkpoint of the passages' encoder.

  Raises:
    InputError: both are there, or half of a pair.
  """
  pair = {"question": question, "passage": passage}
  there = {key: value for key, value in pair.items() if value is not None}
  if not there:
    return folder
  for key, value in there.items():
    arguments.path(key, value)
  if folder is not None:
    key, value = next(iter(there.items()))
    raise errors.InputError(
      f"{key}={str(value)!r}: give either a folder, or question= and passage="
    )
  return question, passage


def load(
  name: arguments.Path,
  which: arguments.Text = "best",
  values: Mapping[str, Any] | None = None,
) -> retriever_model.Towers:
  """The towers of a name.

  Args:
    name: a workdir, what `config.model.checkpoint` may name, or a pair of
      those: (of questions, of passages).
    which: model of a workdir: "best" = after training, "start" = before.
    values: settings of `config.model` to use instead of the model's own.

  Raises:
    InputError: there are no such towers, or an argument is bad.
  """
  which = arguments.choice("which", which, MODELS)
  model = config_lib.base_config().model
  for key, value in (values or {}).items():
    model[key] = value
  source = None
  if isinstance(name, tuple | list) and len(name) == 2:
    pair = [
      _plain(arguments.path(kind, each))
      for kind, each in zip(("question", "passage"), name, strict=True)
    ]
    model.question_checkpoint, model.passage_checkpoint = pair
    source = tower_sources.of_model(model, 0)
  else:
    name = _plain(arguments.path("folder", name))
    model.checkpoint = name
    if not _is_workdir(name):
      source = tower_sources.of_name(name, model, 0)
  if source is None:
    where = workdir_lib.Workdir(name)
    if which == "start":
      towers = stored_towers.before_training(None, where)
    else:
      towers = stored_towers.trained(None, where)
    if not values:
      return towers
    source = tower_sources.of_towers(name, towers)
  model.shared_towers = source.single
  return retriever_model.from_source(source, model)


def _plain(name: Any) -> str:
  name = str(name)
  if name in _NAMES or name.startswith("hf:"):
    return name
  return str(workdir_lib.user_path(name))


def _is_workdir(name: str) -> bool:
  """True for a workdir, and for what is neither that nor a model."""
  if name in _NAMES or name.startswith("hf:"):
    return False
  folder = pathlib.Path(name)
  config = folder / config_lib.FILE
  if model_files.is_sealed(folder) or folder.is_file():
    return False
  if any((folder / each).is_dir() for each in ("training", "embeddings")):
    return True
  if config.is_file():
    values = workdir_lib.read_json(config)
    return isinstance(values, dict) and "retrieve" in values
  return not folder.is_dir() or not any(folder.iterdir())


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
  """The settings among arguments that are not None, checked.

  Raises:
    InputError: a value is not allowed; the argument is named.
  """
  settings = {key: value for key, value in values.items() if value is not None}
  for key, value in settings.items():
    if key.endswith("_length"):
      settings[key] = arguments.count(key, value, 3)
    elif key == "normalize":
      settings[key] = arguments.switch(key, value)
    elif key.endswith("_prefix"):
      settings[key] = arguments.text(key, value)
    else:
      choices = BY_KEY[f"model.{key}"].choices
      settings[key] = arguments.choice(key, value, choices)
  return settings
