"""First ranks from results files, ours and from elsewhere."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.evaluation import ranked_results


def _file(tmp_path, *rows):
  path = tmp_path / "dev.elsewhere.json"
  path.write_text(json.dumps(rows))
  return path


def _row(answer, *texts, **more):
  hits = [{"id": "0", "text": text} | more for text in texts]
  return {"question": "q", "answers": [answer], "ctxs": hits}


def test_ids_that_repeat_with_other_texts(tmp_path):
  """The texts are looked at, whatever their ids are."""
  path = _file(
    tmp_path,
    _row("Ulm", "Ulm lies here."),
    _row("Bern", "Rome", "Bern lies there."),
    _row("Oslo", "Ulm lies here.", "Bern lies there."),
    _row("Rome", "Oslo", "Ulm", "Rome"),
  )
  for match in ("string", "regex"):
    ranks = ranked_results.read_ranks(path, {}, match)
    assert ranks.answer == [0, 1, None, 2]
    assert ranks.depth == 3


def test_what_elsewhere_says_of_answers_is_not_believed(tmp_path):
  path = _file(tmp_path, _row("Ulm", "Bern", has_answer=True))
  assert ranked_results.read_ranks(path, {}, "string").answer == [None]
  trusted = {"match": "string", "gold": [["0"]], "depth": 1}
  ranks = ranked_results.read_ranks(path, trusted, "string")
  assert (ranks.answer, ranks.gold) == ([0], [0])


def test_patterns_that_match_nothing_or_take_too_long(tmp_path, caplog):
  """Counted and named, with their question; no other pattern suffers."""
  letters = "a" * 60 + "!"
  path = _file(
    tmp_path,
    *(_row(pattern, "Bern", letters) for pattern in ("", "Ulm|", "x*", "(")),
    _row("(a|aa)+$", letters, "Bern"),
    _row("B[a-e]rn", letters, "Bern"),
  )
  ranks = ranked_results.read_ranks(path, {}, "regex")
  assert ranks.answer == [None] * 5 + [1]
  assert "5 regular expressions of answers never match" in caplog.text
  for named in (
    "'' (matches the empty string, question 0)",
    "'Ulm|' (matches the empty string, question 1)",
    "'x*' (matches the empty string, question 2)",
    "'(' (is not a valid pattern, question 3)",
    "'(a|aa)+$' (takes more than 0.5 s on a passage, question 4)",
  ):
    assert named in caplog.text


def test_a_nested_repetition_ends(tmp_path):
  """The engine sees that it cannot match, and needs no time-out."""
  path = _file(tmp_path, _row("(a+)+$", "a" * 26 + "!"), _row("(a+)+$", "aa"))
  assert ranked_results.read_ranks(path, {}, "regex").answer == [None, 0]


def test_a_hit_without_a_text_is_named(tmp_path):
  path = _file(tmp_path, _row("Ulm", "Ulm"), {"answers": [], "ctxs": [{}]})
  with pytest.raises(errors.InputError, match=r"question 1: .*'text'"):
    ranked_results.read_ranks(path, {}, "string")
