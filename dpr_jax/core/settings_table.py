"""The table of all settings, in the order of the config.

The defaults (`config.base_config`), the checks (`settings_checks`), warnings of
unread settings (`settings_unread`), the command line (`settings_hints`),
`dpr-jax config` and docs/reference/config.md all follow from it.  To add a
setting, add a row to its section and a line where it is read.
"""

from typing import Any

from dpr_jax.core import (
  settings_model,
  settings_reader,
  settings_retrieval,
  settings_training,
)
from dpr_jax.core.setting import Setting

ALL: tuple[Setting, ...] = (
  settings_model.SEED,
  *settings_model.DATA,
  *settings_model.MODEL,
  *settings_training.TRAIN,
  *settings_retrieval.BM25,
  *settings_retrieval.MINE,
  *settings_retrieval.EMBED,
  *settings_retrieval.INDEX,
  *settings_retrieval.RETRIEVE,
  *settings_retrieval.EXACT,
  *settings_retrieval.FUSION,
  *settings_reader.READER,
  *settings_reader.READ,
  *settings_retrieval.EVALUATE,
  *settings_retrieval.PLAN,
)
BY_KEY: dict[str, Setting] = {each.key: each for each in ALL}
SECTIONS = tuple(dict.fromkeys(each.section for each in ALL if each.section))

# Settings of older versions: the value that changed nothing, and what replaces
# them.
REMOVED: dict[str, tuple[Any, str]] = {
  "train.length_groups": (
    1,
    "texts are packed into rows without padding (config.train.packing)",
  ),
}


def removed(key: str, then: str = "leave it out") -> str:
  """The message for a removed setting.

  Args:
    key: of `REMOVED`.
    then: what is done, or to be done.
  """
  return f"config.{key} was removed: {REMOVED[key][1]}; {then}"


def defaults() -> dict[str, Any]:
  """All settings at their defaults, as nested dicts."""
  found: dict[str, Any] = {}
  for each in ALL:
    if each.section:
      found.setdefault(each.section, {})[each.name] = each.default
    else:
      found[each.name] = each.default
  return found


def value_of(config: Any, key: str) -> Any:
  """A setting's value in a config."""
  section, _, name = key.rpartition(".")
  return config[section][name] if section else config[name]
