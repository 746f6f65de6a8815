"""A small workdir whose figures are known, written by hand."""

import json

# It lists the fonts in a process when it is imported for the first time.
import matplotlib.font_manager  # noqa: F401
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import mined_negatives, records
from dpr_jax.reporting import plots, report
from tests.reporting.parsed_page import Page

QUESTIONS = ("Capital of France?", "River of Paris?", "Who?", "Where?")
ANSWERS = ("Paris", "Seine", "Nobody", "Nowhere")
DEPTH = 3
# Rank of the passage with the answer, from 0.
RANKS = {
  "dense": (0, 0, 1, None),
  "dense-start": (0, 2, None, None),
  "bm25": (1, 0, None, None),
}
TITLE = "A title"


def write_results(workdir, method, ranks, title=TITLE, questions=QUESTIONS):
  """What `retrieve` leaves: every passage with an answer is a gold one."""
  path = workdir.results("dev", method)
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = []
  for row, (question, rank) in enumerate(zip(questions, ranks, strict=True)):
    texts = [f"Passage {row} {place} of {method}." for place in range(DEPTH)]
    if rank is not None:
      texts[rank] = f"The answer is {ANSWERS[row]}, they say."
    rows.append(
      {
        "question": question,
        "answers": [ANSWERS[row]],
        "ctxs": [
          {
            "id": f"g{row}" if place == rank else f"{method}{row}{place}",
            "title": title,
            "text": text,
            "score": str(DEPTH - place),
            "has_answer": place == rank,
          }
          for place, text in enumerate(texts)
        ],
      }
    )
  path.write_text(json.dumps(rows), encoding="utf-8")
  workdir_lib.Stage(
    "retrieve",
    path.parent,
    {"method": method},
    {},
    manifest_name=f"dev.{method}.manifest.json",
  ).finish(
    {"questions": len(rows)},
    files={path.name: workdir_lib.fingerprint_file(path)},
    depth=DEPTH,
    match="string",
    gold=[[f"g{row}"] for row in range(len(rows))],
  )


def write_answers(workdir, predictions):
  """What `read` leaves, after one and two passages."""
  path = workdir.answers("dev", "dense")
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [
    {
      "question": question,
      "answers": [answer],
      "prediction": second,
      "by_passages": {
        "1": {"prediction": first},
        "2": {"prediction": second},
      },
    }
    for question, answer, (first, second) in zip(
      QUESTIONS, ANSWERS, predictions, strict=True
    )
  ]
  path.write_text(json.dumps(rows), encoding="utf-8")
  results = workdir_lib.fingerprint_file(workdir.results("dev", "dense"))
  workdir_lib.Stage(
    "read",
    path.parent,
    {},
    {"questions": results},
    manifest_name="dev.dense.manifest.json",
  ).finish({}, files={path.name: workdir_lib.fingerprint_file(path)})


def _training(workdir):
  workdir.training.mkdir()
  rows = [
    {"step": 0, "dev_loss": 2.0, "dev_average_rank": 4.0},
    {"step": 1, "loss": 3.5, "learning_rate": 1e-5, "useful_tokens": 100.0},
    {
      "step": 2,
      "loss": 1.25,
      "learning_rate": 2e-5,
      "useful_tokens": 110.0,
      "run_seconds": 10.0,
      "lost_compile_seconds": 2.5,
    },
    {"step": 2, "dev_loss": 1.5, "dev_average_rank": 3.0},
  ]
  path = workdir.training / "metrics.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  workdir_lib.Stage("train", workdir.training, {}, {}).finish(
    {"steps": 2}, selected={"steps": [2], "why": "the last"}, seconds=10.0
  )


def make(root):
  """The workdir."""
  workdir = workdir_lib.Workdir(root)
  workdir.root.mkdir(parents=True)
  config = config_lib.base_config()
  config.evaluate.ranks = (1, 3, 100)
  config.train.batch_size = 32
  config.data.train = str(root / "train'.json")
  workdir_lib.write_json(root / "config.json", config_lib.plain(config))
  for method, ranks in RANKS.items():
    write_results(workdir, method, ranks)
  workdir.data.mkdir()
  workdir_lib.Stage("prepare", workdir.data, {}, {}).finish(
    {
      "passages": 9,
      "passages_read": 12,
      "passages_without_text": 3,
      "dev": 4,
      "dev_read": 4,
      "dev_without_question": 0,
    },
    sources={"dev": [{"from": "dev.json", "format": "DPR JSON"}]},
  )
  _training(workdir)
  mined = [
    mined_negatives.Row(
      records.Question(question), [records.Passage(name, "", "x")], [1.0], 2.0
    )
    for question, name in zip(
      QUESTIONS, ("bm2500", "bm2512", "bm2520", "bm2532"), strict=True
    )
  ]
  workdir.negatives.mkdir()
  counts = mined_negatives.write(
    workdir.negatives / mined_negatives.FILES["dev"],
    iter(mined),
    4,
    "mine dev",
    2,
  )
  workdir_lib.Stage("mine", workdir.negatives, {}, {}).finish(
    {f"dev_{key}": count for key, count in counts.items()},
    files={
      name: workdir_lib.fingerprint_file(workdir.negatives / name)
      for name in [mined_negatives.FILES["dev"]]
    },
  )
  folder = workdir.index("Flat")
  folder.mkdir(parents=True)
  workdir_lib.Stage("index", folder, {}, {}).finish(
    {"vectors": 9},
    count=9,
    bytes=2_000_000,
    search={"nprobe": 4},
    recall={
      "questions": 4,
      "recall@20": 0.975,
      "recall@100": 0.95,
      "questions_per_second": {"1 thread": 1234.4, "all threads": 2000.0},
    },
    tuning={
      "target": 0.97,
      "tried": [
        {"nprobe": n, "recall@20": r, "recall@20, lower bound": r - 0.01}
        for n, r in ((1, 0.5), (2, 0.9), (4, 0.975))
      ],
    },
  )
  write_answers(
    workdir,
    (("Lyon", "Paris"), ("Seine", "Seine"), ("me", "you"), ("", "there")),
  )
  return workdir


def make_second(root):
  """The same, but for the trained towers, the reader and a setting."""
  workdir = make(root)
  write_results(workdir, "dense", (2, 0, None, None))
  write_answers(workdir, 4 * (("no", "no"),))
  config = config_lib.read(workdir.root / "config.json")
  config.train.batch_size = 64
  workdir_lib.write_json(workdir.root / "config.json", config_lib.plain(config))
  return workdir


@pytest.fixture
def small(tmp_path):
  """The workdir, of four questions."""
  return make(tmp_path / "small")


@pytest.fixture
def second(tmp_path):
  """A second workdir."""
  return make_second(tmp_path / "second")


@pytest.fixture(scope="session")
def page(tmp_path_factory):
  """The report of `small`, and its file."""
  workdir = make(tmp_path_factory.mktemp("page") / "small")
  path = report.write(workdir)
  return Page(path.read_text(encoding="utf-8")), path


@pytest.fixture(scope="session")
def page_of_two(tmp_path_factory):
  """The report of `small` against `second`, and its file."""
  folder = tmp_path_factory.mktemp("two")
  second = make_second(folder / "second")
  path = report.write(make(folder / "small"), against=second)
  return Page(path.read_text(encoding="utf-8")), path


@pytest.fixture
def without_plots(monkeypatch):
  """Saves the time of drawing where a test is about texts."""
  for name in ("curves", "bars"):
    monkeypatch.setattr(plots, name, lambda title, *_, **__: "")


@pytest.fixture
def results():
  """Writes other results into a workdir."""
  return write_results
