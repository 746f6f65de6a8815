"""What a command needs of its config is checked before it starts.

No case here needs JAX: `tiny` is a config whose checkpoint is a folder of a few
bytes.
"""

import json
import math
import subprocess
import sys

import ml_collections
import pytest

from dpr_jax.cli import settings_checks
from dpr_jax.cli.commands import STAGES
from dpr_jax.cli.settings_call import Call
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.core.settings_table import BY_KEY
from tests.faults import settings_cases


@pytest.fixture
def tiny(tmp_path):
  """A config of the whole flow, right in every respect."""
  folder = tmp_path / "tiny"
  folder.mkdir()
  sizes = {
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "hidden_size": 32,
  }
  (folder / "config.json").write_text(json.dumps(sizes))
  (folder / "model.safetensors").write_bytes(b"")
  config = config_lib.base_config()
  config.data.passages = config.data.train = config.data.dev = "sample"
  config.data.max_passages = 120
  config.model.checkpoint = str(folder)
  config.model.question_length, config.model.passage_length = 16, 48
  config.train.batch_size, config.train.max_steps = 16, 6
  config.train.warmup_steps = 2
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap, config.reader.max_steps = 8, 4
  return config


def _set(config, *arguments):
  """Sets what stands on a command line."""
  for argument in arguments:
    key, _, text = argument.removeprefix("--config.").partition("=")
    setting = BY_KEY[key]
    section = config[setting.section] if setting.section else config
    section[setting.name] = setting.parse(text)
  return config


def _call(command="run", **more):
  return Call(command, cores=8, **more)


def _refused(config, call):
  with pytest.raises(errors.InputError) as caught:
    settings_checks.check(config, call)
  return str(caught.value)


@pytest.mark.parametrize("command", [*STAGES, "run", "demo", "plan"])
def test_a_right_config_passes(tiny, command, tmp_path):
  """Every command, with a reader and without."""
  settings_checks.check(tiny, _call(command)) if command != (
    "train-reader"
  ) else None
  tiny.reader.train = "results"
  settings_checks.check(
    tiny, _call(command, workdir=workdir_lib.Workdir(tmp_path))
  )


@pytest.mark.parametrize(
  ("name", "variant"),
  [("demo", ""), ("nq_100k", "quick"), ("nq_100k", "reader"), ("squad", "")],
)
def test_our_own_configs_pass(repository, name, variant):
  """But for data that is not here."""
  import runpy

  module = runpy.run_path(str(repository / "configs" / f"{name}.py"))
  config = module["get_config"](variant)
  if not config.data.passages:  # a reader alone
    settings_checks.check_values(config, _call("train-reader"))
    return
  config.data.passages = config.data.train = config.data.dev = "sample"
  settings_checks.check(config, _call())


def test_both_of_a_pair_are_named(tiny):
  """Not `model.checkpoint`, which is not used then."""
  folder = tiny.model.checkpoint
  tiny.model.question_checkpoint = tiny.model.passage_checkpoint = folder
  tiny.model.checkpoint, tiny.model.passage_length = "starter", 65
  assert _refused(tiny, _call()) == (
    f"config.model.passage_length=65: checkpoint {folder} and {folder} has 64"
    " positions"
  )


