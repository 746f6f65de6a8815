"""What all formats of `export` share: a tower's parameters and its files."""

import pathlib
from typing import Any

from dpr_jax.models import (
  dual_encoder,
  hf_weights,
  model_files,
  retriever_model,
)

KINDS = (dual_encoder.QUESTION, dual_encoder.PASSAGE)


def params(model: retriever_model.Towers, kind: str) -> dict[str, Any]:
  """Parameters of the tower for a kind of text."""
  return model.params[dual_encoder.SHARED if model.encoder.shared else kind]


def length(model: retriever_model.Towers, kind: str) -> int:
  """Tokens of the longest text of a kind."""
  question = kind == dual_encoder.QUESTION
  tokenizer = model.tokenizer
  return tokenizer.question_length if question else tokenizer.passage_length


def prefix(model: retriever_model.Towers, kind: str) -> str:
  """Text before every text of a kind."""
  question = kind == dual_encoder.QUESTION
  tokenizer = model.tokenizer
  return tokenizer.question_prefix if question else tokenizer.passage_prefix


def write_sizes(
  model: retriever_model.Towers, folder: pathlib.Path, **extra: Any
) -> None:
  """Writes `config.json` and `tokenizer.json`, see `model_files`."""
  backend = model.tokenizer.backend
  model_files.write_sizes(folder, model.encoder.config, backend, **extra)


def write_weights(
  model: retriever_model.Towers,
  kind: str,
  folder: pathlib.Path,
  prefix: str = "",
  **tokenizer: Any,
) -> None:
  """Writes the weights of a tower, and the tokenizer's config.

  Args:
    model: the towers.
    kind: kind of text.
    folder: folder in which `write_sizes` has written.
    prefix: prefix of the tensors' names.
    **tokenizer: further keys of `tokenizer_config.json`.
  """
  tensors = hf_weights.tensors_from_params(
    params(model, kind), model.encoder.config, prefix
  )
  longest = length(model, kind)
  model_files.write_weights(folder, tensors, longest, **tokenizer)


def write_tower(
  model: retriever_model.Towers, kind: str, folder: pathlib.Path
) -> None:
  """Writes a tower as `transformers.AutoModel` loads it."""
  folder.mkdir(exist_ok=True)
  write_sizes(model, folder)
  write_weights(model, kind, folder)
