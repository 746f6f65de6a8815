"""Config and workdir of a call: what is put in, kept, refused, left alone."""

import copy
import json
import os
import pathlib
import shutil
import sys

import pytest

from dpr_jax.cli import commands, experiment, run_stages
from dpr_jax.cli import main as main_lib
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_settings

# How ml_collections loads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.fixture
def call():
  """A command line in this process; gives what it prints to nobody."""

  def call(*arguments):
    asked = main_lib.invocation(["dpr-jax", *map(str, arguments)])
    experiment.check(asked)
    if asked.command.in_run:
      run_stages.one(asked)
    else:
      asked.command.load()(asked)

  return call


@pytest.fixture
def trained(tiny_config, mined_workdir, tmp_path):
  """A workdir that says it was trained, with overrides; nothing is loaded."""
  place = workdir_lib.Workdir(tmp_path / "w")
  shutil.copytree(mined_workdir.root, place.root)
  config = copy.deepcopy(tiny_config)
  config.model.pooling, config.model.normalize = "mean", True
  config.model.title = "pair"  # a training records no "auto"
  config.reader.length = 64
  sections = config_lib.sections(config, "model", "train")
  workdir_lib.Stage("train", place.training, sections, {}).finish({})
  sections = config_lib.sections(config, "reader")
  workdir_lib.Stage("train-reader", place.reader, sections, {}).finish({})
  return place


def _touched(place):
  return {
    str(path): path.read_bytes()
    for path in place.root.rglob("*.json")
    if path.is_file()
  }


