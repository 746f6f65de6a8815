"""The command line as a user meets it: the whole flow, and every mistake.

A call of the flow is a process of its own, as in life; a mistake is made in
this one, where it takes no seconds.
"""

import json
import shutil
import subprocess
import sys
import threading

import pytest

import dpr_jax
from dpr_jax.cli import main as main_lib
from dpr_jax.core import signals

# How ml_collections loads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.fixture
def mistake(monkeypatch, capsys):
  """Runs dpr-jax in this process to its end, where nothing will be done."""
  monkeypatch.setattr(signals, "listen", lambda: None)

  def mistake(*arguments, cwd=None):
    if cwd:
      monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["dpr-jax", *map(str, arguments)])
    code = 0
    try:
      main_lib.main()
    except SystemExit as end:
      code = end.code
    said = capsys.readouterr()
    return subprocess.CompletedProcess(sys.argv, code, said.out, said.err)

  return mistake


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
  assert "orbax" not in done.stderr.lower()
  temporary = [path for path in workdir.rglob("*.tmp-*")]
  assert not temporary


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


def _refused(done, *words):
  """Exit status 2 and one line on stderr that holds the words."""
  lines = done.stderr.strip().splitlines()
  assert done.returncode == 2, done.stderr
  assert lines[-1].startswith("dpr-jax: ")
  assert "Traceback" not in done.stderr
  for word in words:
    assert word in lines[-1], lines[-1]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], ["usage: dpr-jax COMMAND"]),
    (["fly"], ["unknown command 'fly'", "prepare, mine, train"]),
    (["prepare", "mine"], ["one COMMAND only"]),
    (["bench"], ["bench needs one KIND: train, encode, batch"]),
    (["bench", "fly"], ["bench needs one KIND: train, encode, batch"]),
    (["bench", "train", "--config=CONFIG"], ["--workdir is missing"]),
    (
      ["bench", "train", "--config=CONFIG", "--workdir=w"],
      ["run `dpr-jax prepare`"],
    ),
    (
      ["bench", "batch", "--config=CONFIG", "--batch_sizes=8,many"],
      ["--batch_sizes=8,many: must be numbers"],
    ),
    (
      ["bench", "batch", "--config=CONFIG", "--json=."],
      ["--json=. cannot be written: it is a folder"],
    ),
    (["export", "--config=CONFIG", "--workdir=w"], ["export needs --out=DIR"]),
    (
      ["export", "--config=CONFIG", "--workdir=w", "--out=o", "--format=npy"],
      ["--format=npy: must be one of hf, dpr, sentence-transformers"],
    ),
    (
      ["import", "--out=o", "--from=x", "--what=reader"],
      ["only --what=embeddings can"],
    ),
    (["import", "--from=x"], ["import needs --workdir=DIR or --out=DIR"]),
    (
      ["import", "--from=x", "--workdir=w", "--out=o"],
      ["--out=DIR or the vectors of --workdir=DIR: give only one"],
    ),
    (
      ["import", "--from=x", "--workdir=w"],
      ["w/data/manifest.json is missing: run `dpr-jax prepare`"],
    ),
    (
      ["index", "--config=CONFIG", "--workdir=w", "--backend=elastic:x"],
      ["--backend=elastic:x: must be one of milvus:URI"],
    ),
    (
      ["index", "--config=CONFIG", "--workdir=w", "--config.index.backend=x"],
      ["--backend=x: must be one of milvus:URI"],
    ),
    (
      [
        *("index", "--config=CONFIG", "--workdir=w", "--tune"),
        "--backend=lancedb:x",
      ],
      ["--tune: only for a FAISS index, not with --backend"],
    ),
    (
      [
        *("retrieve", "--config=CONFIG", "--workdir=w", "--backend=lancedb:x"),
        "--method=bm25,exact",
      ],
      ["none of the methods bm25, exact searches it: add one of dense"],
    ),
    (["import", "--out=o", "--what=embeddings"], ["import needs --from=FILE"]),
    (
      ["import", "--out=o", "--what=embeddings", "--from=nothing.pkl"],
      ["cannot read nothing.pkl"],
    ),
    (["bench", "search", "--config=CONFIG"], ["--workdir, or --vectors=N"]),
    (["index", "--plan", "--config=CONFIG"], ["--plan needs --vectors=N"]),
    (
      [
        "index",
        "--plan",
        "--config=CONFIG",
        "--vectors=9",
        "--config.index.factory=L2norm,Flat",
      ],
      ["config.index.factory='L2norm,Flat'", "does not keep inner products"],
    ),
    (
      ["embed", "--config=CONFIG", "--workdir=w", "--shard=0"],
      ["--shard: only for index"],
    ),
    (["train", "--workdir=w"], ["--config is missing"]),
    (["train", "--config=CONFIG"], ["--workdir is missing"]),
    (["train", "--config=no.py", "--workdir=w"], ["no.py"]),
    (["train", "--config=CONFIG", "--workdir=w", "--fly"], ["fly"]),
    (
      ["train", "--config=NQ:foo", "--workdir=w"],
      [
        "ValueError: configs/nq_100k.py has no variant 'foo': quick, ablation,"
        " batch_size or reader"
      ],
    ),
    (
      ["train", "--config=CONFIG", "--workdir=w", "--config.train.batch=3"],
      ["batch"],
    ),
    (
      ["train", "--config=CONFIG", "--workdir=w", "--config.seed=x"],
      ["seed"],
    ),
    (["train", "--config=CONFIG", "--workdir=w"], ["run `dpr-jax prepare`"]),
    (
      ["prepare", "--config=CONFIG", "--workdir=w", "--cpu_devices=-1"],
      ["--cpu_devices=-1"],
    ),
    (
      [
        "prepare",
        "--config=CONFIG",
        "--workdir=w",
        "--config.data.passages=empty.tsv",
      ],
      ["empty.tsv"],
    ),
    (
      [
        "prepare",
        "--config=CONFIG",
        "--workdir=w",
        "--config.data.passages=columns.tsv",
      ],
      ["columns.tsv", "title"],
    ),
    (
      [
        "prepare",
        "--config=CONFIG",
        "--workdir=w",
        "--config.data.train=rows.json",
      ],
      ["rows.json", "row 2", "answers"],
    ),
    (
      [
        "prepare",
        "--config=CONFIG",
        "--workdir=w",
        "--config.data.dev=broken.qa.csv",
      ],
      ["broken.qa.csv:2:"],
    ),
    (
      ["mine", "--config=CONFIG", "--workdir=w", "--from=dense"],
      ["--from='dense'", "bm25, model"],
    ),
    (
      ["read", "--config=CONFIG", "--workdir=w"],
      ["dev.dense.json is missing", "run `dpr-jax retrieve --name=dev"],
    ),
    (["train-reader", "--config=CONFIG", "--workdir=w"], ["reader.train is"]),
    (["ask", "Who?"], ["--workdir is missing"]),
    (["ask", "--workdir=w", "--json", "Who?"], ["w/config.json"]),
    (
      ["train", "--config=CONFIG", "--workdir=w", "--from=model"],
      ["--from", "only for mine, import and fetch"],
    ),
    (
      ["train", "--config=CONFIG", "--workdir=w", "--topology=v5e:2x4"],
      ["--topology", "only for plan"],
    ),
    (
      ["run", "--config=CONFIG", "--workdir=w", "--overwrite"],
      ["--overwrite: name the stages that run runs again", "=train,embed"],
    ),
    (
      ["bench", "train", "--config=CONFIG", "--workdir=w", "--factories=Flat"],
      ["--factories", "only for bench search"],
    ),
  ],
  ids=lambda value: "-".join(value)[:60] or "nothing",
)
def test_mistakes(mistake, arguments, words, config_file, repository, tmp_path):
  """One clear line, exit status 2, nothing half-written."""
  (tmp_path / "empty.tsv").write_text("id\ttext\ttitle\n")
  (tmp_path / "columns.tsv").write_text("id\ttext\n1\tabc\n")
  good = {"question": "q", "answers": ["a"], "positive_ctxs": []}
  (tmp_path / "rows.json").write_text(
    json.dumps([good, {"question": "q", "answers": "a"}])
  )
  (tmp_path / "broken.qa.csv").write_text("q\t['a']\nq2\t['a'\n")
  nq = repository / "configs" / "nq_100k.py"
  arguments = [
    a.replace("CONFIG", str(config_file)).replace("NQ", str(nq))
    for a in arguments
  ]
  done = mistake(*arguments, cwd=tmp_path)
  _refused(done, *words)
  assert "File" not in done.stderr.strip().splitlines()[-1]
  left = {path.name for path in tmp_path.glob("w/*")}
  assert left <= {"config.json", ".lock"}


