"""One question, one answer: encodes, retrieves and reads, and takes the time.

`Answerer.load(workdir).ask("Where was Einstein born?")` is what `dpr-jax ask`
prints; the reply has the answer, the passage with the answer marked, the scores
and the seconds of every step.
"""

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
from dpr_jax.retrieval import result_files
from dpr_jax.retrieval import retrieve as retrieve_lib

MARKS = ("[[", "]]")


@dataclasses.dataclass(frozen=True)
class Reply:
  """An answer and what it rests on.

  Attributes:
    question: as it was asked.
    answer: "" where there is none.
    score: the reader's, of the passage; None without an answer.
    rank: of the passage in retrieval, from 1; 0 without an answer.
    passage: where the answer stands; None without one.
    span: (start, end) characters of the passage's text.
    question_was_cut: it has more tokens than the reader reads.
    seconds: of every step.
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
    """For people."""
    steps = ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in self.seconds.items())
    notes = [f"  ({steps})"]
    if self.question_was_cut:
      notes.append("  the question is too long, the reader saw its beginning")
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
    """One line of JSON."""
    values = dataclasses.asdict(self)
    values["passage"] = self.passage and self.passage._asdict()
    return json.dumps(values, ensure_ascii=False, default=float)


class Answerer:
  """A retriever and a reader."""

  def __init__(
    self,
    retriever: retrieve_lib.Retriever,
    engine: passage_reader.PassageReader,
    k: arguments.Count = 20,
    weight: arguments.Number = 0.0,
  ):
    """Reads the first `k` passages; `weight` as in `passage_reader.choose`."""
    self._retriever, self._engine = retriever, engine
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
      folder: where `dpr-jax run` has been, with a reader.
      method: of retrieval; "" = the first of the config's `read.methods`.
      k: passages that are read.
      config: how to search and read; None = as the workdir's own config says.

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
    reader = read_lib.load_reader(config, workdir)
    return cls(
      retrieve_lib.Retriever.load(workdir.root, method, config=config),
      read_lib.make_engine(config, reader),
      k,
      retriever_weight.weight(config, workdir, method, reader),
    )

  def ask(self, question: arguments.Text) -> Reply:
    """The answer to a question, from the first k passages.

    Raises:
      InputError: the question is not one text.
    """
    question = arguments.text("question", question)
    began = time.perf_counter()
    (hits,) = self._retriever.search([question], self._k)
    found = time.perf_counter()
    passages = [records.Passage(hit.id, hit.title, hit.text) for hit in hits]
    (readings,) = self._engine.read([question], [passages])
    answer = reader_answers.answer(
      passages, [hit.score for hit in hits], readings, self._weight
    )
    seconds = dict(self._retriever.seconds) or {"retrieve": found - began}
    seconds["read"] = time.perf_counter() - found
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
