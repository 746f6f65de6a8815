"""Answers a single question: encodes it, retrieves passages, and reads them.

`dpr-jax ask` prints `Answerer.load(workdir).ask("Where was Einstein born?")`.
The reply has the answer, the passage with the answer marked, the scores, and
the duration of every step.
"""

import concurrent.futures
import dataclasses
import json
import time

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import arguments, records
from dpr_jax.inference import passage_reader, reader_answers
from dpr_jax.models import model_settings
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import retriever_weight
from dpr_jax.retrieval import api, result_files

MARKS = ("[[", "]]")


@dataclasses.dataclass(frozen=True)
class Reply:
  """An answer, its passage and scores.

  Attributes:
    question: question as it was asked.
    answer: text of the answer; "" = none.
    score: the reader's score of the passage; None = no answer.
    rank: rank of the passage in retrieval, from 1; 0 = no answer.
    passage: passage that contains the answer; None = no answer.
    span: (start, end) of the answer in the passage's text, in characters.
    question_was_cut: whether the question was too long for the reader and was
      truncated.
    seconds: duration of every step, by name.
  """

  question: str
  answer: str
  score: float | None
  rank: int
  passage: result_files.Hit | None
  span: tuple[int, int]
  question_was_cut: bool
  seconds: dict[str, float]

  def text(self) -> str:
    """The reply as text for people, several lines."""
    steps = ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in self.seconds.items())
    notes = [f"  ({steps})"]
    if self.question_was_cut:
      notes.append(
        "  the question is too long: the reader saw only its beginning"
      )
    if self.passage is None:
      return "\n".join([self.question, "  no answer found", *notes])
    start, end = self.span
    text = self.passage.text
    marked = text[:start] + MARKS[0] + text[start:end] + MARKS[1] + text[end:]
    return "\n".join(
      [
        self.question,
        f"  {self.answer}",
        f"  {self.passage.title} (passage {self.passage.id}, retrieved as"
        f" number {self.rank}): {marked}",
        f"  retriever {self.passage.score:.4f}, reader {self.score:.4f}",
        *notes,
      ]
    )

  def json(self) -> str:
    """The reply as one line of JSON."""
    values = dataclasses.asdict(self)
    values["passage"] = self.passage and self.passage._asdict()
    return json.dumps(values, ensure_ascii=False, default=float)


class Answerer:
  """A retriever and a reader, to answer questions one by one.

  Attributes:
    retriever: finds the passages of a question.
  """

  def __init__(
    self,
    retriever: api.Retriever,
    engine: passage_reader.PassageReader,
    k: arguments.Count = 20,
    weight: arguments.Number = 0.0,
  ):
    """Wraps a retriever and a reader; callers use `load`.

    Args:
      retriever: finds the passages of a question.
      engine: reads them.
      k: number of passages to read.
      weight: weight of the retriever's score; see `passage_reader.choose`.
    """
    self.retriever, self._engine = retriever, engine
    self._k = arguments.count("k", k)
    self._weight = arguments.number("weight", weight)

  @classmethod
  def load(
    cls,
    folder: arguments.Path,
    method: arguments.Text = "",
    k: arguments.Count = 20,
    *,
    config: arguments.ConfigDict = None,
  ) -> "Answerer":
    """Opens a finished workdir.

    Args:
      folder: workdir of a finished `dpr-jax run` with a reader.
      method: method of retrieval; "" = the first of the config's
        `read.methods`.
      k: number of passages to read.
      config: settings of search and reader; None = the workdir's own config.

    Raises:
      InputError: something is missing, an argument is bad, or the config
        contradicts what was trained.
    """
    workdir = workdir_lib.Workdir(arguments.path("folder", folder))
    method, k = arguments.text("method", method), arguments.count("k", k)
    if arguments.config(config) is None:
      config = model_settings.of_workdir(workdir)
    config = model_settings.settle(config, workdir, reads=True)
    if not method and not len(config.read.methods):
      raise errors.InputError("config.read.methods is empty: give --method")
    method = method or config.read.methods[0]
    # At once: both read and hash hundreds of MB without Python.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      retriever = pool.submit(
        api.Retriever.load, workdir.root, method, config=config
      )
      reader = read_lib.load_reader(config, workdir)
      engine = read_lib.make_engine(config, reader)
    weight = retriever_weight.weight(config, workdir, method, reader)
    return cls(retriever.result(), engine, k, weight)

  def ask(self, question: arguments.Text) -> Reply:
    """Answers a question from its first k passages.

    Raises:
      InputError: the question is not a text.
    """
    question = arguments.text("question", question)
    began = time.perf_counter()
    (hits,) = self.retriever.search([question], self._k)
    retrieved = time.perf_counter()
    passages = [records.Passage(hit.id, hit.title, hit.text) for hit in hits]
    (readings,) = self._engine.read([question], [passages])
    answer = reader_answers.answer(
      passages, [hit.score for hit in hits], readings, self._weight
    )
    seconds = dict(self.retriever.seconds) or {"retrieve": retrieved - began}
    seconds["read"] = time.perf_counter() - retrieved
    tokenizer = self._engine.reader.tokenizer
    (ids,) = tokenizer.question_ids([question])
    return Reply(
      question,
      answer.prediction,
      answer.score,
      answer.index + 1,
      hits[answer.index] if answer.index >= 0 else None,
      (answer.start, answer.end),
      len(ids) > tokenizer.question_length,
      seconds,
    )
