"""Tables with tabs: how one was written, and that no row is lost."""

import csv
import gzip

import pytest

from dpr_jax.core import errors
from dpr_jax.data import dpr_files, tsv_corpus
from dpr_jax.data.records import Passage

HEADER = "id\ttext\ttitle\n"
SPEECH = (  # a quotation that opens in passage 9 and closes in passage 10
  HEADER
  + "8\tUlm lies on the Danube.\tUlm\n"
  + '9\t"We came here to speak of rivers\tSpeech\n'
  + '10\tand of the towns beside them"\tSpeech\n'
  + "11\tBern lies on the Aare.\tBern\n"
)


def _write(tmp_path, text, name="psgs.tsv"):
  path = tmp_path / name
  data = text.encode()
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return path


@pytest.mark.parametrize("name", ["psgs.tsv", "psgs.tsv.gz"])
def test_a_quotation_over_two_rows_swallows_none(tmp_path, name):
  path = _write(tmp_path, SPEECH, name)
  assert tsv_corpus.choose(path) == "none"
  assert list(dpr_files.read_passages(path)) == [
    Passage("8", "Ulm", "Ulm lies on the Danube."),
    Passage("9", "Speech", '"We came here to speak of rivers'),
    Passage("10", "Speech", 'and of the towns beside them"'),
    Passage("11", "Bern", "Bern lies on the Aare."),
  ]


def test_as_csv_the_row_that_swallowed_others_is_named(tmp_path):
  swallowing = []
  path = _write(tmp_path, SPEECH)
  found = list(dpr_files.read_passages(path, "csv", swallowing))
  assert [passage.id for passage in found] == ["8", "9", "11"]
  assert swallowing == ["9"]


@pytest.mark.parametrize(
  "rows",
  [
    '1\t"never closed\tT\n2\tb\tT\n',
    '1\t"a" and more\tT\n2\tb\tT\n',
    '1\ta\t"Heroes\n2\t"b"\tT\n',  # a title; text of 2 as it is
    '1\t""Heroes"" by him\tT\n2\tb\tT\n',
    '1\tsaid "so\tT\n2\t"b\tT\n3\tc"\tT\n',
    '1\ta"\t"T\n2\tb\tT"\n',  # a title that closes in the next title
  ],
)
def test_what_csv_cannot_be_is_read_as_it_is(tmp_path, rows):
  path = _write(tmp_path, HEADER + rows)
  found = [tuple(line.split("\t")) for line in rows.splitlines()]
  assert [
    (p.id, p.text, p.title) for p in dpr_files.read_passages(path)
  ] == found


@pytest.mark.parametrize(
  ("rows", "texts"),
  [
    ('1\t"a ""b"" c"\tT\n', ['a "b" c']),
    ('1\t"a\nb"\tT\n2\tc\tT\n', ["a\nb", "c"]),
    # A table in a text: some of its lines are no rows.
    ('1\t"a\tb\nc"\tT\n2\td\tT\n', ["a\tb\nc", "d"]),
    # Rows that were swallowed when the file was made, within good csv.
    (
      '1\t"x ""y"""\tT\n2\t"a\tT\n7\tb"\tT\n3\t"p ""q"" r"\tT\n'
      '4\t"s ""t"""\tT\n',
      ['x "y"', "a\tT\n7\tb", 'p "q" r', 's "t"'],
    ),
    # All texts in marks, as in DPR's own file; one has swallowed a row.
    (
      '1\t"x"\tT\n2\t"a\tT\n7\tb"\tT\n3\t"y"\tT\n4\t"z"\tT\n5\t"v"\tT\n',
      ["x", "a\tT\n7\tb", "y", "z", "v"],
    ),
  ],
)
def test_csv_stays_csv(tmp_path, rows, texts):
  path = _write(tmp_path, HEADER + rows)
  assert tsv_corpus.choose(path) == "csv"
  assert [p.text for p in dpr_files.read_passages(path)] == texts


def test_all_fields_in_marks_stay_csv(tmp_path):
  path = tmp_path / "p.tsv"
  rows = [("id", "text", "title"), ("1", "a\tb\nc\td", "T"), ("2", "e", "T")]
  with open(path, "w", newline="") as file:
    csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(rows)
  found = list(dpr_files.read_passages(path))
  assert found == [Passage("1", "T", "a\tb\nc\td"), Passage("2", "T", "e")]


def test_without_quoting_lines_end_at_line_feeds_alone(tmp_path):
  path = _write(tmp_path, "\ufeff" + HEADER + '1\ta\rb "\tT\r\n\n2\tc\t"T"\r\n')
  found = list(dpr_files.read_passages(path, "none"))
  assert found == [Passage("1", "T", 'a\rb "'), Passage("2", '"T"', "c")]


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("1\tx\n", ":2: 2 tab-separated fields, the header has 3"),
    ("\t\t\n", ":2: the id is empty"),
    ("1\t\udcff\tT\n", ":2, text: not valid UTF-8"),
    ("1\tx\tT\n" + "y" * 80, ":3: a line of more than 40 bytes"),
  ],
)
def test_bad_lines_without_quoting(tmp_path, monkeypatch, text, words):
  monkeypatch.setattr(tsv_corpus, "LONGEST_FIELD", 40)
  path = tmp_path / "p.tsv"
  path.write_bytes((HEADER + text).encode("utf-8", "surrogateescape"))
  with pytest.raises(errors.InputError, match=words):
    list(dpr_files.read_passages(path, "none"))


def test_an_error_of_csv_says_how_to_read_it_otherwise(tmp_path):
  """Where lines are no rows either, nothing is chosen in silence."""
  path = _write(tmp_path, HEADER + '1\t"open\tT\n2\tno title\n')
  with pytest.raises(errors.InputError, match=r"2: .*data\.quoting=none"):
    list(dpr_files.read_passages(path))


def test_the_real_corpus_has_three(data_folder):
  swallowing = []
  path = data_folder / "nq" / "psgs_w100.tsv.gz"
  assert sum(1 for _ in dpr_files.read_passages(path, "auto", swallowing)) == (
    99_999
  )
  assert swallowing == ["3202", "11061", "39016"]
