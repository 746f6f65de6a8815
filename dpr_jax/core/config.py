"""The config of an experiment: defaults, reading, and its paths.

A config file (`configs/*.py`) defines `get_config(variant)`, which takes
`base_config()`, changes some settings and returns it.  Keys are locked: a
misspelled key or override is an error, not a new key.  Only stage functions
read a config; everything below them takes plain arguments.
"""

import copy
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import errors, settings_table
from dpr_jax.core import workdir as workdir_lib

FILE = "config.json"  # in a workdir
# Settings that name a file or a folder, or one of the words below.
PATHS = tuple(each.key for each in settings_table.ALL if each.path)
_WORDS = (
  *("", "sample", "none", "from-train", "starter", "random", "results"),
  "negatives",
)
_PREFIXES = ("hf:", "ir_datasets:")


def base_config() -> ml_collections.ConfigDict:
  """All settings at their defaults, which follow the DPR paper if it has them.

  `settings_table` defines each setting; docs/reference/config.md lists them.
  """
  values = settings_table.defaults()
  for setting in settings_table.ALL:
    # Two types: a plain value would keep that of "auto".
    if setting.or_auto or setting.words:
      values[setting.section][setting.name] = ml_collections.FieldReference(
        setting.default, field_type=object
      )
  return ml_collections.ConfigDict(values).lock()


def read(path: str | os.PathLike) -> ml_collections.ConfigDict:
  """Reads the `config.json` of a workdir.

  Raises:
    InputError: the file is missing, or has keys that this version lacks.
  """
  config = base_config()
  try:
    values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    values = _without_removed(path, values)
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


def _without_removed(path: str | os.PathLike, values: Any) -> dict[str, Any]:
  """A stored config without settings of older versions.

  Values that had an effect are warned of.
  """
  values = dict(values)
  for key, (default, _) in settings_table.REMOVED.items():
    section, _, name = key.partition(".")
    inner = values.get(section)
    if isinstance(inner, dict) and name in inner:
      values[section] = {n: v for n, v in inner.items() if n != name}
      if inner[name] != default:
        then = f"its value {inner[name]!r} has no effect"
        logging.warning("%s: %s", path, settings_table.removed(key, then))
  return values


def _unknown(values: Any) -> list[str]:
  """Keys of a stored config that are not settings, as "section.key"."""
  known = settings_table.defaults()
  found = []
  for name, value in dict(values).items():
    if name not in known:
      found.append(name)
    elif isinstance(value, dict) and isinstance(known[name], dict):
      found += [f"{name}.{key}" for key in value if key not in known[name]]
  return found


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts, lists and scalars, as stored in manifests."""
  return {
    key: plain(value)
    if isinstance(value, ml_collections.ConfigDict)
    else list(value)
    if isinstance(value, tuple)
    else value
    for key, value in config.items()
  }


def sections(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
  """The named sections as plain data, for a stage's manifest."""
  everything = plain(config)
  return {name: everything[name] for name in names}


def with_full_paths(config: ml_collections.ConfigDict) -> Any:
  """A copy with absolute paths and `~` expanded.

  Paths that do not exist stay as typed, so that error messages show them so.
  """
  config = copy.deepcopy(config)
  for key in PATHS:
    section, _, name = key.partition(".")
    value = config[section][name]
    if isinstance(value, str):
      paths = [_full_path(each) for each in several_paths(value)]
      config[section][name] = ",".join(paths)
  return config


def _full_path(value: str) -> str:
  if not _is_path(value):
    return value
  path = workdir_lib.user_path(value)
  return str(path.absolute() if path.exists() else path)


def several_paths(value: str) -> list[str]:
  """The paths in a setting, which may be separated by commas.

  A path that has commas itself is one path, if it exists.
  """
  if "," not in value or os.path.exists(os.path.expanduser(value)):
    return [value]
  return [each.strip() for each in value.split(",") if each.strip()]


def as_recorded(
  settings: dict[str, Any], manifest: str | os.PathLike
) -> dict[str, Any]:
  """Settings with paths spelled as in a manifest, if they are the same file.

  Older versions recorded paths as typed.  Another spelling of the same path
  must not make a stage run again: input files are compared by content anyway.

  Args:
    settings: sections of a config, or single settings, as plain data.
    manifest: path of a manifest with the same keys under "config"; may be
      missing.
  """
  if not pathlib.Path(manifest).exists():
    return settings
  try:
    recorded = workdir_lib.read_record(manifest).get("config", {})
  except errors.InputError:  # the stage itself reports a damaged manifest
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
  """True if two settings name the same file, one perhaps by a relative path.

  The folder in which a relative path was typed is not known, so the relative
  path only has to match the end of the absolute one.
  """
  if one == other:
    return True
  if not (_is_path(one) and _is_path(other)):
    return False
  if "," in one and "," in other:
    lists = one.split(","), other.split(",")
    return len(lists[0]) == len(lists[1]) and all(map(same_path, *lists))
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
    and not value.startswith(_PREFIXES)
  )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
  """Returns `value`; `InputError` unless it is one of `allowed`."""
  if value not in allowed:
    raise errors.InputError(
      f"config.{name}={value!r}: must be one of {', '.join(allowed)}"
    )
  return value


def at_least(name: str, value: float | int, least: float | int) -> float | int:
  """Returns `value`; `InputError` if it is below `least`."""
  if value < least:
    raise errors.InputError(f"config.{name}={value}: must be >= {least}")
  return value
