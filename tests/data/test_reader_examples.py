"""What the reader learns from: positives by preference, what is left out."""

import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  reader_examples,
  records,
)
from tests.data import made


def _text(data, row):
  """The passage's text again, whatever pieces it is made of."""
  ids = data.passages.ids(row).tolist()
  words = [data.tokenizer.backend.id_to_token(i) for i in ids]
  return " ".join(words).replace(" ##", "")


GOLD = records.Passage("g", "gold", "the gold city")


@pytest.mark.parametrize(
  ("hits", "golden", "positives"),
  [
    # The gold passage is preferred, retrieved or not.
    (
      [made.hit("1", "a city"), made.hit("g", "the gold city", "gold")],
      [GOLD],
      "g",
    ),
    ([made.hit("1", "a city"), made.hit("2", "b")], [GOLD], "g"),
    # Without an answer in it, its page is.
    (
      [made.hit("1", "a city"), made.hit("2", "of the city", "gold")],
      [records.Passage("g", "gold", "nothing")],
      "of the city",
    ),
    # Else whatever holds the answer.
    ([made.hit("1", "a city"), made.hit("2", "b")], [], "a city"),
  ],
)
def test_positives_by_preference(reader_tokenizer, hits, golden, positives):
  data = reader_examples.from_results(
    [made.entry(["City"], *hits)], reader_tokenizer, golden=[golden]
  )
  (example,) = data.examples
  found = [_text(data, one.row) for one in example.positives]
  assert found == [GOLD.text if positives == "g" else positives]
  rows = [one.row for one in example.positives]
  assert not set(rows) & set(example.negatives.tolist())
  for row in example.negatives.tolist():
    assert "city" not in _text(data, row)


def test_what_is_left_out_is_counted(reader_tokenizer):
  entries = [
    made.entry([], made.hit("1", "a city")),
    made.entry(["nowhere"], made.hit("1", "a city")),
    made.entry(["city"], made.hit("1", "a city, the city and another city")),
    # Answers' tokens that no word piece stands for: a mark alone.
    made.entry(["\u0301"], made.hit("2", "see \u0301 there")),
    # An answer longer than any window.
    made.entry(["b " * 60], made.hit("3", "b " * 60)),
    made.entry(["city"], made.hit("1", "city"), question="a b c d e f g h i j"),
  ]
  data = reader_examples.from_results(entries, reader_tokenizer, most_spans=2)
  counts = {key: count for key, count in data.counts.items() if count}
  assert counts == {
    "questions": 6,
    "without_answers": 1,
    "without_positive": 1,
    "unalignable": 2,
    "kept": 2,
    "questions_cut": 1,
    "spans_left_out": 3,  # a third one, a mark and a long one
    "positives_windowed": 1,
  }
  assert data.examples[0].positives[0].spans == ((1, 1), (4, 4))
  with pytest.raises(errors.InputError, match="none of .* can be used"):
    reader_examples.from_results(entries[:2], reader_tokenizer).log("x.json")
  with pytest.raises(errors.InputError, match="question 1 of the results"):
    reader_examples.from_results(
      [entries[0], {"question": 1}], reader_tokenizer
    )


def test_only_the_first_so_many_passages_are_looked_at(reader_tokenizer):
  """The answer stands in the second; the third is a negative of three."""
  hits = [made.hit(f"{n}", text) for n, text in enumerate(["b", "city", "c"])]
  entries = [made.entry(["city"], *hits)]
  for from_top, negatives in ((2, 1), (3, 2)):
    data = reader_examples.from_results(
      entries, reader_tokenizer, from_top=from_top
    )
    assert len(data.examples[0].negatives) == negatives
  few = reader_examples.from_results(entries, reader_tokenizer, from_top=1)
  assert few.counts["without_positive"] == 1
