"""Pickles that want code, memory or time: refused, within bounds.

Every one is imported in a child, and says that it is refused; the file that
hostile code would write is never there.
"""

import io
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.embedding import vector_formats
from tests.faults import children, hostile
from tests.faults.hostile import CANARY, MB


def _name(module, name):
  return f"c{module}\n{name}\n".encode()


RECONSTRUCT = _name("numpy.core.multiarray", "_reconstruct")
ARRAY = RECONSTRUCT + _name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
FLOATS = (
  _name("numpy", "dtype") + b"X\x02\x00\x00\x00f4\x89\x88\x87R"
  b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
TOUCH = f"open({CANARY!r}, 'w').close()"


def _long(number):
  data = pickle.encode_long(number)
  return b"\x8a" + bytes([len(data)]) + data


def _array_of(shape, data=b"C\x00", dtype=FLOATS):
  """[("a", array)] with any state."""
  return (
    b"\x80\x04](X\x01\x00\x00\x00a"
    + ARRAY
    + b"(K\x01("
    + b"".join(map(_long, shape))
    + b"t"
    + dtype
    + b"\x89"
    + data
    + b"tb\x86e."
  )


HOSTILE = {
  # Code.
  "system": pickle.dumps(hostile.Call(os.system, f"touch {CANARY}")),
  "eval, protocol 0": pickle.dumps(hostile.Call(eval, TOUCH), protocol=0),
  "exec among vectors": pickle.dumps(
    [("a", np.zeros(3)), ("b", hostile.Call(exec, TOUCH))]
  ),
  "popen": pickle.dumps(hostile.Call(subprocess.Popen, ["touch", CANARY])),
  "INST": b"(S'touch canary'\nios\nsystem\n.",
  "OBJ": b"(cos\nsystem\nS'touch canary'\no.",
  "NEWOBJ": b"\x80\x02cnumpy\nndarray\n(K\x03t\x81.",
  "getattr of builtins": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n"
  b"S'__call__'\ntR(S'os'\ntR.",
  "a name through dots": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
  "persistent id": b"Pcanary\n.",
  "binary persistent id": b"X\x06\x00\x00\x00canaryQ.",
  "extension": b"\x80\x02\x82\x01.",
  "state for a function": RECONSTRUCT
  + b"N}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
  "state for a class": _name("numpy", "ndarray")
  + b"}X\x01\x00\x00\x00xK\x01sb.",
  # Memory.
  "memo far away, LONG_BINPUT": b"Nr\xff\xff\xff\x0f.",
  "memo far away, PUT": b"Np268435455\n.",
  "memo farther, PUT": b"Np99999999999999999999\n.",
  "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
  "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b"x.",
  "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 34) + b"x.",
  "BINBYTES": b"\x80\x03B" + struct.pack("<I", (1 << 31) - 1) + b"x.",
  "BINSTRING": b"\x80\x02T" + struct.pack("<i", (1 << 31) - 1) + b"x.",
  "BINSTRING of less than nothing": b"\x80\x02T" + struct.pack("<i", -5) + b".",
  "LONG4": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
  "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
  "giant array": _array_of([1 << 40]),
  "giant array of nothing": _array_of([1 << 40, 0]),
  "array of less than nothing": _array_of([-1]),
  "giant array from the start": RECONSTRUCT
  + _name("numpy", "ndarray")
  + _long(1 << 40)
  + b"\x85C\x01b\x87R.",
  "ndarray as a function": _name("numpy", "ndarray")
  + _long(1 << 40)
  + b"\x85R.",
  "giant dtype": _array_of(
    [1],
    dtype=FLOATS.replace(
      b"\x02\x00\x00\x00f4", b"\x0b\x00\x00\x00V9000000000"
    ),
  ),
  "texts of no length": _array_of(
    [1 << 40], dtype=FLOATS.replace(b"f4", b"U0")
  ),
  "objects": pickle.dumps(
    [("a", np.array([hostile.Call(eval, TOUCH)], object))]
  ),
  "records": pickle.dumps([("a", np.zeros(3, [("x", "f4")]))]),
  "frombuffer of too much": _name("numpy.core.numeric", "_frombuffer")
  + b"(C\x04abcd"
  + FLOATS
  + _long(1 << 40)
  + b"\x85X\x01\x00\x00\x00CtR.",
  "scalar of much": _name("numpy.core.multiarray", "scalar")
  + FLOATS.replace(b"\x02\x00\x00\x00f4", b"\x0a\x00\x00\x00U100000000")
  + b"\x85R.",
  "another encoding": _name("_codecs", "encode")
  + b"X\x01\x00\x00\x00aX\x0a\x00\x00\x00zlib_codec\x86R.",
  "20 million empty lists": b"\x80\x04]" + b"]" * 20_000_000 + b".",
  "20 million memos": b"\x80\x04N" + b"\x94" * 20_000_000 + b".",
  "a wide text": b"\x80\x04\x8d"
  + struct.pack("<Q", 120_000_003)
  + b"a" * 119_999_999
  + "😀".encode()
  + b"\x94" * 20_000_000
  + b".",
  # Time.
  "a number of a million digits": b"I" + b"9" * MB + b"\n.",
  "a number that is none": b"Fb\n.",
  "hash of a tower of tuples": b"\x80\x04}K\x01" + b"2\x86" * 60 + b"K\x01s.",
  "a tower of tuples for an id": _array_of([1], b"C\x04abcd").replace(
    b"X\x01\x00\x00\x00a", b"K\x01" + b"2\x86" * 60, 1
  ),
  "a tower of tuples for a vector": b"\x80\x04](X\x01\x00\x00\x00aK\x01"
  + b"2\x86" * 60
  + b"\x86e.",
  "a number as state": RECONSTRUCT + b"K\x01b.",
  "a list within itself": b"\x80\x02]q\x00(h\x00h\x00e.",
  # Damage.
  "empty": b"",
  "text": b"these are no vectors",
  "zeros": bytes(1000),
  "no end": b"\x80\x04](",
  "nothing on the stack": b"\x80\x04.",
  "protocol 200": b"\x80\xc8N.",
}  # fmt: skip


@pytest.mark.processes
@pytest.mark.fault_row(12)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, name):
  """One clear error; no canary; memory of twice the file and 200 MB."""
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "passages_0.pkl"
  path.write_bytes(HOSTILE[name])

  assert str(path) in hostile.refusal(lambda: vector_formats.read(path), path)


