"""Readers: what is read is what was written, and every mistake is named."""

import csv
import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr_jax.core import errors
from dpr_jax.data import dpr_files, tsv_corpus
from dpr_jax.data.records import Passage, Question

# Any text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
IDS = st.text("abcXYZ0189_-é漢", min_size=1, max_size=8)
SAME_FILE = settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write(path, content):
  data = content.encode() if isinstance(content, str) else content
  if path.suffix == ".gz":
    data = gzip.compress(data)
  path.write_bytes(data)
  return path


def rejects(reader, path, *parts, **options):
  """The reader fails, and its message has the file and every part."""
  with pytest.raises(errors.InputError) as caught:
    list(reader(path, **options))
  for part in (str(path), *parts):
    assert part in str(caught.value)
  assert "\n" not in str(caught.value)


# Corpus.


@pytest.mark.parametrize("name", ["p.tsv", "p.tsv.gz"])
def test_passages_in_file_order(tmp_path, name):
  path = write(
    tmp_path / name,
    'id\ttext\ttitle\n7\t"A ""b""\nc\td"\tT\n\nwiki:9\tü plain\t\n',
  )
  assert list(dpr_files.read_passages(path)) == [
    Passage("7", "T", 'A "b"\nc\td'),
    Passage("9", "", "ü plain"),
  ]


def test_passage_columns_in_any_order_with_others_beside(tmp_path):
  path = write(tmp_path / "p.tsv", "\ufefftitle\turl\tid\ttext\nT\tu\t1\tx\n")
  assert list(dpr_files.read_passages(path)) == [Passage("1", "T", "x")]


def test_long_passage_field(tmp_path):
  text = "x" * 200_000  # the csv module's own limit is 131,072
  path = write(tmp_path / "p.tsv", f"id\ttext\ttitle\n1\t{text}\tT\n")
  assert next(iter(dpr_files.read_passages(path))).text == text


@given(rows=st.lists(st.tuples(IDS, TEXT, TEXT), max_size=5))
@SAME_FILE
def test_passages_round_trip(tmp_path, rows):
  path = tmp_path / "p.tsv"
  with open(path, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "title", "text"), *rows])
  assert list(dpr_files.read_passages(path)) == [Passage(*row) for row in rows]


@pytest.mark.parametrize(
  ("content", "parts"),
  [
    ("id\ttext\n1\tx\n", [":1:", "lacks title"]),
    ("1\tx\ty\n", [":1:", "lacks id and text and title"]),
    ("", [":1:", "lacks id"]),
    ("id\ttext\ttitle\n1\tx\ty\n2\tx\n", [":3:", "2 tab-separated", "has 3"]),
    ("id\ttext\ttitle\n1\tx\ty\tz\n", [":2:", "4 tab-separated"]),
    ('id\ttext\ttitle\n1\t"a\nb"\tT\n\tx\ty\n', [":4:", "id is empty"]),
    ("id\ttext\ttitle\nwiki:\tx\ty\n", [":2:", "id is empty"]),
    ('id\ttext\ttitle\n1\tx\ty\n2\t"open\ty\n', [":3:", "unexpected end"]),
    ('id\ttext\ttitle\n1\t"a" b\ty\n', [":2:", "quotation mark"]),
    (b"id\ttext\ttitle\n1\tx\ty\n2\t\xff\ty\n", [":3, text:", "UTF-8"]),
  ],
)
def test_bad_passages(tmp_path, content, parts):
  path = write(tmp_path / "p.tsv", content)
  rejects(dpr_files.read_passages, path, *parts, quoting="csv")


def test_open_quote_does_not_swallow_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(tsv_corpus, "LONGEST_FIELD", 1 << 18)
  old_limit = csv.field_size_limit(1000)
  path = write(
    tmp_path / "p.tsv", 'id\ttext\ttitle\n1\t"' + "row\n" * (1 << 17)
  )
  try:
    rejects(dpr_files.read_passages, path, ":2:", "field limit (262144)")
  finally:
    csv.field_size_limit(old_limit)


def test_missing_file_and_folder(tmp_path):
  for reader in (dpr_files.read_passages, dpr_files.read_questions):
    rejects(reader, tmp_path / "none.tsv", "No such file")
    rejects(reader, tmp_path, "is a folder without .parquet,")


# Question and answers.


@pytest.mark.parametrize("name", ["q.qa.csv", "q.tsv", "q.CSV.gz"])
def test_question_answers(tmp_path, name):
  path = write(
    tmp_path / name,
    "who’s it\t['a', \"b's\"]\r\n"
    '\n"csv ""quoted"""\t"[\'x\', ""y\'s""]"\n'
    "\"so\" bare\t['\\d+ BC']\n"
    "none\t[]",
  )
  assert list(dpr_files.read_questions(path)) == [
    Question("who's it", ("a", "b's")),
    Question('csv "quoted"', ("x", "y's")),
    Question('"so" bare', ("\\d+ BC",)),
    Question("none", ()),
  ]


