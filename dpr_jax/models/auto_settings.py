"""Settings of `config.model` that a checkpoint can decide: "auto", or 0.

A checkpoint says how its encoder is used: pooling, normalization, prefixes, the
longest text.  `resolve` replaces "auto" by what it says, or by DPR's values if
it says nothing.  Resolved values are stored with everything that is trained or
embedded; "auto" in a later config then means those.  No JAX is imported.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging

# The value of each setting that leaves it to the checkpoint.
AUTO: Mapping[str, Any] = {
  "pooling": "auto",
  "normalize": "auto",
  "title": "auto",
  "question_prefix": "auto",
  "passage_prefix": "auto",
  "question_length": 0,
  "passage_length": 0,
}
# DPR's values, for a checkpoint that says nothing.
PLAIN: Mapping[str, Any] = {
  "pooling": "cls",
  "normalize": False,
  "title": "pair",
  "question_prefix": "",
  "passage_prefix": "",
  "question_length": 32,
  "passage_length": 256,
}
_LENGTHS = ("question_length", "passage_length")


def is_auto(key: str, value: Any) -> bool:
  """True for the value that leaves a setting to the checkpoint."""
  # The type too: False is no 0.
  return key in AUTO and value == AUTO[key] and not isinstance(value, bool)


def resolve(
  asked: Any,
  said: Mapping[str, Any],
  *,
  positions: int,
  source: str,
) -> dict[str, Any]:
  """Concrete values of the settings in `AUTO`.

  An explicit value that contradicts the checkpoint is used, with a warning.  A
  shorter length contradicts nothing.

  Args:
    asked: section `model` of a config, or its values by key.
    said: what the checkpoint says; lacks what it does not say.
    positions: length of the longest text that the checkpoint can encode.
    source: name of the checkpoint, for the warning.
  """
  resolved, contrary = {}, []
  for key in AUTO:
    value = asked[key]
    if is_auto(key, value):
      value = said.get(key, PLAIN[key])
      if key in _LENGTHS:
        value = min(value, positions)
    elif key in said and _contradicts(key, value, said[key]):
      contrary.append((key, said[key], value))
    resolved[key] = value
  if contrary:
    logging.warning(
      "checkpoint %s says %s; used is %s, as the config says",
      source,
      ", ".join(f"{key} {old!r}" for key, old, _ in contrary),
      ", ".join(f"config.model.{key}={new!r}" for key, _, new in contrary),
    )
  return resolved


def _contradicts(key: str, value: Any, said: Any) -> bool:
  return value > said if key in _LENGTHS else value != said
