"""Formats of training questions: recognized by fields, read as expected."""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from dpr_jax.core import errors
from dpr_jax.data import question_sources
from dpr_jax.data.records import Passage, Question

ULM = Passage("7", "Ulm", "Ulm lies on the Danube.")
BERN = Passage("8", "Bern", "Bern lies on the Aare.")
DANUBE, AARE = Passage("", "", "Ulm: Danube."), Passage("", "", "Bern: Aare.")
OBJECTS = [
  {"docid": "7", "title": "Ulm", "text": "Ulm lies on the Danube."},
  {"docid": "8", "title": "Bern", "text": "Bern lies on the Aare."},
]

# (format, rows, expected questions)
CASES = [
  (
    "Tevatron",
    [
      {
        "query_id": "1",
        "query": "Where’s Ulm?",
        "answers": ["Danube"],
        "positive_passages": OBJECTS[:1],
        "negative_passages": OBJECTS[1:],
      },
      {
        "query_id": "2",
        "query": "Where is Bern?",
        "answers": [],
        "positive_passages": OBJECTS[1:],
        "negative_passages": [],
      },
    ],
    [
      Question("Where's Ulm?", ("Danube",), (ULM,), (BERN,)),
      Question("Where is Bern?", (), (BERN,)),
    ],
  ),
  (
    "Tevatron with ids",
    [
      {
        "query_id": "1",
        "query_text": "Where is Ulm?",
        "positive_document_ids": ["7"],
        "negative_document_ids": ["8"],
      }
    ],
    [
      Question(
        "Where is Ulm?",
        positives=(Passage("7", "", ""),),
        hard_negatives=(Passage("8", "", ""),),
      )
    ],
  ),
  (
    "FlagEmbedding",
    [
      {
        "query": "Where is Ulm?",
        "pos": ["Ulm: Danube.", "Bern: Aare."],
        "neg": ["[a]", "b"],
        "pos_scores": [0.5, 0.25],
        "prompt": "Search: ",
      },
      {
        "query": "Where is Bern?",
        "pos": ["Bern: Aare."],
        "neg": [],
        "pos_scores": [1.0],
        "prompt": "",
      },
    ],
    [
      Question(
        "Where is Ulm?",
        positives=(DANUBE, AARE),
        hard_negatives=(Passage("", "", "[a]"), Passage("", "", "b")),
      ),
      Question("Where is Bern?", positives=(AARE,)),
    ],
  ),
  (
    "sentence-transformers",
    [
      {
        "anchor": "Where is Ulm?",
        "positive": "Ulm: Danube.",
        "negative_1": "Bern: Aare.",
        "negative_2": "[b",
      }
    ],
    [
      Question(
        "Where is Ulm?",
        positives=(DANUBE,),
        hard_negatives=(AARE, Passage("", "", "[b")),
      )
    ],
  ),
  (
    "sentence-transformers",
    [{"question": "Where is Ulm?", "positive": "Ulm: Danube."}],
    [Question("Where is Ulm?", positives=(DANUBE,))],
  ),
  (
    "sentence-transformers",
    [
      {
        "query": "Where is Ulm?",
        "positive": "Ulm: Danube.",
        "negative": ["Bern: Aare.", "x"],
      }
    ],
    [
      Question(
        "Where is Ulm?",
        positives=(DANUBE,),
        hard_negatives=(AARE, Passage("", "", "x")),
      )
    ],
  ),
  (
    "KILT",
    [
      {
        "id": "1",
        "input": "Where is Ulm?",
        "output": [
          {
            "answer": "Danube",
            "provenance": [
              {
                "wikipedia_id": "7",
                "title": "Ulm",
                "start_paragraph_id": 1,
                "end_paragraph_id": 2,
              },
              {
                "wikipedia_id": "9",
                "title": "X",
                "start_paragraph_id": None,
                "end_paragraph_id": None,
              },
            ],
          },
          {"answer": "Danube", "provenance": []},
          {"answer": None, "provenance": None},
        ],
      }
    ],
    [
      Question(
        "Where is Ulm?",
        ("Danube",),
        tuple(Passage(i, "", "") for i in ("7-1", "7-2", "9")),
      )
    ],
  ),
  (
    "DPR",
    [
      {
        "question": "Where is Ulm?",
        "answers": ["Danube"],
        "positive_ctxs": OBJECTS[:1],
        "hard_negative_ctxs": [],
        "negative_ctxs": OBJECTS[1:],
      }
    ],
    [Question("Where is Ulm?", ("Danube",), (ULM,), (), (BERN,))],
  ),
]
NAMES = [f"{number}-{name}" for number, (name, *_) in enumerate(CASES)]


def read(path, split="train"):
  notes = question_sources.Notes()
  source = question_sources.open_source(path, split)
  return source, list(source.read(notes)), notes


def cell(value, name):
  if value is None:
    return ""
  text = value if isinstance(value, str) else json.dumps(value)
  return '"' + text.replace('"', '""') + '"'