@pytest.mark.parametrize(("line", "words"), settings_cases.TOGETHER)
def test_what_does_not_go_together(tiny, line, words, tmp_path, monkeypatch):
  """Of `run`, before its first stage."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "nothing").mkdir()
  methods = ()
  if line.startswith("--method="):
    methods = (line.partition("=")[2],)
  else:
    _set(tiny, *line.split())
  here = workdir_lib.Workdir(tmp_path / "nothing")
  said = _refused(tiny, _call(methods=methods, workdir=here))
  assert "\n" not in said
  for word in words:
    assert word in said, said


@pytest.mark.parametrize(
  ("command", "line", "words"),
  [
    # Training.
    ("train", "train.warmup_steps=7", "warmup_steps=7 is not below the 6"),
    (
      "train",
      # 12 * 128 / 16: the warm-up sees as many examples.
      "train.scale_rule=linear train.warmup_steps=1 train.max_steps=8",
      "warmup_steps=1 for batches of 128 is 8 for batches of 16",
    ),
    ("train", "train.rounds=7 train.negatives=model", "has only 6 steps"),
    ("train", "train.profile_steps=2,7", "1 <= first <= last <= 6"),
    ("train", "train.profile_steps=3,2", "config.train.profile_steps=(3, 2)"),
    (
      "train",
      "train.mask_answers=True evaluate.match=regex",
      "config.train.mask_answers=True: supports only string answers",
    ),
    (
      "train",
      "train.best_metric=dev_loss train.average_checkpoints=2",
      "choose one of them",
    ),
    (
      "train",
      "train.best_metric=dev_loss train.dev_questions=0",
      "no dev metrics",
    ),
    (
      "train",
      "train.best_metric=dev_gold_top5",
      "this config measures dev_loss",
    ),
    ("train", "train.negatives=bm25,random", "needs a count of at least 1"),
    ("train", "train.negatives_from=elsewhere", "bm25.jsonl.gz is missing"),
    ("train", "train.distill_scores=none.jsonl", "there is no such file: give"),
    (
      "train",
      "train.distill_scores=negatives train.negatives=random",
      "has no kind of mined negatives: name a file",
    ),
    ("train", "train.negatives=model", "dpr-jax mine --from=model"),
    ("train", "train.negatives=hybrid", "dpr-jax mine --from=hybrid"),
    ("train", "train.negatives=previous", "set config.train.rounds=2 or more"),
    ("mine", "mine.range_min=100", "leaves out all of the config.mine.depth"),
    (
      "train",
      "train.rounds=3 train.restart=yes train.negatives=model"
      " train.max_steps=9 train.warmup_steps=3",
      "config.train.warmup_steps=3 is not below the 3 steps",
    ),
    ("train", "train.passage_length=2", "must be 0 or >= 3"),
    ("train", "train.passage_length=65", "has 64 positions"),
    ("train", "model.question_length=65", "config.model.question_length=65"),
    (
      "train",
      "model.checkpoint=random model.random_width=33",
      "random_width=33: must be a multiple of",
    ),
    ("train", "model.checkpoint=hf:", "must be hf:NAME"),
    ("train", "train.question_chunk_size=1 train.chunk_size=3", "chunk_size=3"),
    (
      "train",
      "train.max_steps=0 data.max_train=32 train.epochs=1",  # 2 steps
      "warmup_steps=2 is not below the 2 steps",
    ),
    # The reader.
    ("train-reader", "reader.train=", "config.reader.train is empty"),
    ("train-reader", "reader.train=no.json", "there is no such file"),
    ("train-reader", "reader.dev=no.json", "config.reader.dev='no.json'"),
    ("train-reader", "reader.overlap=17", ">= 4 * overlap = 68"),
    ("train-reader", "reader.question_length=30", "must be >= 66"),
    ("train-reader", "reader.length=65", "has 64 positions"),
    ("train-reader", "reader.warmup_steps=4", "reader.warmup_steps=4 is not"),
    ("train-reader", "reader.profile_steps=4,5", "config.reader.profile_steps"),
    (
      "train-reader",
      "reader.batch_size=2 reader.passages=3",
      "must together be a multiple of the 8 devices",
    ),
    ("train-reader", "reader.checkpoint=gone", "config.reader.checkpoint='go"),
    ("read", "read.reader=gone", "config.read.reader='gone': there is no"),
    # Indexes.
    ("index", "index.factory=IVF0,Flat", "IVF0 makes no sense"),
    ("index", "index.factory=HNSW0", "HNSW0 makes no sense"),
    ("index", "index.factory=L2norm,Flat", "does not keep inner products"),
    ("index", "index.factory=a/b", "must be a FAISS factory string"),
    (
      "index",
      "index.factory=IVF64,Flat index.train_sample=63",
      "64 lists need at least as many training vectors, and config.index.train",
    ),
    # Data.
    ("prepare", "data.train=", "config.data.train is empty"),
    ("prepare", "data.train=sample,x.json", "data.train='x.json': there is no"),
    ("prepare", "data.dev=samples.tsv", "did you mean sample.tsv?"),
  ],
)
def test_what_a_stage_needs(tiny, command, line, words, tmp_path, monkeypatch):
  """One stage alone, and the same within `run`."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "sample.tsv").write_text("id\ttext\ttitle\n")
  tiny.reader.train = "results"
  _set(tiny, *line.split())
  here = workdir_lib.Workdir(tmp_path / "w")
  assert words in _refused(tiny, _call(command, workdir=here))
  if "reader.train=" not in line.split():  # then `run` has no reader
    assert words in _refused(tiny, _call("run", workdir=here))


