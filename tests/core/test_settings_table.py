"""The table of settings: whole, checked value by value, and documented."""

import json
import math

import pytest

from dpr_jax.cli import settings_hints, settings_show
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, settings_table
from dpr_jax.core.settings_table import ALL, BY_KEY
from tests.core import settings_values

GOOD = [(key, text) for key, good, _ in settings_values.VALUES for text in good]
BAD = [
  (key, text, says)
  for key, _, bad in settings_values.VALUES
  for text, says in bad
]


def _flat(values, prefix=""):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{key}.")
    else:
      yield f"{prefix}{key}", value


def test_the_table_is_the_config():
  """Every key of the config is a row, and every row a key."""
  config = config_lib.base_config()
  assert dict(_flat(config.to_dict())) == {
    each.key: each.default for each in ALL
  }
  assert len(ALL) == len(BY_KEY)
  assert config.is_locked
  assert config.train.is_locked


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("seed", 0),
    ("train.batch_size", 128),
    ("train.learning_rate", 2e-5),
    ("train.warmup_steps", 1237),
    ("train.clip_norm", 2.0),
    ("train.epochs", 40.0),
    ("model.passage_length", 0),
    ("train.negatives", "bm25"),
    ("bm25.k1", 0.9),
    ("bm25.b", 0.4),
    ("retrieve.methods", ("bm25", "dense")),
    ("fusion.weight", 1.1),
    ("evaluate.ranks", (1, 5, 20, 100)),
    ("reader.passages", 24),
  ],
)
def test_defaults_are_the_papers(key, value):
  """The recipe that the defaults stand for."""
  found = settings_table.value_of(config_lib.base_config(), key)
  assert found == value
  assert type(found) is type(value)


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.key)
def test_a_row_is_whole(setting):
  """Default in its own range, a meaning, a reader."""
  assert not setting.wrong(setting.default)
  assert setting.meaning
  assert not setting.meaning.endswith(".")
  assert setting.stages
  assert (setting.item is not None) == (setting.kind is tuple)


def test_every_key_has_values():
  """One row of values per key, but for text that may be anything."""
  tried = {key for key, _, _ in settings_values.VALUES}
  assert tried | settings_values.FREE == set(BY_KEY)
  assert not tried & settings_values.FREE
  assert len(BAD) > 250


@pytest.mark.parametrize(("key", "text"), GOOD)
def test_good_values(key, text):
  """The last value of every range, every choice, every way to write it."""
  setting = BY_KEY[key]
  typed = settings_hints.typed(setting, text)
  config = config_lib.base_config()
  section = config[setting.section] if setting.section else config
  section[setting.name] = setting.parse(typed)
  assert not setting.wrong(section[setting.name])


@pytest.mark.parametrize(("key", "text", "says"), BAD)
def test_bad_values(key, text, says):
  """The first value beyond every range, with key and value as typed."""
  with pytest.raises(errors.InputError) as caught:
    settings_hints.typed(BY_KEY[key], text)
  assert str(caught.value).startswith(f"config.{key}={text}: ")
  assert says in str(caught.value)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("train.batch_size", True),
    ("train.batch_size", 8.0),
    ("train.learning_rate", False),
    ("train.learning_rate", math.nan),
    ("train.learning_rate", -math.inf),
    ("model.normalize", 1),
    ("model.checkpoint", 3),
    ("evaluate.ranks", (1, True)),
    ("evaluate.ranks", (1, 2.0)),
    ("evaluate.ranks", 20),
    ("retrieve.methods", "bm25"),
  ],
)
def test_values_of_another_type(key, value):
  """From Python or a config file: 1 is no True, and True is no 1."""
  assert BY_KEY[key].wrong(value).startswith("must be ")


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("bm25,dense", ("bm25", "dense")),
    ("('bm25','dense')", ("bm25", "dense")),
    ("(bm25, dense)", ("bm25", "dense")),
    ('["bm25"]', ("bm25",)),
    ("('bm25',)", ("bm25",)),
    ("bm25", ("bm25",)),
    ("()", ()),
    ("", ()),
  ],
)
def test_tuples_as_typed(text, value):
  """All ways to write one."""
  assert BY_KEY["retrieve.methods"].parse(text) == value


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("train.epochs", "3", 3.0),
    ("train.learning_rate", "1e-5", 1e-5),
    ("train.batch_size", "0x10", 16),
    ("train.batch_size", " 16 ", 16),
    ("train.batch_size", "65_536", 65536),
    ("train.gradient_cache", "yes", True),
    ("train.gradient_cache", "TRUE", True),
    ("train.gradient_cache", "0", False),
    ("model.question_prefix", "query: ", "query: "),
    ("read.passages", "(1,10)", (1, 10)),
  ],
)
def test_values_as_typed(key, text, value):
  """Numbers, switches and text."""
  found = BY_KEY[key].parse(text)
  assert found == value
  assert type(found) is type(value)


