"""The command line as a user meets it: the whole flow.

A call is a process of its own, as in life; mistakes are in `test_mistakes`.
"""

import json
import shutil
import threading

import pytest

import dpr_jax
from dpr_jax.cli import main as main_lib

# How ml_collections loads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.fixture(scope="module")
def finished(forked_call, config_file, tmp_path_factory):
  """A workdir after `dpr-jax run`, and what the run printed."""
  workdir = tmp_path_factory.mktemp("run") / "work"
  done = forked_call(
    "run",
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--cpu_devices=8",
  )
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_run_does_everything(finished):
  """All the contract's files, and the table at the end."""
  workdir, done = finished
  for name in (
    "config.json",
    "data/manifest.json",
    "negatives/bm25.jsonl.gz",
    "training/metrics.jsonl",
    "training/checkpoints/6",
    "embeddings/passages/manifest.json",
    "embeddings/passages-start/manifest.json",
    "index/Flat/index.faiss",
    "index/Flat/manifest.json",
    "results/dev.dense.json",
    "results/dev.bm25.trec",
    "evaluation/dev.json",
    "report/dev.html",
  ):
    assert (workdir / name).exists(), name
  evaluation = json.loads((workdir / "evaluation/dev.json").read_text())
  assert set(evaluation) == {"bm25", "dense", "dense-start"}
  for figures in evaluation.values():
    assert 0 <= figures["top1"] <= figures["top5"] <= figures["top100"] <= 1
    assert 0 <= figures["gold_top1"] <= figures["gold_top20"] <= 1
  assert evaluation["bm25"]["top20"] > 0.5
  assert "dense-start" in done.stdout
  assert "gold top-1" in done.stdout
  assert done.stdout.splitlines()[-1] == f"report: {workdir}/report/dev.html"
  assert _last_lines(done) == _verdicts(workdir)
  assert "orbax" not in done.stderr.lower()
  temporary = [path for path in workdir.rglob("*.tmp-*")]
  assert not temporary


def _last_lines(done):
  """The two verdicts, without the time and the p of the tests."""
  lines = done.stderr.splitlines()[-2:]
  return [line[line.index("run: ") :].partition("; p")[0] for line in lines]


def _verdicts(workdir):
  """The same lines, worked out from the results alone."""
  means = {}
  for method in ("dense", "bm25", "dense-start"):
    rows = json.loads((workdir / f"results/dev.{method}.json").read_text())
    ranks = [[hit["has_answer"] for hit in row["ctxs"]] for row in rows]
    found = [1 / (1 + r.index(True)) if True in r else 0 for r in ranks]
    means[method] = f"{sum(found) / len(found):.3f}"
  start = "verdict on dev, 24 questions, whole corpus: answer reciprocal rank"
  return [
    f"run: {start} {means[method]} ({name}), {means['dense']} (dense"
    for method, name in (
      ("bm25", "bm25"),
      ("dense-start", "the start (dense-start)"),
    )
  ]


def test_what_computes_nothing_leaves_the_cores_alone(
  forked_call, finished, config_file, tmp_path
):
  """Beside a process that has the TPU, or where there is none to be had."""
  shutil.copytree(finished[0], tmp_path / "w")
  flags = f"--config={config_file}", f"--workdir={tmp_path / 'w'}"
  for command in ("prepare", "mine", "evaluate"):
    done = forked_call(command, *flags, "--overwrite", JAX_PLATFORMS="tpu")
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stderr
  done = forked_call("embed", *flags, JAX_PLATFORMS="tpu")
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert last.startswith("dpr-jax: JAX found no devices: ")
  assert last.endswith("or use the CPU with --cpu_devices=8")


def test_run_again_skips_everything(forked_call, finished, config_file):
  """Done and unchanged; another depth does retrieval alone again."""
  workdir, _ = finished
  again = forked_call(
    "run",
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--cpu_devices=8",
  )
  assert again.returncode == 0, again.stderr
  for stage in ("prepare", "mine", "train", "embed", "index", "retrieve"):
    assert f"{stage}: done and unchanged, skipped" in again.stderr
  assert "report: nothing has changed, skipped" in again.stderr
  assert _last_lines(again) == _verdicts(workdir)
  other = forked_call(
    "retrieve",
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--cpu_devices=2",
    "--method=bm25",
    "--name=few",
    "--config.retrieve.depth=3",
  )
  assert other.returncode == 0, other.stderr
  results = json.loads((workdir / "results/few.bm25.json").read_text())
  assert max(len(row["ctxs"]) for row in results) == 3


