"""Files of torch that want code, memory or time: refused, within bounds.

Each is read in a child, and says that it is refused; what the pickles may not
do is tested one by one in tests/models/test_torch_files.py.
"""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from dpr_jax.models import tensor_files
from tests.faults import children, hostile
from tests.faults.hostile import CANARY, MB


def _state(count, shape, strides, key=b"0"):
  """{"x": tensor} of a storage of float32."""
  numbers = [pickle.dumps(n, 2)[2:-1] for n in (count, 0, shape, strides)]
  return (
    b"\x80\x02}X\1\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storage"
    b"ctorch\nFloatStorage\nX\1\0\0\0" + key + b"X\3\0\0\0cpu" + numbers[0]
    + b"tQ" + numbers[1] + numbers[2] + numbers[3] + b"\x89}tRs."
  )  # fmt: skip


def _zip(path, pickled, data=b"", name="a/data/0", **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr("a/data.pkl", pickled, zipfile.ZIP_STORED)
    archive.writestr(name, data)


def _bomb(path):
  """A gigabyte of zeros in a megabyte."""
  with zipfile.ZipFile(
    path, "w", zipfile.ZIP_DEFLATED, compresslevel=9
  ) as archive:
    archive.writestr("a/data.pkl", _state(1 << 28, (1 << 28,), (1,)))
    with archive.open("a/data/0", "w", force_zip64=True) as member:
      for _ in range(1 << 10):
        member.write(bytes(1 << 20))


def _sizes_that_lie(path):
  """A member of 40 bytes, of which the directory says 4 GB."""
  _zip(path, _state(1 << 30, (1 << 30,), (1,)), bytes(40))
  data = bytearray(path.read_bytes())
  at = data.rindex(b"PK\x01\x02")
  data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
  path.write_bytes(data)


def _large_directory(path):
  """Half a million members."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/data.pkl", _state(1, (1,), (1,)))
    info = archive.infolist()[0]
    archive.filelist.extend([info] * 500_000)


def _legacy(path, pickled, count=10, numbers=bytes(40)):
  header = [pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001)]
  header.append(pickle.dumps({"little_endian": True}, 2))
  keys = pickle.dumps(["0"], 2)
  tail = pickled + keys + struct.pack("<q", count) + numbers
  path.write_bytes(b"".join(header) + tail)


CALL = pickle.dumps({"x": hostile.Call(os.system, f"touch {CANARY}")}, 2)
HOSTILE = {
  "system": lambda path: _zip(path, CALL),
  "system, before torch 1.6": lambda path: _legacy(path, CALL),
  "system as a whole file": lambda path: path.write_bytes(CALL),
  "bomb": _bomb,
  "sizes that lie": _sizes_that_lie,
  "large directory": _large_directory,
  "a giant storage": lambda path: _zip(
    path, _state(1 << 40, (1 << 40,), (1,)), bytes(40)
  ),
  "a giant storage, before torch 1.6": lambda path: _legacy(
    path, _state(1 << 40, (1 << 40,), (1,)), 1 << 40
  ),
  "less than nothing, before torch 1.6": lambda path: _legacy(
    path, _state(10, (10,), (1,)), -1
  ),
  "repeated for ever": lambda path: _zip(
    path, _state(10, (1 << 40,), (0,)), bytes(40)
  ),
  "a name that leads out": lambda path: _zip(
    path, _state(10, (10,), (1,)), bytes(40), name="../data/0"
  ),
  "an absolute name": lambda path: _zip(
    path, _state(10, (10,), (1,)), bytes(40), name="/a/data/0"
  ),
  "15 million empty lists": lambda path: _zip(
    path, b"\x80\x02" + b"]" * 15_000_000 + b"."
  ),
  "a pickle of 17 MB": lambda path: _zip(path, b"\x80\x02" + b"0" * 17 * MB),
  "a tower of tuples as a key": lambda path: _zip(
    path, b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s."
  ),
}


@pytest.mark.processes
@pytest.mark.fault_row(12)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_torch_files_are_refused(tmp_path, monkeypatch, name):
  """One clear error; no canary; memory of twice the file and 200 MB."""
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "pytorch_model.bin"
  HOSTILE[name](path)

  message = hostile.refusal(lambda: tensor_files.read_tensors(tmp_path), path)
  assert message.startswith(f"{path} cannot be read: ")


@pytest.mark.processes
@pytest.mark.parametrize("legacy", [False, True])
def test_memory_of_honest_weights(tmp_path, legacy):
  """60 MB of weights: the file's own size once, and some."""
  path = tmp_path / "pytorch_model.bin"
  count = 15_000_000
  pickled = _state(count, (count // 100, 100), (100, 1))
  if legacy:
    _legacy(path, pickled, count, bytes(4 * count))
  else:
    _zip(path, pickled, bytes(4 * count))

  def call():
    array = tensor_files.read_tensors(tmp_path)["x"]
    return [array.shape, float(np.sum(array[:10]))]

  result, _, grew = children.in_child(call)
  assert result == [[count // 100, 100], 0.0]
  assert grew <= 1.5 * path.stat().st_size, f"{grew / MB:.0f} MB"
