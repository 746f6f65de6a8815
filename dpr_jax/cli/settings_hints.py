"""Checks typed settings, and suggests similar names for unknown ones.

Input: the command line as typed.  Output: the same, with every
`--config.section.key=value` checked and spelled as ml_collections reads it.  An
unknown name is refused with the most similar flags and settings of all
sections.  Nothing slow is imported.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from dpr_jax.core import errors
from dpr_jax.core.setting import Setting
from dpr_jax.core.settings_table import (
  ALL,
  BY_KEY,
  REMOVED,
  SECTIONS,
  removed,
)

_CLOSE = 0.6  # least difflib ratio for a part of a key
_CLOSE_FLAG = 0.72  # least difflib ratio for a flag
_MOST = 3
_LIST = "`dpr-jax config --print` lists all settings"
# Messages of ml_collections for an unknown key, perhaps with escaped quotes.
_NO_KEY = re.compile(
  r"Key \\?\"(\w+)\\?\" does not exist"
  r"|^[\\'\"]*(\w+)[\\'\"]*(?:\n|\\n)Did you mean"
)
# Names of these settings in other trainers.
_OTHER_NAMES = {
  "lr": "learning_rate",
  "bs": "batch_size",
  "bsz": "batch_size",
  "steps": "max_steps",
  "num_epochs": "epochs",
  "num_train_epochs": "epochs",
  "num_steps": "max_steps",
  "warmup": "warmup_steps",
  "wd": "weight_decay",
  "max_grad_norm": "clip_norm",
  "grad_clip": "clip_norm",
  "beta1": "adam_b1",
  "beta2": "adam_b2",
  "eps": "adam_epsilon",
  "dtype": "compute_dtype",
  "bf16": "compute_dtype",
  "max_seq_length": "passage_length",
  "max_length": "passage_length",
  "save_steps": "checkpoint_every",
  "logging_steps": "log_every",
  "eval_steps": "dev_every",
  "range_max": "depth",
  "sampling_strategy": "sampling",
  "top_k": "depth",
  "topk": "depth",
  "num_negatives": "hard_negatives",
  "model_name": "checkpoint",
  "pretrained_model": "checkpoint",
}


def closest(
  word: str, words: Iterable[str], cutoff: float = _CLOSE
) -> list[str]:
  """At most three of `words` that resemble `word`, best first."""
  plain = {_plain(each): each for each in words}
  found = difflib.get_close_matches(_plain(word), plain, _MOST, cutoff)
  return [plain[each] for each in found]


def did_you_mean(names: Sequence[str]) -> str:
  """The end of a message: ": did you mean A or B?"; "" without names."""
  *most, last = names or [""]
  if not last:
    return ""
  return f": did you mean {', '.join(most)}{' or ' if most else ''}{last}?"


def settings_like(name: str) -> list[str]:
  """Keys that a mistyped setting may mean, best first.

  Args:
    name: without "config.", as "learning_rate" or "trian.batch_size".
  """
  section, _, last = name.rpartition(".")
  last = _OTHER_NAMES.get(_plain(last), last)
  near = closest(section, SECTIONS) if section else []
  in_near = [each for each in ALL if each.section in near[:1]]
  for some, cutoff in ((in_near, _CLOSE), (ALL, _CLOSE), (in_near, 0.4)):
    names = closest(last, dict.fromkeys(each.name for each in some), cutoff)
    found = [each.key for n in names[:1] for each in some if each.name == n]
    if found:
      return found[:_MOST]
  return closest(name, BY_KEY)


def normalised(
  arguments: Sequence[str], known: Mapping[str, bool]
) -> list[str]:
  """The command line with checked settings.

  Args:
    arguments: command line as in `sys.argv`.
    known: all flags by name; True = the flag needs no value.

  Raises:
    InputError: an unknown flag or setting, or a bad value of a setting.
  """
  result, rest = list(arguments[:1]), list(arguments[1:])
  while rest:
    argument = rest.pop(0)
    if argument == "--":
      return [*result, argument, *rest]
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or not name or " " in name:
      result.append(argument)
    elif name in known or _is_negated(name, known):
      result.append(argument)
      if not equals and not known.get(name, True) and rest:
        result.append(rest.pop(0))
    elif name.startswith(("config.", "noconfig.")):
      result.append(_override(name, value if equals else None, rest))
    else:
      raise errors.InputError(
        f"unknown flag --{name}{did_you_mean(_like(name, known))}"
      )
  return result


def _is_negated(name: str, known: Mapping[str, bool]) -> bool:
  return name.startswith("no") and known.get(name[2:], False)


def _like(name: str, known: Iterable[str]) -> list[str]:
  """Flags and settings that an unknown flag may mean."""
  if "." in name:
    return [f"--config.{key}" for key in settings_like(name)]
  plain = _OTHER_NAMES.get(_plain(name), _plain(name))
  same = [f"--config.{each.key}" for each in ALL if each.name == plain]
  like = [f"--{each}" for each in closest(name, known, _CLOSE_FLAG)]
  if not same and not like:
    like = [f"--config.{key}" for key in settings_like(name)]
  return [*same, *like][:_MOST]


def _override(name: str, value: str | None, rest: list[str]) -> str:
  """One override as ml_collections reads it; may take its value from `rest`."""
  key = name.partition("config.")[2]
  if key in SECTIONS:
    if (value or "").startswith("{"):  # a whole section, as {'k1': 1.2}
      return f"--{name}={value}"
    first = next(each.key for each in ALL if each.section == key)
    raise errors.InputError(
      f"--config.{key} is a section: name a setting of it, as --config.{first}"
    )
  if key in REMOVED:
    raise errors.InputError(f"--{removed(key)}")
  if key not in BY_KEY:
    names = [f"--config.{each}" for each in settings_like(key)]
    raise errors.InputError(
      f"unknown setting --config.{key}" + (did_you_mean(names) or f": {_LIST}")
    )
  setting = BY_KEY[key]
  if name.startswith("no"):
    if setting.kind is not bool or value is not None:
      raise errors.InputError(
        f"--{name}: only for True or False: write --config.{key}=VALUE"
      )
    value = "False"
  elif value is None and setting.kind is bool:
    value = "True"
  elif value is None:
    if not rest:
      raise errors.InputError(f"--config.{key} needs a value")
    value = rest.pop(0)
  return f"--config.{key}={typed(setting, value)}"


def in_a_file(error: Exception) -> str:
  """The message of an exception in a config file, in one line.

  Args:
    error: exception; for an unknown key ml_collections lists all other keys,
      which is cut to the most similar ones.
  """
  message = str(error)
  found = _NO_KEY.search(message)
  if not found:
    return message
  name = found[1] or found[2]
  for key in REMOVED:
    if key.rpartition(".")[2] == name:
      return removed(key)
  near = closest(name, SECTIONS) or settings_like(name)
  names = did_you_mean([f"config.{key}" for key in near])
  return f"there is no setting {name!r}{names}"


def typed(setting: Setting, text: str) -> str:
  """The typed value of a setting, as ml_collections reads it.

  Raises:
    InputError: the value is not allowed for this setting.
  """
  try:
    value = setting.parse(text)
    reason = setting.wrong(value)
  except ValueError as error:
    reason = str(error)
  if reason:
    near = did_you_mean(closest(text, filter(None, setting.choices)))
    raise errors.InputError(f"config.{setting.key}={text}: {reason}{near}")
  if setting.kind in (bool, tuple) or setting.words:
    return repr(value)
  return text if setting.kind is str else text.strip()


def _plain(word: str) -> str:
  return word.lower().replace("-", "_")
