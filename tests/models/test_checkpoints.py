"""Checkpoints come back bit for bit, and damage is found before use."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax.core import errors
from dpr_jax.models import checkpoint_files, checkpoints


def _state(value):
  params = {"passage": {"query": {"kernel": jnp.full((64, 64), value)}}}
  return params, optax.adamw(1e-3).init(params)


def _save(folder, *steps, keep=2):
  saved = checkpoints.Checkpoints(folder, keep)
  for step in steps:
    saved.save(step, *_state(float(step)))
  saved.finish()


def _flip(folder, step, tree="params"):
  """Flips one bit in the largest file of a tree of a checkpoint."""
  part = folder / str(step) / tree
  files = [path for path in part.rglob("*") if path.is_file()]
  path = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_round_trip_and_keep(tmp_path):
  """The newest is restored; only `keep` stay, with their checksums."""
  _save(tmp_path, 3, 5, 8)
  saved = checkpoints.Checkpoints(tmp_path)
  assert saved.steps() == [5, 8]
  step, params, optimizer = saved.restore_latest(*_state(0.0))
  assert step == 8
  wanted = _state(8.0)
  jax.tree.map(np.testing.assert_array_equal, (params, optimizer), wanted)
  names = sorted(path.name for path in tmp_path.glob("*.json"))
  assert names == ["5.sha256.json", "8.sha256.json"]
  step, params = checkpoints.load_params(tmp_path)
  assert step == 8
  jax.tree.map(np.testing.assert_array_equal, params, wanted[0])
  step, params = checkpoints.load_params(tmp_path, 5)
  jax.tree.map(np.testing.assert_array_equal, params, _state(5.0)[0])


def test_only_what_is_read_is_hashed(tmp_path):
  """Who wants the parameters does not wait for the optimizer's checksums."""
  _save(tmp_path, 5)
  _flip(tmp_path, 5, "optimizer")
  step, params = checkpoints.load_params(tmp_path)
  assert step == 5
  jax.tree.map(np.testing.assert_array_equal, params, _state(5.0)[0])
  assert "optimizer/" in checkpoint_files.problem(tmp_path, 5)
  wrong = checkpoints.Checkpoints(tmp_path).wrong()
  assert "5 is damaged: optimizer/" in wrong[5]


def test_a_missing_file_is_named_though_it_is_not_read(tmp_path):
  """A copy that ended early: the parameters may be next."""
  _save(tmp_path, 5)
  (tmp_path / "5" / "optimizer" / "manifest.ocdbt").unlink()
  with pytest.raises(errors.InputError, match=r"missing: optimizer/manifest"):
    checkpoints.load_params(tmp_path)


def test_a_flipped_bit_is_found(tmp_path):
  """Training goes back to the one before; embedding refuses."""
  _save(tmp_path, 3, 5)
  _flip(tmp_path, 5)
  with pytest.raises(errors.InputError, match="5 is damaged"):
    checkpoints.load_params(tmp_path)
  step, params, _ = checkpoints.Checkpoints(tmp_path).restore_latest(
    *_state(0.0)
  )
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, _state(3.0)[0])


def test_a_save_that_was_not_completed_is_removed(tmp_path):
  """Without checksums nobody knows whether it is whole."""
  _save(tmp_path, 3, 5)
  (tmp_path / "5.sha256.json").unlink()
  with pytest.raises(
    errors.InputError, match=r"5 has no checksums.*checkpoints: 3;"
  ):
    checkpoints.load_params(tmp_path)
  saved = checkpoints.Checkpoints(tmp_path)
  assert saved.steps() == [3]
  assert saved.restore_latest(*_state(0.0))[0] == 3
  assert (tmp_path / "5").is_dir()
  saved.save(5, *_state(5.5))  # when training comes there again
  saved.wait()
  assert saved.steps() == [3, 5]
  assert saved.wrong() == {}
  saved.close()
  _, params = checkpoints.load_params(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params, _state(5.5)[0])


def test_what_is_damaged_is_never_kept_in_place_of_what_is_whole(tmp_path):
  """Of 3, 5 and 8 the last is damaged: what is kept are whole ones."""
  _save(tmp_path, 3, 5, 8, keep=3)
  _flip(tmp_path, 8)
  saved = checkpoints.Checkpoints(tmp_path, keep=2)
  assert saved.steps() == [3, 5]
  saved.save(6, *_state(6.0))
  saved.wait()
  assert saved.steps() == [5, 6]
  assert (tmp_path / "8").is_dir()  # until it is made again, or passed
  saved.save(9, *_state(9.0))
  saved.wait()
  assert saved.steps() == [6, 9]
  assert not (tmp_path / "8").exists()
  saved.close()


