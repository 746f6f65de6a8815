"""Settings that a call will not read, and those that it will."""

import runpy

import pytest

from dpr_jax.cli import settings_unread
from dpr_jax.cli.settings_call import Call
from dpr_jax.core import config as config_lib
from dpr_jax.core.settings_table import ALL, BY_KEY
from tests.faults import settings_cases

# By condition: (what is set where it does not hold, what makes it hold).
CASES = {
  "data.train is not none": (
    "data.max_train=5 data.train=none",
    "data.train=x",
  ),
  "model.checkpoint or reader.checkpoint is random": (
    "model.random_width=64",
    "model.checkpoint=random",
  ),
  "train.max_steps is 0": (
    "train.epochs=3 train.max_steps=7",
    "train.max_steps=0",
  ),
  "train.hard_negatives > 0": (
    "train.negatives=random train.hard_negatives=0",
    "train.hard_negatives=1",
  ),
  "train.negatives are mined": (
    "train.negatives_from=w train.negatives=random",
    "train.negatives=bm25:1,random:1",
  ),
  "train.negatives are mined or given": (
    "train.hard_negatives_from_top=9 train.negatives=random",
    "train.negatives=given",
  ),
  "train.distill_scores is set": (
    "train.distill_weight=0.3",
    "train.distill_scores=scores.jsonl",
  ),
  "train.distill_loss is kl": (
    "train.distill_temperature=2 train.distill_loss=margin_mse"
    " train.distill_scores=scores.jsonl",
    "train.distill_loss=kl",
  ),
  "train.scale_rule is not none": (
    "train.scale_reference=64",
    "train.scale_rule=sqrt",
  ),
  "train.rounds > 1": ("train.restart=yes", "train.rounds=2"),
  "train.packing is True": (
    "train.packed_widths=3 train.packing=False",
    "train.packing=True",
  ),
  "reader.packing is True": (
    "reader.packed_widths=1 reader.packing=False reader.train=results",
    "reader.packing=True",
  ),
  "reader.packing is False": (
    "reader.length_step=32 reader.train=results",
    "reader.packing=False",
  ),
  "train.loss is tiled or ring": ("train.loss_tile=16", "train.loss=ring"),
  "train.dev_questions > 0": (
    "train.dev_every=5 train.dev_questions=0",
    "train.dev_questions=1",
  ),
  "the corpus is embedded": (
    "embed.dtype=float16 retrieve.methods=bm25",
    "retrieve.methods=exact",
  ),
  "an index is used": (
    "index.shards=2 retrieve.methods=bm25,exact",
    "retrieve.methods=hybrid",
  ),
  "index.factory learns from vectors": (
    "index.train_sample=99 index.factory=HNSW32",
    "index.factory=IVF64,Flat",
  ),
  "index.factory has HNSW, and is not dpr": (
    "index.ef_construction=99 index.factory=dpr",
    "index.factory=HNSW32",
  ),
  "index.factory has HNSW": (
    "index.ef_search=64 index.factory=IVF64,Flat",
    "index.factory=dpr",
  ),
  "index.factory has IVF": (
    "index.nprobe=16 index.factory=Flat",
    "index.factory=IVF64_HNSW32,Flat",
  ),
  "index.factory has Refine": (
    "index.refine_factor=2 index.factory=RR64,PQ8",
    "index.factory=PQ8,RFlat",
  ),
  "index.factory compresses": (
    "index.rescore=no index.factory=IVF64,Flat",
    "index.factory=IVF64,SQ8",
  ),
  "index.allow_too_large is False": (
    "index.memory_gb=9 index.allow_too_large=yes",
    "index.allow_too_large=no",
  ),
  "the method exact is used": (
    "exact.core_gb=1",
    "retrieve.methods=exact",
  ),
  "exact.approximate is True": (
    "exact.recall_target=0.9 retrieve.methods=exact",
    "exact.approximate=yes",
  ),
  "the method hybrid is used": ("fusion.depth=9", "retrieve.methods=hybrid"),
  "fusion.method is reciprocal": (
    "fusion.rank_constant=9 retrieve.methods=hybrid",
    "fusion.method=reciprocal",
  ),
  "there is a reader": ("read.length_step=64", "reader.train=results"),
  "reader.train or reader.dev is results": (
    "reader.method=bm25 reader.train=a.json reader.dev=b.json",
    "reader.dev=",
  ),
  "reader.max_steps is 0": (
    "reader.epochs=3 reader.max_steps=9 reader.train=results",
    "reader.max_steps=0",
  ),
  "reader.dev_questions > 0": (
    "reader.dev_passages=9 reader.dev_questions=0 reader.train=results",
    "reader.dev_questions=5",
  ),
}