def write(path, rows, kind):
  names = list(rows[0])
  if kind == "JSON":
    path.write_text(json.dumps(rows))
  elif kind == "JSONL":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif kind in ("CSV", "TSV"):
    mark = "," if kind == "CSV" else "\t"
    lines = [names, *([cell(r[n], n) for n in names] for r in rows)]
    path.write_text("".join(mark.join(line) + "\n" for line in lines))
  else:
    table = pyarrow.Table.from_pylist(rows)
    if kind == "Parquet":
      pyarrow.parquet.write_table(table, path)
    else:
      with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


@pytest.mark.parametrize(
  "kind", ["JSON", "JSONL", "CSV", "TSV", "Parquet", "Arrow"]
)
@pytest.mark.parametrize(("name", "rows", "expected"), CASES, ids=NAMES)
def test_formats_in_all_containers(tmp_path, name, rows, expected, kind):
  path = tmp_path / f"train.{kind.lower()}"
  write(path, rows, kind)
  source, questions, _ = read(path)
  assert source.format == f"{name} {kind}"
  assert questions == expected
  assert source.by_id == (name in ("Tevatron with ids", "KILT"))
  assert source.files == (path,)


def test_unread_fields_are_counted(tmp_path):
  path = tmp_path / "train.jsonl"
  write(path, CASES[2][1], "JSONL")
  assert read(path)[2].unread == {"pos_scores": 2, "prompt": 2}


def test_lists_of_objects_that_are_stored_as_objects_of_lists(tmp_path):
  """As `datasets` stores a `Sequence` of objects."""
  row = {
    "query": "Where is Ulm?",
    "positive_passages": {
      name: [one[name] for one in OBJECTS] for name in ("docid", "text")
    },
  }
  write(tmp_path / "a.parquet", [row], "Parquet")
  (question,) = read(tmp_path / "a.parquet")[1]
  assert question.positives == (
    Passage("7", "", "Ulm lies on the Danube."),
    Passage("8", "", "Bern lies on the Aare."),
  )


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (
      [{"query": "q", "answer": "a"}],
      r"row 1 \(line 1\): no field question, only \['answer', 'query'\]: rename"
      " query to question; formats of questions are Tevatron: query, .*"
      "FlagEmbedding: query, pos, neg; .*DPR: question, answers",
    ),
    (
      [{"query": "q", "pos": ["a"]}, {"query": "q", "pos": [1]}],
      r"row 2 \(line 2\), pos\[0\]: 1 is a int, not a string",
    ),
    (
      [{"query": "q", "pos": ["a"]}, {"pos": ["a"]}],
      r"row 2 \(line 2\): no field query, only \['pos'\]: all rows of a file",
    ),
    (
      [{"query": "q", "positive_passages": [{"docid": "7"}]}],
      r"row 1 \(line 1\), positive_passages\[0\]: .* not an object with a text",
    ),
    (
      [{"anchor": "q", "positive": "a"}, {"question": "q"}],
      r"row 2 \(line 2\): no field positive or positives, only \['question'\]:"
      " all rows of a file have the format of its first row",
    ),
    (
      [{"anchor": "q", "positive": "a"}, ["q", "a"]],
      r"row 2 \(line 2\): \['q', 'a'\] is not an object with positive",
    ),
    (
      [{"input": "q", "output": [{"provenance": [{"title": "x"}]}]}],
      r".*output\[0\].provenance\[0\].wikipedia_id: None is a NoneType",
    ),
    (
      [
        {
          "input": "q",
          "output": [
            {"provenance": [{"wikipedia_id": "7", "start_paragraph_id": "1"}]}
          ],
        }
      ],
      r".*provenance\[0\].start_paragraph_id: '1' is not the number of a para",
    ),
  ],
)
def test_bad_rows_are_refused(tmp_path, rows, words):
  path = tmp_path / "train.jsonl"
  write(path, rows, "JSONL")
  with pytest.raises(errors.InputError, match=f"^{path}: {words}"):
    read(path)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("id,name\n1,x\n", ":1: no field question, only .*formats of questions"),
    ("a\tb\tc\n", ":1: no field question, only .*formats of questions are"),
    ("query,pos\nq,[1\n", ':2, pos: .* is not a list like \\["a", "b"\\]'),
    ("query,pos,pos\na,b,c\n", ":1: the header has the column 'pos' more th"),
    ("query,pos\nq\n", ":2: 1 fields, the header has 2: \\['q'\\]"),
    ('query,pos\nq,"x\n', ":2: the row that starts here is not comma-sep"),
  ],
)
def test_bad_tables_are_refused(tmp_path, text, words):
  path = tmp_path / "train.csv"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=f"^{path}({words})"):
    read(path)


@pytest.mark.parametrize("kind", ["Parquet", "Arrow"])
def test_cut_files_are_refused(tmp_path, kind):
  path = tmp_path / "train"
  write(path, CASES[0][1], kind)
  path.write_bytes(path.read_bytes()[:-20])
  if kind == "Arrow":  # a stream may end after any batch
    path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(errors.InputError, match=f"^{path}: row 1, .* {kind}:"):
    read(path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
  path = tmp_path / "a.parquet"
  write(path, CASES[0][1], "Parquet")
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  with pytest.raises(errors.InputError, match=r"install 'dpr-jax\[parquet\]'"):
    read(path)