@pytest.mark.parametrize("moment", ["orbax", "sums"])
def test_a_kill_at_any_moment_of_a_save_leaves_the_one_before(
  tmp_path, monkeypatch, moment
):
  """Nothing stands under the name of a step before all of it is there."""
  _save(tmp_path, 3)
  there = {path.name for path in tmp_path.iterdir()}

  class KilledError(BaseException):
    pass

  def killed(*_, **__):
    seen.extend(path.name for path in tmp_path.iterdir())
    raise KilledError

  seen = []
  name = {"orbax": "_checkpointer", "sums": "_sums"}[moment]
  saved = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(checkpoint_files, name, killed)
  saved.save(5, *_state(5.0))
  with pytest.raises(KilledError):
    saved.wait()
  saved.close()
  assert set(seen) - there
  assert not {"5", "5.sha256.json"} & set(seen)
  monkeypatch.undo()
  assert {path.name for path in tmp_path.iterdir()} == there
  assert checkpoints.load_params(tmp_path)[0] == 3


def test_leftovers_of_a_killed_save_go(tmp_path):
  """Sums without a checkpoint, and what an older version's Orbax left."""
  _save(tmp_path, 3)
  (tmp_path / "5.sha256.json").write_text("{}")
  (tmp_path / "5.orbax-checkpoint-tmp-1").mkdir()
  (tmp_path / "mine.sha256.json").write_text("{}")
  saved = checkpoints.Checkpoints(tmp_path)
  assert saved.restore_latest(*_state(0.0))[0] == 3
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"3", "3.sha256.json", "mine.sha256.json"}


def test_a_save_counts_as_soon_as_it_has_ended(tmp_path):
  """Not when the next one begins: a run may be killed between the two."""
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(3, *_state(3.0))
  until = time.monotonic() + 60
  while not (tmp_path / "3").exists() and time.monotonic() < until:
    time.sleep(0.001)
  assert checkpoints.load_params(tmp_path)[0] == 3
  saved.look()
  saved.select([3])
  saved.wait()
  assert saved.selected() == {"steps": [3]}
  saved.close()


def test_a_full_disk_is_told_by_the_next_look(tmp_path, monkeypatch):
  """One line with path and reason; what was there before stays."""
  _save(tmp_path, 3)

  def full(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: ...: No space left on device [os_err")

  saved = checkpoints.Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint_files.ocp.Checkpointer, "save", full)
    saved.save(5, *_state(5.0))
    saved.close()
  with pytest.raises(errors.DiskError, match="cannot write .*/5: No space"):
    saved.look()
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"3", "3.sha256.json"}


def test_threads_of_a_failed_save_leave_nothing(tmp_path, monkeypatch):
  """They go on writing after the error, into a folder made anew."""
  late = []

  def full(_, path, **__):
    def write():
      time.sleep(0.4)  # the folder has been removed once by then
      path.mkdir(parents=True)
      (path / "late").touch()

    late.append(threading.Thread(target=write))
    late[0].start()
    raise ValueError("RESOURCE_EXHAUSTED: ...: No space left on device [os_err")

  monkeypatch.setattr(checkpoint_files.ocp.Checkpointer, "save", full)
  with pytest.raises(errors.DiskError, match="cannot write .*/5: No space"):
    checkpoint_files.write(tmp_path, 5, {"params": {"a": np.zeros(2)}})
  late[0].join()
  assert not list(tmp_path.iterdir())


def test_a_certain_one_or_an_error(tmp_path):
  """Of several processes all go on from the same, not each from its newest."""
  _save(tmp_path, 3, 5)
  saved = checkpoints.Checkpoints(tmp_path, writes=False)
  step, params, _ = saved.restore(3, *_state(0.0))
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, _state(3.0)[0])
  with pytest.raises(errors.InputError, match="8 is missing"):
    saved.restore(8, *_state(0.0))
  fresh = _state(1.0)
  assert saved.restore(0, *fresh) == (0, *fresh)


def test_nothing_there(tmp_path):
  """A fresh run starts from its arguments; embedding says what to run."""
  params, optimizer = _state(1.0)
  step, found, _ = checkpoints.Checkpoints(tmp_path).restore_latest(
    params, optimizer
  )
  assert step == 0
  assert found is params
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    checkpoints.load_params(tmp_path)
  _save(tmp_path, 3)
  with pytest.raises(errors.InputError, match="no checkpoint of step 4; .* 3"):
    checkpoints.load_params(tmp_path, 4)
