"""Reads the files of `torch.save`: a pickle and raw numbers.

Input: a `pytorch_model.bin` or a `.cp` of DPR, as torch since 1.6 writes it (a
zip) or as torch before 1.6 did.  Output: the tree of the pickle
(`torch_pickles.py`), and the numbers of the tensors that are asked for, each
storage read once, straight into its array.  Members of a zip are neither
unpacked nor decompressed: torch stores them as they are, under names that are
only compared.
"""

import os
import pathlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from dpr_jax.models import torch_pickles
from dpr_jax.models.torch_pickles import Refused, Storage, Tensor

SUFFIXES = (".bin", ".cp", ".pt", ".pth", ".ckpt")
_CHUNK = 1 << 22
_LARGEST_DIRECTORY = 16_000_000
# The first two pickles of what torch before 1.6 wrote.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)
_LEGACY_START = b"\x80\x02\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


class TorchFile:
  """A file of `torch.save`.

  Attributes:
    path: path of the file.
    tree: what was saved, with `Tensor` for tensors.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the pickle of a file.

    Raises:
      Refused: the file is damaged, or not what torch saves.
      OSError: it cannot be read.
    """
    self.path = pathlib.Path(path)
    with open(self.path, "rb") as file:
      start = file.read(len(_LEGACY_START))
      self._kind = _Legacy if start == _LEGACY_START else _Zip
      self.tree = self._kind(file).tree

  def arrays(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The numbers of tensors of the tree; tensors may share memory.

    Raises:
      Refused: a storage is missing, damaged or of another size.
      OSError: the file cannot be read.
    """
    storages = {x.storage.key: x.storage for x in tensors.values()}
    wanted = sum(s.count * s.dtype.itemsize for s in storages.values())
    if wanted > (size := self.path.stat().st_size):
      raise Refused(f"its tensors have {wanted} bytes, the whole file {size}")
    with open(self.path, "rb") as file:
      content = self._kind(file)
      numbers = {key: content.numbers(s) for key, s in storages.items()}
    return {
      name: tensor.view(numbers[tensor.storage.key])
      for name, tensor in tensors.items()
    }


def _filled(blocks: Iterator[bytes], storage: Storage) -> np.ndarray:
  """The numbers of a storage from blocks of their bytes."""
  data = np.empty(storage.count * storage.dtype.itemsize, np.uint8)
  at = 0
  for block in blocks:
    data[at : at + len(block)] = np.frombuffer(block, np.uint8)
    at += len(block)
  if at != len(data):
    raise Refused(f"storage {storage.key} ends early: the file is truncated")
  return data.view(storage.dtype)


class _Zip:
  """The content of a file of torch since 1.6."""

  def __init__(self, file: BinaryIO):
    self._archive = _zip_file(file)
    self._members = _members(self._archive)
    self._swapped = self._is_swapped()
    pickled = self._info("data.pkl")
    if pickled.file_size > torch_pickles.LARGEST:
      raise Refused(
        f"data.pkl has {pickled.file_size} bytes; weights need less than"
        f" {torch_pickles.LARGEST}"
      )
    self.tree = torch_pickles.load(b"".join(self._blocks(pickled))).tree

  def numbers(self, storage: Storage) -> np.ndarray:
    """All numbers of a storage, [count]."""
    name = f"data/{storage.key}"
    info = self._info(name)
    width = storage.dtype.itemsize
    if info.file_size != width * storage.count:
      raise Refused(
        f"{name} has {info.file_size} bytes, not those of {storage.count}"
        f" {storage.dtype} numbers"
      )
    numbers = _filled(self._blocks(info), storage)
    if self._swapped and width > 1:
      numbers = numbers.view(np.uint8).reshape(-1, width)[:, ::-1]
      numbers = np.ascontiguousarray(numbers).reshape(-1).view(storage.dtype)
    return numbers

  def _is_swapped(self) -> bool:
    """True where numbers are not in this machine's byte order."""
    order = b"little"  # files of torch before 2.1 do not say it
    if "byteorder" in self._members:
      order = next(self._blocks(self._info("byteorder")), b"")[:20]
    if order not in (b"little", b"big"):
      raise Refused(f"its byte order is {order!r}")
    return (order == b"big") == (np.dtype("<u2") == np.dtype("u2"))

  def _info(self, name: str) -> zipfile.ZipInfo:
    """A member, which must be stored as it is."""
    info = self._members.get(name)
    if info is None:
      raise Refused(f"{name} is missing: the file is incomplete")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise Refused(f"{name} is compressed or encrypted, as torch never writes")
    return info

  def _blocks(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member, whose CRC is compared at its end."""
    try:
      with self._archive.open(info) as member:
        while block := member.read(_CHUNK):
          yield block
    except OSError:
      raise
    except Exception as error:  # what a damaged member makes zipfile raise
      raise Refused(f"{str(error)[:200]}: the file is damaged") from error


def _zip_file(file: BinaryIO) -> zipfile.ZipFile:
  """The zip of a file, whose directory is not longer than it may be."""
  file.seek(0)
  start = file.read(4)
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - 22))
  end = file.read()  # no comment follows, as zips may have
  if start != b"PK\x03\x04" or end[:4] != b"PK\x05\x06":
    raise Refused(
      "it is not a whole file of torch.save: it is truncated, or of another"
      " format"
    )
  (directory,) = struct.unpack("<I", end[12:16])
  if directory > _LARGEST_DIRECTORY:
    raise Refused(f"its directory has {directory} bytes")
  try:
    return zipfile.ZipFile(file)
  except OSError:
    raise
  except Exception as error:  # what a damaged directory makes zipfile raise
    raise Refused(f"{str(error)[:200]}: the file is damaged") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
  """Members by name in the only folder of the zip."""
  members: dict[str, zipfile.ZipInfo] = {}
  folders = set()
  for info in archive.infolist():
    folder, _, name = info.filename.partition("/")
    folders.add(folder)
    if name in members:
      raise Refused(f"{info.filename[:80]!r} is there twice")
    members[name] = info
  if len(folders) != 1:
    raise Refused("its members are not in one folder, as torch writes them")
  if "constants.pkl" in members:
    raise Refused("it is a TorchScript program, not weights")
  return members


class _Legacy:
  """The content of a file of torch before 1.6.

  Five pickles follow each other: two numbers, facts on the machine, the tree,
  and the keys of the storages.  Then come the storages in that order, each with
  its count before it.
  """

  def __init__(self, file: BinaryIO):
    self._file = file
    self._at = 0
    magic = self._next().tree, self._next().tree
    machine = self._next().tree
    if magic != _LEGACY or not isinstance(machine, dict):
      raise Refused("it is not a file of torch.save")
    if machine.get("little_endian") is not True:
      raise Refused("its numbers are big-endian, of torch before 1.6")
    pickled = self._next()
    self.tree = pickled.tree
    self._places = self._find(self._next().tree, pickled.storages)

  def _next(self) -> torch_pickles.Pickled:
    self._file.seek(self._at)
    pickled = torch_pickles.load(self._file.read(torch_pickles.LARGEST))
    self._at += pickled.length
    return pickled

  def _find(self, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin."""
    if not isinstance(keys, list) or len(keys) != len(storages):
      raise Refused("it does not list its storages")
    places = {}
    at = self._at
    for key in keys:
      if not isinstance(key, str) or key not in storages or key in places:
        raise Refused("it lists other storages than those of its tensors")
      self._file.seek(at)
      count = int.from_bytes(self._file.read(8), "little", signed=True)
      if count != storages[key].count:
        raise Refused(
          f"storage {key[:80]!r} has {count} numbers, not"
          f" {storages[key].count}: the file is damaged or truncated"
        )
      places[key] = at + 8
      at += 8 + count * storages[key].dtype.itemsize
    return places

  def numbers(self, storage: Storage) -> np.ndarray:
    """All numbers of a storage, [count]."""
    self._file.seek(self._places[storage.key])
    left = storage.count * storage.dtype.itemsize

    def blocks() -> Iterator[bytes]:
      nonlocal left
      while block := self._file.read(min(left, _CHUNK)):
        left -= len(block)
        yield block

    return _filled(blocks(), storage)
