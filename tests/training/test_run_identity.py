"""What makes another run of a training, and what may change in one."""

import copy
import json

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.retrieval import mine
from dpr_jax.training import (
  loop,
  retriever_inputs,
  run_identity,
  train_reader,
  train_retriever,
)

pytestmark = pytest.mark.compiles


def _changed(config, **values):
  config = copy.deepcopy(config)
  for key, value in values.items():
    section, _, name = key.partition("__")
    config[section][name] = value
  return config


def _begun(config, place):
  """As if a training had taken its first step."""
  claim = retriever_inputs.claim(config, place)
  claim.open(False)
  claim.begin()
  (place.training / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  return claim


FREE = {
  "train__log_every": 7,
  "train__checkpoint_every": 3,
  "train__keep_checkpoints": 5,
  "train__step_timeout": 90.0,
  "train__profile_steps": (1, 2),
  "train__dev_every": 2,
  "train__best_metric": "dev_loss",
  "train__blend": "auto",
  "train__gradient_cache": True,
  "train__chunk_size": 2,
  "train__question_chunk_size": 1,
  "train__packing": False,
  "train__packed_widths": 3,
  "train__remat": "layer",
  "train__loss": "tiled",
  "train__loss_tile": 4,
  "train__layers": "scanned",
  "train__shard_optimizer": True,
  "model__attention": "fused",
  # What these mean here is what they were.
  "model__compute_dtype": "float32",
  "train__passage_length": 48,
  "train__epochs": 3.0,  # of no effect beside max_steps
}
BOUND = {
  "train__learning_rate": (0.001, 5e-4),
  "train__reduce_dtype": ("float32", "bfloat16"),
  "train__batch_size": (16, 8),
  "train__mask_answers": (False, True),
  "train__dev_questions": (256, 8),
  "train__dpr_compat_schedule": (False, True),
  "train__average_checkpoints": (1, 2),
  "model__pooling": ("cls", "mean"),
  "model__dropout": (-1.0, 0.2),
}


@pytest.mark.parametrize("key", FREE)
def test_what_changes_no_figure_may_change(tiny_config, fresh_workdir, key):
  """Every one of them alone."""
  _begun(tiny_config, fresh_workdir)
  config = _changed(tiny_config, **{key: FREE[key]})
  assert config_lib.plain(config) != config_lib.plain(tiny_config)
  retriever_inputs.claim(config, fresh_workdir).check()


def test_the_table_of_free_settings_is_tested():
  """And every key of it is one of the config."""
  known = config_lib.plain(config_lib.base_config())
  for section, keys in run_identity.FREE.items():
    assert keys <= known[section].keys()
  of_retriever = {
    f"{s}__{k}" for s in ("train", "model") for k in run_identity.FREE[s]
  }
  assert of_retriever <= FREE.keys()
  assert not of_retriever & BOUND.keys()


@pytest.mark.parametrize("key", BOUND)
def test_what_decides_figures_is_refused_by_its_key(
  tiny_config, fresh_workdir, key
):
  """With the old value and the new one, and the way out."""
  _begun(tiny_config, fresh_workdir)
  was, now = BOUND[key]
  claim = retriever_inputs.claim(
    _changed(tiny_config, **{key: now}), fresh_workdir
  )
  with pytest.raises(errors.InputError) as refused:
    claim.check()
  name = key.replace("__", ".")
  assert f"settings: config.{name} was {was!r}, is {now!r}. " in str(
    refused.value
  )
  assert "--overwrite=train" in str(refused.value)


def test_a_padded_run_of_an_older_version_resumes_packed(
  tiny_config, fresh_workdir, caplog
):
  """Its record has no such key; rounding aside, the result is the same."""
  _begun(tiny_config, fresh_workdir)
  path = fresh_workdir.training / "started.json"
  record = workdir_lib.read_record(path)
  del record["config"]["train"]["packing"]
  record["config"]["train"]["length_groups"] = 4  # removed since
  workdir_lib.write_record(path, record)
  with caplog.at_level("INFO", logger="absl"):
    retriever_inputs.claim(tiny_config, fresh_workdir).check()
  assert "do not change the result: packing False -> True\n" in caplog.text


def test_a_longer_training_is_another_one(tiny_config, fresh_workdir):
  """The learning rate has fallen to 0 at the last step that was to be."""
  _begun(tiny_config, fresh_workdir)
  longer = _changed(tiny_config, train__max_steps=12)
  with pytest.raises(
    errors.InputError,
    match=r"max_steps was 6, is 12\. The learning rate falls to 0 at the last"
    r" step, 6: .* config\.model\.checkpoint=<the export>",
  ):
    retriever_inputs.claim(longer, fresh_workdir).check()
  # 64 questions in batches of 16: six steps are one and a half epochs.
  same = _changed(tiny_config, train__max_steps=0, train__epochs=1.5)
  retriever_inputs.claim(same, fresh_workdir).check()


def test_a_changed_k1_is_refused_before_mining(tiny_config, fresh_workdir):
  """By its key; when it was mined again all the same, too."""
  claim = _begun(tiny_config, fresh_workdir)
  config = _changed(tiny_config, bm25__k1=1.2)
  line = "settings: config.bm25.k1 was 0.9, is 1.2. "
  with pytest.raises(errors.InputError) as refused:
    retriever_inputs.check_before(config, fresh_workdir)
  assert line in str(refused.value)
  retriever_inputs.check_before(tiny_config, fresh_workdir)
  # As an older version recorded it: nothing of the settings behind the inputs.
  (claim.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  workdir_lib.write_json(
    claim.started, {"config": claim.config, "inputs": claim.inputs}
  )
  with pytest.raises(errors.InputError) as refused:
    retriever_inputs.check_before(config, fresh_workdir)
  assert line in str(refused.value)
  claim.begin()
  mine.mine(config, fresh_workdir)
  with pytest.raises(errors.InputError) as refused:
    train_retriever.train(config, fresh_workdir)
  assert line in str(refused.value)


def test_other_data_is_refused_before_it_is_prepared(
  tiny_config, fresh_workdir
):
  """The same for the settings of the data; not for what training never read."""
  _begun(tiny_config, fresh_workdir)
  for change, line in (
    ({"data__max_train": 32}, "config.data.max_train was 64, is 32"),
    ({"mine__keep": 4}, "config.mine.keep was 5, is 4"),
    ({"evaluate__match": "regex"}, "config.evaluate.match was 'string', is"),
  ):
    config = _changed(tiny_config, **change)
    with pytest.raises(errors.InputError, match=line):
      retriever_inputs.check_before(config, fresh_workdir)
  config = _changed(tiny_config, retrieve__depth=7, index__factory="IVF4,Flat")
  retriever_inputs.check_before(config, fresh_workdir)


def test_a_training_that_never_began_blocks_nothing(
  tiny_config, fresh_workdir, monkeypatch
):
  """What is wrong is corrected; figures of the other settings do not stay."""
  wrong = _changed(tiny_config, train__learning_rate=5e-4)

  def fails(run, *_):
    raise RuntimeError("before step 1")

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_with_signal", fails)
    with pytest.raises(RuntimeError, match="before step 1"):
      train_retriever.train(wrong, fresh_workdir)
  metrics = fresh_workdir.training / "metrics.jsonl"
  assert _steps(metrics) == [0]
  train_retriever.train(tiny_config, fresh_workdir)
  assert _steps(metrics) == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def _steps(metrics):
  rows = metrics.read_text().splitlines()
  return [json.loads(row)["step"] for row in rows]


def test_an_older_version_s_claim_that_never_began(tiny_config, fresh_workdir):
  """It had written `started.json` before anything else."""
  claim = retriever_inputs.claim(tiny_config, fresh_workdir)
  workdir_lib.write_json(
    claim.started, {"config": claim.config, "inputs": claim.inputs}
  )
  (claim.folder / "metrics.jsonl").write_text('{"step": 0, "dev_loss": 2.0}\n')
  config = _changed(tiny_config, train__learning_rate=5e-4)
  other = retriever_inputs.claim(config, fresh_workdir)
  assert other.record() is None
  other.check()
  other.open(False)
  assert not (claim.folder / "metrics.jsonl").exists()


def test_an_older_version_s_run_goes_on(tiny_config, fresh_workdir):
  """Its record holds all keys of its time, and not those that came later."""
  claim = retriever_inputs.claim(tiny_config, fresh_workdir)
  settings = copy.deepcopy(dict(claim.config))
  settings["train"]["log_every"] = 99
  del settings["train"]["rounds"], settings["train"]["dpr_compat_schedule"]
  record = {"config": settings, "inputs": claim.inputs}
  workdir_lib.write_json(claim.started, record)
  (claim.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  claim.check()
  settings["train"]["rounds"] = 2
  workdir_lib.write_json(claim.started, record)
  with pytest.raises(errors.InputError, match="config.train.rounds was 2, is"):
    claim.check()


def test_a_record_that_cannot_be_read(tiny_config, fresh_workdir):
  """Nobody guesses; --overwrite is the way out."""
  claim = _begun(tiny_config, fresh_workdir)
  claim.started.write_text(claim.started.read_text()[:-9])
  with pytest.raises(
    errors.InputError, match="settings are not known: .*json is not JSON"
  ):
    claim.check()
  claim.started.unlink()
  with pytest.raises(errors.InputError, match=r"started.json is missing"):
    claim.check()


def test_a_folder_that_is_not_ours_stays(tiny_config, fresh_workdir):
  """Whatever lies in `training/`, with --overwrite too."""
  fresh_workdir.training.mkdir()
  (fresh_workdir.training / "notes.txt").write_text("mine")
  claim = retriever_inputs.claim(tiny_config, fresh_workdir)
  for overwrite in (False, True):
    with pytest.raises(errors.InputError, match="has no record of `dpr-jax"):
      claim.open(overwrite)
  assert (fresh_workdir.training / "notes.txt").read_text() == "mine"


def test_checks_come_before_tokens(tiny_config, fresh_workdir, monkeypatch):
  """Nothing that can be refused is refused after an hour of tokenizing."""
  from dpr_jax.data import token_store

  def never(*_, **__):
    raise AssertionError("tokenized")

  monkeypatch.setattr(token_store, "make", never)
  for change in (
    {"train__batch_size": 20},
    {"train__warmup_steps": 9},
    {"train__loss": "dense"},
    {"train__remat": "all"},
    {"train__layers": "none"},
    {"train__reduce_dtype": "int8"},
    {"train__accumulate_steps": 2},
    {"train__profile_steps": (2, 9)},
    {"train__rounds": 9, "train__negatives": "model"},
    {"train__mask_answers": True, "evaluate__match": "regex"},
    {"train__hard_negatives_from_top": 0},
    {"train__dev_topk_passages": 1},
    {"model__pooling": "median"},
    {"model__checkpoint": "nowhere"},
  ):
    with pytest.raises(errors.InputError):
      train_retriever.train(_changed(tiny_config, **change), fresh_workdir)
  assert not fresh_workdir.training.exists()


def test_the_reader_s_settings(tiny_config, fresh_workdir):
  """As the retriever's; also before its questions are retrieved for again."""
  config = _changed(tiny_config, reader__train="results")
  claim = train_reader.bare_claim(config, fresh_workdir)
  claim.open(False)
  claim.begin()
  free = {f"reader__{key}": 3 for key in run_identity.FREE["reader"]} | {
    "reader__profile_steps": (1, 2),
    "reader__best_metric": "dev_f1",
    "reader__remat": "layer",
    "reader__packing": False,
  }
  changed = _changed(config, **free)
  train_reader.check_before(changed, fresh_workdir)
  train_reader.bare_claim(changed, fresh_workdir).check()
  changed = _changed(config, reader__learning_rate=3e-5)
  line = "config.reader.learning_rate was 1e-05, is 3e-05"
  with pytest.raises(errors.InputError, match=line):
    train_reader.check_before(changed, fresh_workdir)
  with pytest.raises(errors.InputError, match=line):
    train_reader.train_reader(changed, fresh_workdir)
  changed = _changed(config, reader__batch_size=5, reader__passages=3)
  with pytest.raises(errors.InputError, match="reader.batch_size=5 questions"):
    train_reader.train_reader(changed, fresh_workdir)


def test_padded_training_of_a_reader_resumes_packed(tiny_config, fresh_workdir):
  """Of an older version; not if batches were sorted, which are others."""

  def changed(before, **now):
    old = train_reader.bare_claim(
      _changed(tiny_config, **before), fresh_workdir
    )
    config = copy.deepcopy(old.config)
    if "reader__packing" not in before:
      del config["reader"]["packing"]
    claim = train_reader.bare_claim(_changed(tiny_config, **now), fresh_workdir)
    return claim.changed({"config": config, "inputs": {}})

  groups = {"reader__length_groups": 2, "reader__length_step": 8}
  padded, sort = {"reader__packing": False}, {"reader__sort_batches": 4}
  assert changed(groups) == []
  assert changed(sort) == [
    "config.reader.packing was False, is True",
    "config.reader.sort_batches was 4, is 1",
  ]
  assert changed(sort, **sort) == ["config.reader.packing was False, is True"]
  assert changed(sort, **sort, **padded) == []
  assert changed(padded, **padded, **sort) == [
    "config.reader.sort_batches was 1, is 4"
  ]


def test_a_path_spelt_in_another_way_is_the_same_run(tmp_path):
  """As it was typed in another folder, or by an older version."""

  def changed(old, new):
    of = lambda path: {"model": {"checkpoint": path}}  # noqa: E731
    claim = run_identity.Claim("train", tmp_path, of(new), {})
    return claim.changed({"config": of(old), "inputs": {}})

  assert not changed("b/bert", "/a/b/bert")
  assert not changed("/a/b/bert", "../b/bert")
  assert changed("c/bert", "/a/b/bert") == [
    "config.model.checkpoint was 'c/bert', is '/a/b/bert'"
  ]
  assert changed("starter", "/a/starter")
