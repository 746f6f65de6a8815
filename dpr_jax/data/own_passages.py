"""Makes a corpus of the passages of the question files.

Input: the questions that `prepare` has written.  Output: a `PassageSource` of
their distinct passages (positives and negatives), for `data.passages`
"from-train": training data with texts needs no other corpus to be tried out.
"""

import pathlib
from collections.abc import Iterator, Sequence

from dpr_jax.data import (
  datasets,
  passage_sources,
  records,
  same_passages,
)

_BLOCK = 1000  # questions in memory at once
_LISTS = ("positives", "hard_negatives", "negatives")


def source(folders: Sequence[pathlib.Path]) -> passage_sources.PassageSource:
  """The distinct passages of the questions in some folders.

  Passages are distinct if their titles or texts are.  One keeps its id, unless
  it has none or another text has it already: then its id is a hash of its title
  and text.  Counts `repeated` passages, those `without_any_text`, which are
  left out, and `ids_of_other_texts`, which were replaced.

  Args:
    folders: folders that `tfds_builders.write_questions` wrote.
  """
  return passage_sources.PassageSource(
    passage_sources.FROM_TRAIN,
    "passages of the questions",
    (),
    lambda how: _distinct(folders, how),
  )


def _distinct(
  folders: Sequence[pathlib.Path], how: passage_sources.Reading
) -> Iterator[records.Passage]:
  how.counts.clear()
  seen: set[int] = set()
  ids: set[str] = set()
  for passage in _all(folders):
    if not passage.text.strip():
      how.counts["without_any_text"] += 1
      continue
    digest = same_passages.digest(passage)
    if digest in seen:
      how.counts["repeated"] += 1
      continue
    seen.add(digest)
    how.counts["ids_of_other_texts"] += passage.id in ids
    identifier = passage.id
    if not identifier or identifier in ids:
      identifier = same_passages.made_id(digest)
    ids.add(identifier)
    yield records.Passage(identifier, passage.title, passage.text)


def _all(folders: Sequence[pathlib.Path]) -> Iterator[records.Passage]:
  for folder in folders:
    for _, block in datasets.QuestionTable.open(folder).blocks(_BLOCK):
      for question in block:
        for name in _LISTS:
          yield from getattr(question, name)
