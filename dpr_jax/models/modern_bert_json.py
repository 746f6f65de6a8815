"""Translates the `config.json` of a ModernBERT to our names and back.

transformers 5 lists the kind of every layer and the parameters of its positions
(`layer_types`, `rope_parameters`); earlier versions have one number for each
(`global_attn_every_n_layers`, `global_rope_theta`, `local_rope_theta`).  Both
are read, and both are written.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from dpr_jax.core import errors

_NAMES = {
  "hidden_activation": "hidden_act",
  "norm_eps": "layer_norm_eps",
  "mlp_dropout": "hidden_dropout_prob",
  "attention_dropout": "attention_probs_dropout_prob",
}
_SAME = (
  *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
  *("intermediate_size", "max_position_embeddings", "initializer_range"),
  *("global_attn_every_n_layers", "local_attention"),
)
_BIASES = ("norm_bias", "attention_bias", "mlp_bias")
# Kind of layer -> our key for the base of its wavelengths.
_THETAS = {
  "full_attention": "global_rope_theta",
  "sliding_attention": "local_rope_theta",
}


def ours(path: pathlib.Path, raw: Mapping[str, Any]) -> dict[str, Any]:
  """Values by our names.

  Args:
    path: path of the file, for errors.
    raw: content of the file.

  Raises:
    InputError: the model has a part that is not supported.
  """

  def refuse(key: str, reason: str) -> None:
    raise errors.InputError(
      f"{path}: {key} {str(raw.get(key))[:80]!r}: {reason}"
    )

  for key in _BIASES:
    if raw.get(key):
      refuse(key, "a ModernBERT with biases is not supported")
  if raw.get("rope_scaling"):
    refuse("rope_scaling", "scaled positions are not supported")
  if raw.get("embedding_dropout", 0) != raw.get("mlp_dropout", 0):
    refuse("embedding_dropout", "it must be equal to mlp_dropout")
  values = {key: raw[key] for key in _SAME if key in raw}
  values |= {_NAMES[key]: raw[key] for key in _NAMES if key in raw}
  types = raw.get("layer_types")
  if types is not None:
    every = _period(types)
    if every is None:
      refuse(
        "layer_types",
        "full_attention must be the first layer and every n-th after it",
      )
    values["global_attn_every_n_layers"] = every
    values.setdefault("num_hidden_layers", len(types))
  ropes = raw.get("rope_parameters") or {}
  for kind, key in _THETAS.items():
    rope = ropes.get(kind) if isinstance(ropes, Mapping) else None
    rope = rope if isinstance(rope, Mapping) else {}
    if rope.get("rope_type", "default") != "default":
      refuse("rope_parameters", "only the rope_type 'default' is supported")
    theta = rope.get("rope_theta", raw.get(key))
    if theta is None and key == "local_rope_theta":
      theta = values.get("global_rope_theta") if key in raw else None
    if theta is not None:
      whole = isinstance(theta, float) and theta.is_integer()
      values[key] = int(theta) if whole else theta
  return values


def _period(types: Any) -> int | None:
  """n, where layers 0, n, 2n, ... are global; None = another pattern."""
  if not isinstance(types, list) or not types:
    return None
  kinds = [kind == "full_attention" for kind in types]
  every = kinds.index(True, 1) if True in kinds[1:] else len(kinds)
  wanted = [number % every == 0 for number in range(len(kinds))]
  return every if kinds == wanted else None


def theirs(values: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `ours`, for transformers 4 and 5."""
  result = {
    key: value
    for key, value in values.items()
    if key not in (*_NAMES.values(), "type_vocab_size")
  }
  result |= {name: values[key] for name, key in _NAMES.items()}
  kinds = list(_THETAS)
  return result | {
    "embedding_dropout": values["hidden_dropout_prob"],
    "layer_types": [
      kinds[number % values["global_attn_every_n_layers"] > 0]
      for number in range(values["num_hidden_layers"])
    ],
    "rope_parameters": {
      kind: {"rope_type": "default", "rope_theta": float(values[key])}
      for kind, key in _THETAS.items()
    },
    **{key: float(values[key]) for key in _THETAS.values()},
    **dict.fromkeys(_BIASES, False),
  }
