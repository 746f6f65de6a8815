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


def of_many_lengths():
  """Entries of 14 questions, with 2 to 4 passages without their answer."""
  words = "abcdefghijklmnop"
  return [
    entry(
      ["city"],
      hit(f"p{n}", " ".join(words[: n % 7 + 1]) + " city"),
      *(hit(f"n{n}.{i}", " ".join(words[i:])) for i in range(2 + n % 3)),
      question=" ".join(words[n:]),
    )
    for n in range(14)
  ]
