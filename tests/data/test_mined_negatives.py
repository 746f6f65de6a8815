"""Files of mined negatives: what is read, and what is refused."""

import gzip

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
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
    (
      '{"hard_negatives": ["a", "b"], "scores": [1]}\n',
      r"line 1: scores=\[1\] must be a list of 2 numbers",
    ),
    ('{"hard_negatives": ["a"], "scores": [NaN]}\n', "list of 1 numbers"),
    ('{"hard_negatives": ["a"], "scores": [true]}\n', "list of 1 numbers"),
    (
      '{"hard_negatives": [], "scores": [], "positive_score": "x"}\n',
      "positive_score=x must be a number or null",
    ),
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
    mined_negatives.Row(
      records.Question("Wo liegt Köln?", ("am Rhein",)),
      passages,
      np.float32([2.5, 0.1, -1]).tolist(),
      float(np.float32(0.3)),
    ),
    mined_negatives.Row(
      records.Question("q2", ()), passages[:1], [1.0], np.nan
    ),
    mined_negatives.Row(records.Question("q3", ("x",)), [], [], 7.0),
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
    '{"question": "Wo liegt Köln?", "hard_negatives": ["a", "b", "c"],'
    ' "scores": [2.5, 0.1, -1.0], "positive_score": 0.3}'
  )
  assert mined_negatives.read_rows(path, 3) == [
    mined_negatives.Mined(["a", "b", "c"], [2.5, 0.1, -1.0], 0.3),
    mined_negatives.Mined(["a"], [1.0], None),
    mined_negatives.Mined([], [], 7.0),
  ]
  mined_negatives.write(path, iter(mined), 3, "mine", keep=2)
  assert path.read_bytes() == first
  caplog.clear()
  with caplog.at_level("INFO"):
    mined_negatives.write(path, iter(mined[:1]), 1, "mine", keep=2)
  assert caplog.messages == ["mine: 1 questions"]  # no zeros


def test_files_of_older_versions_have_no_scores(tmp_path):
  path = tmp_path / "bm25.jsonl"
  path.write_text('{"question": "q", "hard_negatives": ["a"]}\n')
  assert mined_negatives.read(path) == [["a"]]
  assert mined_negatives.read_rows(path) == [
    mined_negatives.Mined(["a"], None, None)
  ]


def _settings(**changed):
  config = config_lib.base_config()
  config.mine.update(changed)
  return mined_negatives.settings(config)


def test_filters_without_effect_are_not_recorded():
  """Settings of versions without filters give their record, to the key."""
  older = {"mine": {"depth": 100, "keep": 30}, "match": "string"}
  assert _settings() == older
  changed = {"absolute_margin": 2.0, "max_score": 3.0, "range_min": 1}
  assert _settings(**changed) == {
    "mine": {"depth": 100, "keep": 30, **changed},
    "match": "string",
  }
  whole = _settings(max_score=3, relative_margin=0)["mine"]
  assert [type(whole[name]) for name in ("max_score", "relative_margin")] == [
    float
  ] * 2
  assert _settings(sampling="random") == {
    "mine": {"depth": 100, "keep": 30, "sampling": "random"},
    "match": "string",
    "seed": 0,  # drawn with it
  }


def test_settings_that_exclude_everything_are_refused():
  with pytest.raises(errors.InputError, match="range_min=100: leaves out all"):
    _settings(range_min=100)
  with pytest.raises(
    errors.InputError, match="min_score=2.0 is above config.mine.max_score=1.0"
  ):
    _settings(min_score=2.0, max_score=1.0)
