"""Names of an encoder's weights in Hugging Face checkpoints.

Input: the description of an encoder.  Output: for each of its parameters the
path in our tree, the name of the tensor without its prefix, and the tensor's
shape.  `hf_weights.py` reads and writes the tensors.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from dpr_jax.models import relative_positions
from dpr_jax.models.encoder_config import BertConfig

Name = tuple[tuple[str, ...], str, tuple[int, ...]]

_BERT = {
  "query": "attention.self.query",
  "key": "attention.self.key",
  "value": "attention.self.value",
  "attention_output": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "intermediate": "intermediate.dense",
  "output": "output.dense",
  "output_norm": "output.LayerNorm",
}
_MPNET = _BERT | {
  "query": "attention.attn.q",
  "key": "attention.attn.k",
  "value": "attention.attn.v",
  "attention_output": "attention.attn.o",
  "attention_norm": "attention.LayerNorm",
}
_DISTILBERT = {
  "query": "attention.q_lin",
  "key": "attention.k_lin",
  "value": "attention.v_lin",
  "attention_output": "attention.out_lin",
  "attention_norm": "sa_layer_norm",
  "intermediate": "ffn.lin1",
  "output": "ffn.lin2",
  "output_norm": "output_layer_norm",
}
# Prefix of the layers, and the names in them, where they are not BERT's.
_LAYERS = {
  "mpnet": ("encoder.layer", _MPNET),
  "distilbert": ("transformer.layer", _DISTILBERT),
}
_JOINED = "attn.Wqkv.weight"  # ModernBERT's query, key and value in one
_PART = "#"  # before the number of a part of a joined tensor


def tensor_names(config: BertConfig) -> Iterator[Name]:
  """Yields (our path, Hugging Face name, Hugging Face shape) of each tensor.

  A path that ends in `kernel` is transposed between the two.  The first name is
  that of the word embeddings.
  """
  if config.pre_norm:
    yield from _modern_bert(config)
    return
  yield from _embeddings(config)
  stem, names = _LAYERS.get(config.model_type, ("encoder.layer", _BERT))
  for number in range(config.num_hidden_layers):
    yield from _layer(config, f"layer_{number}", f"{stem}.{number}", names)


def _modern_bert(config: BertConfig) -> Iterator[Name]:
  width, inner = config.hidden_size, config.intermediate_size
  yield (
    ("word_embeddings", "embedding"),
    "embeddings.tok_embeddings.weight",
    (config.vocab_size, width),
  )

  def scale(path: tuple[str, ...], name: str) -> Name:
    return (*path, "scale"), f"{name}.weight", (width,)

  yield scale(("embeddings_norm",), "embeddings.norm")
  for number in range(config.num_hidden_layers):
    ours, theirs = f"layer_{number}", f"layers.{number}"
    if number:
      yield scale((ours, "attention_norm"), f"{theirs}.attn_norm")
    for part, name in enumerate(("query", "key", "value")):
      joined = f"{theirs}.{_JOINED}{_PART}{part}"
      yield (ours, name, "kernel"), joined, (width, width)
    for name, dense, shape in (
      ("attention_output", "attn.Wo", (width, width)),
      ("intermediate", "mlp.Wi", (2 * inner, width)),
      ("output", "mlp.Wo", (width, inner)),
    ):
      yield (ours, name, "kernel"), f"{theirs}.{dense}.weight", shape
    yield scale((ours, "output_norm"), f"{theirs}.mlp_norm")
  yield scale(("final_norm",), "final_norm")


def separate(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Tensors by the names of `tensor_names`: joined projections are three."""
  result = {}
  for name, value in tensors.items():
    if name.endswith(_JOINED) and len(value) % 3 == 0:
      for part, values in enumerate(np.split(value, 3)):
        result[f"{name}{_PART}{part}"] = values
    else:
      result[name] = value
  return result


def join(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The inverse of `separate`."""
  parts: dict[str, list[np.ndarray]] = {}
  for name, value in tensors.items():
    parts.setdefault(name.partition(_PART)[0], []).append(value)
  return {
    name: values[0] if len(values) == 1 else np.concatenate(values)
    for name, values in parts.items()
  }


def _embeddings(config: BertConfig) -> Iterator[Name]:
  width = config.embedding_width
  tables = {
    "word": config.vocab_size,
    "position": config.position_rows,
    "token_type": config.type_vocab_size,
  }
  for name, rows in tables.items():
    if rows:
      yield (
        (f"{name}_embeddings", "embedding"),
        f"embeddings.{name}_embeddings.weight",
        (rows, width),
      )
  yield from _norm(("embeddings_norm",), "embeddings.LayerNorm", width)
  if width != config.hidden_size:
    name = "embeddings_project"
    yield from _dense((name,), name, width, config.hidden_size)
  if config.relative_attention_num_buckets:
    name = relative_positions.NAME
    shape = config.relative_attention_num_buckets, config.num_attention_heads
    yield (name, "embedding"), f"encoder.{name}.weight", shape


def _layer(
  config: BertConfig, ours: str, theirs: str, names: dict[str, str]
) -> Iterator[Name]:
  width, inner = config.hidden_size, config.intermediate_size
  for part, name in names.items():
    path, name = (ours, part), f"{theirs}.{name}"
    if part.endswith("_norm"):
      yield from _norm(path, name, width)
    else:
      outputs = inner if part == "intermediate" else width
      inputs = inner if part == "output" else width
      yield from _dense(path, name, inputs, outputs)


def _norm(path: tuple[str, ...], name: str, width: int) -> Iterator[Name]:
  yield (*path, "scale"), f"{name}.weight", (width,)
  yield (*path, "bias"), f"{name}.bias", (width,)


def _dense(
  path: tuple[str, ...], name: str, inputs: int, outputs: int
) -> Iterator[Name]:
  yield (*path, "kernel"), f"{name}.weight", (outputs, inputs)
  yield (*path, "bias"), f"{name}.bias", (outputs,)
