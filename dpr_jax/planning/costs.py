"""Costs of a compiled program: FLOPs of its matrix products, HBM traffic.

Only matrix products count as FLOPs (the TPU compiler turns all of them into
convolutions); elementwise operations are cheap in comparison or limited by
memory.  The traffic of an operation is what it reads from and writes to HBM; if
it reads only a slice of an array, the size of the slice.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from dpr_jax.planning import hlo

_FREE = {
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while",
  "conditional", "call", "after-all", "iota", "partition-id", "replica-id",
  "opt-barrier",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice",)


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of the program; a fusion counts as one operation.

  Attributes:
    name: name of the instruction.
    flops: FLOPs of one execution.
    bytes: bytes between HBM and the device in one execution.
    times: number of executions in one call of the program.
  """

  name: str
  flops: int
  bytes: int
  times: int


def operations(program: hlo.Program) -> list[Operation]:
  """All operations of a program that take time, except collectives."""
  times = program.times()
  fused = {
    callee
    for lines in program.computations.values()
    for one in lines.values()
    if one.opcode not in ("while", "conditional", "call")
    for callee in one.called()
  }
  flops: dict[str, int] = {}
  found = []
  for name, lines in program.computations.items():
    if not times[name] or name in fused:
      continue
    for one in lines.values():
      kind = one.opcode.removesuffix("-start").removesuffix("-done")
      if one.opcode in _FREE or kind in hlo.COLLECTIVES:
        continue
      found.append(
        Operation(
          one.name,
          _flops(program, one, lines, flops),
          _traffic(program, one, lines),
          times[name],
        )
      )
  return found


def _flops(program, one, lines, known: dict[str, int]) -> int:
  if one.opcode == "convolution":
    return convolution_flops(one, lines)
  if one.opcode == "dot":
    return _dot_flops(one, lines)
  if one.opcode == "custom-call":  # a kernel declares its own cost
    said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', one.text)
    return int(said[1]) if said else 0
  total = 0
  for callee in one.called():
    if callee not in known:
      inner = program.computations.get(callee, {})
      known[callee] = sum(
        _flops(program, each, inner, known) for each in inner.values()
      )
    total += known[callee]
  return total


def _dot_flops(one, lines) -> int:
  left = lines[one.operands[0]].shapes[0]
  axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
  inner = math.prod(left.sizes[int(n)] for n in axes[1].split(",") if n)
  return 2 * math.prod(one.shapes[0].sizes) * inner


def convolution_flops(
  one: hlo.Instruction, lines: Mapping[str, hlo.Instruction]
) -> int:
  """FLOPs of a convolution, without products with padding zeros.

  Args:
    one: instruction.
    lines: its computation by names, which has the shapes of the operands.
  """
  left, right = (lines[name].shapes[0].sizes for name in one.operands[:2])
  output = one.shapes[0].sizes
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
  of_left, of_right, of_output = labels.groups()
  window = _window(one.text)
  pairs = 1
  for number in range(sum(letter.isdigit() for letter in of_output)):
    label = str(number)
    pairs *= _valid_pairs(
      left[of_left.index(label)],
      output[of_output.index(label)],
      right[of_right.index(label)],
      {key: values[number] for key, values in window.items()},
    )
  batch = output[of_output.index("b")]
  features = output[of_output.index("f")]
  inner = right[of_right.index("i")]
  return 2 * batch * features * inner * pairs


def _window(text: str) -> dict[str, list[str]]:
  match = re.search(r"window=\{([^}]*)\}", text)
  fields = dict(f.split("=") for f in match[1].split()) if match else {}
  return {key: value.split("x") for key, value in fields.items()}


def _valid_pairs(size: int, outputs: int, taps: int, window: dict) -> int:
  """Number of (output, filter tap) pairs along one axis with a real input.

  Output o and tap t read position o * stride + t * spread - low of the input,
  which is dilated by `holes`.  Padding zeros and dilation holes do not count.

  Args:
    size: size of the input along the axis.
    outputs: size of the output.
    taps: size of the filter.
    window: XLA's attributes of this axis.
  """
  stride = int(window.get("stride", 1))
  low = int(window.get("pad", "0_0").split("_")[0])
  holes = int(window.get("lhs_dilate", 1))
  spread = int(window.get("rhs_dilate", 1))
  count = 0
  for tap in range(taps):
    # A position is real if it is a multiple of `holes` from 0 to
    # (size - 1) * holes.
    offset = tap * spread - low
    if holes == 1:
      first = max(0, -(offset // stride) if offset < 0 else 0)
      last = min(outputs - 1, (size - 1 - offset) // stride)
      count += max(0, last - first + 1)
    else:
      count += sum(
        0 <= place < size * holes and place % holes == 0
        for place in range(offset, offset + outputs * stride, stride)
      )
  return count


def _traffic(program, one, lines) -> int:
  """Bytes of one operation's operands and results in HBM."""
  if one.opcode.endswith("-done"):
    return 0
  if one.opcode in ("copy-start", "slice-start", "async-start"):
    results = [s for s in one.shapes if s.dtype not in ("u32", "s32")]
    moved = min((s.bytes for s in results if s.sizes), default=0)
    ends = sum(not s.on_chip for s in results[:2])
    return moved * ends
  inner = {}
  if one.opcode == "fusion":
    inner = program.computations.get(one.called()[0], {})
  total = 0
  operands = list(enumerate(one.operands))
  if one.opcode == "custom-call":  # may list the same array several times
    operands = list({name: (n, name) for n, name in operands}.values())
  for number, name in operands:
    if name in lines and lines[name].shapes:
      shape = lines[name].shapes[0]
      if not shape.on_chip:
        total += _read(program, one, inner, number, shape.bytes)
  for number, shape in enumerate(one.shapes):
    if not shape.on_chip:
      total += _written(one, inner, number, lines, shape.bytes)
  return total


def _read(program, one, inner, number: int, size: int) -> int:
  """Bytes read of one operand; the size of the slice if only one is read."""
  if one.opcode in _SLICES and number == 0:
    return one.shapes[0].bytes
  if one.opcode in _UPDATES and number == 0:
    return 0
  parameter = next(
    (
      each.name
      for each in inner.values()
      if each.opcode == "parameter" and each.text.startswith(f"{number})")
    ),
    None,
  )
  names, uses = {parameter}, []
  for each in inner.values():  # follow bitcasts, which do not copy
    if names & set(each.operands):
      if each.opcode == "bitcast":
        names.add(each.name)
      else:
        uses.append(each)
  if parameter is None or not uses:
    return size
  parts = 0
  for use in uses:
    if use.opcode in _SLICES and use.operands[0] in names:
      parts += use.shapes[0].bytes
    elif use.opcode == "fusion":
      within = program.computations.get(use.called()[0], {})
      for place, name in enumerate(use.operands):
        if name in names:
          parts += _read(program, use, within, place, size)
    elif not (use.opcode in _UPDATES and use.operands[0] in names):
      return size
  return min(parts, size)


def _written(one, inner, number: int, lines, size: int) -> int:
  """Bytes written of one result; the size of the part for in-place updates."""
  if one.opcode in _UPDATES:
    return lines[one.operands[1]].shapes[0].bytes
  root = next((each for each in inner.values() if each.root), None)
  if root is not None and root.opcode == "tuple":
    root = inner.get(root.operands[number])
  while root is not None and root.opcode == "bitcast":
    root = inner.get(root.operands[0])
  if root is not None and root.opcode in _UPDATES:
    return min(inner[root.operands[1]].shapes[0].bytes, size)
  return size