def test_choices_are_those_of_the_code():
  """The table repeats them, so that nothing slow is imported for them."""
  import Stemmer
  from bm25s import tokenization

  from dpr_jax.core import setting_rules
  from dpr_jax.data import answer_matching, reader_tokenization
  from dpr_jax.data import tokenization as texts
  from dpr_jax.embedding import vector_shards
  from dpr_jax.index import exact_search
  from dpr_jax.models import bert, dual_encoder
  from dpr_jax.retrieval import hybrid, retrievers
  from dpr_jax.training import objectives, train_reader, train_step

  for key, choices in {
    "bm25.stemmer": ("", *Stemmer.algorithms()),
    "model.pooling": ("auto", *dual_encoder.POOLINGS),
    "model.title": ("auto", *texts.TITLES),
    "model.attention": bert.ATTENTIONS,
    "train.remat": bert.REMATS,
    "reader.remat": bert.REMATS,
    "train.scale_rule": setting_rules.SCALE_RULES,
    "train.layers": train_step.LAYERS,
    "train.reduce_dtype": train_step.REDUCE_DTYPES,
    "train.loss": objectives.KINDS,
    "embed.dtype": vector_shards.DTYPES,
    "retrieve.methods": retrievers.METHODS,
    "reader.method": retrievers.METHODS,
    "exact.storage": exact_search.STORAGES,
    "fusion.method": hybrid.METHODS,
    "reader.layout": ("auto", *reader_tokenization.LAYOUTS),
    "reader.best_metric": ("", *train_reader.DEV_METRICS),
    "evaluate.match": answer_matching.MATCHES,
  }.items():
    assert set(BY_KEY[key].choices) == set(choices), key
  for name in filter(None, BY_KEY["bm25.stopwords"].choices):
    assert tokenization.Tokenizer(stopwords=name).stopwords, name


def test_the_reference_page_is_current(repository):
  """`make reference` writes it anew."""
  file = repository / "docs" / "reference" / "config.md"
  assert file.read_text(encoding="utf-8") == settings_show.page(), (
    f"{file} is stale: make reference"
  )
  assert all(f"**`{each.key}`**" in settings_show.page() for each in ALL)
  assert max(map(len, settings_show.page().splitlines())) <= 80


def test_where_values_come_from():
  """Default, file, command line; --diff leaves the defaults out."""
  config = config_lib.base_config()
  config.train.batch_size = 64
  config.retrieve.methods = ("bm25",)
  found = settings_show.rows(
    config, {"retrieve.methods", "train.epochs"}, "workdir"
  )
  origins = {row.key: row.origin for row in found}
  assert len(found) == len(ALL)
  assert origins["train.batch_size"] == "workdir"
  assert origins["retrieve.methods"] == "command line"
  assert origins["train.epochs"] == "command line"
  assert origins["seed"] == "default"
  less = settings_show.differing(found)
  assert [row.key for row in less] == ["train.batch_size", "retrieve.methods"]
  assert settings_show.text(less) == (
    "train.batch_size  64         workdir\n"
    "retrieve.methods  ('bm25',)  command line"
  )
  assert json.loads(settings_show.as_json(less)) == {
    "train.batch_size": {"value": 64, "from": "workdir"},
    "retrieve.methods": {"value": ["bm25"], "from": "command line"},
  }
  assert settings_show.text([]) == ""
