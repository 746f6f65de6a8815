"""Names of an encoder's weights in Hugging Face checkpoints.

Input: the description of an encoder.  Output: for each of its parameters the
path in our tree, the name of the tensor without its prefix, and the tensor's
shape.  `hf_weights.py` reads and writes the tensors.
"""

from collections.abc import Iterator

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


def tensor_names(config: BertConfig) -> Iterator[Name]:
  """Yields (our path, Hugging Face name, Hugging Face shape) of each tensor.

  A path that ends in `kernel` is transposed between the two.  The first name is
  that of the word embeddings.
  """
  yield from _embeddings(config)
  names, stem = _BERT, "encoder.layer"
  for number in range(config.num_hidden_layers):
    yield from _layer(config, f"layer_{number}", f"{stem}.{number}", names)


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
