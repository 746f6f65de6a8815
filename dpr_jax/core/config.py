"""Every setting there is, with its default: `configs/*.py` start from here.

A config file defines `get_config(variant)` that takes `base_config()`, changes
what it needs and returns it.  Keys are locked: a misspelt key or override is an
error, not a new key.  Only stage functions read a config; everything below
them takes plain arguments.
"""

import copy
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpr_jax.core import errors, settings_table
from dpr_jax.core import workdir as workdir_lib

FILE = "config.json"  # in a workdir
# Settings that name a file or a folder, or one of the words below.
PATHS = tuple(each.key for each in settings_table.ALL if each.path)
_WORDS = ("", "sample", "none", "starter", "random", "results")


def base_config() -> ml_collections.ConfigDict:
  """The defaults: DPR as in the paper where the paper says it.

  `settings_table` says what each means, docs/reference/config.md lists them.
  """
  return ml_collections.ConfigDict(settings_table.defaults()).lock()


def read(path: str | os.PathLike) -> ml_collections.ConfigDict:
  """The config that a stage left in a workdir as `config.json`.

  Raises:
    InputError: no such file, or keys that this version does not know.
  """
  config = base_config()
  try:
    values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if unknown := _unknown(values):
      raise errors.InputError(
        f"{path} is not a config of this version: it does not know"
        f" {', '.join(unknown)}; remove from the file what you do not need, or"
        " use the version of dpr-jax that wrote it"
      )
    config.update(
      {
        name: {
          key: tuple(value) if isinstance(value, list) else value
          for key, value in section.items()
        }
        if isinstance(section, dict)
        else section
        for name, section in values.items()
      }
    )
  except OSError as error:
    raise errors.InputError(
      f"cannot read {path}: {error.strerror}; is it a workdir of dpr-jax?"
    ) from error
  except errors.InputError:
    raise
  except (AttributeError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"{path} is not a config of this version: {error}"
    ) from error
  return config


def _unknown(values: Any) -> list[str]:
  """Keys of a stored config that are no settings, as "section.key"."""
  known = settings_table.defaults()
  found = []
  for name, value in dict(values).items():
    if name not in known:
      found.append(name)
    elif isinstance(value, dict) and isinstance(known[name], dict):
      found += [f"{name}.{key}" for key in value if key not in known[name]]
  return found


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts, lists and scalars, as manifests hold it."""
  return {
    key: plain(value)
    if isinstance(value, ml_collections.ConfigDict)
    else list(value)
    if isinstance(value, tuple)
    else value
    for key, value in config.items()
  }


def sections(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
  """Some sections as plain data: what a stage's output depends on."""
  everything = plain(config)
  return {name: everything[name] for name in names}


def with_full_paths(config: ml_collections.ConfigDict) -> Any:
  """A copy in which every path that exists is absolute, and `~` is a home.

  What does not exist stays as it is: the error message then names what the
  user has typed.
  """
  config = copy.deepcopy(config)
  for key in PATHS:
    section, _, name = key.partition(".")
    value = config[section][name]
    if _is_path(value):
      path = workdir_lib.user_path(value)
      config[section][name] = str(path.absolute() if path.exists() else path)
  return config


def as_recorded(
  settings: dict[str, Any], manifest: str | os.PathLike
) -> dict[str, Any]:
  """Settings with every path spelt as a manifest spells it, if it is the same.

  A path was once recorded as it was typed.  That it is absolute now, or typed
  in another folder, does not make a stage's output another one: what is read
  there is compared by its content.

  Args:
    settings: sections of a config, and single settings; plain data.
    manifest: has the same under "config"; need not exist.
  """
  if not pathlib.Path(manifest).exists():
    return settings
  try:
    recorded = workdir_lib.read_record(manifest).get("config", {})
  except errors.InputError:  # said by whoever needs it
    return settings
  return _as_recorded(settings, recorded)


def _as_recorded(settings: dict[str, Any], recorded: Any) -> dict[str, Any]:
  if not isinstance(recorded, Mapping):
    return settings
  names = {key.partition(".")[2] for key in PATHS}
  found = {}
  for name, value in settings.items():
    old = recorded.get(name)
    if isinstance(value, dict):
      value = _as_recorded(value, old)
    elif name in names and same_path(value, old):
      value = old
    found[name] = value
  return found


def same_path(one: Any, other: Any) -> bool:
  """True where two settings name one file, one of them perhaps from a folder.

  A relative path is taken for the end of an absolute one, as it is not known in
  which folder it was typed.
  """
  if one == other:
    return True
  if not (_is_path(one) and _is_path(other)):
    return False
  paths = [
    pathlib.PurePath(os.path.normpath(os.path.expanduser(each)))
    for each in (one, other)
  ]
  relative, absolute = sorted(paths, key=lambda path: path.is_absolute())
  if relative.is_absolute() or not absolute.is_absolute():
    return paths[0] == paths[1]
  end = tuple(part for part in relative.parts if part != "..")
  return bool(end) and absolute.parts[-len(end) :] == end


def _is_path(value: Any) -> bool:
  return (
    isinstance(value, str)
    and value not in _WORDS
    and not value.startswith("hf:")
  )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
  """Returns `value`; `InputError` that lists what `name` may be."""
  if value not in allowed:
    raise errors.InputError(
      f"config.{name}={value!r}: must be one of {', '.join(allowed)}"
    )
  return value


def at_least(name: str, value: float | int, least: float | int) -> float | int:
  """Returns `value`; `InputError` where it is below `least`."""
  if value < least:
    raise errors.InputError(f"config.{name}={value}: must be >= {least}")
  return value
