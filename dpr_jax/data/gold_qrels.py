"""Writes the gold passages of questions as judgements, in TREC's format.

Input: prepared questions and the corpus.  Output: `data/qrels.tsv` with a line
`question TAB 0 TAB passage TAB 1` per gold passage of a dev question.  Ids are
those of the runs that `retrieve` writes for the workdir's own questions: the
row of a question, the id of a passage with `_` for white space.  trec_eval,
ir_measures and `--qrels` read it.
"""

import pathlib

from dpr_jax.data import datasets, records, same_passages

FILE = "qrels.tsv"  # in the folder of the data
_BLOCK = 1000  # questions in memory at once


def write(
  path: pathlib.Path,
  questions: datasets.QuestionTable,
  passages: datasets.PassageTable,
  copies: same_passages.Copies,
) -> int:
  """Writes the judgements; no file if no question has a gold passage.

  A copy of a gold passage is gold as well, as in `evaluate --qrels=gold`.

  Args:
    path: path of the file, in a folder that is being written.
    questions: the questions.
    passages: the corpus.
    copies: rows of the corpus with the same title and text.

  Returns:
    The number of judgements.
  """
  count = 0
  with open(path, "w", encoding="utf-8", newline="\n") as file:
    for first, block in questions.blocks(_BLOCK):
      for row, question in enumerate(block, start=first):
        own = [p.id for p in question.positives if p.id]
        gold = dict.fromkeys(
          map(records.trec_id, copies.ids_of_all(own, passages))
        )
        file.writelines(f"{row}\t0\t{identifier}\t1\n" for identifier in gold)
        count += len(gold)
  if not count:
    path.unlink()
  return count
