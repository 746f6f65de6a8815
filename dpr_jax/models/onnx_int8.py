"""ONNX graphs with weights in 8 bits, for CPUs.

`Graph` replaces the matrix products with weights by integer products: weights
are quantised here, per output channel; inputs when the graph runs ("dynamic"),
to unsigned 8 bits with one scale per call.  Only standard operators of opset
17; ONNX Runtime fuses them to `DynamicQuantizeMatMul`.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from dpr_jax.models import onnx_graph

# Weights have 7 bits and a sign bit less: two products of uint8 and int8 are
# added in 16 bits on processors without VNNI, which 2 * 255 * 127 overflows
# and 2 * 255 * 63 does not.
LARGEST = 63
_TABLE = 127  # rows of embeddings are not multiplied


@dataclasses.dataclass
class Graph(onnx_graph.Graph):
  """A graph with integer products.

  Attributes:
    tables: whether word embeddings have 8 bits too, for a smaller file.
  """

  tables: bool = False
  _inputs: dict[str, tuple[str, str, str]] = dataclasses.field(
    default_factory=dict
  )

  def product(self, x: str, name: str, kernel: Any) -> str:
    """`x @ kernel`, in integers."""
    # Per output channel: [inputs, outputs], [outputs].
    weights, scales = quantized(np.asarray(kernel, np.float32), 0, LARGEST)
    self.constants[f"{name}.w"] = weights
    self.constants[f"{name}.zero"] = np.zeros(scales.shape, np.int8)
    values, step, zero = self._quantize(x)
    product = self.node(
      "MatMulInteger", values, f"{name}.w", zero, f"{name}.zero"
    )
    product = self.node("Cast", product, to=self.onnx.TensorProto.FLOAT)
    scale = self.node("Mul", step, self.weight(f"{name}.scale", scales))
    return self.node("Mul", product, scale)

  def rows(self, name: str, table: Any, ids: str) -> str:
    """The rows `ids` of a table, each with a scale of its own."""
    if not self.tables:
      return super().rows(name, table, ids)
    values, scales = quantized(np.asarray(table, np.float32), 1, _TABLE)
    self.constants[f"{name}.rows"] = values
    scale = self.node("Gather", self.weight(f"{name}.scales", scales), ids)
    scale = self.node("Unsqueeze", scale, self.integers(-1))
    found = self.node("Gather", f"{name}.rows", ids)
    found = self.node("Cast", found, to=self.onnx.TensorProto.FLOAT)
    return self.node("Mul", found, scale)

  def _quantize(self, x: str) -> tuple[str, str, str]:
    """Values, scale and zero point of an input, once per input."""
    if x not in self._inputs:
      outputs = f"{x}.values", f"{x}.step", f"{x}.zero"
      self.nodes.append(
        self.onnx.helper.make_node("DynamicQuantizeLinear", [x], outputs)
      )
      self._inputs[x] = outputs
    return self._inputs[x]


def quantized(
  matrix: Float[np.ndarray, "rows columns"], axis: int, largest: int
) -> tuple[Int8[np.ndarray, "rows columns"], Float[np.ndarray, " scales"]]:
  """Rounds a matrix to int8, symmetric.

  Args:
    matrix: the weights.
    axis: axis that shares a scale: 0 = a scale per column, 1 = per row.
    largest: largest absolute value of the result, at most 127.

  Returns:
    Integers, and the scales that multiply them; 1 where all weights are 0.
  """
  scales = np.abs(matrix).max(axis=axis) / np.float32(largest)
  scales = np.where(scales > 0, scales, np.float32(1))
  integers = np.rint(matrix / np.expand_dims(scales, axis))
  return integers.astype(np.int8), scales
