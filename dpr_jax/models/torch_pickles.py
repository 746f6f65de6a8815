"""Unpickles what `torch.save` writes, without torch and without running code.

Input: a pickle of dicts of tensors, as it lies in a file of torch.  Output: the
same tree with a `Tensor` for each tensor, whose numbers are not read yet, and
with `Inert` objects for what weights do not need: optimizer settings,
`argparse.Namespace`, `omegaconf`.  Nothing is imported: a name stands for
nothing but what this module defines, and other names are refused.
"""

import dataclasses
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from dpr_jax.core import pickle_opcodes

Refused = pickle_opcodes.Refused
# More is in no file of weights: 30 kB hold the names and shapes of a BERT.
LARGEST = 16_000_000
_OPCODES = pickle_opcodes.PLAIN | {
  *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
  *("NEWOBJ", "BINPERSID", "EMPTY_SET", "ADDITEMS"),
}
_NEEDED_BY = "no file of weights"
_STORAGES = {
  "FloatStorage": np.dtype("float32"),
  "DoubleStorage": np.dtype("float64"),
  "HalfStorage": np.dtype("float16"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("int64"),
  "IntStorage": np.dtype("int32"),
  "ShortStorage": np.dtype("int16"),
  "CharStorage": np.dtype("int8"),
  "ByteStorage": np.dtype("uint8"),
  "BoolStorage": np.dtype("bool"),
}
_MOST_DIMENSIONS = 16
# Keys of dicts: an int of less than 60 bits is its own hash, so that no keys
# can be chosen to have the same; hashing nested tuples could take for ever.
_LARGEST_KEY = 1 << 60


@dataclasses.dataclass(frozen=True)
class Storage:
  """Numbers in a file that tensors are views of.

  Attributes:
    key: name in the file.
    dtype: dtype of the numbers, in this machine's byte order.
    count: how many there are.
  """

  key: str
  dtype: np.dtype
  count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset and strides count numbers."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def view(self, numbers: np.ndarray) -> np.ndarray:
    """The tensor, a view of its storage's numbers, [count]."""
    width = self.storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
      numbers[self.offset :],
      self.shape,
      [width * stride for stride in self.strides],
      writeable=False,
    )


class Inert:
  """An object of a class that weights do not need.

  Attributes:
    name: module and name of its class.
    state: what would be its attributes, or None.
  """

  __slots__ = ("name", "state")

  def __init__(self, name: str):
    self.name = name
    self.state: Any = None


class _Class:
  """A class or function whose objects are `Inert`."""

  __slots__ = ("name",)

  def __init__(self, name: str):
    self.name = name

  def __call__(self, *arguments: Any) -> Inert:
    return Inert(self.name)


class _Function:
  """A function that the pickle may call."""

  __slots__ = ("call",)

  def __init__(self, call: Callable[..., Any]):
    self.call = call

  def __call__(self, *arguments: Any) -> Any:
    return self.call(*arguments)


@dataclasses.dataclass(frozen=True)
class Pickled:
  """The content of a pickle.

  Attributes:
    tree: dicts, lists, numbers, `Tensor` and `Inert`.
    storages: all storages by key.
    length: bytes of the pickle.
  """

  tree: Any
  storages: dict[str, Storage]
  length: int


def load(data: bytes) -> Pickled:
  """Reads a pickle, which more data may follow.

  Raises:
    Refused: it needs anything else, or is damaged.
  """
  length = pickle_opcodes.check(data, _OPCODES, _NEEDED_BY)
  unpickler = _Unpickler(io.BytesIO(data))
  try:
    return Pickled(unpickler.load(), unpickler.storages, length)
  except (MemoryError, RecursionError):
    raise Refused("it needs too much memory") from None
  except Exception as error:  # a damaged pickle can raise anything
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise Refused(reason) from error


def _count(value: Any, name: str) -> int:
  """A whole number from 0 to 2 ** 48, which no product of a few overflows."""
  if type(value) is not int or not 0 <= value < 1 << 48:
    # The value is not named: a tower of tuples would be long to print.
    raise Refused(f"a tensor's {name} is no number from 0 to 2**48")
  return value


def _tensor(
  storage: Any, offset: Any, shape: Any, strides: Any, *more: Any
) -> Tensor:
  """A view of a storage that lies inside of it."""
  if not isinstance(storage, Storage):
    raise Refused("a tensor has no storage")
  if (
    not isinstance(shape, tuple)
    or not isinstance(strides, tuple)
    or len(shape) != len(strides)
    or len(shape) > _MOST_DIMENSIONS
  ):
    raise Refused("a tensor's shape or strides are no tuples of one length")
  offset = _count(offset, "offset")
  shape = tuple(_count(n, "size") for n in shape)
  strides = tuple(_count(n, "stride") for n in strides)
  elements = math.prod(shape)
  last = offset + sum(
    (n - 1) * stride for n, stride in zip(shape, strides, strict=True)
  )
  # A stride of 0 repeats numbers, which could make any size of a few of them.
  if elements and (last >= storage.count or elements > storage.count):
    raise Refused(
      f"a tensor of shape {shape} and strides {strides} at {offset} exceeds its"
      f" storage of {storage.count} numbers"
    )
  return Tensor(storage, min(offset, storage.count), shape, strides)


def _parameter(tensor: Any, *more: Any) -> Tensor:
  if not isinstance(tensor, Tensor):
    raise Refused("a parameter has no tensor")
  return tensor


def _ordered() -> dict:
  """An OrderedDict; its items are set one by one."""
  return {}