def test_run_mines_nothing_again_that_a_training_has_read(
  forked_call, finished, config_file
):
  """It is refused by the key; --overwrite=train would train anew."""
  workdir, _ = finished
  negatives = workdir / "negatives" / "bm25.jsonl.gz"
  before = negatives.stat().st_mtime_ns
  done = forked_call(
    "run",
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--cpu_devices=8",
    "--config.bm25.k1=1.2",
  )
  assert done.returncode == 2
  line = done.stderr.splitlines()[-1]
  assert "config.bm25.k1 was 0.9, is 1.2. " in line
  assert "--overwrite=train" in line
  assert negatives.stat().st_mtime_ns == before


def test_three_lines_of_python(finished):
  """Retriever and Encoder on a finished workdir."""
  workdir, _ = finished
  retriever = dpr_jax.Retriever.load(workdir)
  (hits,) = retriever.search(["Where was Einstein born?"], k=3)
  assert len(hits) == 3
  assert hits[0].score >= hits[1].score
  encoder = dpr_jax.Encoder.load(workdir)
  vectors = encoder.encode_passages([(hits[0].title, hits[0].text)])
  question = encoder.encode_questions(["Where was Einstein born?"])
  assert abs(float(vectors[0] @ question[0]) - hits[0].score) < 1e-3


def test_any_question_file(forked_call, finished, config_file, tmp_path):
  """`--questions` and `--name`, through to the evaluation."""
  workdir, _ = finished
  path = tmp_path / "mine.qa.csv"
  path.write_text("Where was Einstein born?\t['Ulm']\n")
  common = (
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--name=mine",
    "--cpu_devices=1",
  )
  done = forked_call(
    "retrieve", *common, f"--questions={path}", "--method=bm25"
  )
  assert done.returncode == 0, done.stderr
  done = forked_call("evaluate", *common)
  assert done.returncode == 0, done.stderr
  evaluation = json.loads((workdir / "evaluation/mine.json").read_text())
  assert evaluation["bm25"]["top20"] == 1.0


@pytest.mark.slow
def test_reader_from_training_to_answers(
  forked_call, finished, config_file, tmp_path
):
  """`run` with a reader does only what is new; then ask, rerank, export."""
  workdir = tmp_path / "work"
  shutil.copytree(finished[0], workdir)
  reader = {
    "train": "results",
    "method": "bm25",
    "length": 64,
    "question_length": 16,
    "overlap": 8,
    "passages": 2,
    "batch_size": 8,
    "max_steps": 2,
    "dev_questions": 4,
    "dev_passages": 2,
  }
  common = (
    f"--config={config_file}",
    f"--workdir={workdir}",
    "--cpu_devices=2",
    *(f"--config.reader.{key}={value}" for key, value in reader.items()),
    "--config.read.methods=('bm25',)",
    "--config.read.passages=(1,2)",
    "--config.read.length_step=64",
    "--config.read.rerank_depth=2",
  )
  done = forked_call("run", *common)
  assert done.returncode == 0, done.stderr
  assert "embed: done and unchanged, skipped" in done.stderr
  assert "train-reader: " in done.stderr
  evaluation = json.loads((workdir / "evaluation/dev.json").read_text())
  assert {"em", "f1", "em_1", "f1_1"} <= evaluation["bm25"].keys()
  assert "EM, 1 read" in done.stdout

  asked = forked_call(
    "ask", f"--workdir={workdir}", "--k=2", "Where was it?", "Who?"
  )
  assert asked.returncode == 0, asked.stderr
  assert "Where was it?" in asked.stdout
  assert "Who?" in asked.stdout
  done = forked_call("retrieve", *common, "--method=bm25", "--rerank=reader")
  assert done.returncode == 0, done.stderr
  assert (workdir / "results/dev.bm25-reader.trec").exists()
  out = tmp_path / "exported"
  done = forked_call(
    "export", *common, "--what=reader", "--format=dpr-reader", f"--out={out}"
  )
  assert done.returncode == 0, done.stderr
  assert (out / "model.safetensors").exists()


def test_threads_that_wait_do_not_hold_a_failed_command(monkeypatch):
  """Those of Orbax do after a failed save; threads that end are waited for."""
  ended, release = [], threading.Event()
  monkeypatch.setattr(main_lib, "_SECONDS_FOR_THREADS", 0.05)
  monkeypatch.setattr(main_lib.os, "_exit", ended.append)
  stuck = threading.Thread(target=release.wait)
  stuck.start()
  with pytest.raises(SystemExit):
    main_lib._end_at_once(2)
  release.set()
  stuck.join()
  assert 2 in ended
