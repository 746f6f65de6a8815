"""Whole files of text of every kind, and how they are damaged."""

import gzip
import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from dpr_jax.data import beir_files, dpr_files, mined_negatives, squad_files
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import trec_runs

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


def to_json(value, ascii_=True):
  """JSON as bytes."""
  return json.dumps(value, ensure_ascii=ascii_).encode()


def _lines(*values):
  return b"".join(to_json(value, False) + b"\n" for value in values)


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
  "dpr array": ("a.json", to_json([ROW] * 3), _rows(dpr_files.read_questions)),
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
    to_json([{"id": "d1", "contents": "Ulm é", "score": float("nan")}] * 2),
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
  "squad": ("squad.json", to_json(SQUAD, False), _read_squad),
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
    to_json([RESULT, RESULT]),
    lambda path: evaluate_lib.read_ranks(path, {}, "string"),
  ),
  "results, regex": (
    "dev.x.json",
    to_json([RESULT | {"answers": ["U[lm]+", r"\p{Lu}(a|b)*"]}]),
    lambda path: evaluate_lib.read_ranks(path, {}, "regex"),
  ),
  "negatives": (
    "n.jsonl",
    _lines(*[{"question": "é", "hard_negatives": ["1", "2"]}] * 2),
    mined_negatives.read,
  ),
}  # fmt: skip


def trial_of_text(kind, folder, rng):
  """Reads a file of `TEXTS`, damaged and perhaps gzipped."""
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
