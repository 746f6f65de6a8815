"""Formats of corpora: recognized by fields, read as expected."""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from dpr_jax.core import errors
from dpr_jax.data import dpr_files, passage_sources, question_sources
from dpr_jax.data.records import Passage

ROWS = [
  {"id": "1", "title": "Ulm", "text": "At the Danube."},
  {"id": "2", "title": "", "text": 'On the "Aare", it is.'},
]
PASSAGES = [
  Passage("1", "Ulm", "At the Danube."),
  Passage("2", "", 'On the "Aare", it is.'),
]


def lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


def read(path, **settings):
  how = passage_sources.Reading(**settings)
  source = passage_sources.open_source(path)
  return source, list(source.read(how)), how


def test_json_and_csv(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(ROWS))
  (tmp_path / "a.jsonl").write_text(lines(ROWS))
  (tmp_path / "a.csv").write_text(
    'id,title,text\n1,Ulm,At the Danube.\n2,,"On the ""Aare"", it is."\n'
  )
  for name, kind in (
    ("a.json", "JSON"),
    ("a.jsonl", "JSONL"),
    ("a.csv", "CSV"),
  ):
    source, passages, _ = read(tmp_path / name)
    assert source.format == f"id, title, text {kind}"
    assert passages == PASSAGES


@pytest.mark.parametrize("kind", ["Parquet", "Arrow"])
def test_whole_numbers_are_ids_in_columns(tmp_path, kind):
  rows = [row | {"id": int(row["id"])} for row in ROWS]
  write(tmp_path / "a", rows, kind)
  source, passages, _ = read(tmp_path / "a")
  assert source.format == f"id, title, text {kind}"
  assert passages == PASSAGES


def write(path, rows, kind="Arrow"):
  table = pyarrow.Table.from_pylist(rows)
  if kind == "Parquet":
    pyarrow.parquet.write_table(table, path)
    return
  with pyarrow.ipc.new_stream(path, table.schema) as stream:
    stream.write_table(table)


def saved(folder, rows):
  """Writes a folder as `Dataset.save_to_disk` of `datasets` does."""
  folder.mkdir(parents=True)
  names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
  half = len(rows) // 2
  for name, part in zip(names, (rows[:half], rows[half:]), strict=True):
    write(folder / name, part)
  (folder / "dataset_info.json").write_text('{"features": {}}')
  files = [{"filename": name} for name in names]
  (folder / "state.json").write_text(json.dumps({"_data_files": files}))


def test_a_dataset_that_was_saved_to_disk(tmp_path):
  saved(tmp_path / "corpus", ROWS)
  source, passages, _ = read(tmp_path / "corpus")
  assert source.format == "id, title, text Arrow"
  assert [file.name for file in source.files] == [
    "data-00000-of-00002.arrow",
    "data-00001-of-00002.arrow",
  ]
  assert passages == PASSAGES
  state = {"_data_files": [{"filename": "../secret.arrow"}]}
  (tmp_path / "corpus" / "state.json").write_text(json.dumps(state))
  with pytest.raises(errors.InputError, match="'../secret.arrow' is not the n"):
    read(tmp_path / "corpus")
  for entry in ({}, "x/y", 3):
    state = json.dumps({"_data_files": [entry]})
    (tmp_path / "corpus" / "state.json").write_text(state)
    with pytest.raises(errors.InputError, match="state.json: .* is not the n"):
      read(tmp_path / "corpus")


@pytest.mark.parametrize("name", [".", "..", "../x"])
def test_a_split_is_inside_its_folder(tmp_path, name):
  (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
  with pytest.raises(errors.InputError, match="dataset_dict.json: .* is not"):
    read(tmp_path)


def test_splits_of_a_dataset_that_was_saved_to_disk(tmp_path):
  pairs = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(4)]
  saved(tmp_path / "train", pairs)
  saved(tmp_path / "validation", pairs[2:])
  (tmp_path / "dataset_dict.json").write_text(
    '{"splits": ["validation", "train"]}'
  )
  for split, expected in (("train", 4), ("dev", 2)):
    source = question_sources.open_source(tmp_path, split)
    assert source.format == "sentence-transformers Arrow"
    questions = list(source.read(question_sources.Notes()))
    assert [q.question for q in questions] == [
      f"q{i}" for i in range(4 - expected, 4)
    ]
  with pytest.raises(
    errors.InputError,
    match="one of passages, corpus, .*; the folder has validation, train: give",
  ):
    read(tmp_path)