@pytest.mark.parametrize(
  "line",
  [
    "train.average_checkpoints=2 train.keep_checkpoints=2",
    "train.profile_steps=6,6",
    "train.warmup_steps=5",
    "train.rounds=6 train.negatives=model",
    "train.rounds=1 train.negatives=bm25:1,random:1 train.hard_negatives=2",
    "train.negatives=random train.negatives_from=nowhere",
    "train.best_metric=dev_gold_top5 train.dev_topk_passages=100",
    "train.mask_answers=yes",
    "train.chunk_size=2",
    "train.chunk_size=4",
    "train.chunk_size=5",  # more than there are
    "train.passage_length=3",
    "train.passage_length=64",
    "model.passage_length=64 model.question_length=64",
    "model.checkpoint=random model.random_width=33 model.random_heads=3",
    "model.checkpoint=hf:google-bert/bert-base-uncased@main",
    "reader.length=64 reader.overlap=16 reader.question_length=29",
    "reader.warmup_steps=3",
    "reader.profile_steps=4,4",
    "reader.batch_size=8 reader.passages=1",
    "index.factory=IVF64,Flat index.train_sample=64",
    "index.factory=IVF120,Flat",  # of 120 passages
    "index.factory=PQ8",  # of width 32
    "index.factory=HNSW10",
  ],
)
def test_the_last_that_goes(tiny, line, tmp_path):
  """Just within every bound, for `run`."""
  tiny.reader.train = "results"
  _set(tiny, *line.split())
  settings_checks.check(
    tiny, _call(workdir=workdir_lib.Workdir(tmp_path / "w"))
  )


def test_what_is_not_read_is_not_checked(tiny):
  """A wrong value of another stage is wrong where it was typed."""
  tiny.reader.batch_size = 0
  settings_checks.check(tiny, _call("train"))
  settings_checks.check(tiny, _call())  # no reader: reader.train is ""
  said = _refused(tiny, _call("train", typed=frozenset({"reader.batch_size"})))
  assert said == "config.reader.batch_size=0: must be >= 1"
  said = _refused(tiny, _call("train-reader"))
  assert said == "config.reader.batch_size=0: must be >= 1"


def test_several_wrong_values_in_one_line(tiny):
  """The first three, in the order of the table."""
  tiny.model.temperature = 0.0
  tiny.train.learning_rate = math.nan
  tiny.train.loss = "rign"
  tiny.train.clip_norm = -1.0
  assert _refused(tiny, _call()) == (
    "config.model.temperature=0.0: must be > 0;"
    " config.train.learning_rate=nan: must be a finite number;"
    " config.train.clip_norm=-1.0: must be >= 0; and 1 more"
  )


def test_steps_that_the_data_gives(tiny, tmp_path, monkeypatch):
  """A workdir knows how many questions there are."""
  here = workdir_lib.Workdir(tmp_path / "w")
  here.data.mkdir(parents=True)
  (here.data / "manifest.json").write_text("{}")
  record = {"counts": {"train": 33}}
  monkeypatch.setattr(workdir_lib, "read_manifest", lambda *_: record)
  tiny.train.max_steps, tiny.train.epochs = 0, 1.0
  tiny.train.warmup_steps = 3  # 33 questions in batches of 16
  assert "the 3 steps" in _refused(tiny, _call("train", workdir=here))
  tiny.train.warmup_steps = 2
  settings_checks.check(tiny, _call("train", workdir=here))