def _set(config, line):
  for argument in line.split():
    key, _, text = argument.removeprefix("--config.").partition("=")
    setting = BY_KEY[key]
    config[setting.section][setting.name] = setting.parse(text)
  return config


def test_every_condition_is_known_and_used():
  """Those of the table are those that are defined, and those tested here."""
  used = {condition for each in ALL for condition in each.when}
  assert used == set(settings_unread.CONDITIONS) == set(CASES)


@pytest.mark.parametrize("condition", CASES)
def test_unread_and_read(condition):
  """A warning where it does not hold, none where it does."""
  without, holds = CASES[condition]
  key = without.split("=")[0]
  config = _set(config_lib.base_config(), without)
  lines = settings_unread.unread(config, Call("run"))
  (line,) = [each for each in lines if f"config.{key}=" in each]
  assert "not read here, only where " in line
  _set(config, holds)
  lines = settings_unread.unread(config, Call("run"))
  assert not [each for each in lines if f"config.{key}=" in each]


@pytest.mark.parametrize(("line", "shown"), settings_cases.UNREAD)
def test_named_as_it_is(line, shown):
  """Key and value; nothing where the value is the default."""
  config = config_lib.base_config()
  config.train.max_steps = 5
  assert settings_unread.unread(config, Call("run")) == []
  _set(config, line)
  (said,) = settings_unread.unread(config, Call("run"))
  assert said.startswith(f"{shown}: not read here, only where ")


def test_a_line_says_why():
  """The reason, and what the setting is now."""
  config = config_lib.base_config()
  config.index.nprobe = 16
  assert settings_unread.unread(config, Call("index")) == [
    "config.index.nprobe=16: not read here, only where index.factory has IVF"
    " (config.index.factory is 'Flat')"
  ]
  assert settings_unread.unread(config, Call("train")) == []
  config.index.ef_search = 3
  assert len(settings_unread.unread(config, Call("index"))) == 2


def test_one_line_for_one_reason():
  """Many settings of a reader that there is not are one line."""
  config = config_lib.base_config()
  config.reader.length, config.read.span_tokens = 100, 30
  (line,) = settings_unread.unread(config, Call("run"))
  assert line == (
    "config.reader.length=100, config.read.span_tokens=30: not read here, only"
    " where config.reader.train is set"
  )
  assert settings_unread.unread(config, Call("read")) == []


def test_without_a_training():
  """`run` leaves out the stages that train, and names their settings."""
  config = config_lib.base_config()
  config.data.train, config.train.batch_size = "none", 7
  call = Call("run")
  assert call.stages_of(config) == (
    *("prepare", "embed", "index", "retrieve", "evaluate"),
  )
  assert settings_unread.unread(config, call) == [
    "config.train.batch_size=7: not read here, only where data.train is not"
    " none (config.data.train is 'none')"
  ]
  config.reader.train = "squad.json"
  assert call.stages_of(config)[4:] == ("train-reader", "read", "evaluate")
  assert "train" in call.asked


def test_methods_of_the_command_line_count():
  """`--method=hybrid` reads what the config's methods would not."""
  config = config_lib.base_config()
  config.fusion.depth = 9
  assert settings_unread.unread(config, Call("retrieve"))
  assert not settings_unread.unread(
    config, Call("retrieve", methods=("hybrid",))
  )
  assert settings_unread.unread(config, Call("run"))
  assert settings_unread.unread(config, Call("mine"))
  assert not settings_unread.unread(config, Call("mine", mines_from="hybrid"))
  config.reader.train, config.reader.method = "results", "hybrid"
  assert not settings_unread.unread(config, Call("run"))
  config.reader.train = "squad.json"  # nothing is retrieved for it
  assert settings_unread.unread(config, Call("run"))
  config.reader.train, config.reader.method = "", "dense"
  config.retrieve.methods = ("bm25",)
  config.index.factory, config.fusion.depth = "HNSW32", 2000
  assert settings_unread.unread(config, Call("index"))
  assert not settings_unread.unread(config, Call("index", model="dense"))
  assert not settings_unread.unread(config, Call("mine", mines_from="model"))


@pytest.mark.parametrize(
  ("name", "variant", "command"),
  [
    ("demo", "", "run"),
    ("nq", "", "run"),
    ("nq_100k", "", "run"),
    ("nq_100k", "quick", "run"),
    ("nq_100k", "ablation", "run"),
    ("nq_100k", "batch_size", "run"),
    ("nq_100k", "reader", "run"),
    ("squad", "", "train-reader"),
    ("squad", "bench", "bench reader"),
  ],
)
def test_our_own_configs_set_nothing_in_vain(
  repository, name, variant, command
):
  """No warning for a config that comes with the package."""
  module = runpy.run_path(str(repository / "configs" / f"{name}.py"))
  config = module["get_config"](variant)
  assert settings_unread.unread(config, Call(command)) == []
