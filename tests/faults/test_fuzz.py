"""Damaged files of every kind: our error or a result, nothing else.

Each kind of file is read in a forked child, so that neither a signal nor a hang
can end the tests.  A trial follows from (seed, kind, number) alone; what fails
is named by them, and `DPR_JAX_FUZZ_ONLY=KIND:NUMBER` does that trial again, in
this process.
"""

import gzip
import json
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
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  beir_files,
  dpr_files,
  mined_negatives,
  squad_files,
  tokenization,
)
from dpr_jax.embedding import vector_formats
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import trec_runs
from dpr_jax.index import faiss_files
from dpr_jax.models import bert, hf_weights, tensor_files
from tests.faults import amounts, children

pytestmark = pytest.mark.compiles

SEED = 20_240
SECONDS = 20  # for one trial; then it hangs
WORDS = [
  b"[", b"]", b"{", b"}", b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000", b",",
  b":",
  b"\n", b"\r", b"\t", b"\0", b" ", b"null", b"true", b"NaN", b"-Infinity",
  b"1e999", b"-", b"9" * 5000, b"[" * 200, b'{"a":' * 200, b"'", b"('", b"0",
  b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é漢😀\u202e\u0301".encode(),
  b"\x1f\x8b", b"\x7f\xff\xff\xff", b"\xff" * 8, bytes(8), b"-1", b"Q0", b"()",
]  # fmt: skip


def mutated(data, rng):
  """Some bytes flipped, cut, put in, doubled or moved."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 3, 8))):
    at = rng.randrange(len(data) + 1)
    some = slice(at, at + rng.choice((1, 1, 2, 8, 100)))
    what = rng.randrange(8)
    if what == 0 and at < len(data):
      data[at] ^= 1 << rng.randrange(8)
    elif what == 1 and at < len(data):
      data[at] = rng.randrange(256)
    elif what == 2:
      del data[some]
    elif what == 3:
      del data[at:]
    elif what == 4:
      data[at:at] = rng.choice(WORDS)
    elif what == 5:
      data[some] = rng.choice(WORDS)
    elif what == 6:
      data[at:at] = data[some]
    else:
      to = rng.randrange(len(data) + 1)
      data[to:to] = data[some]
  return bytes(data)


CTX = {
  "title": 'Ulm "A"',
  "text": "Ulm, é漢 \\ \u2028 city",
  "psg_id": "wiki:7",
}
ROW = {
  "question": "where\u2019s Ulm?",
  "answers": ["Ulm", "\u00dcm"],
  "positive_ctxs": [CTX],
  "hard_negative_ctxs": [CTX | {"score": 1.5e3, "title_score": -1}],
  "negative_ctxs": [],
}
RESULT = {
  "question": "q", "answers": ["Ulm"],
  "ctxs": [
    {"id": "7", "title": "t", "text": "Ulm", "score": "1.5", "has_answer": True}
  ],
}  # fmt: skip
SQUAD = {
  "version": "1.1",
  "data": [
    {
      "title": "Ulm_a",
      "paragraphs": [
        {
          "context": "In Ulm é.",
          "qas": [
            {
              "id": "q1",
              "question": "where?",
              "answers": [{"text": "Ulm", "answer_start": 3}],
            },
            {"id": "q2", "question": "x", "is_impossible": True, "answers": []},
          ],
        }
      ],
    }
  ],
}


def _json(value, ascii_=True):
  return json.dumps(value, ensure_ascii=ascii_).encode()


def _lines(*values):
  return b"".join(_json(value, False) + b"\n" for value in values)


def _rows(reader):
  return lambda path: list(reader(path))


def _read_squad(path):
  if squad_files.is_squad(path):
    list(squad_files.read_squad(path))


def _columns(kind):
  """A table of Parquet, or a stream of Arrow."""
  table = pyarrow.Table.from_pylist([TEVATRON] * 3)
  file = pyarrow.BufferOutputStream()
  if kind == "parquet":
    pyarrow.parquet.write_table(table, file)
  else:
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
      stream.write_table(table)
  return file.getvalue().to_pybytes()


TEVATRON = {
  "query_id": "1",
  "query": "where é?",
  "positive_passages": [{"docid": "7", "title": "t", "text": "Ulm"}],
  "negative_passages": [],
}
KILT = {
  "input": "where?",
  "output": [
    {
      "answer": "Ulm",
      "provenance": [{"wikipedia_id": "7", "start_paragraph_id": 1}],
    }
  ],
}

# By kind: file name, its bytes, what reads it.
TEXTS = {
  "tevatron": (
    "a.jsonl", _lines(TEVATRON, TEVATRON), _rows(dpr_files.read_questions)
  ),
  "kilt": ("a.jsonl", _lines(KILT, KILT), _rows(dpr_files.read_questions)),
  "kilt articles": (
    "kilt.jsonl",
    _lines({"wikipedia_id": "7", "wikipedia_title": "é", "text": ["é", "x"]}),
    _rows(dpr_files.read_passages),
  ),
  "flag embedding table": (
    "a.csv",
    b'query,pos,neg\nwhere?,"[""Ulm"", \'a\']",\n"a ""x""",[],"[""b""]"\n',
    _rows(dpr_files.read_questions),
  ),
  "triplets": (
    "a.tsv",
    "anchor\tpositive\tnegative\nwhere é?\tUlm\t[x]\n".encode(),
    _rows(dpr_files.read_questions),
  ),
  "collection": (
    "collection.tsv",
    "0\tUlm é\n1\t\"x\n".encode(),
    _rows(dpr_files.read_passages),
  ),
  "triples": (
    "triples.tsv",
    "where é?\tUlm\tx\na\tb\tc\n".encode(),
    _rows(dpr_files.read_questions),
  ),
  "parquet": (
    "a.parquet", _columns("parquet"), _rows(dpr_files.read_questions)
  ),
  "arrow": ("a.arrow", _columns("arrow"), _rows(dpr_files.read_questions)),
  "dpr array": ("a.json", _json([ROW] * 3), _rows(dpr_files.read_questions)),
  "dpr lines": ("a.jsonl", _lines(ROW, ROW), _rows(dpr_files.read_questions)),
  "psgs": (
    "psgs.tsv",
    b'id\ttext\ttitle\n1\t"Ulm ""a"""\tUlm\n2\tx y\n\tz\n3\t\xc3\xa9\t"t\nu"\n',
    _rows(dpr_files.read_passages),
  ),
  "psgs without quoting": (
    "psgs.tsv",
    b'id\ttext\ttitle\n1\t"Ulm\tUlm\n2\tx" y\tT\n3\t\xc3\xa9 "z"\tt\n',
    _rows(dpr_files.read_passages),
  ),
  "qa": (
    "a.qa.csv",
    b"where?\t['Ulm', \"a'b\"]\n\"who \"\"x\"\"\"\t[]\nwhat\t['\\\\d+ BC']\n",
    _rows(dpr_files.read_questions),
  ),
  "beir corpus": (
    "corpus.jsonl",
    _lines(*[{"_id": "d1", "title": "t", "text": "Ulm é", "metadata": {}}] * 2),
    _rows(dpr_files.read_passages),
  ),
  "pyserini corpus": (
    "corpus.json",
    _json([{"id": "d1", "contents": "Ulm é", "score": float("nan")}] * 2),
    _rows(dpr_files.read_passages),
  ),
  "beir queries": (
    "queries.jsonl",
    _lines({"_id": "q1", "text": "where?"}, {"_id": "q2", "text": "é"}),
    _rows(dpr_files.read_questions),
  ),
  "qrels": (
    "test.tsv",
    b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t-1\n",
    beir_files.read_qrels,
  ),
  "trec qrels": ("qrels", b"q1 0 d1 1\nq2 0 d2 0\n", beir_files.read_qrels),
  "squad": ("squad.json", _json(SQUAD, False), _read_squad),
  "squad of datasets": (
    "squad.jsonl",
    _lines(
      {"id": "1", "title": "t", "context": "In Ulm é.", "question": "where?"}
      | {"answers": {"text": ["Ulm"], "answer_start": [3]}}
    ),
    _read_squad,
  ),
  "trec run": (
    "dev.x.trec",
    b"q1 Q0 d1 1 2.5 t\nq1\tQ0\td 2\t2\t2.5\tt\n",
    trec_runs.read,
  ),
  "results": (
    "dev.x.json",
    _json([RESULT, RESULT]),
    lambda path: evaluate_lib.read_ranks(path, {}, "string"),
  ),
  "results, regex": (
    "dev.x.json",
    _json([RESULT | {"answers": ["U[lm]+", r"\p{Lu}(a|b)*"]}]),
    lambda path: evaluate_lib.read_ranks(path, {}, "regex"),
  ),
  "negatives": (
    "n.jsonl",
    _lines(*[{"question": "é", "hard_negatives": ["1", "2"]}] * 2),
    mined_negatives.read,
  ),
}  # fmt: skip