def test_a_file_that_may_not_be_read(tiny, tmp_path, monkeypatch):
  """Said at once, and not when it is opened."""
  from dpr_jax.cli import settings_files

  file = tmp_path / "dev.json"
  file.write_text("[]")
  tiny.data.dev = str(file)
  settings_checks.check(tiny, _call("prepare"))
  monkeypatch.setattr(settings_files.os, "access", lambda *_: False)
  assert _refused(tiny, _call("prepare")) == (
    f"config.data.dev={str(file)!r}: permission denied: give a file or a folder"
  )


def test_a_config_of_its_own_making(tiny):
  """Keys that there are not, and keys that are missing."""
  values = tiny.to_dict()
  values["train"]["batchsize"] = 3
  with pytest.raises(errors.InputError, match="did you mean config.train.bat"):
    settings_checks.check_keys(ml_collections.ConfigDict(values))
  del values["train"]["batchsize"]
  values["bm25"] = None
  with pytest.raises(errors.InputError, match="config.bm25=None: it is a sec"):
    settings_checks.check_keys(ml_collections.ConfigDict(values))
  del values["bm25"]
  with pytest.raises(errors.InputError, match="config.bm25.k1 is missing"):
    settings_checks.check_keys(ml_collections.ConfigDict(values))


def test_a_checkpoint_is_whole(tiny, tmp_path):
  """Folder, config.json, weights; none of them once training is done."""
  folder = tmp_path / "tiny"
  (folder / "model.safetensors").unlink()
  assert "has no model.safetensors" in _refused(tiny, _call("train"))
  (folder / "config.json").unlink()
  assert "has no config.json" in _refused(tiny, _call("train"))
  folder.rmdir()
  assert "there is no such folder" in _refused(tiny, _call("train"))
  here = workdir_lib.Workdir(tmp_path / "w")
  here.training.mkdir(parents=True)
  (here.training / "manifest.json").write_text("{}")
  settings_checks.check(tiny, _call("train", workdir=here))


def test_chunks_only_where_their_number_is_known(tiny):
  """With several processes the step itself says so."""
  tiny.train.chunk_size = 3  # of 2 * 2 passages on each of 8 cores
  assert "does not divide the 4 passages" in _refused(tiny, _call("train"))
  settings_checks.check(tiny, Call("train"))
  settings_checks.check(tiny, Call("train", cores=8, processes=0))


def test_the_readers_needs_of_retrieval(tiny, tmp_path):
  """In `run`, results that nobody would make."""
  tiny.reader.train = "results"
  tiny.retrieve.methods = ("bm25",)
  assert "reader.method='dense': not retrieved for the dev" in _refused(
    tiny, _call()
  )
  tiny.reader.dev_questions = 0
  assert "reader.method='dense': needs an embedded corpus" in _refused(
    tiny, _call()
  )
  tiny.reader.method = "bm25"
  here = workdir_lib.Workdir(tmp_path / "w")
  said = _refused(tiny, _call(workdir=here))
  assert said.startswith(
    "config.read.methods=('dense',): 'dense' is not retrieved:"
  )
  (here.root / "results").mkdir(parents=True)
  (here.root / "results" / "dev.dense.json").write_text("[]")
  settings_checks.check(tiny, _call(workdir=here))


@pytest.mark.processes
def test_nothing_slow_is_imported():
  """Neither JAX nor transformers, TFDS; FAISS for an index alone."""
  code = """
import sys
from dpr_jax import configuration
from dpr_jax.cli import settings_checks, settings_unread
from dpr_jax.cli import settings_hints, settings_show
from dpr_jax.cli.settings_call import Call
config = configuration.base_config()
config.data.passages = config.data.train = config.data.dev = "sample"
slow = {"jax", "transformers", "tensorflow_datasets", "faiss", "torch"}
for command in ("prepare", "train", "retrieve", "evaluate"):
  settings_checks.check(config, Call(command, cores=8))
  settings_unread.unread(config, Call(command))
print(sorted(slow & set(sys.modules)))
settings_checks.check(config, Call("run", cores=8))
print(sorted(slow & set(sys.modules)))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines() == ["[]", "['faiss']"]
