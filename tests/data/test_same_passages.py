"""Equal title and text, found while the corpus is written."""

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import records, same_passages


def _passages(*texts):
  return [
    records.Passage(str(number), title, text)
    for number, (title, text) in enumerate(texts)
  ]


CORPUS = _passages(
  ("Ulm", "a city on the Danube"),
  ("Paris", "a capital"),
  ("Ulm", "a  city on\nthe Danube"),  # as 0, but for white space
  ("", "a capital"),
  ("Ulm", "A city on the Danube"),  # a capital letter: another text
  ("Ulm", "a city on the Danube"),  # as 0
  ("Paris", "a capital"),  # as 1
)


def _finder(wanted=()):
  finder = same_passages.Finder(same_passages.digest(one) for one in wanted)
  for passage in CORPUS:
    finder.see(passage)
  return finder


def test_copies_are_rows_with_an_earlier_title_and_text():
  pairs = _finder().copies()
  assert pairs.tolist() == [[2, 0], [5, 0], [6, 1]]
  copies = same_passages.Copies(pairs[:, 0], pairs[:, 1])
  found = copies.first(np.array([[6, 5, 4], [3, -1, 2]]))
  assert found.tolist() == [[1, 0, 4], [3, -1, 0]]
  assert copies.all_of(np.array([5, 4])).tolist() == [0, 2, 4, 5]
  none = same_passages.Copies.none()
  assert none.first(np.array([6, -1])).tolist() == [6, -1]
  assert none.all_of(np.array([6, 1])).tolist() == [1, 6]


class _Table(list):
  """Stands for PassageTable."""

  def rows_of(self, ids):
    rows = {passage.id: row for row, passage in enumerate(self)}
    return np.array([rows.get(one, -1) for one in ids], np.int64)

  def take(self, rows):
    return [self[int(row)] for row in rows]


def test_ids_of_copies_follow_the_ids_themselves():
  """0, 2 and 5 are one passage, 1 and 6 another; "x" is not in the corpus."""
  pairs, table = _finder().copies(), _Table(CORPUS)
  copies = same_passages.Copies(pairs[:, 0], pairs[:, 1])
  assert copies.ids_of_all(["5", "x"], table) == ["5", "x", "0", "2"]
  assert copies.ids_of_all(["6", "5", "0"], table) == [*"650", "1", "2"]
  assert copies.ids_of_all(["x"], table) == ["x"]
  assert copies.ids_of_all(["3", "4"], table) == ["3", "4"]
  assert copies.ids_of_all([], table) == []
  assert same_passages.Copies.none().ids_of_all(["5"], table) == ["5"]


def test_wanted_passages_are_found_by_their_text():
  wanted = _passages(("Ulm", "a city on the  Danube"), ("Rome", "a capital"))
  found = _finder(wanted).ids
  assert found == {same_passages.digest(wanted[0]): "0"}


def test_title_and_text_are_kept_apart():
  one, other = _passages(("a b", "c"), ("a", "b c"))
  assert same_passages.digest(one) != same_passages.digest(other)
  assert same_passages.text_digest(" who\tis it") == same_passages.text_digest(
    "who is it "
  )


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.zeros((2, 3), np.int64), r"int64\[2, 3\]"),
    (np.zeros(2), r"float64\[2\]"),
  ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
  np.save(tmp_path / "copies.npy", array)
  with pytest.raises(errors.InputError, match=f"{message} instead of int64"):
    same_passages.load(tmp_path / "copies.npy")


def test_a_cut_file_is_refused(tmp_path):
  path = tmp_path / "copies.npy"
  np.save(path, np.zeros((2, 2), np.int64))
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.InputError, match="prepare --overwrite"):
    same_passages.load(path)