def test_a_folder_of_parquet(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "README.md").write_text("x")
  pair = {"anchor": "q", "positive": "p"}
  for number in (1, 0):
    name = f"train-0000{number}-of-00002.parquet"
    row = pair | {"anchor": f"q{number}"}
    write(tmp_path / "data" / name, [row], "Parquet")
  write(tmp_path / "data" / "test-00000-of-00001.parquet", [pair], "Parquet")
  source = question_sources.open_source(tmp_path, "train")
  assert source.format == "sentence-transformers Parquet"
  questions = list(source.read(question_sources.Notes()))
  assert [q.question for q in questions] == ["q0", "q1"]
  assert len(source.fingerprint()) == 64
  dev = question_sources.open_source(tmp_path, "dev")
  assert [path.name for path in dev.files] == ["test-00000-of-00001.parquet"]


def test_a_folder_of_numbered_files_is_one_corpus(tmp_path):
  for number, row in enumerate(ROWS):
    (tmp_path / f"docs{number:02}.jsonl").write_text(lines([row]))
  assert list(dpr_files.read_passages(tmp_path)) == PASSAGES
  (tmp_path / "docs02.jsonl").write_text('{"_id": "3", "text": "x"}\n')
  with pytest.raises(
    errors.InputError,
    match="several formats: docs00.jsonl: id, title, text JSONL, .*BEIR JSONL",
  ):
    list(dpr_files.read_passages(tmp_path))


def test_the_first_line_of_contents_may_be_the_title(tmp_path):
  path = tmp_path / "corpus.jsonl"
  rows = [
    {"id": "1", "contents": '"Ulm"\nAt the Danube.\nThere.'},
    {"id": "2", "contents": "Bern\nOn the Aare."},
    {"id": "3", "contents": "no title"},
  ]
  path.write_text(lines(rows))
  source, passages, _ = read(path)
  assert source.format == "Pyserini JSONL"
  assert passages[1] == Passage("2", "", "Bern\nOn the Aare.")
  assert read(path, title_line=True)[1] == [
    Passage("1", "Ulm", "At the Danube.\nThere."),
    Passage("2", "Bern", "On the Aare."),
    Passage("3", "", "no title"),
  ]


def test_paragraphs_of_kilt(tmp_path):
  path = tmp_path / "kilt.jsonl"
  row = {
    "_id": "7",
    "wikipedia_id": "7",
    "wikipedia_title": "Ulm",
    "text": ["Ulm\n", "Section::::History.\n", " At the Danube.\n", "\n", "x"],
    "anchors": [],
  }
  path.write_text(lines([row]))
  source, passages, how = read(path)
  assert source.format == "KILT knowledge source JSONL"
  assert passages == [
    Passage("7-2", "Ulm", "At the Danube."),
    Passage("7-4", "Ulm", "x"),
  ]
  assert how.counts == {"titles": 1, "headings": 1, "empty_paragraphs": 1}


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (
      [{"query": "q", "pos": ["a"]}],
      "training questions .FlagEmbedding., not passages: config.data.passages="
      "from-train",
    ),
    (
      [{"id": "1", "body": "x"}],
      r"row 1 \(line 1\): no field text or contents, only \['body', 'id'\]: .*"
      "formats of corpora are id, text, title .*Pyserini",
    ),
    (
      [
        {"wikipedia_id": "1", "text": ["x"]},
        {"wikipedia_id": "2", "text": [1]},
      ],
      r"row 2 \(line 2\), text\[0\]: 1 is a int",
    ),
  ],
)
def test_other_rows_are_refused(tmp_path, rows, words):
  path = tmp_path / "corpus.jsonl"
  path.write_text(lines(rows))
  with pytest.raises(errors.InputError, match=f"^{path}: .*{words}"):
    read(path)


def test_a_header_is_no_passage_of_a_collection(tmp_path):
  path = tmp_path / "corpus.tsv"
  path.write_text("pid\tpassage\n1\tx\n")
  with pytest.raises(errors.InputError, match="the header lacks id and text"):
    read(path)
