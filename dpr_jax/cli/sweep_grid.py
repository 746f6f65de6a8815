"""The trials of a sweep: combinations of settings, and seeds.

Input: the text of `--over` and a config.  Output: `Trial`s, whose names are
those of their folders.  Every value is parsed and checked by the table of
settings, as on the command line.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from dpr_jax.cli import settings_hints
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.core.settings_table import BY_KEY

_MOST_SEED = 2**32 - 1
_BRACKETS = {"(": ")", "[": "]"}
_LENGTH = 40  # characters of a value in a name


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep.

  Attributes:
    name: name of its folder.
    setting: name of its combination of values, the same for all seeds.
    values: the values by key; {} = those of the config.
    seed: value of `config.seed`.
    config: the whole config.
  """

  name: str
  setting: str
  values: Mapping[str, Any]
  seed: int
  config: ml_collections.ConfigDict


def axes(text: str) -> dict[str, tuple[Any, ...]]:
  """Values by key of `--over`, in the order in which they are typed.

  Args:
    text: `KEY=VALUE,VALUE;KEY=VALUE`; a tuple's value has brackets, and a value
      with a comma is quoted.

  Raises:
    InputError: an unknown setting, a bad value, or one that is there twice.
  """
  found: dict[str, tuple[Any, ...]] = {}
  for part in _split(text, ";"):
    key, equals, values = part.partition("=")
    key = key.strip().lstrip("-").removeprefix("config.")
    if key == "seed":
      raise errors.InputError(f"--over={part}: seeds are set by --seeds=N")
    if key not in BY_KEY:
      near = settings_hints.did_you_mean(settings_hints.settings_like(key))
      raise errors.InputError(f"--over: there is no setting {key!r}{near}")
    if key in found:
      raise errors.InputError(f"--over names {key} twice: list all its values")
    if not equals:
      raise errors.InputError(f"--over={part}: values are missing: {key}=A,B")
    parsed = tuple(_value(key, each) for each in _split(values, ","))
    if not parsed:
      raise errors.InputError(f"--over={part}: values are missing: {key}=A,B")
    if len({repr(each) for each in parsed}) < len(parsed):
      raise errors.InputError(f"--over={part}: a value is there twice")
    found[key] = parsed
  return found


def _value(key: str, text: str) -> Any:
  setting = BY_KEY[key]
  if setting.kind is str and text[:1] in ("'", '"') and text[-1:] == text[:1]:
    text = text[1:-1]
  settings_hints.typed(setting, text)  # raises with the key and the reason
  return setting.parse(text)


def _split(text: str, separator: str) -> list[str]:
  """Parts between separators outside quotes and brackets; none is empty."""
  parts, part, closing = [], "", ""
  for letter in text:
    if closing:
      closing = "" if letter == closing else closing
    elif letter in "'\"" or letter in _BRACKETS:
      closing = _BRACKETS.get(letter, letter)
    elif letter == separator:
      parts.append(part)
      part = ""
      continue
    part += letter
  parts = [each.strip() for each in [*parts, part]]
  return [each for each in parts if each]


def trials(
  config: ml_collections.ConfigDict,
  over: Mapping[str, Sequence[Any]],
  seeds: int,
) -> list[Trial]:
  """All combinations in the order of `over`, the last key fastest; then seeds.

  Args:
    config: the experiment.
    over: from `axes`.
    seeds: number of seeds, from the config's on.

  Raises:
    InputError: a seed would be too large.
  """
  if config.seed + seeds - 1 > _MOST_SEED:
    raise errors.InputError(
      f"--seeds={seeds}: config.seed={config.seed} and the next {seeds - 1} are"
      f" not all <= {_MOST_SEED}"
    )
  found = []
  names: dict[str, Any] = {}
  for values in itertools.product(*over.values()):
    chosen = dict(zip(over, values, strict=True))
    setting = name_of(chosen)
    if setting in names:  # of long or unusual values
      setting += "-" + workdir_lib.fingerprint(chosen)[:6]
    names[setting] = chosen
    for seed in range(config.seed, config.seed + seeds):
      own = copy.deepcopy(config)
      own.seed = seed
      for key, value in chosen.items():
        section, _, name = key.rpartition(".")
        own[section][name] = value
      own = config_lib.with_full_paths(own)
      found.append(Trial(f"{setting}_seed-{seed}", setting, chosen, seed, own))
  return found


def name_of(values: Mapping[str, Any]) -> str:
  """A name for some values that can be a folder's; "config" for none.

  The section is left out unless two of the keys differ only by it.
  """
  short = [key.rpartition(".")[2] for key in values]
  parts = []
  for key, value in values.items():
    name = key.rpartition(".")[2]
    name = key if short.count(name) > 1 else name
    parts.append(f"{name}-{_word(value)}")
  return "_".join(parts) or "config"


def is_exact(values: Mapping[str, Any]) -> bool:
  """Whether `name_of` shows these values whole, so that no others share it."""
  return all(_word(value) == _text(value) for value in values.values())


def _word(value: Any) -> str:
  """A value as a part of a name: without special characters, and its end."""
  word = re.sub(r"[^\w.+-]+", "-", _text(value)).strip("-.") or "none"
  return word[-_LENGTH:]


def _text(value: Any) -> str:
  return value if isinstance(value, str) else repr(value)
