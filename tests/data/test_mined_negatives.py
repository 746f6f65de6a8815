"""Files of mined negatives: what is read, and what is refused."""

import gzip

import pytest

from dpr_jax.core import errors
from dpr_jax.data import mined_negatives, records


def test_negatives_of_other_questions(tmp_path):
  path = tmp_path / "mine.jsonl"
  path.write_text('{"hard_negatives": ["a"]}\n')
  assert mined_negatives.read(path) == mined_negatives.read(path, 1)
  with pytest.raises(errors.InputError, match="1 lines for 2 questions"):
    mined_negatives.read(path, 2)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("nonsense\n", "line 1: 'nonsense'"),
    ('{"hard_negatives": []}\n{"x": 1}\n', "line 2"),
    ("[]\n", "line 1"),
    ('{"hard_negatives": [3]}\n', r"hard_negatives=\[3\] must be a list"),
    ('{"hard_negatives": "ab"}\n', "hard_negatives=ab must be a list"),
  ],
)
def test_malformed_lines_are_refused(tmp_path, content, message):
  path = tmp_path / "mine.jsonl"
  path.write_text(content)
  with pytest.raises(errors.InputError, match=message):
    mined_negatives.read(path)


def test_missing_and_cut_off_files_are_refused(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  with pytest.raises(errors.InputError, match="dpr-jax mine"):
    mined_negatives.read(path)
  path.write_bytes(gzip.compress(b'{"hard_negatives": []}\n' * 99)[:-12])
  with pytest.raises(errors.InputError, match="after line"):
    mined_negatives.read(path)
  path.write_bytes(b"not gzip")
  with pytest.raises(errors.InputError, match="after line 0"):
    mined_negatives.read(path)


def test_written_and_read_again(tmp_path, caplog):
  """The same bytes each time; counts of what is short."""
  path = tmp_path / "negatives" / "bm25.jsonl.gz"
  path.parent.mkdir()
  passages = [records.Passage(name, "", "x") for name in "abc"]
  mined = [
    (records.Question("Wo liegt Köln?", ("am Rhein",)), passages),
    (records.Question("q2", ()), passages[:1]),
    (records.Question("q3", ("x",)), []),
  ]
  with caplog.at_level("INFO"):
    counts = mined_negatives.write(path, iter(mined), 3, "mine", keep=2)
  assert counts == {
    "questions": 3,
    "fewer_than_keep": 2,
    "without_negatives": 1,
    "no_answers": 1,
  }
  assert caplog.messages == [
    "mine: 3 questions; 2 have fewer than 2 hard negatives; 1 have none; 1 have"
    " no answers: only their gold passages were excluded"
  ]
  assert mined_negatives.read(path, 3) == [["a", "b", "c"], ["a"], []]
  first = path.read_bytes()
  assert gzip.decompress(first).decode().splitlines()[0] == (
    '{"question": "Wo liegt Köln?", "hard_negatives": ["a", "b", "c"]}'
  )
  mined_negatives.write(path, iter(mined), 3, "mine", keep=2)
  assert path.read_bytes() == first
  caplog.clear()
  with caplog.at_level("INFO"):
    mined_negatives.write(path, iter(mined[:1]), 1, "mine", keep=2)
  assert caplog.messages == ["mine: 1 questions"]  # no zeros