def test_checkpoint_of_other_sizes(
  forked_call, config_file, mined_workdir, tiny_checkpoint, tmp_path
):
  """A folder whose weights are not those of its config.json."""
  shutil.copytree(mined_workdir.root, tmp_path / "w")
  shutil.copytree(tiny_checkpoint, tmp_path / "other")
  path = tmp_path / "other" / "config.json"
  path.write_text(path.read_text().replace("48", "64"))
  done = forked_call(
    "train",
    f"--config={config_file}",
    f"--workdir={tmp_path / 'w'}",
    f"--config.model.checkpoint={tmp_path / 'other'}",
    "--cpu_devices=1",
  )
  _refused(done, "misshapen", "intermediate.dense.weight")


def test_version_and_help(call):
  """Both without a config."""
  assert call("--version").stdout.strip() == dpr_jax.__version__
  shown = call("--help")
  assert shown.returncode == 0
  assert "--questions" in shown.stdout
  assert "usage: dpr-jax COMMAND" in shown.stdout


def test_help_of_a_command_has_its_flags_alone(mistake):
  """A usage line, a sentence, flags, an example; nothing is looked at."""
  for arguments in (
    *(("help", "train"), ("train", "--config=no", "-h")),
    *(("--config", "no", "train", "--help"), ("train", "-help")),
  ):
    done = mistake(*arguments)
    assert done.returncode == 0
    first, _, sentence, *rest = done.stdout.splitlines()
    assert first == "usage: dpr-jax train --config=FILE --workdir=DIR [flags]"
    assert sentence == "Train the two towers."
    flags = [line.split("=")[0].strip() for line in rest if "  --" in line[:4]]
    assert flags == [
      *("--config", "--workdir", "--cpu_devices", "--pod", "--overwrite"),
      *("--quiet", "--log_json"),
    ]
    assert rest[-2:] == [
      "Example:",
      "  dpr-jax train --config=configs/nq_100k.py --workdir=W",
    ]


