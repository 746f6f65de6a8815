"""Files of `torch.save`: the same numbers, without torch."""

import argparse
import collections
import io
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from dpr_jax.models import torch_files, torch_pickles
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch takes seconds


@pytest.fixture(scope="module")
def torch():
  return layout_writers.torch_library()


def _save(torch, path, value, legacy=False):
  torch.save(value, path, _use_new_zipfile_serialization=not legacy)
  return torch_files.TorchFile(path)


def _tensors(torch):
  """Views, dtypes and kinds of tensors that torch writes in different ways."""
  big = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  return {
    "whole": big,
    "transposed": big.t(),
    "window": big[1:3, 2:5],
    "steps": big[:, ::2],
    "repeated": torch.arange(5).expand(1, -1),
    "half": big.half(),
    "brain": big.bfloat16() / 3,
    "double": big.double(),
    "int": big.int(),
    "byte": big.byte(),
    "bool": big > 3,
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(big),
  }


@pytest.mark.parametrize("legacy", [False, True])
def test_the_same_numbers(tmp_path, torch, legacy):
  """Of both formats of torch, for every dtype, stride and offset."""
  tensors = _tensors(torch)
  file = _save(torch, tmp_path / "a.bin", tensors, legacy)
  assert sorted(file.tree) == sorted(tensors)
  arrays = file.arrays(file.tree)
  for name, tensor in tensors.items():
    tensor = tensor.detach()
    brain = tensor.dtype == torch.bfloat16
    expected = (tensor.float() if brain else tensor).numpy()
    assert arrays[name].shape == expected.shape, name
    if not brain:
      assert arrays[name].dtype == expected.dtype, name
    np.testing.assert_array_equal(arrays[name].astype(expected.dtype), expected)
  assert arrays["brain"].dtype.name == "bfloat16"
  some = file.arrays({"x": file.tree["window"]})
  assert some["x"].tolist() == [[8.0, 9.0, 10.0], [14.0, 15.0, 16.0]]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_weights_do_not_need(tmp_path, torch, legacy):
  """Optimizer, settings and objects of known classes change nothing."""
  model = torch.nn.Linear(3, 4)
  optimizer = torch.optim.AdamW(model.parameters())
  model(torch.ones(2, 3)).sum().backward()
  optimizer.step()
  tree = {
    "model": model.state_dict(),
    "optimizer": optimizer.state_dict(),
    "namespace": argparse.Namespace(rate=2e-5, name="x"),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "size": torch.Size([1, 2]),
    "number": np.float64(3),
    "array": np.arange(3),
    "set": {1, 2},
    "default": collections.defaultdict(dict, {"a": 1}),
    "path": pathlib.PurePosixPath("/a"),
    3: None,
  }
  file = _save(torch, tmp_path / "a.bin", tree, legacy)
  assert sorted(file.tree["model"]) == ["bias", "weight"]
  arrays = file.arrays(file.tree["model"])
  np.testing.assert_array_equal(arrays["weight"], model.weight.detach().numpy())
  moments = file.tree["optimizer"]["state"][0]
  np.testing.assert_array_equal(
    file.arrays({"m": moments["exp_avg"]})["m"],
    optimizer.state_dict()["state"][0]["exp_avg"].numpy(),
  )
  assert file.tree["namespace"].name == "argparse.Namespace"
  assert file.tree["namespace"].state == {"rate": 2e-5, "name": "x"}
  for name in ("device", "size", "number", "array", "path"):
    assert isinstance(file.tree[name], torch_pickles.Inert), name


