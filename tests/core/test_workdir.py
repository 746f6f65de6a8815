"""Stages: what has changed is not done; where things are."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from tests.core import made


def test_what_the_killed_left_goes_when_the_workdir_is_locked(tmp_path):
  """Temporary files and folders; a folder put aside comes back."""
  place = workdir_lib.Workdir(tmp_path)
  kept = (  # a user's own, or a question set of that name
    "results/nq.tmp-1.bm25.json",
    "results/nq.old-2024.bm25.json",
    "data/a.dprjax-tmp-x.json",
    "notes/a.dprjax-tmp-1.txt",
    "x.tmp-12.json",
  )
  for name in (
    "results/dev.dense.json",
    "results/dev.dprjax-tmp-12.dense.json",
    "index/Flat.dprjax-tmp-12/index",
    "index/IVF.dprjax-old-12/index",
    "index/HNSW/index",
    "index/HNSW.dprjax-old-7/index",
    "index/bm25.dprjax-old-8.x/index",
    "data.dprjax-tmp-9/index",
    ".dprjax-tmp-9.lock.json",
    "config.dprjax-tmp-9.json",
    *kept,
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  with workdir_lib.locked(place):
    left = {
      str(path.relative_to(tmp_path)): path.read_text()
      for path in tmp_path.rglob("*")
      if path.is_file() and not path.name.startswith(".lock")
    }
  assert left == {
    "results/dev.dense.json": "results/dev.dense.json",
    "index/IVF/index": "index/IVF.dprjax-old-12/index",
    "index/HNSW/index": "index/HNSW/index",
    "index/bm25.x/index": "index/bm25.dprjax-old-8.x/index",
    **{name: name for name in kept},
  }


def test_a_stage_is_current_only_while_nothing_changed(tmp_path):
  """Config and inputs count; overwrite asks for it again."""
  assert not made.stage(tmp_path).is_current()
  made.stage(tmp_path).finish({"rows": 3})
  assert made.stage(tmp_path).is_current()
  assert not made.stage(tmp_path).is_current(overwrite=True)
  assert not made.stage(tmp_path, config=2).is_current()
  assert not made.stage(tmp_path, data="y").is_current()
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert manifest["counts"] == {"rows": 3}
  assert manifest["inputs"] == {"data": "x"}


def test_dataset_inputs_are_apart(tmp_path):
  """Other dev questions do not change the corpus's fingerprint."""
  place = workdir_lib.Workdir(tmp_path)

  def prepared(dev):
    workdir_lib.Stage("prepare", place.data, {}, {}).finish(
      {}, files={"passages/a": "1", "dev/a": dev}
    )
    return workdir_lib.dataset_inputs(place, "passages", "dev")

  one, other = prepared("1"), prepared("2")
  assert one["passages"] == other["passages"]
  assert one["dev"] != other["dev"]


def test_names(tmp_path):
  """Where the contract says things are."""
  place = workdir_lib.Workdir(tmp_path)
  assert place.embeddings() == tmp_path / "embeddings" / "passages"
  start = place.embeddings("dense-start")
  assert start == tmp_path / "embeddings" / "passages-start"
  assert place.index("Flat") == tmp_path / "index" / "Flat"
  assert place.results("dev", "bm25").name == "dev.bm25.json"


def test_outputs_that_are_gone_or_damaged_count(tmp_path):
  """A stage is done while every file that it lists is whole."""
  path = tmp_path / "a.json"

  def make():
    path.write_text("abc")
    files = {"a.json": workdir_lib.fingerprint_file(path)}
    made.stage(tmp_path).finish({}, files=files)

  make()
  assert made.stage(tmp_path).is_current()
  path.write_text("abd")
  assert not made.stage(tmp_path).is_current()
  path.unlink()
  assert not made.stage(tmp_path).is_current()
  make()
  (tmp_path / "manifest.json").write_text("{")
  assert not made.stage(tmp_path).is_current()


def test_files_in_a_shared_folder_are_claimed_first(tmp_path):
  """What a killed run left is replaced, a user's own file is not."""
  stage = made.stage(tmp_path)
  mine = tmp_path / "dev.bm25.json"
  mine.write_text("from elsewhere")
  with pytest.raises(errors.InputError, match="dev.bm25.json exists without"):
    stage.begin([mine])
  mine.unlink()
  stage.begin([mine])
  mine.write_text("half")
  assert not stage.is_current()
  with pytest.raises(
    errors.InputError, match="the stage was not finished: run"
  ):
    workdir_lib.read_manifest(tmp_path, "embed")
  stage.begin([mine])
  stage.finish({}, files={mine.name: workdir_lib.fingerprint_file(mine)})
  assert stage.is_current()