def test_help_of_bench(mistake):
  """All kinds, or the flags of one."""
  search = mistake("bench", "search", "--help").stdout
  assert "--factories" in search
  assert "--separate" not in search
  for line in (("help", "bench"), ("bench", "--help")):
    kinds = mistake(*line).stdout
    assert kinds.startswith("usage: dpr-jax bench KIND")
    for kind in ("train", "encode", "batch", "search", "reader"):
      assert f"  bench {kind} " in kinds


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("trian", "unknown command 'trian': did you mean train?"),
    ("trian --help", "unknown command 'trian': did you mean train?"),
    ("help trian", "unknown command 'trian': did you mean train?"),
    ("trian -h --workdir=w", "unknown command 'trian': did you mean train?"),
    ("train_reader", "unknown command 'train_reader': did you mean"),
    ("bench serch", "bench needs one KIND: train, encode, batch, search"),
    ("bench serch --help", "reader: did you mean search?"),
    ("--workdir=w", "a COMMAND is missing: one of prepare, mine,"),
    ("prepare w", "one COMMAND only: prepare w"),
    ("bench train w", "one COMMAND only: bench train w"),
    ("ask --method=bm25,dense Who?", "--method=bm25,dense: takes 1 here"),
    ("ask --k=0 Who?", "--k=0: must be at least 1"),
    ("bench reader --repeats=2", "--repeats: only for bench train, bench en"),
    ("ask Why -x?", "unknown flag --x?"),
  ],
)
def test_wrong_words(mistake, line, said):
  """Exit status 2 and the nearest name, with and without --help."""
  done = mistake(*line.split())
  _refused(done, said)
  assert done.stdout == ""
  assert len(done.stderr.splitlines()) == 1


def test_nothing_at_all_shows_the_usage(mistake):
  """On stderr, with exit status 2: nothing was asked for."""
  done = mistake()
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("usage: dpr-jax COMMAND --config=configs/X.py")
  for name in ("prepare", "evaluate", "ask", "bench search"):
    assert f"\n  {name} " in done.stderr
  assert done.stderr.splitlines()[-1].startswith("dpr-jax: a COMMAND is miss")


def test_mistakes_in_the_flags_as_json(mistake):
  """With --log_json the last line is an object as well."""
  (line,) = mistake("train", "--fly", "--log_json").stderr.splitlines()
  assert json.loads(line)["message"] == "unknown flag --fly"
  assert json.loads(line)["level"] == "error"
  (line,) = mistake("train", "--log_json", "--workdir=w").stderr.splitlines()
  assert json.loads(line)["message"].startswith("--config is missing")


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