def test_other_byte_order(tmp_path, torch):
  """A file of a big-endian machine, made from one of this machine."""
  path = tmp_path / "a.bin"
  tensors = {"x": torch.arange(6.0), "y": torch.arange(3), "z": torch.ones(2)}
  tensors["b"] = torch.tensor([1.5, -2.0]).bfloat16()
  torch.save(tensors, path)
  with zipfile.ZipFile(path) as archive:
    members = [(x.filename, archive.read(x)) for x in archive.infolist()]
  file = torch_files.TorchFile(path)
  widths = {x.storage.key: x.storage.dtype.itemsize for x in file.tree.values()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in members:
      last = name.rpartition("/")[2]
      if name.endswith("/byteorder"):
        data = b"big"
      elif "/data/" in name:
        array = np.frombuffer(data, np.uint8).reshape(-1, widths[last])
        data = array[:, ::-1].tobytes()
      archive.writestr(name, data)
  file = torch_files.TorchFile(path)
  arrays = file.arrays(file.tree)
  for name, tensor in tensors.items():
    assert arrays[name].astype(float).tolist() == tensor.tolist(), name


def test_a_flipped_bit_of_a_tensor_is_noticed(tmp_path, torch):
  path = tmp_path / "a.bin"
  file = _save(torch, path, {"x": torch.full((1000,), 1.5)})
  data = bytearray(path.read_bytes())
  at = data.index(np.full(10, 1.5, np.float32).tobytes())
  data[at + 400] ^= 1
  path.write_bytes(data)
  with pytest.raises(torch_files.Refused, match="Bad CRC-32"):
    file.arrays(file.tree)


def _rewritten(path, change, **options):
  """The zip with its members changed: `change` maps names to new members."""
  with zipfile.ZipFile(path) as archive:
    members = [(x.filename, archive.read(x)) for x in archive.infolist()]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of members of the same name
    with zipfile.ZipFile(path, "w", **options) as archive:
      for name, data in change(members):
        archive.writestr(name, data)


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    (lambda m: [*m, m[0]], {}, "'a/data.pkl' is there twice"),
    (lambda m: [*m, ("../x", b"")], {}, "members are not in one folder"),
    (lambda m: [*m, ("/etc/x", b"")], {}, "members are not in one folder"),
    (lambda m: m[1:], {}, "data.pkl is missing"),
    (lambda m: m, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
    (lambda m: [*m, ("a/constants.pkl", b"")], {}, "a TorchScript program"),
    (
      lambda m: [(n, b"odd" if "byteorder" in n else d) for n, d in m],
      {},
      "byte order is b'odd'",
    ),
    (
      lambda m: [(n, bytes(17_000_000) if "pkl" in n else d) for n, d in m],
      {},
      "data.pkl has 17000000 bytes",
    ),
  ],
)
def test_other_zips(tmp_path, torch, change, options, message):
  path = tmp_path / "a.bin"
  torch.save({"x": torch.ones(3)}, path)
  _rewritten(path, change, **options)
  with pytest.raises(torch_files.Refused, match=message):
    torch_files.TorchFile(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda n, d: b"" if n == "a/data/0" else d, "4000 bytes, the whole file"),
    (lambda n, d: d[:-4] if n == "a/data/0" else d, "has 3996 bytes"),
  ],
)
def test_storages_of_another_size(tmp_path, torch, change, message):
  path = tmp_path / "a.bin"
  torch.save({"x": torch.ones(1000)}, path)
  _rewritten(path, lambda m: [(n, change(n, d)) for n, d in m])
  file = torch_files.TorchFile(path)
  with pytest.raises(torch_files.Refused, match=message):
    file.arrays(file.tree)


def _read_all(path):
  file = torch_files.TorchFile(path)
  return file.arrays(file.tree)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path, torch, legacy):
  """Cut anywhere, a file is refused."""
  path = tmp_path / "a.bin"
  torch.save(
    {"x": torch.ones(50)}, path, _use_new_zipfile_serialization=not legacy
  )
  data = path.read_bytes()
  for length in [*range(0, len(data), 7), len(data) - 1]:
    path.write_bytes(data[:length])
    with pytest.raises(torch_files.Refused):
      _read_all(path)


class _Call:
  """Pickled, it is a call."""

  def __init__(self, function, *arguments):
    self._reduced = function, arguments

  def __reduce__(self):
    return self._reduced


def _storage(count=10, kind="FloatStorage", key="0", mark="storage"):
  """A persistent id as a pickle of protocol 2."""
  return (
    f"(X{chr(len(mark))}\0\0\0{mark}ctorch\n{kind}\nX\1\0\0\0{key}".encode()
    + b"X\3\0\0\0cpu"
    + pickle.dumps(count, 2)[2:-1]
    + b"tQ"
  )


def _tensor(shape, strides, offset=0, storage=None):
  """A pickle of {"x": tensor}."""
  return (
    b"\x80\x02}X\1\0\0\0xctorch._utils\n_rebuild_tensor_v2\n("
    + (storage or _storage())
    + b"".join(pickle.dumps(x, 2)[2:-1] for x in (offset, shape, strides))
    + b"\x89}tRs."
  )


