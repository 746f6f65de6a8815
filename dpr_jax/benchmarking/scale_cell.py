"""One cell of `bench scale`: runs a stage in a process of its own.

Input: JSON on standard input (see `scale.py`).  Output: the JSON file `result`
with the stage's seconds, peak memory, and the bytes of the folder it wrote.
"""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ml_collections

from dpr_jax.benchmarking import cells, scale_texts
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib

DEPTH = 100  # passages retrieved per question
Stage = Callable[[], Any]


def settings(texts: dict[str, str]) -> ml_collections.ConfigDict:
  """The config of all cells: a tiny random model, `config.data` as given."""
  config = config_lib.base_config()
  config.data.update(texts)
  config.model.checkpoint = "random"
  config.model.random_layers, config.model.random_width = 1, 32
  config.model.random_heads = 1
  config.retrieve.methods = ("bm25", "dense-start")
  config.retrieve.depth = DEPTH
  return config


class Cell:
  """The stages of one size; each method returns a stage, ready to be called.

  Imports and models are loaded before, so that they do not count.
  """

  def __init__(self, spec: dict[str, Any]):
    """Takes the task, as `scale.py` writes it."""
    self.folder = pathlib.Path(spec["texts"])
    self.workdir = workdir_lib.Workdir(spec["workdir"])
    self.config = settings(scale_texts.paths(self.folder))
    self.passages, self.questions = spec["passages"], spec["questions"]

  def texts(self) -> Stage:
    """Writes the files that `prepare` reads."""
    from dpr_jax.models import tower_sources

    model = tower_sources.of_model(self.config.model, self.config.seed)
    words = scale_texts.frequent_words(model.tokenizer().get_vocab())
    texts = scale_texts.Texts(words)
    self.folder.mkdir(parents=True, exist_ok=True)
    return lambda: scale_texts.write(
      self.folder, texts, self.passages, self.questions
    )

  def prepare(self) -> Stage:
    """Reads the files into the workdir."""
    from dpr_jax.data import prepare

    return lambda: prepare.prepare(self.config, self.workdir)

  def tokens(self) -> Stage:
    """Makes the token store."""
    from dpr_jax.data import prepare, token_store
    from dpr_jax.models import stored_towers

    model = stored_towers.before_training(self.config, self.workdir)
    table = prepare.open_passages(self.workdir)
    return lambda: token_store.make(self.workdir, table, model.tokenizer)

  def bm25(self) -> Stage:
    """Builds the BM25 index."""
    from dpr_jax.retrieval import bm25

    return lambda: bm25.build_or_load(self.config, self.workdir)

  def bm25_questions(self) -> Stage:
    """Searches the BM25 index."""
    from dpr_jax.data import prepare
    from dpr_jax.retrieval import bm25

    index = bm25.load_checked(self.workdir)
    table = prepare.open_questions(self.workdir, "dev")
    asked = [q.question for q in table.take(range(len(table)))]
    return lambda: index.search(asked, DEPTH)

  def mine(self) -> Stage:
    """Finds hard negatives of the train and dev questions."""
    from dpr_jax.retrieval import mine

    return lambda: mine.mine(self.config, self.workdir)

  def embed(self) -> Stage:
    """Encodes the corpus."""
    from dpr_jax.embedding import embed

    return lambda: embed.embed(self.config, self.workdir, model=embed.START)

  def index(self) -> Stage:
    """Builds the FAISS index."""
    from dpr_jax.embedding import embed
    from dpr_jax.index import faiss_stage

    return lambda: faiss_stage.index(
      self.config, self.workdir, model=embed.START
    )

  def retrieve(self) -> Stage:
    """Retrieves for the dev questions, with BM25 and with vectors."""
    from dpr_jax.retrieval import retrieve

    return lambda: retrieve.retrieve(self.config, self.workdir)

  def evaluate(self) -> Stage:
    """Measures the results."""
    from dpr_jax.evaluation import evaluate

    return lambda: evaluate.evaluate(self.config, self.workdir)


# By name, in order: the folder of its output in a workdir, "" = none.
STAGES = {
  "prepare": "data",
  "tokens": "tokens",
  "bm25": "bm25",
  "bm25_questions": "",
  "mine": "negatives",
  "embed": "embeddings",
  "index": "index",
  "retrieve": "results",
  "evaluate": "evaluation",
}
# Stages whose work grows with the questions: how many of `questions` they do.
ASKED = {"bm25_questions": 1, "mine": 2, "retrieve": 1, "evaluate": 1}
TEXTS = "texts"  # makes the files that `prepare` reads; not a stage


def size_of(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder; 0 if it does not exist."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return sum(path.stat().st_size for path in files)


def _cpu_seconds() -> float:
  """Processor time of this process, and of its children that have ended."""
  times = os.times()
  return sum(times[:4])


def measure(spec: dict[str, Any]) -> dict[str, Any]:
  """Runs a stage of `STAGES`, or `TEXTS`.

  Returns:
    `seconds`, `cpu_seconds`, `anonymous_bytes`, `resident_bytes` (see
    `cells.PeakMemory`), `disk_bytes` of its folder, and `questions` of `ASKED`.
  """
  cell, name = Cell(spec), spec["stage"]
  run = getattr(cell, name)()
  with cells.PeakMemory(children=True) as peak:
    cpu, started = _cpu_seconds(), time.perf_counter()
    run()
    seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
  folder = STAGES.get(name)
  return {
    "seconds": seconds,
    "cpu_seconds": cpu,
    "anonymous_bytes": peak.anonymous,
    "resident_bytes": peak.resident,
    "disk_bytes": size_of(cell.workdir.root / folder) if folder else 0,
    "questions": ASKED.get(name, 0) * cell.questions,
  }


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  cells.main(measure)
