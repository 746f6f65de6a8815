"""Writes the towers as one Sentence-Transformers folder.

A shared tower becomes modules in a row: Transformer, Pooling, Dense, Normalize.
Two towers become a Router with the routes "query" and "document", each such a
row, so that `encode_query` and `encode_document` choose the tower.  Prefixes
become the prompts of these names.  The types are named as Sentence-Transformers
names them since 5.0; later versions know these names too.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import (
  dual_encoder,
  model_files,
  pooling_layers,
  retriever_model,
)
from dpr_jax.models import export_parts as parts

_TYPE = "sentence_transformers.models."
_ACTIVATIONS = {
  "identity": "torch.nn.modules.linear.Identity",
  "tanh": "torch.nn.modules.activation.Tanh",
}
# Our names of poolings, and the names in the key `pooling_mode_NAME`.
POOLINGS = {
  "cls": "cls_token",
  "mean": "mean_tokens",
  "max": "max_tokens",
  "mean_sqrt_len": "mean_sqrt_len_tokens",
  "weightedmean": "weightedmean_tokens",
  "lasttoken": "lasttoken",
}
ROUTES = {dual_encoder.QUESTION: "query", dual_encoder.PASSAGE: "document"}


def write(
  model: retriever_model.Towers,
  folder: pathlib.Path,
  weights: Callable[..., None] = parts.write_weights,
) -> dict[str, str]:
  """Writes all files, except the model card.

  Args:
    model: the towers.
    folder: an empty folder.
    weights: writes weights and tokenizer's config of (model, kind, folder).

  Returns:
    Folder of the transformer by kind of text, relative to `folder`.
  """
  if model.encoder.shared:
    kind = dual_encoder.PASSAGE  # the longer texts
    names = _names(model)
    paths = ["", *(f"{n}_{name}" for n, name in enumerate(names) if n)]
    _write_modules(model, kind, folder, names, paths, weights)
    modules = list(zip(names, paths, strict=True))
    towers = dict.fromkeys(ROUTES, "")
  else:
    towers = _write_routes(model, folder, weights)
    modules = [("Router", "")]
  workdir_lib.write_json(
    folder / "modules.json",
    [
      {"idx": n, "name": str(n), "path": path, "type": _TYPE + name}
      for n, (name, path) in enumerate(modules)
    ],
  )
  prompts = {name: parts.prefix(model, kind) for kind, name in ROUTES.items()}
  workdir_lib.write_json(
    folder / "config_sentence_transformers.json",
    {
      "model_type": "SentenceTransformer",
      "prompts": prompts,
      "default_prompt_name": None,
      "similarity_fn_name": similarity(model),
    },
  )
  return towers


def similarity(model: retriever_model.Towers) -> str:
  """The function that compares vectors: "dot" or "cosine"."""
  return "cosine" if model.encoder.normalize else "dot"


def _names(model: retriever_model.Towers) -> list[str]:
  """The modules of a tower, in order."""
  dense = ["Dense"] * len(model.encoder.dense)
  return [
    *("Transformer", "Pooling"),
    *dense,
    *["Normalize"] * model.encoder.normalize,
  ]


def _write_routes(
  model: retriever_model.Towers,
  folder: pathlib.Path,
  weights: Callable[..., None],
) -> dict[str, str]:
  names, structure, types, towers = _names(model), {}, {}, {}
  for kind, route in ROUTES.items():
    paths = [f"{route}_{n}_{name}" for n, name in enumerate(names)]
    _write_modules(model, kind, folder, names, paths, weights)
    structure[route] = paths
    types |= {
      path: _TYPE + name for path, name in zip(paths, names, strict=True)
    }
    towers[kind] = paths[0]
  workdir_lib.write_json(
    folder / "router_config.json",
    {
      "types": types,
      "structure": structure,
      "parameters": {"default_route": "document", "allow_empty_key": True},
    },
  )
  return towers


def _write_modules(
  model: retriever_model.Towers,
  kind: str,
  folder: pathlib.Path,
  names: list[str],
  paths: list[str],
  weights: Callable[..., None],
) -> None:
  """The modules of one tower, each in its folder."""
  encoder, dense = model.encoder, 0
  for name, path in zip(names, paths, strict=True):
    target = folder / path
    target.mkdir(exist_ok=True)
    if name == "Transformer":
      parts.write_sizes(model, target)
      weights(model, kind, target)
      workdir_lib.write_json(
        target / "sentence_bert_config.json",
        {"max_seq_length": parts.length(model, kind), "do_lower_case": False},
      )
    elif name == "Pooling":
      modes = {
        f"pooling_mode_{mode}": pooling == encoder.pooling
        for pooling, mode in POOLINGS.items()
      }
      width = {"word_embedding_dimension": encoder.config.hidden_size}
      prompt = {
        "include_prompt": not encoder.question_skip + encoder.passage_skip
      }
      workdir_lib.write_json(target / "config.json", width | modes | prompt)
    elif name == "Dense":
      layer = parts.params(model, kind)[pooling_layers.dense_name(dense)]
      _write_dense(layer, encoder.dense[dense].activation, target)
      dense += 1


def _write_dense(layer: Any, activation: str, folder: pathlib.Path) -> None:
  """A dense layer; theirs is the transpose of our [inputs, outputs]."""
  import safetensors.numpy

  kernel = np.asarray(layer["kernel"], np.float32)
  tensors = {"linear.weight": np.ascontiguousarray(kernel.T)}
  if "bias" in layer:
    tensors["linear.bias"] = np.asarray(layer["bias"], np.float32)
  with workdir_lib.replace_file(folder / model_files.WEIGHTS) as temporary:
    safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
  workdir_lib.write_json(
    folder / "config.json",
    {
      "in_features": kernel.shape[0],
      "out_features": kernel.shape[1],
      "bias": "bias" in layer,
      "activation_function": _ACTIVATIONS[activation],
    },
  )