def _reconstructed(kind: Any, *more: Any) -> Inert:
  return Inert(kind.name if isinstance(kind, _Class) else "")


_NAMES = {
  ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
  ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
  ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
  ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
  ("collections", "OrderedDict"): _Function(_ordered),
  ("copyreg", "_reconstructor"): _Function(_reconstructed),
  ("copy_reg", "_reconstructor"): _Function(_reconstructed),
}
# Modules and names whose objects are inert; None = all names of the module.
_INERT: dict[str, set[str] | None] = {
  "argparse": {"Namespace"},
  "collections": {"defaultdict", "Counter"},
  "numpy": {"dtype", "ndarray"},
  "numpy.core.multiarray": {"scalar", "_reconstruct"},
  "numpy._core.multiarray": {"scalar", "_reconstruct"},
  "_codecs": {"encode"},
  "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
  "torch": {
    *("Size", "device", "float32", "float64", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
  },
  "torch.serialization": {"_get_layout"},
  "typing": {"Any"},
  "types": {"SimpleNamespace"},
}
_BUILTINS = {"dict", "list", "tuple", "set", "int", "float", "str", "bool"}
_INERT |= {"builtins": _BUILTINS, "__builtin__": _BUILTINS | {"unicode"}}
_INERT_PACKAGES = ("omegaconf",)


def _set(target: Any, key: Any, value: Any) -> None:
  """Sets an item of a dict, if hashing its key takes no time."""
  if isinstance(target, Inert):
    return
  if type(target) is not dict:
    raise Refused("it sets an item of something else than a dict")
  _check_key(key)
  target[key] = value


def _check_key(key: Any) -> None:
  if not (
    key is None
    or isinstance(key, str | bytes | bool)
    or (type(key) is int and abs(key) < _LARGEST_KEY)
  ):
    raise Refused(f"a dict has a key of the type {type(key).__name__}")


# Python's unpickler in Python: the one in C cannot check the keys of dicts.
class _Unpickler(pickle._Unpickler):
  """Knows the names above, and gives objects neither state nor items."""

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(self, file: io.BytesIO):
    super().__init__(file)
    self.storages: dict[str, Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    """What a name stands for; nothing is imported."""
    key = module, name
    if key in _NAMES:
      return _NAMES[key]
    if module in ("torch", "torch.cuda") and name in _STORAGES:
      return _STORAGES[name]
    if (
      name in _INERT.get(module, ())
      or module.partition(".")[0] in _INERT_PACKAGES
    ):
      return _Class(f"{module}.{name}")
    raise Refused(
      f"it asks for {module[:80]}.{name[:80]}, which no file of weights needs"
    )

  def persistent_load(self, pid: Any) -> Storage:
    """A storage: ("storage", type, key, device, count)."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
      raise Refused("it asks for something that is no storage of numbers")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(dtype, np.dtype) or not isinstance(key, str):
      raise Refused("a storage has no supported type, or no name")
    if any(x is not None for x in pid[5:]):
      raise Refused("a storage is a view of another: a format before torch 0.4")
    storage = Storage(key, dtype, _count(count, "storage's size"))
    if self.storages.setdefault(key, storage) != storage:
      raise Refused(f"storage {key[:80]!r} is of two types or sizes")
    return storage

  def load_setitem(self) -> None:
    """SETITEM."""
    value, key = self.stack.pop(), self.stack.pop()
    _set(self.stack[-1], key, value)

  def load_setitems(self) -> None:
    """SETITEMS."""
    items = self.pop_mark()
    if len(items) % 2:
      raise Refused("a dict has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set(self.stack[-1], key, value)

  def load_dict(self) -> None:
    """DICT."""
    items = self.pop_mark()
    self.append({})
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set(self.stack[-1], key, value)

  def load_additems(self) -> None:
    """ADDITEMS."""
    items = self.pop_mark()
    if type(self.stack[-1]) is not set:
      raise Refused("it adds to something else than a set")
    for item in items:
      _check_key(item)
      self.stack[-1].add(item)

  def load_newobj(self) -> None:
    """NEWOBJ."""
    self.load_reduce()

  def load_reduce(self) -> None:
    """REDUCE."""
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, _Class | _Function) or not isinstance(
      arguments, tuple
    ):
      raise Refused("it calls something that is no function")
    self.append(function(*arguments))

  def load_build(self) -> None:
    """BUILD: a dict's attributes are dropped, as `_metadata` of a module."""
    state = self.stack.pop()
    target = self.stack[-1]
    if isinstance(target, Inert):
      target.state = state
    elif type(target) is not dict:
      raise Refused("it gives a state to something that has none")

  def load_append(self) -> None:
    """APPEND."""
    value = self.stack.pop()
    self._extend([value])

  def load_appends(self) -> None:
    """APPENDS."""
    self._extend(self.pop_mark())

  def _extend(self, items: list[Any]) -> None:
    if type(self.stack[-1]) is list:
      self.stack[-1].extend(items)
    elif not isinstance(self.stack[-1], Inert):
      raise Refused("it appends to something else than a list")

  for _opcode, _load in (
    (pickle.SETITEM, load_setitem),
    (pickle.SETITEMS, load_setitems),
    (pickle.DICT, load_dict),
    (pickle.ADDITEMS, load_additems),
    (pickle.NEWOBJ, load_newobj),
    (pickle.REDUCE, load_reduce),
    (pickle.BUILD, load_build),
    (pickle.APPEND, load_append),
    (pickle.APPENDS, load_appends),
  ):
    dispatch[_opcode[0]] = _load
