"""`dpr-jax sweep`: its trials, without training anything."""

import json
import os
import pathlib
import shutil

import pytest

from dpr_jax.cli import json_config, sweep, sweep_grid
from dpr_jax.cli import main as main_lib
from dpr_jax.core import child_processes, errors, signals
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import verdict

# How ml_collections loads config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


class _Programs:
  """In place of `run_program`: keeps the calls, and makes what they would."""

  def __init__(self):
    self.calls, self.fails, self.killed = [], set(), ""

  def __call__(self, arguments, log):
    words = arguments[arguments.index("dpr_jax") + 1 :]
    values = dict(word.split("=", 1) for word in words[1:])
    config = json_config.get_config(values["--config"].partition(".py:")[2])
    place = workdir_lib.Workdir(values["--workdir"])
    self.calls.append((words[0], place.root.name))
    if place.root.name == self.killed:
      raise signals.Interrupted(15)
    with log.open("a") as file:
      file.write(f"lines of {words[0]}\n")
      if place.root.name in self.fails:
        file.write("dpr-jax: it went wrong\n\n")
        return 2
    if words[0] == "prepare":
      (place.root / "data").mkdir(parents=True, exist_ok=True)
      (place.root / "data" / "manifest.json").write_text("{}")
    if words[0] == "train":
      assert (place.root / "data" / "manifest.json").is_file()
      place.training.mkdir(parents=True)
      rank = 1 if config.train.learning_rate > 1e-5 else 2
      stage = workdir_lib.Stage("train", place.training, {}, {})
      stage.finish({}, verdict=verdict.of_ranks([rank] * 8, [3] * 8, 9))
    return 0


@pytest.fixture
def programs(monkeypatch):
  """What would be started."""
  programs = _Programs()
  monkeypatch.setattr(child_processes, "run_program", programs)
  return programs


def _sweep(config_file, folder, *flags):
  call = main_lib.invocation(
    [
      *("dpr-jax", "sweep", f"--config={config_file}", f"--workdir={folder}"),
      *("--seeds=2", "--dev_only", *flags),
      "--over=train.learning_rate=1e-5,2e-5",
    ]
  )
  call.command.call(call)


LOW = ["learning_rate-1e-05_seed-0", "learning_rate-1e-05_seed-1"]
HIGH = ["learning_rate-2e-05_seed-0", "learning_rate-2e-05_seed-1"]


def test_trials_are_run_once(config_file, tmp_path, programs, capsys):
  """Data once; then four trainings; called again, only the comparison."""
  _sweep(config_file, tmp_path / "s")
  wanted = [("train", name) for name in (*LOW, *HIGH)]
  assert programs.calls == [("prepare", "config"), ("mine", "config"), *wanted]
  text = (tmp_path / "s" / "sweep.md").read_text()
  assert capsys.readouterr().out.rstrip() == text.rstrip()
  assert "+0.500, 0.0078: better" in text
  (tmp_path / "s" / "sweep.md").unlink()
  programs.calls = []
  _sweep(config_file, tmp_path / "s")
  assert programs.calls == []
  assert (tmp_path / "s" / "sweep.md").read_text() == text
  # Another config: all again, in the same folders, where `run` decides.
  programs.fails = {*LOW, *HIGH}
  with pytest.raises(errors.InputError, match="4 of 4 trials failed"):
    _sweep(config_file, tmp_path / "s", "--config.train.epochs=3")
  assert [name for command, name in programs.calls if command == "train"] == [
    *LOW,
    *HIGH,
  ]


def test_what_is_gone_or_changed_is_run_again(config_file, tmp_path, programs):
  """A trial without its workdir; all, where a file of the settings changed."""
  scores = tmp_path / "scores.jsonl"
  scores.write_text("{}")
  flag = f"--config.train.distill_scores={scores}"
  _sweep(config_file, tmp_path / "s", flag)
  shutil.rmtree(tmp_path / "s" / "trials" / LOW[1])
  programs.calls = []
  _sweep(config_file, tmp_path / "s", flag)
  assert programs.calls[2:] == [("train", LOW[1])]
  scores.write_text("{ }")
  programs.fails, programs.calls = {*LOW, *HIGH}, []
  with pytest.raises(errors.InputError, match="4 of 4 trials failed"):
    _sweep(config_file, tmp_path / "s", flag)


def test_others_go_on_where_one_fails(config_file, tmp_path, programs, caplog):
  """It is named with its last line and its log, and tried again."""
  programs.fails = {LOW[1]}
  with pytest.raises(
    errors.InputError, match=f"1 of 4 trials failed: {LOW[1]}; their logs"
  ):
    _sweep(config_file, tmp_path / "s")
  assert [name for _, name in programs.calls[-3:]] == [LOW[1], *HIGH]
  log = tmp_path / "s" / "trials" / f"{LOW[1]}.log"
  assert (
    "`dpr-jax train` ended with 2: dpr-jax: it went wrong; see"
    f" {log}" in caplog.text
  )
  record = json.loads((tmp_path / "s" / "sweep.json").read_text())
  assert record["settings"]["learning_rate-1e-05"]["failed"] == [1]
  programs.fails, programs.calls = set(), []
  _sweep(config_file, tmp_path / "s")
  assert [name for command, name in programs.calls if command == "train"] == [
    LOW[1]
  ]


