"""Parses the HLO text of a compiled program: instructions, loops, collectives.

XLA's own cost analysis counts a loop body once and does not count collectives.
Here every instruction counts as often as it runs: the trip count of every
`while` is in the text.  The text is that of the optimized program of one
device.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
  "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "token": 0,
}  # fmt: skip
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w-]*)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NUMBER = re.compile(r"^(\d+)\)")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|called_computations)"
  r"=\{?((?:%[\w.-]+(?:, )?)+)\}?"
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of one array.

  Attributes:
    dtype: XLA's name, such as "bf16".
    sizes: sizes of the axes.
    on_chip: whether the array is in vector memory instead of HBM.
  """

  dtype: str
  sizes: tuple[int, ...]
  on_chip: bool = False

  @property
  def bytes(self) -> int:
    """Number of bytes, without padding to tiles."""
    return _BYTES.get(self.dtype, 4) * math.prod(self.sizes)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction (line) of a computation.

  Attributes:
    name: name, unique in the program.
    opcode: operation, such as "fusion".
    shapes: shapes of the result; several for a tuple.
    operands: names of the operands.
    text: text after the operands, which contains the attributes.
    root: whether it is the result of the computation.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  text: str
  root: bool

  def called(self) -> list[str]:
    """Names of the computations that it calls."""
    return [
      name.strip().lstrip("%")
      for match in _CALLED.finditer(self.text)
      for name in match[1].split(",")
    ]


@dataclasses.dataclass(frozen=True)
class Collective:
  """A transfer between devices.

  Attributes:
    kind: one of COLLECTIVES.
    shapes: shapes of the whole arrays: after a gather, before a scatter.
    times: number of executions in a step.
    where: JAX operation that it comes from, "" = not known.
  """

  kind: str
  shapes: tuple[Shape, ...]
  times: int
  where: str

  @property
  def bytes(self) -> int:
    """Number of bytes of one execution."""
    return sum(shape.bytes for shape in self.shapes)


class Program:
  """The computations of a compiled program."""

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
      if current is None:
        header = _HEADER.match(line)
        if header:
          current = self.computations[header[2]] = {}
          if header[1]:
            self.entry = header[2]
      elif line.startswith("}"):
        current = None
      else:
        parsed = _parse_line(line)
        if parsed:
          current[parsed.name] = parsed

  def times(self) -> Mapping[str, int]:
    """Number of executions of each computation in one call of the program."""
    found: collections.Counter = collections.Counter()

    def visit(name: str, count: int) -> None:
      found[name] += count
      for one in self.computations.get(name, {}).values():
        trips = 1
        if one.opcode == "while":
          trips = self._trips(one)
        for callee in one.called():
          visit(callee, count * trips)

    visit(self.entry, 1)
    return found

  def _trips(self, one: Instruction) -> int:
    """Number of iterations of a loop.

    The TPU compiler keeps the count in the condition: counter < constant.

    Raises:
      ValueError: the count is neither an attribute nor in the condition.
    """
    known = _TRIPS.search(one.text)
    if known:
      return int(known[1])
    name = re.search(r"condition=%([\w.-]+)", one.text)
    condition = self.computations[name[1]] if name else {}
    for line in condition.values():
      if line.root and "direction=LT" in line.text:
        limit = condition[line.operands[1]]
        number = _NUMBER.match(limit.text)
        if limit.opcode == "constant" and number:
          return int(number[1])
    raise ValueError(f"{one.name}: the trip count of this loop is not known")

  def collectives(self) -> list[Collective]:
    """Every collective once, with its number of executions.

    The compiler may split a collective into a chain of fusions to overlap it
    with other work; a chain counts as one collective.
    """
    times = self.times()
    found: dict[str, Collective] = {}
    for name, lines in self.computations.items():
      if not times[name]:
        continue
      for one in lines.values():
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
          continue
        chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', one.text)
        key = f"{kind} {chain.groups()}" if chain else one.name
        origin = re.search(r'op_name="([^"]*)"', one.text)
        shapes = [
          lines[operand].shapes[0]
          for operand in one.operands
          if operand in lines and lines[operand].shapes
        ]
        if kind in ("all-gather",):
          shapes = list(one.shapes)
          if one.opcode.endswith("-start"):
            shapes = shapes[len(shapes) // 2 :]
        if kind in ("all-reduce", "collective-permute") and not shapes:
          shapes = list(one.shapes)
        earlier = found.get(key)
        count = max(times[name], earlier.times if earlier else 0)
        found[key] = Collective(
          kind, tuple(shapes), count, origin[1] if origin else ""
        )
    return list(found.values())


def _parse_line(line: str) -> Instruction | None:
  match = _LINE.match(re.sub(r"/\*.*?\*/", "", line))
  if match is None:
    return None
  name, rest = match.groups()
  end = _closing(rest, 0) + 1 if rest.startswith("(") else 0
  opcode = _OPCODE.search(rest, end)
  if opcode is None:
    return None
  shape, rest, opcode = rest[: opcode.start()], opcode[2], opcode[1]
  end = _closing(rest, 1)
  inside = rest[:end]
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=tuple(_shapes(shape)),
    operands=tuple(re.findall(r"%([\w.-]+)", inside)),
    text=rest if opcode in ("parameter", "constant") else rest[end:],
    root=line.lstrip().startswith("ROOT"),
  )


def _closing(text: str, depth: int) -> int:
  """Index of the closing bracket of the outermost pair.

  Args:
    text: text to scan.
    depth: number of brackets already open at its start.
  """
  for place, letter in enumerate(text):
    depth += {"(": 1, ")": -1}.get(letter, 0)
    if depth == 0:
      return place
  return len(text)


def _shapes(text: str) -> list[Shape]:
  return [
    Shape(
      match[1],
      tuple(int(n) for n in match[2].split(",") if n),
      "S(1)" in (match[3] or ""),
    )
    for match in _SHAPE.finditer(text)
  ]
