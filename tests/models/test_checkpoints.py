"""Checkpoints come back bit for bit, and damage is found before use."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax import errors
from dpr_jax.models import checkpoints


def _state(value):
  params = {"passage": {"query": {"kernel": jnp.full((64, 64), value)}}}
  return params, optax.adamw(1e-3).init(params)


def _save(folder, *steps, keep=2):
  saved = checkpoints.Checkpoints(folder, keep)
  for step in steps:
    saved.save(step, *_state(float(step)))
  saved.finish()


def _flip(folder, step):
  """Flips one bit in the largest file of a checkpoint."""
  files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
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
  with pytest.raises(errors.InputError, match="was not completed"):
    checkpoints.load_params(tmp_path)
  assert checkpoints.Checkpoints(tmp_path).steps() == [3]


def test_a_save_counts_as_soon_as_it_has_ended(tmp_path):
  """Not when the next one begins: a run may be killed between the two."""
  saved = checkpoints.Checkpoints(tmp_path)
  saved.select([3])
  saved.save(3, *_state(3.0))
  record = tmp_path / "3.sha256.json"
  until = time.monotonic() + 60
  while not record.exists() and time.monotonic() < until:
    saved.record_finished()
    time.sleep(0.01)
  assert checkpoints.load_params(tmp_path)[0] == 3
  assert saved.selected() == {"steps": [3]}
  saved.finish()


def test_a_certain_one_or_an_error(tmp_path):
  """Of several processes all go on from the same, not each from its newest."""
  _save(tmp_path, 3, 5)
  saved = checkpoints.Checkpoints(tmp_path, writes=False)
  step, params, _ = saved.restore(3, *_state(0.0))
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, _state(3.0)[0])
  with pytest.raises(errors.InputError, match="8 has no checksums"):
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