def test_the_stored_config_stands_for_a_missing_one(tmp_path, monkeypatch):
  """With overrides on top; a config that is named comes first."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "w").mkdir()
  (tmp_path / "w" / "config.json").write_text("{}")
  with_config = experiment.with_stored_config
  line = ["dpr-jax", "embed", "--workdir=~/w", "--config.seed=3"]
  loader = pathlib.Path(experiment.__file__).with_name("stored_config.py")
  put_in = f"--config={loader}:{tmp_path / 'w' / 'config.json'}"
  assert with_config(line) == ["dpr-jax", put_in, *line[1:]]
  line[2:3] = ["--workdir", str(tmp_path / "w")]
  assert with_config(line)[1] == put_in
  for more in (["--config=c.py"], ["--config", "c.py"], ["-config=c.py"]):
    assert with_config([*line, *more]) == [*line, *more]
  assert with_config([*line, "--config=~/c.py"])[-1] == (
    f"--config={tmp_path / 'c.py'}"
  )
  for line in (
    ["dpr-jax", "embed", "--workdir=nowhere"],
    ["dpr-jax", "demo", "--workdir=~/w"],
    ["dpr-jax", "ask", "--", "--workdir=~/w"],
    ["dpr-jax", "plan"],
  ):
    assert with_config(line) == line


def test_contrary_settings_are_refused_at_once(call, trained, monkeypatch):
  """In every stage after training, before anything is imported or written."""
  monkeypatch.setattr(run_stages, "one", lambda _: pytest.fail("started"))
  monkeypatch.setattr(
    commands.Command, "load", lambda _: pytest.fail("imported")
  )
  before = _touched(trained)
  named = (
    "config.model.pooling='cls', config.model.question_length=32: the towers in"
    f" {trained.training} were trained with 'mean', 16; leave --config out"
  )
  contrary = ("--config.model.pooling=cls", "--config.model.question_length=32")
  for command in (
    *(["embed"], ["index"], ["retrieve"], ["train-reader"], ["read"]),
    *(["evaluate"], ["ask", "Who?"], ["bench", "encode"]),
    *(["mine", "--from=model"], ["export", "--out=o", "--format=hf"]),
  ):
    with pytest.raises(errors.InputError) as refused:
      call(*command[:1], f"--workdir={trained.root}", *contrary, *command[1:])
    assert str(refused.value).startswith(named), command
  reader = (
    "config.reader.length=128: the reader in .*/reader was trained with 6"
  )
  for command in (
    ["read"],
    ["retrieve", "--rerank=reader"],
    ["export", "--out=o", "--what=reader", "--format=dpr-reader"],
    ["ask"],
  ):
    with pytest.raises(errors.InputError, match=reader):
      call(*command, f"--workdir={trained.root}", "--config.reader.length=128")
  assert _touched(trained) == before


def test_what_decides_no_vector_is_free(tiny_config, trained):
  """The call's own, or the training's; neither is refused."""

  def settled(name):
    asked = main_lib.invocation(["dpr-jax", name])
    asked = asked.with_config(config, trained)
    return experiment.settled(asked, asked.command)

  config = copy.deepcopy(tiny_config)
  config.model.pooling, config.model.normalize = "mean", True
  config.model.compute_dtype, config.model.attention = "bfloat16", "fused"
  config.model.temperature, config.model.dropout = 9.0, 0.5
  config.model.checkpoint, config.model.random_width = "other", 8
  found = settled("embed").model
  assert (found.compute_dtype, found.attention) == ("bfloat16", "fused")
  assert (found.temperature, found.dropout, found.random_width) == (1, -1, 128)
  assert found.checkpoint == tiny_config.model.checkpoint
  # The reader begins from a checkpoint of its own.
  found = settled("train-reader").model
  assert (found.checkpoint, found.random_width) == ("other", 8)
  for command in ("prepare", "mine", "train", "run"):
    assert settled(command) is config


def test_what_did_nothing_does_not_change_the_config(
  call, config_file, trained, capsys
):
  """Refused or skipped; after work it is what was worked with."""
  path, where = trained.root / "config.json", f"--workdir={trained.root}"
  before = path.read_bytes()
  with pytest.raises(errors.InputError):
    call("evaluate", where, "--config.model.question_length=32")
  assert path.read_bytes() == before
  for line in (
    ["prepare", where, "--config.mine.depth=7"],  # done and unchanged
    ["mine", where, f"--config={config_file}", "--config.retrieve.depth=7"],
  ):
    call(*line)
    assert path.read_bytes() == before
  call("retrieve", where, "--method=bm25", "--config.retrieve.depth=7")
  values = json.loads(path.read_text())
  assert values["retrieve"]["depth"] == 7
  assert values["model"]["pooling"] == "mean"  # as trained
  call("evaluate", where)
  evaluation = json.loads(trained.evaluation("dev").read_text())
  assert set(evaluation["bm25"]) >= {"top1", "top5"}
  assert "top20" not in evaluation["bm25"]  # seven deep: no config was given
  path.unlink()
  trained_with = ("--config.model.pooling=mean", "--config.model.normalize")
  config = (f"--config={config_file}", *trained_with)
  call("retrieve", where, "--method=bm25", *config)
  assert json.loads(path.read_text())["retrieve"]["depth"] == 100


def test_paths_are_kept_absolute_and_nothing_is_done_again(
  call, tmp_path, monkeypatch, caplog
):
  """A relative path, an absolute one and none are the same data."""
  rows = ["id\ttext\ttitle", "1\tUlm is a city.\tUlm", "2\tA river.\tRiver"]
  (tmp_path / "p.tsv").write_text("\n".join(rows) + "\n")
  (tmp_path / "q.qa.csv").write_text("What is Ulm?\t['a city']\n")
  (tmp_path / "c.py").write_text(
    "from dpr_jax import configuration\n"
    "def get_config(_=''):\n"
    "  config = configuration.base_config()\n"
    "  config.data.passages, config.data.dev = 'p.tsv', 'q.qa.csv'\n"
    "  config.data.train = 'none'\n"
    "  return config\n"
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  call("prepare", "--config=~/c.py", "--workdir=~/w")
  assert not (tmp_path / "~").exists()
  place = workdir_lib.Workdir(tmp_path / "w")
  values = json.loads((place.root / "config.json").read_text())["data"]
  assert values["passages"] == str(tmp_path / "p.tsv")
  assert values["dev"] == str(tmp_path / "q.qa.csv")
  assert values["train"] == "none"
  manifest = place.data / "manifest.json"
  # As an older version left it: relative, as it was typed.
  old = workdir_lib.read_record(manifest)
  old["config"]["data"] |= {"passages": "p.tsv", "dev": "./q.qa.csv"}
  old["config_hash"] = workdir_lib.fingerprint(old["config"])
  manifest.write_text(json.dumps(old))
  before = manifest.read_bytes()
  (tmp_path / "elsewhere").mkdir()
  call("prepare", "--config=c.py", "--workdir=w")
  monkeypatch.chdir(tmp_path / "elsewhere")
  call("prepare", f"--workdir={place.root}")
  assert manifest.read_bytes() == before
  (tmp_path / "p.tsv").write_text("\n".join(rows[:2]) + "\n")  # other data is
  call("prepare", f"--workdir={place.root}")
  assert workdir_lib.read_record(manifest)["counts"]["passages"] == 1


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    ("a/b.json", "/home/u/a/b.json", True),
    ("../a/b.json", "/home/u/a/b.json", True),
    ("./a/b.json", "a/b.json", True),
    ("/x/../home/b.json", "/home/b.json", True),
    ("~/b.json", "/home/u/b.json", True),
    ("b.json", "/home/u/ab.json", False),
    ("x/b.json", "/home/u/a/b.json", False),
    ("/a/b.json", "/home/u/a/b.json", False),
    ("a/b.json", "b.json", False),
    ("starter", "/home/u/starter", False),
    ("hf:a/b", "/home/u/hf:a/b", False),
    ("", "/home/u", False),
    ("a", None, False),
  ],
)
def test_same_path(one, other, same, monkeypatch):
  monkeypatch.setenv("HOME", "/home/u")
  assert config_lib.same_path(one, other) is same
  assert config_lib.same_path(other, one) is same


def test_user_path(monkeypatch):
  monkeypatch.setenv("HOME", "/home/u")
  assert workdir_lib.user_path("~/w") == pathlib.Path("/home/u/w")
  assert workdir_lib.user_path("a/~") == pathlib.Path("a/~")
  assert workdir_lib.user_path(os.path.join(".", "~")) == pathlib.Path("~")
  with pytest.raises(errors.InputError, match="home folder '~nobody-at-all'"):
    workdir_lib.user_path("~nobody-at-all/w")


def test_a_stale_config_does_not_win_over_the_training(call, trained, capsys):
  """Older versions left the overrides of any call in config.json."""
  path = trained.root / "config.json"
  values = json.loads(path.read_text())
  values["model"]["question_length"] = 32
  values["reader"]["length"] = 350
  path.write_text(json.dumps(values))
  config = model_settings.of_workdir(trained)
  assert (config.model.question_length, config.reader.length) == (16, 64)
  call("retrieve", f"--workdir={trained.root}", "--method=bm25")


def test_refusals_are_one_line(trained, monkeypatch, capsys):
  """From the console's entry point on, a damaged config.json as well."""

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["dpr-jax", *arguments])
    with pytest.raises(SystemExit) as ended:
      main_lib.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line

  where = f"--workdir={trained.root}"
  line = run("embed", where, "--config.model.title=none")
  assert line.startswith("dpr-jax: config.model.title='none': the towers in")
  (trained.root / "config.json").write_text("{")
  assert "config.json is not a config of this version" in run("embed", where)
  (trained.root / "config.json").unlink()
  assert "config.json does not exist either" in run("embed", where)
