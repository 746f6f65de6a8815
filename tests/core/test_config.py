"""Every config loads, saves and comes back; a misspelt key does not."""

import json
import runpy

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors

CONFIGS = [
  ("demo", ""),
  ("nq", ""),
  ("nq_100k", ""),
  ("nq_100k", "quick"),
  ("nq_100k", "ablation"),
  ("nq_100k", "batch_size"),
  ("nq_100k", "reader"),
  ("squad", ""),
  ("squad", "bench"),
]


@pytest.mark.parametrize(("name", "variant"), CONFIGS)
def test_configs_survive_the_workdir(repository, tmp_path, name, variant):
  """What a stage leaves as config.json is the config."""
  module = runpy.run_path(str(repository / "configs" / f"{name}.py"))
  config = module["get_config"](variant)
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config_lib.plain(config)))
  assert config_lib.plain(config_lib.read(path)) == config_lib.plain(config)
  with pytest.raises(ValueError, match="variant 'no'"):
    module["get_config"]("no")


def test_every_config_is_tested(repository):
  """A new file in configs/ belongs into the list above."""
  names = {path.stem for path in (repository / "configs").glob("[a-z]*.py")}
  assert names == {name for name, _ in CONFIGS}


def test_keys_are_locked(tmp_path):
  """A misspelt key is an error, in code and in a file."""
  config = config_lib.base_config()
  with pytest.raises(AttributeError, match="batchsize"):
    config.train.batchsize = 3
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"train": {"batchsize": 3}}))
  with pytest.raises(errors.InputError, match="not a config of this version"):
    config_lib.read(path)
  with pytest.raises(errors.InputError, match="is it a workdir"):
    config_lib.read(tmp_path / "no.json")


def test_a_config_of_another_version(tmp_path):
  """What it lacks has its default; what we do not know is named, with a way."""
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"train": {"batch_size": 3}}))
  wanted = config_lib.base_config()
  wanted.train.batch_size = 3
  assert config_lib.plain(config_lib.read(path)) == config_lib.plain(wanted)
  stored = {"train": {"batch_size": 3, "momentum": 0.9}, "teacher": {"a": 1}}
  path.write_text(json.dumps(stored))
  with pytest.raises(errors.InputError) as error:
    config_lib.read(path)
  assert str(error.value) == (
    f"{path} is not a config of this version: it does not know train.momentum,"
    " teacher; remove from the file what you do not need, or use the version of"
    " dpr-jax that wrote it"
  )
  for malformed in ("[1]", "3", "{", '{"train": 3}', '{"seed": {"a": 1}}'):
    path.write_text(malformed)
    with pytest.raises(errors.InputError, match="not a config of this version"):
      config_lib.read(path)


def test_a_removed_setting_is_left_out(tmp_path, caplog):
  """Every older config has it; one line where its value had an effect."""
  path = tmp_path / "config.json"
  for value in (1, 4):
    path.write_text(json.dumps({"train": {"length_groups": value}}))
    found = config_lib.plain(config_lib.read(path))
    assert found == config_lib.plain(config_lib.base_config())
    assert bool(caplog.records) == (value == 4)
  (record,) = caplog.records
  assert record.getMessage() == (
    f"{path}: config.train.length_groups was removed: texts are packed into"
    " rows without padding (config.train.packing); its value 4 has no effect"
  )


def test_checks_name_the_key():
  """One line with key, value and what is allowed."""
  with pytest.raises(errors.InputError, match=r"config.a.b='x': .* y, z"):
    config_lib.one_of("a.b", "x", ("y", "z"))
  with pytest.raises(errors.InputError, match=r"config.a.b=0: must be >= 1"):
    config_lib.at_least("a.b", 0, 1)