def _trial_of_text(kind, folder, rng):
  name, data, read = TEXTS[kind]
  way = rng.randrange(8)
  if way == 0:
    name, data = name + ".gz", gzip.compress(mutated(data, rng), 1)
  elif way == 1:
    name, data = name + ".gz", mutated(gzip.compress(data, 1), rng)
  else:
    data = mutated(data, rng)
  path = folder / name
  path.write_bytes(data)
  read(path)


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
@pytest.mark.parametrize("kind", TEXTS)
def test_texts(tmp_path, kind):
  count = amounts.amount(10_000, 500)
  run(kind, count, lambda *a: _trial_of_text(kind, *a), tmp_path)


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
      data = mutated(data[:128], rng) + data[128:]
    else:
      ids = mutated(ids, rng)
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
    path.write_bytes(mutated(rng.choice(whole), rng))
    vector_formats.read(path)

  run("pickles", amounts.amount(10_000, 500), trial, tmp_path)


@pytest.mark.fault_row(13, trials=amounts.amount(1000, 100))
def test_safetensors(tmp_path, tiny_checkpoint):
  """Mostly the header: a flipped weight is another weight."""
  data = (tiny_checkpoint / "model.safetensors").read_bytes()
  (header,) = struct.unpack("<Q", data[:8])
  config = bert.BertConfig.read(tiny_checkpoint)
  index = _json(
    {"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}
  )

  def trial(folder, rng):
    listed = folder / "model.safetensors.index.json"
    listed.unlink(missing_ok=True)
    changed = mutated(data[: 8 + header], rng) + data[8 + header :]
    if rng.randrange(8) == 0:
      listed.write_bytes(mutated(index, rng))
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
    path.write_bytes(mutated(rng.choice(whole), rng))
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
        data = mutated(data, rng)
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
    changed = mutated(data[:at], rng) + data[at:]
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
