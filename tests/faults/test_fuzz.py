"""Damaged files of every kind: our error or a result, nothing else.

Each kind of file is read in a forked child, so that neither a signal nor a hang
can end the tests.  A trial follows from (seed, kind, number) alone; what fails
is named by them, and `DPR_JAX_FUZZ_ONLY=KIND:NUMBER` does that trial again, in
this process.
"""

import mmap
import os
import pathlib
import pickle
import random
import shutil
import signal
import struct
import warnings

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  tokenization,
)
from dpr_jax.embedding import vector_formats
from dpr_jax.index import faiss_files
from dpr_jax.models import bert, hf_weights, tensor_files
from tests.faults import amounts, children, fuzz_files

pytestmark = pytest.mark.compiles

SEED = 20_240
SECONDS = 20  # for one trial; then it hangs


def run(kind, count, trial, folder):
  """Does all trials of a kind; fails with those that are not as they should."""
  only = os.environ.get("DPR_JAX_FUZZ_ONLY", "")
  if only:
    wanted, _, number = only.rpartition(":")
    if wanted == kind:
      _one(kind, int(number), trial, folder)
    return
  reached = mmap.mmap(-1, 8)  # shared with the child

  def trials():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    wrong = []
    for number in range(count):
      reached[:] = struct.pack("<q", number)
      signal.setitimer(signal.ITIMER_REAL, SECONDS)
      try:
        _one(kind, number, trial, folder)
      except BaseException as error:
        wrong.append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
        if len(wrong) == 20:
          break
    signal.setitimer(signal.ITIMER_REAL, 0)
    return wrong

  try:
    wrong, _, _ = children.in_child(trials, seconds=3600)
  except AssertionError as error:
    (number,) = struct.unpack("<q", reached[:])
    raise AssertionError(
      f"{kind}: seed {SEED}, trial {number}: {error}"
    ) from error
  assert not wrong, f"{kind}: seed {SEED}, trials:\n" + "\n".join(wrong)


def _one(kind, number, trial, folder):
  rng = random.Random(f"{SEED} {kind} {number}")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      trial(folder, rng)
  except errors.InputError as error:
    message = str(error)
    assert "\n" not in message.strip(), f"several lines: {message!r}"
    assert str(folder) in message, f"no file in {message!r}"


@pytest.mark.fault_row(13, trials=amounts.amount(10_000, 500))
@pytest.mark.parametrize("kind", fuzz_files.TEXTS)
def test_texts(tmp_path, kind):
  count = amounts.amount(10_000, 500)
  run(kind, count, lambda *a: fuzz_files.trial_of_text(kind, *a), tmp_path)


ARRAY = np.arange(24, dtype=np.float32).reshape(6, 4)
IDS = [f"wiki:{i}" for i in range(6)]


@pytest.mark.fault_row(13, trials=amounts.amount(1000, 100))
def test_npy(tmp_path):
  import io

  buffer = io.BytesIO()
  np.save(buffer, ARRAY)

  def trial(folder, rng):
    data, ids = buffer.getvalue(), "".join(f"{i}\n" for i in IDS).encode()
    if rng.randrange(4):
      # The header is where the danger is.
      data = fuzz_files.mutated(data[:128], rng) + data[128:]
    else:
      ids = fuzz_files.mutated(ids, rng)
    (folder / "vectors-00000.npy").write_bytes(data)
    (folder / "ids-00000.txt").write_bytes(ids)
    vector_formats.read(folder / "vectors-00000.npy")

  run("npy", amounts.amount(1000, 100), trial, tmp_path)


@pytest.mark.fault_row(13, trials=amounts.amount(10_000, 500))
def test_pickles(tmp_path):
  values = [list(zip(IDS, ARRAY, strict=True)), (ARRAY, IDS), (IDS, ARRAY)]
  whole = [pickle.dumps(v, protocol=p) for v in values for p in range(6)]

  def trial(folder, rng):
    path = folder / "passages_0.pkl"
    path.write_bytes(fuzz_files.mutated(rng.choice(whole), rng))
    vector_formats.read(path)

  run("pickles", amounts.amount(10_000, 500), trial, tmp_path)


