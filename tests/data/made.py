"""What tests of data share: a corpus of any size, results of retrieval."""

from dpr_jax.data.records import Passage


def corpus(size):
  """Ids with holes, in an order that is not theirs."""
  return [
    Passage(str((i * 7919) % 10_007 + 1), f"title {i % 5}", f"text {i} ü")
    for i in range(size)
  ]


def hit(identifier, text, title="page"):
  """A passage as it stands in results."""
  return {"id": identifier, "title": title, "text": text, "score": "1"}


def entry(answers, *hits, question="where was it"):
  """A question with its hits."""
  return {"question": question, "answers": answers, "ctxs": list(hits)}