def test_there_are_enough():
  assert len(HOSTILE) >= 15


ARRAY_2D = np.arange(12, dtype=np.float32).reshape(3, 4)
IDS = ["wiki:1", "wiki:2", "x"]


def _sorts():
  rows = list(zip(IDS, ARRAY_2D, strict=True))
  yield "dpr", rows
  yield "tevatron", (ARRAY_2D, IDS)
  yield "contriever", (IDS, ARRAY_2D)
  yield "in order of columns", (IDS, np.asfortranarray(ARRAY_2D))
  yield "not contiguous", (IDS, np.repeat(ARRAY_2D, 2, axis=1)[:, ::2])
  yield "half", (IDS, ARRAY_2D.astype(np.float16))
  yield "double, big-endian", (IDS, ARRAY_2D.astype(">f8"))
  yield "ids in an array", (np.array(IDS), ARRAY_2D)
  yield "ids as bytes", (np.array(IDS, "S"), ARRAY_2D)
  yield "ids of NumPy", [(np.str_(i), v) for i, v in rows]
  yield "lists of numbers", [(i, v.tolist()) for i, v in rows]
  yield "tuple of lists", [[i, v] for i, v in rows]


@pytest.mark.parametrize("protocol", range(6))
def test_honest_pickles_are_read(tmp_path, protocol):
  """As all protocols write them, under NumPy's old and new names."""
  path = tmp_path / "passages_0.pkl"
  for name, value in _sorts():
    data = pickle.dumps(value, protocol=protocol)
    assert b"numpy._core" in data or name == "lists of numbers", name
    written = [data]
    if protocol < 4:  # names are lines there, and no lengths change
      written.append(data.replace(b"numpy._core", b"numpy.core"))
    for each in written:
      path.write_bytes(each)
      ids, vectors = vector_formats.read(path)
      assert ids == ["1", "2", "x"], name
      np.testing.assert_array_equal(vectors, ARRAY_2D, err_msg=name)
      assert vectors.dtype == np.float32


def test_numbers_as_ids(tmp_path):
  path = tmp_path / "passages_0.pkl"
  for ids in ([3, 1 << 40], np.array([3, 1 << 40]), [b"3", b"1099511627776"]):
    path.write_bytes(pickle.dumps((list(ids), ARRAY_2D[:2])))
    assert vector_formats.read(path)[0] == ["3", "1099511627776"]