def test_an_interrupted_sweep_resumes(config_file, tmp_path, programs):
  """At the trial that it was in."""
  programs.killed = HIGH[0]
  with pytest.raises(signals.Interrupted):
    _sweep(config_file, tmp_path / "s")
  assert not (tmp_path / "s" / "sweep.md").exists()
  programs.killed, programs.calls = "", []
  _sweep(config_file, tmp_path / "s")
  assert [name for command, name in programs.calls if command == "train"] == (
    HIGH
  )
  assert (tmp_path / "s" / "sweep.md").exists()


def test_everything_is_checked_first(config_file, tmp_path, programs):
  """A contradiction of one trial ends it before any starts."""
  with pytest.raises(
    errors.InputError,
    match=r"trial learning_rate-1e-05_seed-0: .*warmup_steps=9 is not below",
  ):
    _sweep(config_file, tmp_path / "s", "--config.train.warmup_steps=9")
  with pytest.raises(errors.InputError, match="--dev_only compares dev quest"):
    _sweep(config_file, tmp_path / "s", "--config.train.dev_questions=0")
  with pytest.raises(errors.InputError, match="nothing would be trained"):
    _sweep(config_file, tmp_path / "s", "--config.data.train=none")
  assert programs.calls == []
  assert not (tmp_path / "s").exists()


def test_other_data_is_prepared_apart(config_file, tmp_path, programs):
  """Settings of data, BM25 and mining make a shared workdir of their own."""
  call = main_lib.invocation(
    [
      *("dpr-jax", "sweep", f"--config={config_file}", "--seeds=1"),
      *(f"--workdir={tmp_path / 's'}", "--dev_only"),
      "--over=bm25.k1=0.9,1.2;train.learning_rate=1e-5,2e-5",
    ]
  )
  call.command.call(call)
  names = [name for command, name in programs.calls if command == "mine"]
  assert names == ["k1-0.9", "k1-1.2"]


@pytest.mark.parametrize(
  ("over", "sampling", "names"),
  [
    # Which passages have an answer decides which are mined.
    (
      "evaluate.match=string,regex",
      "top",
      ["match-string"] * 2 + ["match-regex"] * 2,
    ),
    ("train.epochs=1,2", "top", ["config"] * 4),
    ("train.epochs=1,2", "random", ["seed-0", "seed-1"] * 2),
    # Names that end alike: 40 characters are shown.
    (
      f"data.train=/one/{'x' * 40},/two/{'x' * 40}",
      "top",
      [f"train-{'x' * 40}-d27763"] * 2 + [f"train-{'x' * 40}-22abc9"] * 2,
    ),
  ],
)
def test_trials_share_what_is_the_same_for_them(over, sampling, names):
  """Also with --dev_only, where a trial itself does not mine again."""
  config = config_lib.base_config()
  config.mine.sampling = sampling
  trials = sweep_grid.trials(config, sweep_grid.axes(over), 2)
  assert [sweep._shared_name(each) for each in trials] == names


def test_linked_files_are_shared_until_one_is_made_again(tmp_path, monkeypatch):
  """The same bytes on the disk; a new file replaces only its own name."""
  one, other, third = (
    workdir_lib.Workdir(tmp_path / name) for name in ("one", "other", "third")
  )
  file = one.root / "data" / "train" / "rows"
  file.parent.mkdir(parents=True)
  file.write_text("old")
  sweep.share(one, other, ("data", "bm25"))
  copy = other.root / "data" / "train" / "rows"
  assert os.path.samefile(file, copy)
  assert not copy.is_symlink()
  assert not (other.root / "bm25").exists()
  workdir_lib.write_json(copy, "new")
  assert file.read_text() == "old"
  sweep.share(one, other, ("data",))  # what is there stays
  assert copy.read_text() == '"new"\n'

  def no_links(*_):
    raise OSError("not supported")

  monkeypatch.setattr(os, "link", no_links)
  sweep.share(one, third, ("data",))
  copy = third.root / "data" / "train" / "rows"
  assert copy.is_symlink()
  assert copy.read_text() == "old"


def test_a_start_is_reused_only_where_it_is_the_same(tmp_path):
  """Other sizes of the model or of its vectors: made again.

  `embed` refuses vectors of other weights, as each seed's random start has.
  """
  config = config_lib.base_config()
  for text, reused in (
    ("train.learning_rate=1e-5", ("tokens", "embeddings/passages-start")),
    ("model.pooling=cls", ()),
    ("embed.dtype=float16", ()),
  ):
    (trial,) = sweep_grid.trials(config, sweep_grid.axes(text), 1)
    assert sweep._reused(trial) == reused
  config.model.checkpoint = "random"
  for trial in sweep_grid.trials(config, {}, 2):
    assert sweep._reused(trial) == ("tokens",)


def test_the_config_of_a_trial_survives_its_file(tiny_config, tmp_path):
  """What a trial reads is what the sweep wrote."""
  path = pathlib.Path(tmp_path / "c.json")
  workdir_lib.write_json(path, config_lib.plain(tiny_config))
  found = json_config.get_config(str(path))
  assert config_lib.plain(found) == config_lib.plain(tiny_config)
