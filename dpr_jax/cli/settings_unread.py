"""Finds settings that were changed but that this call does not read.

A row of the settings table names the conditions under which its setting is
read (`Setting.when`); `CONDITIONS` defines them.  A condition may depend only
on the config and the command.
"""

import re
from collections.abc import Callable
from typing import Any

from dpr_jax.cli.settings_call import Call
from dpr_jax.core.settings_table import ALL, BY_KEY, value_of

_DENSE = ("dense", "dense-start", "exact", "hybrid")
_INDEXED = ("dense", "dense-start", "hybrid")
_MINED = ("bm25", "model", "hybrid", "passage", "previous")
# Factories that need no training; "dpr" is HNSW512.
_LEARNS_NOTHING = r"dpr|Flat|HNSW\d*([,_]Flat)?"
# Factories that store every vector in full.
_KEEPS_VECTORS = (
  r"(dpr|(IVF\d+(_HNSW\d+)?,)?Flat|HNSW\d*([,_]Flat)?|.*,RFlat"
  r"|.*,Refine\(Flat\))"
)


def _kinds(config: Any) -> set[str]:
  """Kinds of the negatives in use, of `negative_mixture.KINDS`."""
  if config.train.hard_negatives < 1:
    return set()
  pieces = config.train.negatives.split(",")
  return {piece.partition(":")[0].strip() for piece in pieces}


def _random(config: Any, call: Call) -> bool:
  return "random" in (config.model.checkpoint, config.reader.checkpoint)


def _embeds(config: Any, call: Call) -> bool:
  rounds = "train" in call.asked and config.train.rounds > 1
  return call.model or rounds or _any(config.retrieve.methods, _DENSE)


def _any(names: Any, some: tuple[str, ...]) -> bool:
  return any(name in some for name in names)


def _indexes(config: Any, call: Call) -> bool:
  used = {*config.retrieve.methods, *call.methods_of(config)}
  mines = call.mines_from != "bm25"
  return bool(call.model) or mines or _any(used, _INDEXED)


def _results(config: Any, call: Call) -> bool:
  reader = config.reader
  dev = reader.dev_questions > 0 and reader.dev in ("", "results")
  return dev or reader.train == "results"


def _factory(pattern: str, whole: bool = False) -> Callable[[Any, Call], bool]:
  match = re.fullmatch if whole else re.search
  return lambda config, call: bool(match(pattern, config.index.factory))


def _not(condition: Callable[[Any, Call], bool]) -> Callable[[Any, Call], bool]:
  return lambda config, call: not condition(config, call)


def _equals(key: str, *values: Any) -> Callable[[Any, Call], bool]:
  return lambda config, call: value_of(config, key) in values


def _above(key: str, bound: int) -> Callable[[Any, Call], bool]:
  return lambda config, call: value_of(config, key) > bound


CONDITIONS: dict[str, Callable[[Any, Call], bool]] = {
  "data.train is not none": _not(_equals("data.train", "none")),
  "model.checkpoint or reader.checkpoint is random": _random,
  "train.max_steps is 0": _equals("train.max_steps", 0),
  "train.hard_negatives > 0": _above("train.hard_negatives", 0),
  "train.negatives are mined": lambda config, call: bool(
    _kinds(config) & set(_MINED)
  ),
  "train.negatives are mined or given": lambda config, call: bool(
    _kinds(config) & {*_MINED, "given"}
  ),
  "train.distill_scores is set": _not(_equals("train.distill_scores", "")),
  "train.distill_loss is kl": _equals("train.distill_loss", "kl"),
  "train.scale_rule is not none": _not(_equals("train.scale_rule", "none")),
  "train.rounds > 1": _above("train.rounds", 1),
  "train.packing is True": _equals("train.packing", True),
  "train.loss is tiled or ring": _equals("train.loss", "tiled", "ring"),
  "train.dev_questions > 0": _above("train.dev_questions", 0),
  "the corpus is embedded": _embeds,
  "an index is used": _indexes,
  "index.factory learns from vectors": _not(
    _factory(_LEARNS_NOTHING, whole=True)
  ),
  "index.factory has HNSW, and is not dpr": _factory("HNSW"),
  "index.factory has HNSW": _factory("HNSW|^dpr$"),
  "index.factory has IVF": _factory("IVF|IMI"),
  "index.factory has Refine": _factory(r"RFlat|Refine\("),
  "index.factory compresses": _not(_factory(_KEEPS_VECTORS, whole=True)),
  "index.allow_too_large is False": _equals("index.allow_too_large", False),
  "the method exact is used": lambda config, call: (
    "exact" in call.methods_of(config)
  ),
  "exact.approximate is True": _equals("exact.approximate", True),
  "the method hybrid is used": lambda config, call: (
    "hybrid" in (*call.methods_of(config), call.mines_from)
  ),
  "fusion.method is reciprocal": _equals("fusion.method", "reciprocal"),
  "there is a reader": lambda config, call: (
    bool(config.reader.train) or not call.whole
  ),
  "reader.train or reader.dev is results": _results,
  "reader.packing is True": _equals("reader.packing", True),
  "reader.packing is False": _equals("reader.packing", False),
  "reader.max_steps is 0": _equals("reader.max_steps", 0),
  "reader.dev_questions > 0": _above("reader.dev_questions", 0),
}
# Clearer words for conditions that do not name a setting.
_EXPLAINED = {
  "there is a reader": "config.reader.train is set",
  "an index is used": "a method with an index is used",
}


def unread(config: Any, call: Call) -> list[str]:
  """One warning line per unmet condition of changed settings.

  Args:
    config: the experiment.
    call: the call that is about to start.
  """
  reasons: dict[str, list[str]] = {}
  run = set(call.stages_of(config))
  if call.whole:
    run |= {"train-reader", "read"}  # which have a condition of their own
  for setting in ALL:
    value, stages = value_of(config, setting.key), set(setting.stages)
    if value == setting.default or not stages & call.asked:
      continue
    left_out = () if stages & run else ("data.train is not none",)
    for condition in (*left_out, *setting.when):
      if not CONDITIONS[condition](config, call):
        shown = f"config.{setting.key}={value!r}"
        reasons.setdefault(condition, []).append(shown)
        break
  return [
    f"{', '.join(shown)}: not read here, only where {_explained(condition)}"
    f"{_now(config, condition)}"
    for condition, shown in reasons.items()
  ]


def _explained(condition: str) -> str:
  return _EXPLAINED.get(condition, condition)


def _now(config: Any, condition: str) -> str:
  """The current value of the setting that a condition begins with, or ""."""
  key = condition.split(" ", 1)[0]
  if key not in BY_KEY:
    return ""
  return f" (config.{key} is {value_of(config, key)!r})"