@pytest.mark.processes
def test_memory_of_an_honest_pickle(tmp_path):
  """50,000 vectors: the file's own size twice."""
  path = tmp_path / "passages_0.pkl"
  array = np.ones((50_000, 128), np.float32)
  path.write_bytes(pickle.dumps([(str(i), v) for i, v in enumerate(array)]))
  _, _, grew = children.in_child(lambda: len(vector_formats.read(path)[0]))
  assert grew <= 2 * path.stat().st_size + 60 * MB, f"{grew / MB:.0f} MB"


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (float("nan"), r"1 of 3 vectors are not finite.*row 1 \(id '2'\)"),
    (float("inf"), r"1 of 3 vectors are not finite.*row 1 \(id '2'\)"),
    (1e300, r"1 of 3 vectors are not finite.*row 1 \(id '2'\)"),
  ],
)
def test_vectors_that_no_search_can_rank(tmp_path, value, message):
  array = ARRAY_2D.astype(np.float64)
  array[1, 2] = value
  path = tmp_path / "passages_0.pkl"
  path.write_bytes(pickle.dumps((IDS, array)))
  with pytest.raises(errors.InputError, match=f"passages_0.pkl: {message}"):
    vector_formats.import_(path, tmp_path / "in")


def test_repeated_ids_are_counted(tmp_path, caplog):
  """Over all files of an import."""
  from dpr_jax.core import workdir as workdir_lib

  for number, ids in enumerate((["a", "b", "a"], ["b", "c", "d"])):
    path = tmp_path / f"passages_{number}.pkl"
    path.write_bytes(pickle.dumps((ids, ARRAY_2D)))
  with caplog.at_level("WARNING"):
    assert vector_formats.import_(tmp_path, tmp_path / "in") == 6
  assert "2 of 6 vectors repeat the id of another" in caplog.text
  counts = workdir_lib.read_json(tmp_path / "in" / "manifest.json")["counts"]
  assert counts == {"passages": 6, "repeated_ids": 2}


def _npy(header, data=bytes(48)):
  header = header.encode("latin1")
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"


@pytest.mark.processes
@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\x93NUMPY",
    b"\x93NUMPY\x09\x00" + bytes(99),
    _npy(GOOD[:-9]),
    _npy(GOOD.replace("(3, 4)", "(3, 4")),
    _npy(GOOD.replace("(3, 4)", "(3000000000, 4)")),
    _npy(GOOD.replace("(3, 4)", "(-3, 4)")),
    _npy(GOOD.replace("(3, 4)", "(3, 'x')")),
    _npy(GOOD.replace("(3, 4)", f"({10**30}, 4)")),
    _npy(GOOD.replace("(3, 4)", "(3, 0)"), b""),
    _npy(GOOD.replace("<f4", "|O")),
    _npy(GOOD.replace("<f4", "<q9")),
    _npy(GOOD.replace("'<f4'", "[('x', '<f4')]")),
    _npy(GOOD.replace("False", "'''")),
    _npy(GOOD.replace("False", "\\N{x}")),
    _npy("(" * 5000),
    _npy("-" * 60_000 + "1"),
    _npy(GOOD[:20] + "\0" + GOOD[20:]),
    _npy(GOOD, bytes(47)),
    pickle.dumps(ARRAY_2D),
  ],
)
def test_damaged_npy(tmp_path, content):
  """One error that names the file, whatever the header makes NumPy raise."""
  path = tmp_path / "vectors-00000.npy"
  path.write_bytes(content)
  (tmp_path / "ids-00000.txt").write_text("a\nb\nc\n")

  def call():
    with pytest.raises(errors.InputError, match="vectors-00000.npy") as caught:
      vector_formats.import_(path, tmp_path / "in")
    return str(caught.value)

  message, _, grew = children.in_child(call, seconds=60)
  assert "\n" not in message
  assert grew <= 200 * MB


def test_npz_and_ids_that_are_not_text(tmp_path):
  buffer = io.BytesIO()
  np.savez(buffer, ARRAY_2D)
  for name in ("a.npy", "a.npz"):
    (tmp_path / name).write_bytes(buffer.getvalue())
    with pytest.raises(errors.InputError, match=f"{name} is a .npz"):
      vector_formats.read(tmp_path / name)
  path = tmp_path / "vectors-00000.npy"
  path.write_bytes(_npy(GOOD))
  with pytest.raises(errors.InputError, match="ids-00000.txt: No such file"):
    vector_formats.read(path)
  for content, message in (
    (b"a\nb\n\xff\n", "ids-00000.txt is not UTF-8"),
    (b"a\nb\n", "2 ids with an array"),
    (b"a\nb\n" + b"c" * 1001 + b"\n", "row 2: 'ccc.* is not a passage id"),
    (b"a\nb\nc\0\n", "row 2: 'c.*' is not a passage id"),
  ):
    (tmp_path / "ids-00000.txt").write_bytes(content)
    with pytest.raises(errors.InputError, match=message):
      vector_formats.read(path)


def test_names_in_any_order(tmp_path):
  """Files with and without numbers can be sorted, also odd digits."""
  for name in ("passages", "passages_1", "b2", "²"):
    (tmp_path / name).write_bytes(pickle.dumps((IDS, ARRAY_2D)))
  assert vector_formats.import_(tmp_path, tmp_path / "in") == 12