TOWER = b"K\x01" + b"2\x86" * 60  # a tuple of 2**60 numbers
GOOD = _tensor((2, 3), (3, 1))
HOSTILE = {
  "code": (pickle.dumps({"x": _Call(exec, "1")}, 2), "__builtin__.exec"),
  "code, protocol 4": (pickle.dumps(_Call(print, "1")), "asks for builtins"),
  "getattr": (pickle.dumps(_Call(getattr, 1, "x"), 2), "__builtin__.getattr"),
  "a name of torch": (b"ctorch\nload\n.", "asks for torch.load"),
  "a call of a dict": (b"})R.", "calls something that is no function"),
  "a call of a dtype": (
    b"ctorch\nFloatStorage\n)R.",
    "calls something that is no function",
  ),
  "state for a function": (
    b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "gives a state to something",
  ),
  "INST": (b"(S'x'\nios\nsystem\n.", "INST at byte 6: no file of weights"),
  "OBJ": (b"(cos\nsystem\nS'x'\no.", "OBJ at byte 17: no file of weights"),
  "extension": (b"\x80\x02\x82\x01.", "EXT1 at byte 2"),
  "text persistent id": (b"Pcanary\n.", "PERSID at byte 0"),
  "another persistent id": (
    _tensor((1,), (1,), storage=_storage(mark="module")),
    "something that is no storage",
  ),
  "a storage of no type": (
    _tensor((1,), (1,), storage=_storage(kind="device")),
    "no supported type",
  ),
  "a storage of two sizes": (
    b"(" + _storage(3) + _storage(4) + b"t.",
    "'0' is of two types or sizes",
  ),
  "a storage of less than nothing": (
    _tensor((1,), (1,), storage=_storage(-1)),
    "storage's size is no number",
  ),
  "a giant storage": (
    _tensor((1,), (1,), storage=_storage(1 << 60)),
    "storage's size is no number",
  ),
  "offset beyond the end": (_tensor((1,), (1,), 10), "exceeds its storage"),
  "negative offset": (_tensor((1,), (1,), -1), "offset is no number"),
  "shape beyond the end": (_tensor((11,), (1,)), "exceeds its storage"),
  "strides beyond the end": (_tensor((2, 2), (9, 1)), "exceeds its storage"),
  "negative stride": (_tensor((2,), (-1,)), "stride is no number"),
  "negative size": (_tensor((-2,), (1,)), "size is no number"),
  "repeated for ever": (_tensor((1 << 40,), (0,)), "exceeds its storage"),
  "product that overflows": (
    _tensor((1 << 32, 1 << 32), (0, 0)),
    "exceeds its storage",
  ),
  "many dimensions": (_tensor((1,) * 17, (1,) * 17), "shape or strides"),
  "lengths that differ": (_tensor((1, 1), (1,)), "shape or strides"),
  "a number as shape": (_tensor(3, (1,)), "shape or strides"),
  "hash of a tower of tuples": (
    b"\x80\x02}" + TOWER + b"K\x01s.",
    "key of the type tuple",
  ),
  "set of a tower of tuples": (
    b"\x80\x04\x8f(" + TOWER + b"\x90.",
    "key of the type tuple",
  ),
  "tower of tuples as a size": (
    GOOD.replace(pickle.dumps((2, 3), 2)[2:-1], TOWER + b"\x85"),
    "shape or strides|size is no number",
  ),
  "keys of one hash": (
    b"\x80\x02}" + pickle.dumps((1 << 61) - 1, 2)[2:-1] + b"K\x01s.",
    "key of the type int",
  ),
  "a dict within itself": (b"\x80\x02}q\0X\1\0\0\0xh\0s.", None),
  "memo far away": (b"Nr\xff\xff\xff\x0f.", "more memory than twice"),
  "BINBYTES8": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\0x.", "extends to byte"),
  "FRAME": (b"\x80\x04\x95" + b"\xff" * 7 + b"\0N.", "extends to byte"),
  "odd items": (b"\x80\x02}(K\x01u.", "a key without a value"),
  "items of a list": (b"\x80\x02](K\x01K\x02u.", "something else than a dict"),
  "appended to a dict": (b"\x80\x02}K\x01a.", "something else than a list"),
  "nothing on the stack": (b"\x80\x02.", "pop from empty list"),
  "no end": (b"\x80\x02}", "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name):
  """Refused with the reason, whatever they are."""
  data, message = HOSTILE[name]
  if message is None:
    torch_pickles.load(data)
    return
  with pytest.raises(torch_pickles.Refused, match=message) as caught:
    torch_pickles.load(data)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 500


def test_a_good_pickle_of_our_own():
  """What the hostile ones are made from is accepted."""
  pickled = torch_pickles.load(GOOD)
  storage = torch_pickles.Storage("0", np.dtype("float32"), 10)
  assert pickled.tree == {"x": torch_pickles.Tensor(storage, 0, (2, 3), (3, 1))}
  assert pickled.storages == {"0": storage}
  assert pickled.length == len(GOOD)
  assert torch_pickles.load(GOOD + b"more") == pickled


def test_weights_that_claim_more_than_the_file(tmp_path):
  """Members that overlap in the file could be read for ever."""
  path = tmp_path / "a.bin"
  numbers = bytes(4000)
  pickled = io.BytesIO()
  pickled.write(b"\x80\x02}(")
  for number in range(60):
    storage = _storage(1000, key=chr(33 + number))
    pickled.write(b"K" + bytes([number]))
    pickled.write(
      _tensor((1000,), (1,), storage=storage)[len(b"\x80\x02}X\1\0\0\0x") : -2]
    )
  pickled.write(b"u.")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/data.pkl", pickled.getvalue())
    archive.writestr("a/data/!", numbers)
    first = archive.getinfo("a/data/!")
    for number in range(1, 60):
      copy = zipfile.ZipInfo(f"a/data/{chr(33 + number)}")
      for key in ("CRC", "file_size", "compress_size", "header_offset"):
        setattr(copy, key, getattr(first, key))
      archive.filelist.append(copy)
  file = torch_files.TorchFile(path)
  with pytest.raises(torch_files.Refused, match="240000 bytes, the whole file"):
    file.arrays({str(name): x for name, x in file.tree.items()})
