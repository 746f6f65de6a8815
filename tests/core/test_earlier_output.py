"""Output for an earlier corpus: found by digests, set aside, removed."""

import numpy as np
import pytest

from dpr_jax.core import earlier_output, errors
from dpr_jax.core import workdir as workdir_lib


def _digests(*values):
  return np.array(values, np.uint64)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_rows_are_found_by_their_digests(monkeypatch, block):
  monkeypatch.setattr(earlier_output, "_BLOCK", block)
  rows = earlier_output.RowsByDigest(_digests(9, 2**64 - 1, 3, 9, 5))
  found = rows.find(_digests(3, 4, 9, 2**64 - 1, 0, 5))
  assert found.tolist() == [2, -1, 0, 1, -1, 4]
  assert rows.find(_digests()).tolist() == []
  nothing = earlier_output.RowsByDigest(_digests())
  assert nothing.find(_digests(1, 2)).tolist() == [-1, -1]


@pytest.fixture
def stage(tmp_path):
  """A stage with a finished output of one file."""
  stage = workdir_lib.Stage("embed", tmp_path / "out", {}, {"passages": "1"})
  stage.folder.mkdir()
  (stage.folder / "a.npy").write_bytes(b"a")
  stage.finish({}, files={"a.npy": "sha"})
  return stage


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_only_another_corpus_counts(stage):
  manifest = workdir_lib.read_manifest(stage.folder, "embed")

  def differs(**inputs):
    other = workdir_lib.Stage("embed", stage.folder, {}, inputs)
    return earlier_output.is_of_another_corpus(other, manifest)

  assert differs(passages="2")
  assert not differs(passages="1")
  assert not differs(passages="2", model="m")


def test_an_output_is_set_aside_and_removed(stage, tmp_path):
  manifest = workdir_lib.read_manifest(stage.folder, "embed")
  note = stage.folder / "note"
  note.write_text("mine")
  assert not earlier_output.set_aside(stage, manifest)
  assert earlier_output.set_aside(stage, manifest, ("note",))
  assert _names(tmp_path) == ["out-before"]
  assert _names(tmp_path / "out-before") == ["a.npy", "manifest.json", "note"]
  # Another one takes its place.
  stage.folder.mkdir()
  stage.finish({}, files={})
  assert earlier_output.set_aside(stage, manifest)
  assert _names(tmp_path / "out-before") == ["manifest.json"]
  earlier_output.discard(stage)
  assert _names(tmp_path) == []
  earlier_output.discard(stage)


def test_a_killed_removal_is_completed(stage, tmp_path, monkeypatch):
  """The manifest, by which the folder is known as ours, goes last."""
  manifest = workdir_lib.read_manifest(stage.folder, "embed")
  earlier_output.set_aside(stage, manifest)
  with monkeypatch.context() as patch:
    patch.setattr(earlier_output.shutil, "rmtree", None)
    with pytest.raises(TypeError):
      earlier_output.discard(stage)
  assert _names(tmp_path / "out-before") == ["manifest.json"]
  earlier_output.discard(stage)
  assert _names(tmp_path) == []


def test_a_folder_of_the_user_is_kept(stage, tmp_path):
  (tmp_path / "out-before").mkdir()
  (tmp_path / "out-before" / "manifest.json").write_text("{}")
  earlier_output.discard(stage)
  assert _names(tmp_path / "out-before") == ["manifest.json"]
  manifest = workdir_lib.read_manifest(stage.folder, "embed")
  with pytest.raises(errors.InputError, match="out-before has no manifest"):
    earlier_output.set_aside(stage, manifest)
  assert _names(stage.folder) == ["a.npy", "manifest.json"]


def test_the_target_of_a_link_is_moved(stage, tmp_path, monkeypatch):
  """Also if the run is killed before there is a new target."""
  disk = tmp_path / "disk"
  disk.mkdir()
  stage.folder.rename(disk / "big")
  stage.folder.symlink_to(disk / "big")
  manifest = workdir_lib.read_manifest(stage.folder, "embed")
  with monkeypatch.context() as patch:
    patch.setattr(earlier_output, "restore_target", lambda stage: None)
    assert earlier_output.set_aside(stage, manifest)
  assert _names(tmp_path) == ["disk", "out"]
  assert _names(disk) == ["big-before"]
  earlier_output.restore_target(stage)
  assert _names(disk) == ["big", "big-before"]
  assert stage.folder.is_symlink()
  assert _names(stage.folder) == []
  stage.finish({}, files={})
  earlier_output.discard(stage)
  assert _names(disk) == ["big"]
  assert _names(stage.folder) == ["manifest.json"]


def test_records_of_a_killed_run_are_no_files_of_the_user(stage, tmp_path):
  """It had written the manifest, and not removed the records of its parts."""
  for name in ("part-00000.json", "started.json"):
    (stage.folder / name).write_text("{}")
  manifest = workdir_lib.read_manifest(stage.folder, "embed")
  assert earlier_output.set_aside(stage, manifest)
  assert _names(tmp_path) == ["out-before"]