@given(rows=st.lists(st.tuples(TEXT, st.lists(TEXT)), max_size=5))
@SAME_FILE
def test_question_answers_round_trip(tmp_path, rows):
  rows = [
    (" ".join(f"q{question}".replace("’", "'").split()), answers)
    for question, answers in rows
  ]
  path = tmp_path / "q.csv"
  with open(path, "w", encoding="utf-8", newline="") as file:
    csv.writer(file, delimiter="\t").writerows(
      (question, repr(answers)) for question, answers in rows
    )
  assert list(dpr_files.read_questions(path)) == [
    Question(question, tuple(answers)) for question, answers in rows
  ]


@pytest.mark.parametrize(
  ("line", "parts"),
  [
    (b"q\t['a'", ["not a Python list", "['a'"]),
    (b"q\t[print()]", ["not a Python list"]),
    (b"q\t" + b"[" * 5000, ["not a Python list"]),
    (b"q\t'a'", ["answers", "is not a list"]),
    (b"q\t['a', 1]", ["answers[1]", "1 is a int, not a string"]),
    (b"q", ["1 tab-separated fields"]),
    (b"q\t['a']\tz", ["3 tab-separated fields"]),
    (b"q\t['\xff']", ["UTF-8"]),
  ],
)
def test_bad_question_answers(tmp_path, line, parts):
  path = write(tmp_path / "q.qa.csv", b"ok\t['a']\n" + line + b"\nok\t[]\n")
  rejects(dpr_files.read_questions, path, f"{path}:2", *parts)


# DPR JSON, as an array and a row a line.

FULL = {
  "dataset": "x",
  "question": "who’s it",
  "answers": ["a", "b"],
  "positive_ctxs": [
    {"title": "T", "text": "t", "score": 1.5, "passage_id": "wiki:3"},
    {"title": None, "text": "t", "psg_id": 4},
  ],
  "negative_ctxs": [{"title": "N", "text": "n", "id": "n7"}],
  "hard_negative_ctxs": [{"text": "h"}],
}
FULL_QUESTION = Question(
  "who's it",
  ("a", "b"),
  (Passage("3", "T", "t"), Passage("4", "", "t")),
  (Passage("", "", "h"),),
  (Passage("n7", "N", "n"),),
)


def as_array(rows, **kwargs):
  return json.dumps(rows, **kwargs)


def as_lines(rows, **kwargs):
  kwargs.pop("indent", None)
  return "\n".join(json.dumps(row, **kwargs) for row in rows)


@pytest.mark.parametrize("name", ["q.json", "q.json.gz", "q", "q.jsonl"])
@pytest.mark.parametrize("dump", [as_array, as_lines])
@pytest.mark.parametrize("before", ["", " \n", "\ufeff\n"])
def test_json_questions(tmp_path, name, dump, before):
  rows = [FULL, {"question": "bare"}, {"question": "q", "answers": None}]
  for kwargs in ({}, {"ensure_ascii": False, "indent": 1}):
    path = write(tmp_path / name, before + dump(rows, **kwargs) + "\n")
    assert list(dpr_files.read_questions(path)) == [
      FULL_QUESTION,
      Question("bare"),
      Question("q"),
    ]


CTX = st.fixed_dictionaries({"text": TEXT, "title": TEXT, "id": IDS})
ROW = st.fixed_dictionaries(
  {
    "question": TEXT,
    "answers": st.lists(TEXT, max_size=2),
    "positive_ctxs": st.lists(CTX, max_size=2),
    "hard_negative_ctxs": st.lists(CTX, max_size=2),
  }
)


@given(
  rows=st.lists(ROW, max_size=4), lines=st.booleans(), ascii_only=st.booleans()
)
@SAME_FILE
def test_json_round_trip(tmp_path, rows, lines, ascii_only):
  dump = as_lines if lines and rows else as_array
  path = write(tmp_path / "q.json", dump(rows, ensure_ascii=ascii_only))
  assert list(dpr_files.read_questions(path)) == [
    Question(
      row["question"].replace("’", "'"),
      tuple(row["answers"]),
      *(
        tuple(Passage(c["id"], c["title"], c["text"]) for c in row[name])
        for name in ("positive_ctxs", "hard_negative_ctxs")
      ),
    )
    for row in rows
  ]


