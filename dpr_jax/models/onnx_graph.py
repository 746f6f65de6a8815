"""The ONNX graph of a tower: token ids in, hidden states and a vector out.

Written with the `onnx` library from our parameters; no other framework takes
part.  Only standard operators of opset 17, so that any runtime can load it.

Inputs: `input_ids`, `attention_mask`, `token_type_ids`, int64 [batch, length].
Outputs: `last_hidden_state`, float32 [batch, length, width], and
`sentence_embedding`, float32 [batch, dim], after pooling, dense layers and
normalisation.  Without the first, the last layer is computed for position 0
alone where the pooling needs no other.  `onnx_int8.Graph` writes the same with
weights in 8 bits.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpr_jax import version
from dpr_jax.core import errors
from dpr_jax.models import dual_encoder, encoder_config, pooling_layers
from dpr_jax.models import export_parts as parts
from dpr_jax.models.retriever_model import Towers

OPSET = 17
IR_VERSION = 8  # of opset 17: older runtimes can load it
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HIDDEN, VECTOR = "last_hidden_state", "sentence_embedding"
# Added to the scores of padding, as in `bert.Bert`.
_MASKED = -1e9
_SUPPORTED = (encoder_config.BertConfig, encoder_config.RobertaConfig)


def helper() -> Any:
  """The library `onnx`; `InputError` if it is not installed."""
  try:
    import onnx
  except ImportError as error:
    raise errors.InputError(
      "ONNX graphs need the library onnx, which is not installed: pip install"
      " 'dpr-jax[onnx]'"
    ) from error
  return onnx


@dataclasses.dataclass
class Graph:
  """Collects nodes and constants; `node` returns the name of its output."""

  onnx: Any = dataclasses.field(default_factory=helper)
  nodes: list[Any] = dataclasses.field(default_factory=list)
  constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def node(
    self, kind: str, *inputs: str, out: str = "", **attributes: Any
  ) -> str:
    """Adds an operator with one output, named `out`, or by its number."""
    name = out or f"{kind}_{len(self.nodes)}"
    self.nodes.append(
      self.onnx.helper.make_node(kind, inputs, [name], name, **attributes)
    )
    return name

  def weight(self, name: str, value: Any) -> str:
    """Adds a parameter, in float32."""
    self.constants[name] = np.asarray(value, np.float32)
    return name

  def number(self, value: float) -> str:
    """A float constant."""
    return self.weight(f"number_{value!r}", np.float32(value))

  def integers(self, *values: int) -> str:
    """A list of integers, for shapes and axes."""
    name = "integers_" + "_".join(map(str, values))
    self.constants[name] = np.array(values, np.int64)
    return name

  def integer(self, value: int) -> str:
    """An integer without a shape, for an axis or a position."""
    name = f"integer_{value}"
    self.constants[name] = np.array(value, np.int64)
    return name

  def product(self, x: str, name: str, kernel: Any) -> str:
    """`x @ kernel`."""
    return self.node("MatMul", x, self.weight(f"{name}.w", kernel))

  def dense(self, x: str, name: str, layer: Mapping[str, Any]) -> str:
    """`x @ kernel + bias`."""
    product = self.product(x, name, layer["kernel"])
    if "bias" not in layer:
      return product
    return self.node("Add", product, self.weight(f"{name}.b", layer["bias"]))

  def rows(self, name: str, table: Any, ids: str) -> str:
    """The rows `ids` of a table of embeddings."""
    return self.node("Gather", self.weight(name, table), ids)

  def norm(
    self,
    x: str,
    name: str,
    layer: Mapping[str, Any],
    epsilon: float,
    out: str = "",
  ) -> str:
    """Layer normalisation of the last axis."""
    scale = self.weight(f"{name}.scale", layer["scale"])
    bias = self.weight(f"{name}.bias", layer["bias"])
    return self.node(
      "LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon, out=out
    )


def build(
  model: Towers,
  kind: str,
  graph: Graph | None = None,
  *,
  states: bool = True,
) -> Any:
  """The graph of one tower, as an `onnx.ModelProto`.

  Args:
    model: the towers.
    kind: "question" or "passage".
    graph: an empty graph, which decides how products are computed; None = in
      float32.
    states: whether the hidden states are an output too.

  Raises:
    InputError: the library is missing, or the encoder is not supported.
  """
  graph = graph or Graph()
  config = model.encoder.config
  if type(config) not in _SUPPORTED:
    raise errors.InputError(
      f"a {config.title} cannot be exported as an ONNX graph, only"
      f" {' and '.join(kind.title for kind in _SUPPORTED)}"
    )
  tree = parts.params(model, kind)
  float_ = graph.onnx.TensorProto.FLOAT
  mask = graph.node("Cast", "attention_mask", to=float_)
  first_only = model.encoder.first_only and not states
  hidden = _hidden_states(graph, config, tree, mask, first_only)
  _vector(graph, model, kind, hidden, mask)
  outputs = {HIDDEN: ["batch", "length", config.hidden_size]} if states else {}
  return _model(graph, outputs | {VECTOR: ["batch", model.encoder.dim]})


def _hidden_states(
  graph: Graph,
  config: encoder_config.BertConfig,
  tree: Mapping[str, Any],
  mask: str,
  first_only: bool,
) -> str:
  """Embeddings and layers, as `bert.Bert` computes them."""

  def table(name: str) -> Any:
    return tree[f"{name}_embeddings"]["embedding"]

  hidden = graph.rows("word", table("word"), "input_ids")
  shape = graph.node("Shape", "input_ids")
  end = graph.node("Slice", shape, graph.integers(1), graph.integers(2))
  first = config.position_offset
  if first:
    end = graph.node("Add", end, graph.integers(first))
  # The rows of the table for the first positions: [length, width].
  positions = graph.node(
    "Slice",
    graph.weight("position", table("position")),
    graph.integers(first),
    end,
    graph.integers(0),
  )
  hidden = graph.node("Add", hidden, positions)
  if config.type_vocab_size:
    types = graph.weight("token_type", table("token_type"))
    types = graph.node("Gather", types, "token_type_ids")
    hidden = graph.node("Add", hidden, types)
  epsilon = config.layer_norm_eps
  hidden = graph.norm(hidden, "norm", tree["embeddings_norm"], epsilon)
  # 0 where there is a token, `_MASKED` at padding: [batch, 1, 1, length].
  padding = graph.node("Sub", graph.number(1.0), mask)
  bias = graph.node("Mul", padding, graph.number(_MASKED))
  bias = graph.node("Unsqueeze", bias, graph.integers(1, 2))
  layers = config.num_hidden_layers
  for number in range(layers):
    last = number == layers - 1
    hidden = _layer(
      graph,
      config,
      tree[f"layer_{number}"],
      f"layer_{number}",
      hidden,
      bias,
      out=HIDDEN if last else "",
      first_only=first_only and last,
    )
  return hidden


def _layer(
  graph: Graph,
  config: encoder_config.BertConfig,
  layer: Mapping[str, Any],
  name: str,
  hidden: str,
  bias: str,
  *,
  out: str,
  first_only: bool,
) -> str:
  """One layer, post-norm; with `first_only`, of position 0 alone."""
  heads = config.num_attention_heads
  width = config.hidden_size // heads
  epsilon = config.layer_norm_eps

  def dense(x: str, part: str) -> str:
    return graph.dense(x, f"{name}.{part}", layer[part])

  def split(x: str, *order: int) -> str:
    # [batch, length, dim] to [batch, length, heads, width]; 0 = as it is.
    x = graph.node("Reshape", x, graph.integers(0, 0, heads, width))
    return graph.node("Transpose", x, perm=order)

  asking = hidden
  if first_only:
    begin, end = graph.integers(0), graph.integers(1)
    asking = graph.node("Slice", hidden, begin, end, graph.integers(1))
  query = graph.node("Mul", dense(asking, "query"), graph.number(width**-0.5))
  scores = graph.node(
    "MatMul",
    split(query, 0, 2, 1, 3),
    split(dense(hidden, "key"), 0, 2, 3, 1),
  )
  weights = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
  context = graph.node(
    "MatMul", weights, split(dense(hidden, "value"), 0, 2, 1, 3)
  )
  context = graph.node("Transpose", context, perm=(0, 2, 1, 3))
  context = graph.node("Reshape", context, graph.integers(0, 0, heads * width))
  context = graph.node("Add", asking, dense(context, "attention_output"))
  attended = graph.norm(
    context, f"{name}.norm", layer["attention_norm"], epsilon
  )
  inner = _activation(graph, config.hidden_act, dense(attended, "intermediate"))
  output = graph.node("Add", attended, dense(inner, "output"))
  norm = layer["output_norm"]
  return graph.norm(output, f"{name}.output_norm", norm, epsilon, out)


def _activation(graph: Graph, kind: str, x: str) -> str:
  """`bert.ACTIVATIONS`, from operators that opset 17 has."""

  def gate(inner: str) -> str:  # x (1 + inner) / 2
    sum_ = graph.node("Add", inner, graph.number(1.0))
    product = graph.node("Mul", x, sum_)
    return graph.node("Mul", product, graph.number(0.5))

  if kind == "gelu":
    # A division, as ONNX Runtime knows the operators that it fuses to Gelu.
    scaled = graph.node("Div", x, graph.number(math.sqrt(2)))
    return gate(graph.node("Erf", scaled))
  if kind in ("gelu_new", "gelu_pytorch_tanh"):
    cube = graph.node("Mul", x, graph.node("Mul", x, x))
    cube = graph.node("Mul", cube, graph.number(0.044715))
    inner = graph.node("Add", x, cube)
    scale = graph.number(math.sqrt(2 / math.pi))
    return gate(graph.node("Tanh", graph.node("Mul", inner, scale)))
  if kind == "relu":
    return graph.node("Relu", x)
  raise errors.InputError(
    f"hidden_act {kind!r} cannot be exported as an ONNX graph: it must be one"
    f" of {', '.join(encoder_config.ACTIVATIONS)}"
  )


def _vector(
  graph: Graph, model: Towers, kind: str, hidden: str, mask: str
) -> str:
  """Pooling, dense layers and normalisation, as `DualEncoder` has them."""
  encoder = model.encoder
  question = kind == dual_encoder.QUESTION
  skip = encoder.question_skip if question else encoder.passage_skip
  x = _pool(graph, encoder.pooling, hidden, mask, skip)
  for number, layer in enumerate(encoder.dense):
    name = pooling_layers.dense_name(number)
    x = graph.dense(x, name, parts.params(model, kind)[name])
    if layer.activation == "tanh":
      x = graph.node("Tanh", x)
  if encoder.normalize:
    squares = graph.node("Mul", x, x)
    total = graph.node("ReduceSum", squares, graph.integers(-1), keepdims=1)
    total = graph.node("Add", total, graph.number(1e-24))
    return graph.node("Div", x, graph.node("Sqrt", total), out=VECTOR)
  return graph.node("Identity", x, out=VECTOR)


def _pool(graph: Graph, pooling: str, hidden: str, mask: str, skip: int) -> str:
  """`pooling_layers.pool`: [batch, length, width] to [batch, width]."""
  if pooling == "cls":
    return graph.node("Gather", hidden, graph.integer(skip), axis=1)
  last, tokens = graph.integers(-1), graph.integers(1)
  # The place of every token in its text, from 1: [batch, length].
  places = graph.node("CumSum", mask, graph.integer(1))
  if skip:
    float_ = graph.onnx.TensorProto.FLOAT
    pooled = graph.node("Greater", places, graph.number(float(skip)))
    mask = graph.node("Mul", mask, graph.node("Cast", pooled, to=float_))
  if pooling == "max":
    padding = graph.node("Sub", graph.number(1.0), mask)
    low = graph.node("Mul", padding, graph.number(_MASKED))
    low = graph.node("Unsqueeze", low, last)
    shifted = graph.node("Add", hidden, low)
    return graph.node("ReduceMax", shifted, axes=[1], keepdims=0)
  weights = mask
  if pooling == "weightedmean":
    weights = graph.node("Mul", places, mask)
  elif pooling == "lasttoken":
    # The one token that has no other behind it.
    behind = graph.node("CumSum", mask, graph.integer(1), reverse=1)
    behind = graph.node("Sub", behind, mask)
    at_end = graph.node("Sub", graph.number(1.0), behind)
    weights = graph.node("Mul", mask, graph.node("Relu", at_end))
  each = graph.node("Unsqueeze", weights, last)
  product = graph.node("Mul", hidden, each)
  total = graph.node("ReduceSum", product, tokens, keepdims=0)
  count = graph.node("ReduceSum", weights, tokens, keepdims=1)
  count = graph.node("Max", count, graph.number(1.0))
  if pooling == "mean_sqrt_len":
    count = graph.node("Sqrt", count)
  return graph.node("Div", total, count)


def _model(graph: Graph, outputs: Mapping[str, list[Any]]) -> Any:
  """The finished model; outputs are shapes by name."""
  onnx = graph.onnx
  make, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
  model = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      "tower",
      [make(name, types.INT64, ["batch", "length"]) for name in INPUTS],
      [make(name, types.FLOAT, shape) for name, shape in outputs.items()],
      [
        onnx.numpy_helper.from_array(value, name)
        for name, value in graph.constants.items()
      ],
    ),
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="dpr-jax",
    producer_version=version.__version__,
  )
  return model