@pytest.mark.fault_row(13, trials=amounts.amount(1000, 100))
def test_safetensors(tmp_path, tiny_checkpoint):
  """Mostly the header: a flipped weight is another weight."""
  data = (tiny_checkpoint / "model.safetensors").read_bytes()
  (header,) = struct.unpack("<Q", data[:8])
  config = bert.BertConfig.read(tiny_checkpoint)
  index = fuzz_files.to_json(
    {"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}
  )

  def trial(folder, rng):
    listed = folder / "model.safetensors.index.json"
    listed.unlink(missing_ok=True)
    changed = fuzz_files.mutated(data[: 8 + header], rng) + data[8 + header :]
    if rng.randrange(8) == 0:
      listed.write_bytes(fuzz_files.mutated(index, rng))
      changed = data
    (folder / "model.safetensors").write_bytes(changed)
    tensors = tensor_files.read_tensors(folder)
    hf_weights.params_from_tensors(tensors, config, str(folder))

  run("safetensors", amounts.amount(1000, 100), trial, tmp_path)


@pytest.mark.fault_row(13, trials=amounts.amount(2000, 200))
def test_torch_files(tmp_path):
  """Both formats of torch.save: directory, pickle and sizes."""
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  tensors = {
    "a": torch.ones(3, 4),
    "b": torch.arange(6.0).bfloat16()[::2],
    "c": torch.nn.Parameter(torch.ones(2).half()),
  }
  whole = []
  for is_zip in (True, False):
    torch.save(
      tensors, tmp_path / "whole", _use_new_zipfile_serialization=is_zip
    )
    whole.append((tmp_path / "whole").read_bytes())

  def trial(folder, rng):
    path = folder / "pytorch_model.bin"
    path.write_bytes(fuzz_files.mutated(rng.choice(whole), rng))
    tensor_files.read_tensors(folder)

  run("torch files", amounts.amount(2000, 200), trial, tmp_path)


@pytest.mark.fault_row(13, trials=amounts.amount(1000, 100))
def test_model_folders(tmp_path, tiny_checkpoint):
  """config.json, vocab.txt and tokenizer.json."""
  import transformers

  own = tmp_path / "own"
  shutil.copytree(tiny_checkpoint, own)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(own))
  tokenizer.save_pretrained(str(own))
  (own / "model.safetensors").unlink()
  whole = {path.name: path.read_bytes() for path in own.iterdir()}
  assert {"config.json", "vocab.txt", "tokenizer.json"} <= whole.keys()

  def trial(folder, rng):
    target = folder / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    damaged = rng.choice(sorted(whole))
    for name, data in whole.items():
      if name == "tokenizer.json" and damaged == "vocab.txt":
        continue  # or it would be read in its place
      if name == damaged:
        data = fuzz_files.mutated(data, rng)
      (target / name).write_bytes(data)
    bert.BertConfig.read(target)
    backend = tokenization.load_tokenizer(target)
    tokenization.TextTokenizer(backend).question_ids(["where is Ulm?"])

  run("model folders", amounts.amount(1000, 100), trial, tmp_path)


FACTORIES = ["Flat", "HNSW8,Flat", "IVF4,Flat", "IVF4,PQ2x4", "SQ8", "PQ2x4"]


@pytest.mark.fault_row(13, trials=amounts.amount(1000, 100))
def test_faiss(tmp_path):
  """Whatever is in the file, as if its checksum were right."""
  import faiss

  faiss.omp_set_num_threads(1)
  vectors = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  whole = []
  for factory in FACTORIES:
    index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    whole.append(faiss.serialize_index(index).tobytes())
  manifest = {
    "files": {faiss_files.FILE: ""},
    "count": 64,
    "dim": 8,
    "metric": faiss_files.METRIC,
  }

  def trial(folder, rng):
    lib = faiss_files.workdir_lib
    lib.read_manifest = lambda *_, **__: manifest
    lib.check_files = lambda *_, **__: None
    faiss.omp_set_num_threads(1)
    data = rng.choice(whole)
    at = rng.choice((64, 200, len(data)))  # most of what decides is in front
    changed = fuzz_files.mutated(data[:at], rng) + data[at:]
    (folder / faiss_files.FILE).write_bytes(changed)
    faiss_files.load_file(folder, mmap=bool(rng.randrange(2)))

  run("faiss", amounts.amount(1000, 100), trial, tmp_path)


def test_a_wrong_trial_is_named(tmp_path):
  """The fuzzer can fail: another exception, a signal, no file in the line."""

  def raises(folder, rng):
    raise KeyError("x")

  def dies(folder, rng):
    os.kill(os.getpid(), signal.SIGKILL)

  def says_nothing(folder, rng):
    raise errors.InputError("something is wrong")

  for trial, words in (
    (raises, "0: KeyError"),
    (dies, "trial 0: the child ended with status"),
    (says_nothing, "no file in"),
  ):
    with pytest.raises(AssertionError, match=words):
      run("none", 1, trial, pathlib.Path(tmp_path))
