"""Files with the scores of a teacher, of a workdir's questions."""

import json

from dpr_jax.data import mined_negatives, prepare


def score(passage_id):
  """The score of a passage: a number that tells it from the others."""
  return sum(passage_id.encode()) % 17 / 4


def write(path, workdir, every=1):
  """Scores of the gold passage and the mined negatives of every Nth question.

  Returns:
    The path, as text.
  """
  table = prepare.open_questions(workdir, "train")
  mined = mined_negatives.read(workdir.negatives / "bm25.jsonl.gz")
  rows = []
  for question, negatives in list(
    zip(table.take(range(len(table))), mined, strict=True)
  )[::every]:
    ids = [question.positives[0].id, *negatives]
    rows.append(
      {
        "question": question.question,
        "passages": ids,
        "scores": [score(each) for each in ids],
      }
    )
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)
