"""Mistakes on the command line, and its help.

A mistake is made in this process, where it takes no seconds.
"""

import json
import shutil
import subprocess
import sys

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