@pytest.mark.parametrize(
  ("row", "parts"),
  [
    ("7", ["7 is not an object"]),
    ('{"data": []}', ["no field question", "data"]),
    ('{"question": null}', ["question: None is a NoneType, not a string"]),
    ('{"question": 3}', ["question: 3 is a int"]),
    ('{"question": "q", "answers": "a"}', ["answers: 'a' is not a list"]),
    ('{"question": "q", "answers": [["a"]]}', ["answers[0]: ['a'] is a list"]),
    ('{"question": "q", "positive_ctxs": {}}', ["positive_ctxs: {} is not"]),
    (
      '{"question": "q", "negative_ctxs": [{"text": ""}, {"title": "t"}]}',
      ["negative_ctxs[1]", "is not an object with a text"],
    ),
    (
      '{"question": "q", "hard_negative_ctxs": [{"text": "x", "title": 1}]}',
      ["hard_negative_ctxs[0].title: 1 is a int"],
    ),
    (
      '{"question": "q", "positive_ctxs": [{"text": "x", "psg_id": true}]}',
      ["positive_ctxs[0].psg_id: True is a bool"],
    ),
    ('{"question": "a\\ud800b"}', ["question", "half of a surrogate pair"]),
    ('{"question": "a\\uDC00"}', ["question", "half of a surrogate pair"]),
    (
      '{"question": "q", "answers": ["\\\\\\ud83d\\u0041"]}',
      ["answers[0]", "half of a surrogate pair"],
    ),
    ('{"question": "q",}', ["not JSON"]),
    ('{"question": "q" "answers": []}', ["not JSON"]),
    (b'{"question": "\xff"}', ["not JSON"]),
    (b'{"question": "\xed\xa0\x80"}', ["not", "UTF-8"]),
  ],
)
def test_bad_json_row(tmp_path, row, parts):
  row = row.encode() if isinstance(row, str) else row
  good = b'{"question": "ok, \\ud83d\\ude00 \\\\ud800"}'
  array = write(tmp_path / "a.json", b"[" + b",\n".join([good, row]) + b"]")
  rejects(dpr_files.read_questions, array, "row 2", *parts)
  lines = write(tmp_path / "l.jsonl", b"\n\n".join([good, row, good]))
  rejects(dpr_files.read_questions, lines, "row 2 (line 3)", *parts)


def test_lone_surrogate_at_every_place_of_a_chunk(tmp_path):
  """The escape is found wherever the reader's chunks happen to end."""
  path = tmp_path / "q.json"
  for padding in range(65_500, 65_560):
    text = "x" * padding + "\\ud83d\\ude00 \\ud83d"
    write(path, f'[{{"question": "{text}", "answers": []}}]')
    rejects(dpr_files.read_questions, path, "row 1, question")


def test_pairs_and_escaped_backslashes_are_left_alone(tmp_path):
  text = "\\ud800 \U0001f600 \\\\ \uffff"
  path = write(tmp_path / "q.json", json.dumps([{"question": text}]))
  assert list(dpr_files.read_questions(path)) == [Question(text)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_truncated_json(tmp_path, cut):
  rows = [FULL] * 3
  array = as_array(rows).encode()
  path = write(tmp_path / "q.json", array[:-cut])
  rejects(dpr_files.read_questions, path, "row", "premature EOF")
  lines = as_lines(rows).encode()
  path = write(tmp_path / "q.jsonl", lines[:-cut])
  rejects(dpr_files.read_questions, path, "row 3 (line 3)", "not JSON")


def test_garbage_behind_the_array(tmp_path):
  path = write(tmp_path / "q.json", '[{"question": "q"}] [1]')
  rejects(dpr_files.read_questions, path, "trailing garbage")


@pytest.mark.parametrize("content", ["", " \n ", "question\n", '"q"'])
def test_neither_array_nor_lines(tmp_path, content):
  path = write(tmp_path / "q.json", content)
  rejects(dpr_files.read_questions, path, ":1:", "JSON array")


@pytest.mark.parametrize("name", ["q.json.gz", "q.jsonl.gz", "q.qa.csv.gz"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_gzip(tmp_path, name, damage):
  rows = [{"question": f"q{i}", "answers": [str(i)]} for i in range(3000)]
  if "csv" in name:
    content = "".join(f"{r['question']}\t{r['answers']}\n" for r in rows)
  else:
    content = (as_lines if "jsonl" in name else as_array)(rows)
  path = write(tmp_path / name, content)
  data = bytearray(path.read_bytes())
  if damage == "cut":
    del data[-20:]
  else:
    data[-6] ^= 1  # in the checksum
  path.write_bytes(data)
  what = "truncated" if damage == "cut" else "CRC"
  rejects(dpr_files.read_questions, path, what)


def test_damaged_gzip_corpus(tmp_path):
  path = write(tmp_path / "p.tsv.gz", "id\ttext\ttitle\n1\tx\ty\n" * 50)
  path.write_bytes(path.read_bytes()[:-9])
  rejects(dpr_files.read_passages, path, "truncated", "line")


def test_memory_stays_flat(tmp_path):
  """Reading holds a few chunks, not the file."""
  import tracemalloc

  row = {**FULL, "negative_ctxs": [{"text": "x, " * 300}] * 10}
  path = write(tmp_path / "q.json", as_array([row] * 600))
  tracemalloc.start()
  try:
    assert sum(1 for _ in dpr_files.read_questions(path)) == 600
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert path.stat().st_size > 5e6
  assert peak < 1e6
